"""The door before a key store: shut by silence, opened by a look, never to a store that is not ours."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from keymesh.adapters.sqlite_keystore import SqliteKeyStore
from keymesh.adapters.system import SystemEntropy
from keymesh.app import guarded_store, region_store
from keymesh.app.guarded_store import CALLS_AT_ONCE
from keymesh.app.ivk_book import FRESH_S, IvkBook
from keymesh.app.region_store import MEMORY_FILE, RegionStore
from keymesh.core.events import StoreSeen, Unsealed
from keymesh.core.ivk import WRAPS_RESERVED
from keymesh.core.keystore import NEWEST_SCHEMA, StoredIvk, StoredKey
from keymesh.model.errors import Integrity, KeymeshError, Refused, Unavailable
from keymesh.model.ids import Digest, Kid
from keymesh.model.states import IvkState
from keymesh.model.time import Instant


def ivk(generation: int, state: IvkState = IvkState.ACTIVE) -> StoredIvk:
    return StoredIvk(
        generation=generation,
        kid=Kid(f"{generation:032x}"),
        state=state,
        created_at=Instant(1),
        wraps=0,
        blob=b"ivk",
    )


def key(n: int = 1) -> StoredKey:
    return StoredKey(
        namespace="acme",
        key="l2",
        version=n,
        revision=1,
        kid=Kid(f"{n:032x}"),
        digest=Digest(f"{n:064x}"),
        ivk_kid="",
        blob=b"blob",
    )


class Flaky:
    """A real store, in front of which one can stand: every call is counted, and may fail, or wait."""

    late_write_s = 0.0

    def __init__(self, path: Path) -> None:
        self.real = SqliteKeyStore(path)
        self.fails: KeymeshError | None = None
        self.held: asyncio.Event | None = None
        self.calls: list[str] = []
        self.under_way = self.most_under_way = 0

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def call(*args: Any, **more: Any) -> Any:
            self.calls.append(name)
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
            try:
                if self.held is not None:
                    await self.held.wait()
                if self.fails is not None:
                    raise self.fails
                return await getattr(self.real, name)(*args, **more)
            finally:
                self.under_way -= 1

        return call


@pytest.fixture
async def inner(tmp_path: Path) -> AsyncIterator[Flaky]:
    made = Flaky(tmp_path / "keystore.db")
    yield made
    await made.real.close()


def region(inner: Any, path: Path, name: str = "eu") -> RegionStore:
    return RegionStore(inner, region=name, directory=path, entropy=SystemEntropy())


# --- the door --------------------------------------------------------------------------------------------------------


async def test_nothing_goes_through_before_the_first_look(inner: Flaky, tmp_path: Path) -> None:
    made = region(inner, tmp_path)
    with pytest.raises(Unavailable) as early:
        await made.guarded.ivks()
    assert early.value.code == "store-not-open"
    assert inner.calls == []
    await made.check()
    assert await made.guarded.ivks() == ()
    assert made.schema == NEWEST_SCHEMA


AWAY = [
    "credentials",
    "no-answer",
    "openbao-answer",
    "sealed",
    "standby",
    "store-login-refused",
    "store-no-mount",
    "throttled",
    "timeout",
    "unreachable",
]


@pytest.mark.parametrize("code", AWAY)
async def test_silence_shuts_the_door_for_all_and_only_a_look_opens_it(inner: Flaky, tmp_path: Path, code: str) -> None:
    made = region(inner, tmp_path)
    await made.check()
    inner.fails = Unavailable(code, "not now")
    for _ in range(3):
        with pytest.raises(Unavailable) as away:
            await made.guarded.stored_keys("acme")
        assert away.value.code == code
    assert inner.calls.count("stored_keys") == 1
    with pytest.raises(Unavailable):
        await made.check()
    inner.fails = None
    with pytest.raises(Unavailable):
        await made.guarded.stored_keys("acme")
    await made.check()
    assert await made.guarded.stored_keys("acme") == ()


OF_ONE_CALL = [
    Unavailable("storage", "disk full"),
    Unavailable("store-denied", "no"),
    Integrity("storage", "rot"),
    Refused("bad-field", "x"),
]


@pytest.mark.parametrize("bad", OF_ONE_CALL)
async def test_what_concerns_one_call_shuts_no_door(inner: Flaky, tmp_path: Path, bad: KeymeshError) -> None:
    made = region(inner, tmp_path)
    await made.check()
    inner.fails = bad
    with pytest.raises(type(bad)):
        await made.guarded.put_key(key(), over=None)
    inner.fails = None
    assert await made.guarded.put_key(key(), over=None)


async def test_a_store_that_hangs_is_given_up_and_holds_up_nobody(inner: Flaky, tmp_path: Path) -> None:
    made = region(inner, tmp_path)
    made.guarded.call_max_s = 0.05
    await made.check()
    inner.held = asyncio.Event()
    calls = [asyncio.create_task(made.guarded.get_blob("acme", f"{n:064x}")) for n in range(40)]
    done = await asyncio.gather(*calls, return_exceptions=True)
    assert {getattr(one, "code", None) for one in done} == {"timeout"}
    assert inner.most_under_way == CALLS_AT_ONCE
    assert inner.calls.count("get_blob") == CALLS_AT_ONCE  # the others were told, and never sent
    assert inner.under_way == 0


async def test_those_that_wait_are_bounded(inner: Flaky, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guarded_store, "WAITING_MAX", 3)
    made = region(inner, tmp_path)
    await made.check()
    inner.held = asyncio.Event()
    calls = [asyncio.create_task(made.guarded.count_blobs("acme")) for _ in range(CALLS_AT_ONCE + 5)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    inner.held.set()
    done = await asyncio.gather(*calls, return_exceptions=True)
    assert sorted(getattr(one, "code", "") for one in done) == [""] * (CALLS_AT_ONCE + 3) + ["store-busy"] * 2
    assert await made.guarded.count_blobs("acme") == 0


# --- whose store it is -----------------------------------------------------------------------------------------------


async def test_a_store_that_is_empty_where_ours_was_is_never_filled_anew(tmp_path: Path) -> None:
    made = region(SqliteKeyStore(tmp_path / "keystore.db"), tmp_path)
    await made.check()
    await made.guarded.put_ivk(ivk(1))
    await made.check()
    await made.guarded.close()
    for path in tmp_path.glob("keystore.db*"):
        path.unlink()
    lost = region(SqliteKeyStore(tmp_path / "keystore.db"), tmp_path)
    for _ in range(2):
        with pytest.raises(Integrity) as refused:
            await lost.check()
        assert refused.value.code == "store-lost"
        with pytest.raises(Integrity) as shut:
            await lost.guarded.put_ivk(ivk(1))
        assert shut.value.code == "store-lost"
    (tmp_path / MEMORY_FILE).unlink()  # an operator's word that it is lost for good
    await lost.check()
    assert await lost.guarded.ivks() == ()
    await lost.guarded.close()


async def test_a_store_restored_from_before_a_rotation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keystore.db"
    made = region(SqliteKeyStore(path), tmp_path)
    await made.check()
    await made.guarded.put_ivk(ivk(1))
    await made.guarded.close()
    shutil.copy(path, tmp_path / "backup")
    made = region(SqliteKeyStore(path), tmp_path)
    await made.check()
    await made.guarded.put_ivk(ivk(2))
    await made.check()
    await made.guarded.close()
    shutil.copy(tmp_path / "backup", path)
    old = region(SqliteKeyStore(path), tmp_path)
    with pytest.raises(Integrity) as refused:
        await old.check()
    assert refused.value.code == "store-rolled-back"
    await old.guarded.close()


async def test_another_regions_store_and_another_store_are_refused(tmp_path: Path) -> None:
    ours, other = tmp_path / "ours", tmp_path / "other"
    for directory, name in ((ours, "eu"), (other, "us")):
        directory.mkdir()
        made = region(SqliteKeyStore(directory / "keystore.db"), directory, name)
        await made.check()
        await made.guarded.close()
    strange = region(SqliteKeyStore(other / "keystore.db"), tmp_path)
    with pytest.raises(Integrity) as refused:
        await strange.check()
    assert refused.value.code == "store-of-another-region"
    assert not (tmp_path / MEMORY_FILE).exists()
    swapped = region(SqliteKeyStore(tmp_path / "new.db"), tmp_path)
    await swapped.check()
    shutil.copy(ours / MEMORY_FILE, tmp_path / MEMORY_FILE)
    with pytest.raises(Integrity) as refused:
        await swapped.check()
    assert refused.value.code == "store-of-another"
    for one in (strange, swapped):
        await one.guarded.close()


@pytest.mark.parametrize("content", [b"", b"{}", b"x", b'{"store_id":"a","schema":1}', b"\xff" * 5_000])
async def test_a_memory_that_cannot_be_read_is_no_reason_to_begin_anew(
    inner: Flaky, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / MEMORY_FILE).write_bytes(content)
    made = region(inner, tmp_path)
    with pytest.raises(Integrity):
        await made.check()
    assert await inner.real.identity() is None


async def test_a_memory_that_cannot_be_reached_or_kept_is_silence(inner: Flaky, tmp_path: Path) -> None:
    (tmp_path / MEMORY_FILE).mkdir()
    made = region(inner, tmp_path)
    with pytest.raises(Unavailable):
        await made.check()
    nowhere = region(inner, tmp_path / "absent")
    with pytest.raises(Unavailable) as unkept:
        await nowhere.check()
    assert unkept.value.code == "storage"


async def until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not done():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


# --- over time -------------------------------------------------------------------------------------------------------


async def test_a_store_that_comes_back_is_looked_at_and_opened(
    inner: Flaky, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(region_store, "RETRY_MIN_S", 0.01)
    made = region(inner, tmp_path)
    opened: list[int] = []
    watching = asyncio.create_task(made.watch(lambda seen: opened.append(seen.schema)))
    await until(lambda: len(opened) == 1)
    inner.fails = Unavailable("sealed", "OpenBao is sealed")
    with pytest.raises(Unavailable):
        await made.guarded.ivks()
    await until(lambda: inner.calls.count("identity") >= 5)
    assert len(opened) == 1
    inner.fails = None
    await until(lambda: len(opened) == 2)
    assert await made.guarded.ivks() == ()
    watching.cancel()


async def test_a_migration_shows_at_once(inner: Flaky, tmp_path: Path) -> None:
    made = region(inner, tmp_path)
    await made.check()
    await made.migrate(NEWEST_SCHEMA)
    with pytest.raises(Refused):
        await made.migrate(1)
    assert made.schema == NEWEST_SCHEMA


async def test_a_migration_that_fails_is_said_in_the_log_and_told_nobody(
    inner: Flaky, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = region(inner, tmp_path)
    await made.check()
    told: list[StoreSeen] = []
    await made.migrate_and_tell(NEWEST_SCHEMA + 1, told.append)
    inner.fails = Unavailable("unreachable", "gone")
    await made.migrate_and_tell(NEWEST_SCHEMA, told.append)
    assert told == []
    assert [r.message for r in caplog.records].count("key store not migrated") == 2
    inner.fails = None
    await made.check()
    await made.migrate_and_tell(NEWEST_SCHEMA, told.append)
    assert told == [StoreSeen(NEWEST_SCHEMA, NEWEST_SCHEMA)]


async def test_the_region_opens_once_its_store_shows_the_internal_key(
    inner: Flaky, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(region_store, "RETRY_MAX_S", 0.01)
    made = region(inner, tmp_path)
    tries: list[int] = []
    told: list[Unsealed] = []

    async def open_active(*, known: int) -> int:
        tries.append(known)
        if len(tries) == 1:
            raise Unavailable("no-ivk", "not yet")
        await inner.real.put_ivk(ivk(1))
        return 1

    await made.open_region(open_active, told.append)
    assert (tries, told, made.generation) == ([0, 0], [Unsealed(1)], 1)


async def test_what_a_migration_left_to_do_waits_for_a_store_that_is_away(inner: Flaky, tmp_path: Path) -> None:
    made = region(inner, tmp_path)
    await made.check()
    inner.fails = Unavailable("unreachable", "gone")
    await made._tidy()
    assert inner.calls[-1] == "migrate"


# --- internal keys, as remembered ------------------------------------------------------------------------------------


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


async def booked(inner: Flaky, tmp_path: Path, *ivks: StoredIvk) -> tuple[IvkBook, Clock]:
    made, clock = region(inner, tmp_path), Clock()
    await made.check()
    for one in ivks:
        await inner.real.put_ivk(one)
    return IvkBook(inner, clock), clock


async def test_internal_keys_are_read_once_in_a_while_and_unknown_ones_at_once(inner: Flaky, tmp_path: Path) -> None:
    book, clock = await booked(inner, tmp_path, ivk(1))
    inner.calls.clear()
    for _ in range(5):
        assert (await book.active()).generation == 1
        assert await book.sealer(ivk(1).kid) == ivk(1)
    assert inner.calls == ["ivks"]
    await inner.real.put_ivk(ivk(2))  # by another node
    assert await book.sealer(ivk(2).kid) == ivk(2)
    assert (await book.active()).generation == 2
    await inner.real.put_ivk(ivk(1, IvkState.REVOKED))
    clock.now_s += FRESH_S
    assert await book.sealer(ivk(1).kid) == ivk(1, IvkState.REVOKED)
    assert await book.sealer("f" * 32) is None


async def test_what_was_read_opens_on_while_the_store_is_away_and_seals_nothing(inner: Flaky, tmp_path: Path) -> None:
    book, clock = await booked(inner, tmp_path, ivk(1))
    await book.active()
    inner.fails = Unavailable("unreachable", "gone")
    clock.now_s += 10 * FRESH_S
    assert await book.sealer(ivk(1).kid) == ivk(1)
    for call in (book.sealer("f" * 32), book.active(), book.take_wrap(ivk(1).kid)):
        with pytest.raises(Unavailable):
            await call


async def test_wraps_are_counted_in_blocks_before_they_are_made(inner: Flaky, tmp_path: Path) -> None:
    book, _ = await booked(inner, tmp_path, ivk(1))
    await book.active()
    for n in range(1, 2 * WRAPS_RESERVED + 2):
        await book.take_wrap(ivk(1).kid)
        counted = (await inner.real.ivks())[0].wraps
        assert n <= counted < n + WRAPS_RESERVED
    assert inner.calls.count("count_wraps") == 3
    again = IvkBook(inner, Clock())  # after a crash: what was left is not used
    await again.take_wrap(ivk(1).kid)
    assert (await inner.real.ivks())[0].wraps == 4 * WRAPS_RESERVED


async def test_a_list_that_became_shorter_is_not_believed(inner: Flaky, tmp_path: Path) -> None:
    book, _ = await booked(inner, tmp_path, ivk(1), ivk(2))
    await book.fresh()
    inner.real._db.execute("DELETE FROM ivks WHERE generation = 2")
    with pytest.raises(Integrity) as lost:
        await book.fresh()
    assert lost.value.code == "store-lost"
    inner.real._db.execute("DELETE FROM ivks")
    with pytest.raises(Integrity):
        await book.fresh()


async def test_without_an_active_internal_key_nothing_is_sealed(inner: Flaky, tmp_path: Path) -> None:
    book, _ = await booked(inner, tmp_path, ivk(1, IvkState.GRACE))
    with pytest.raises(Unavailable) as none:
        await book.active()
    assert none.value.code == "no-ivk"
    await book.put(ivk(2))
    assert (await book.active()).generation == 2


# --- a tenant that is no more ----------------------------------------------------------------------------------------


async def test_nothing_of_a_destroyed_tenant_is_written_and_what_is_under_way_is_waited_for(
    inner: Flaky, tmp_path: Path
) -> None:
    made = region(inner, tmp_path)
    await made.check()
    inner.held = asyncio.Event()
    late = asyncio.create_task(made.guarded.put_blob("acme", "aa", b"late"))
    await asyncio.sleep(0)
    made.guarded.forbid("acme")
    quiet = asyncio.create_task(made.guarded.quiet("acme"))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not quiet.done()
    with pytest.raises(Refused) as no:
        await made.guarded.put_blob("acme", "ab", b"new")
    assert no.value.code == "destroyed"
    inner.held.set()
    await asyncio.gather(late, quiet)
    await made.guarded.purge("acme")
    assert await made.guarded.blob_digests("acme") == ()
    await made.guarded.put_blob("globex", "ac", b"other")
    await made.guarded.quiet("acme")
    assert await made.guarded.get_blob("globex", "ac") == b"other"
