"""One contract for every key store: compare-and-set, order, damage, disks that are full."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import os
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.servers.openbao import KV_RULES, OpenBaoServer, openbao

from keymesh.adapters.openbao_keystore import SETTLE_S, OpenBaoKeyStore
from keymesh.adapters.openbao_kv import Kv
from keymesh.adapters.openbao_login import AppRoleLogin
from keymesh.adapters.sqlite_keystore import SqliteKeyStore
from keymesh.app.core_api import keep_blob
from keymesh.core.keystore import NEWEST_SCHEMA, KeyStore, StoredIvk, StoredKey, StoreIdentity
from keymesh.model.errors import Integrity, Refused, Unavailable
from keymesh.model.ids import Digest, Kid
from keymesh.model.states import IvkState
from keymesh.model.time import Instant

LIVE = [pytest.mark.integration, pytest.mark.live]
_prefixes = itertools.count()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keystore.db"


@pytest.fixture
async def sqlite(path: Path) -> AsyncIterator[SqliteKeyStore]:
    made = SqliteKeyStore(path)
    await made.found(named())
    yield made
    await made.close()


@pytest.fixture(scope="module")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBaoServer]:
    with openbao(tmp_path_factory.mktemp("openbao")) as server:
        server.mount("kv", "kv", {"version": "2"})
        server.policy("store", KV_RULES)
        server.app_role_file("store", "store")
        yield server


class Clock:
    """Stands still until told."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Opener:
    """Opens the same store again and again, as several nodes of a region do; named under ``schema`` at first."""

    def __init__(self, path: Path, server: OpenBaoServer | None, schema: int) -> None:
        self.path, self.server, self.schema = path, server, schema
        self.prefix = f"core/{next(_prefixes)}"
        self.clock = Clock()
        self.opened: list[KeyStore] = []

    def unnamed(self) -> KeyStore:
        made: KeyStore
        if self.server is None:
            made = SqliteKeyStore(self.path)
        else:
            client = self.server.client(AppRoleLogin(self.server.directory / "store.json"))
            made = OpenBaoKeyStore(client, mount="kv", prefix=self.prefix, monotonic_s=self.clock)
        self.opened.append(made)
        return made

    async def __call__(self) -> KeyStore:
        made = self.unnamed()
        await made.found(named(self.schema))
        return made


async def opener_of(request: pytest.FixtureRequest, path: Path) -> AsyncIterator[Opener]:
    kind, schema = request.param
    made = Opener(path, request.getfixturevalue("bao") if kind == "openbao" else None, schema)
    yield made
    for one in made.opened:
        await one.close()


def params(*schemas: int) -> list[Any]:
    return [
        pytest.param((kind, schema), id=f"{kind}-{schema}", marks=LIVE if kind == "openbao" else [])
        for kind in ("sqlite", "openbao")
        for schema in schemas
    ]


@pytest.fixture(params=params(1, 2))
async def opener(request: pytest.FixtureRequest, path: Path) -> AsyncIterator[Opener]:
    async for made in opener_of(request, path):
        yield made


@pytest.fixture(params=params(1))
async def old(request: pytest.FixtureRequest, path: Path) -> AsyncIterator[Opener]:
    """Of a store that schema 1 laid out."""
    async for made in opener_of(request, path):
        yield made


@pytest.fixture
async def store(opener: Opener) -> KeyStore:
    return await opener()


def named(schema: int = NEWEST_SCHEMA, store_id: str = "5" * 32) -> StoreIdentity:
    return StoreIdentity(store_id=store_id, region="eu", schema=schema)


def stored(n: int = 1, *, namespace: str = "acme", key: str = "l2", version: int = 1, revision: int = 1) -> StoredKey:
    return StoredKey(
        namespace=namespace,
        key=key,
        version=version,
        revision=revision,
        kid=Kid(f"{n:032x}"),
        digest=Digest(f"{n:064x}"),
        ivk_kid=f"{7:032x}",
        blob=b"\0blob" + bytes([n]),
    )


def ivk(generation: int, state: IvkState = IvkState.ACTIVE) -> StoredIvk:
    return StoredIvk(
        generation=generation,
        kid=Kid(f"{generation:032x}"),
        state=state,
        created_at=Instant(1_000 + generation),
        wraps=0,
        blob=b"ivk" + bytes([generation]),
    )


# --- keys ------------------------------------------------------------------------------------------------------------


async def test_a_key_is_put_once_and_read_whole(store: KeyStore) -> None:
    assert await store.get_key("acme", stored().kid) is None
    assert await store.put_key(stored(), over=None)
    assert await store.get_key("acme", stored().kid) == stored()
    assert not await store.put_key(replace(stored(), blob=b"other"), over=None)
    assert await store.get_key("other", stored().kid) is None
    assert await store.get_key("a' OR '1'='1", stored().kid) is None
    assert await store.get_key("acme", stored().kid) == stored()


@pytest.mark.parametrize(
    "change",
    [{"revision": 2}, {"ivk_kid": "9" * 32}, {"blob": b"x"}],
    ids=["revision", "seal", "bytes"],
)
async def test_compare_and_set_compares_all_that_can_change(store: KeyStore, change: dict[str, object]) -> None:
    await store.put_key(stored(), over=None)
    new = replace(stored(), revision=5, blob=b"new")
    stale = replace(stored(), **change)  # type: ignore[arg-type]
    assert not await store.put_key(new, over=stale)
    assert await store.get_key("acme", stored().kid) == stored()
    assert await store.put_key(new, over=stored())
    assert await store.get_key("acme", stored().kid) == new
    assert not await store.put_key(stored(), over=stored())


async def test_nothing_is_put_over_what_is_gone(store: KeyStore) -> None:
    await store.put_key(stored(), over=None)
    assert not await store.drop_key(replace(stored(), blob=b"of before"))
    assert await store.get_key("acme", stored().kid) == stored()
    assert await store.drop_key(stored())
    assert not await store.drop_key(stored())
    assert not await store.put_key(replace(stored(), revision=2), over=stored())
    assert await store.get_key("acme", stored().kid) is None
    assert await store.put_key(stored(), over=None)


async def test_of_many_writers_over_one_state_exactly_one_wins(opener: Opener) -> None:
    store = await opener()
    await store.put_key(stored(), over=None)
    mine = [await opener() for _ in range(6)]
    over = [await one.get_key("acme", stored().kid) for one in mine]

    async def write(n: int) -> bool:
        return await mine[n].put_key(replace(stored(), revision=2, blob=bytes([n])), over=over[n])

    done = await asyncio.gather(*(write(n) for n in range(6)))
    won = [n for n, is_done in enumerate(done) if is_done]
    assert len(won) == 1
    left = await store.get_key("acme", stored().kid)
    assert left is not None
    assert left.blob == bytes([won[0]])


async def test_of_many_writers_of_a_new_key_exactly_one_wins(opener: Opener) -> None:
    mine = [await opener() for _ in range(6)]
    writes = [one.put_key(replace(stored(), blob=bytes([n])), over=None) for n, one in enumerate(mine)]
    assert sorted(await asyncio.gather(*writes)) == [False] * 5 + [True]


async def test_keys_are_listed_by_namespace_key_and_version(store: KeyStore) -> None:
    rows = [
        stored(1, namespace="b", key="l2", version=1),
        stored(2, namespace="a", key="l3/x", version=2),
        stored(3, namespace="a", key="l3/x", version=10),
        stored(4, namespace="a", key="l2", version=2),
        stored(5, namespace="a", key="l2", version=1),
    ]
    for row in rows:
        assert await store.put_key(row, over=None)
    assert await store.stored_keys("a") == (rows[4], rows[3], rows[1], rows[2])
    assert await store.stored_keys() == (*await store.stored_keys("a"), rows[0])
    assert await store.stored_keys("c") == ()
    assert await store.stored_keys("a' OR '1'='1") == ()


async def test_what_was_read_before_a_drop_is_not_put_over_what_came_after_it(store: KeyStore) -> None:
    await store.put_key(stored(), over=None)
    await store.drop_key(stored())
    other = replace(stored(), blob=b"made anew")
    assert await store.put_key(other, over=None)
    assert not await store.put_key(replace(stored(), revision=2), over=stored())
    assert await store.get_key("acme", stored().kid) == other
    assert await store.stored_keys("acme") == (other,)


# --- internal keys ---------------------------------------------------------------------------------------------------


async def test_internal_keys_newest_first_and_only_their_state_changes(store: KeyStore) -> None:
    assert await store.ivks() == ()
    for generation in (1, 3, 2):
        await store.put_ivk(ivk(generation))
    assert [i.generation for i in await store.ivks()] == [3, 2, 1]
    await store.put_ivk(replace(ivk(1, IvkState.GRACE), blob=b"other", created_at=Instant(9), wraps=99))
    assert (await store.ivks())[2] == ivk(1, IvkState.GRACE)
    await store.put_ivk(replace(ivk(1, IvkState.REVOKED), kid=Kid("f" * 32)))  # another key under a taken generation
    assert (await store.ivks())[2] == ivk(1, IvkState.GRACE)


async def test_wraps_are_counted_up(store: KeyStore) -> None:
    await store.put_ivk(ivk(1))
    await store.put_ivk(ivk(2))
    await store.count_wraps(ivk(1).kid, 3)
    await store.count_wraps(ivk(1).kid, 2**32)
    await store.count_wraps("e" * 32, 1)
    assert [i.wraps for i in await store.ivks()] == [0, 2**32 + 3]
    await store.put_ivk(ivk(1, IvkState.GRACE))
    assert (await store.ivks())[1].wraps == 2**32 + 3


async def test_wraps_counted_by_several_nodes_are_all_counted(opener: Opener) -> None:
    store = await opener()
    await store.put_ivk(ivk(1))
    mine = [await opener() for _ in range(3)]
    await asyncio.gather(*(one.count_wraps(ivk(1).kid, 1) for one in mine for _ in range(3)))
    assert (await store.ivks())[0].wraps == 9


# --- blobs -----------------------------------------------------------------------------------------------------------


async def test_blobs_are_each_tenants_own(store: KeyStore) -> None:
    digest = "ab" * 32
    assert await store.get_blob("acme", digest) is None
    await store.put_blob("acme", digest, b"one")
    await store.put_blob("acme", digest, b"one")
    await store.put_blob("other", digest, b"two")
    assert (await store.get_blob("acme", digest), await store.get_blob("other", digest)) == (b"one", b"two")
    await store.put_blob("acme", digest, b"mended")
    assert await store.get_blob("acme", digest) == b"mended"
    assert (await store.count_blobs("acme"), await store.count_blobs("other"), await store.count_blobs("acm")) == (
        1,
        1,
        0,
    )
    await store.drop_blob("acme", digest)
    await store.drop_blob("acme", digest)
    assert await store.count_blobs("acme") == 0
    assert (await store.get_blob("acme", digest), await store.get_blob("other", digest)) == (None, b"two")


async def test_other_regions_may_leave_a_bounded_number(store: KeyStore) -> None:
    for n in range(3):
        await keep_blob(store, "acme", f"{n:064x}", b"x", most=3)
    await keep_blob(store, "acme", f"{1:064x}", b"mended", most=3)
    assert await store.get_blob("acme", f"{1:064x}") == b"mended"
    with pytest.raises(Unavailable) as caught:
        await keep_blob(store, "acme", f"{9:064x}", b"x", most=3)
    assert caught.value.code == "too-many-blobs"
    await keep_blob(store, "other", f"{9:064x}", b"x", most=3)
    assert await store.count_blobs("acme") == 3


# --- a tenant that is no more ----------------------------------------------------------------------------------------


def spelled(*blobs: bytes) -> set[bytes]:
    """As a store may have written them."""
    return {spelling for blob in blobs for spelling in (blob, base64.b64encode(blob), blob.hex().encode())}


async def test_a_purge_leaves_nothing_of_the_tenant_and_all_of_the_others(opener: Opener, path: Path) -> None:
    store = await opener()
    old, new, l3 = (os.urandom(96) for _ in range(3))
    first = replace(stored(), blob=old)
    await store.put_key(first, over=None)
    await store.put_key(replace(first, revision=2, blob=new), over=first)
    await store.put_key(replace(stored(2, key="l3/pay"), blob=l3), over=None)
    await store.put_key(stored(3, namespace="acme-2"), over=None)
    await store.put_blob("acme", "aa", new)
    await store.put_blob("acme", "ab", l3)
    await store.put_blob("acme-2", "ac", b"other")
    assert await store.blob_digests("acme") == ("aa", "ab")
    await store.purge("acme")
    for one in (store, await opener()):
        assert await one.stored_keys("acme") == ()
        assert await one.blob_digests("acme") == ()
        assert await one.get_key("acme", first.kid) is None and await one.get_blob("acme", "aa") is None
        assert await one.stored_keys() == (stored(3, namespace="acme-2"),)
        assert await one.get_blob("acme-2", "ac") == b"other"
    await store.purge("acme")
    await store.purge("nobody")
    if opener.server is None:
        needles = spelled(old, new, l3)
        assert not [name for name in path.parent.iterdir() if any(n in name.read_bytes() for n in needles)]
    else:
        client = opener.server.client(AppRoleLogin(opener.server.directory / "store.json"))
        kv = Kv(client, mount="kv", prefix=opener.prefix)
        try:
            for where in ("namespaces/acme", "blobs/acme", "index/acme"):
                assert await kv.names(where) == []
            assert first.kid not in await kv.names("keys")
            assert (await kv.read(f"namespaces/acme/{first.kid}", dict))[0] == 0  # no version, no counter
        finally:
            await kv.close()


async def test_a_purge_reaches_what_a_migration_has_not_moved(old: Opener) -> None:
    before, store = await old(), await old()
    await before.put_key(stored(), over=None)
    await before.put_blob("acme", "aa", b"blob")
    await store.migrate(NEWEST_SCHEMA)
    with contextlib.suppress(Unavailable):  # by a node that has not heard; SQLite does not let it
        await before.put_key(stored(4), over=None)
    await store.purge("acme")
    assert await store.stored_keys("acme") == () and await store.get_key("acme", stored(4).kid) is None


# --- life ------------------------------------------------------------------------------------------------------------


async def test_everything_is_there_after_a_reopen_and_the_owners_alone(path: Path) -> None:
    first = SqliteKeyStore(path)
    await first.found(named())
    await first.put_key(stored(), over=None)
    await first.put_ivk(ivk(1))
    await first.put_blob("acme", "ab" * 32, b"one")
    assert {oct(file.stat().st_mode & 0o777) for file in path.parent.glob("keystore.db*")} == {"0o600"}
    await first.close()
    again = SqliteKeyStore(path)
    assert await again.identity() == named()
    assert await again.get_key("acme", stored().kid) == stored()
    assert await again.ivks() == (ivk(1),)
    assert await again.get_blob("acme", "ab" * 32) == b"one"
    await again.close()


async def test_a_full_disk_is_unavailable_and_changes_nothing(sqlite: SqliteKeyStore) -> None:
    await sqlite.put_key(stored(), over=None)
    await sqlite.put_ivk(ivk(1))
    pages = sqlite._db.execute("PRAGMA page_count").fetchone()[0]
    sqlite._db.execute(f"PRAGMA max_page_count = {pages}")
    big = bytes(100_000)
    for write in (
        sqlite.put_key(replace(stored(), revision=2, blob=big), over=stored()),
        sqlite.put_key(replace(stored(2), blob=big), over=None),
        sqlite.put_ivk(replace(ivk(2), blob=big)),
        sqlite.put_blob("acme", "ab" * 32, big),
    ):
        with pytest.raises(Unavailable) as full:
            await write
        assert full.value.code == "storage"
    assert await sqlite.stored_keys() == (stored(),)
    assert await sqlite.ivks() == (ivk(1),)
    assert await sqlite.get_blob("acme", "ab" * 32) is None


@pytest.mark.parametrize("word", ["", "ACTIVE", "act", "active ", "deleted"])
async def test_an_internal_key_in_an_unknown_state_is_an_integrity_error(sqlite: SqliteKeyStore, word: str) -> None:
    """Neither a guess nor a crash: what cannot be understood is not used."""
    await sqlite.put_ivk(ivk(1))
    sqlite._db.execute("UPDATE ivks SET state = ?", (word,))
    with pytest.raises(Integrity):
        await sqlite.ivks()


async def test_a_damaged_file_is_an_integrity_error(path: Path) -> None:
    path.write_bytes(b"this is no database" * 300)
    with pytest.raises(Integrity):
        SqliteKeyStore(path)
    path.unlink()
    store = SqliteKeyStore(path)
    await store.found(named())
    for n in range(1, 80):
        await store.put_key(replace(stored(n), blob=bytes(600)), over=None)
    await store.close()
    raw = bytearray(path.read_bytes())
    raw[4096 * 8 :] = b"\x5a" * (len(raw) - 4096 * 8)
    path.write_bytes(raw)
    again = SqliteKeyStore(path)
    with pytest.raises(Integrity):
        await again.identity()
        await again.stored_keys()
        await again.ivks()
    await again.close()


# --- whose it is -----------------------------------------------------------------------------------------------------


async def test_a_store_is_named_once_and_used_only_then(opener: Opener) -> None:
    first = opener.unnamed()
    assert await first.identity() is None
    assert not await first.has_rows()
    for call in (first.get_key("acme", stored().kid), first.put_key(stored(), over=None), first.stored_keys()):
        with pytest.raises(Unavailable) as early:
            await call
        assert early.value.code == "store-not-open"
    mine, other = named(opener.schema), named(opener.schema, "6" * 32)
    assert sorted(
        found.store_id for found in await asyncio.gather(first.found(mine), opener.unnamed().found(other))
    ) in ([mine.store_id] * 2, [other.store_id] * 2)
    assert await first.found(replace(mine, region="us")) == await first.identity()


async def test_a_store_of_a_newer_release_is_left_alone(opener: Opener) -> None:
    await opener.unnamed().found(named(NEWEST_SCHEMA + 1))
    newer = opener.unnamed()
    assert await newer.identity() == named(NEWEST_SCHEMA + 1)
    for call in (newer.get_key("acme", stored().kid), newer.put_key(stored(), over=None), newer.stored_keys()):
        with pytest.raises(Unavailable) as refused:
            await call
        assert refused.value.code == "store-not-open"
    with pytest.raises(Refused) as unknown:
        await newer.migrate(NEWEST_SCHEMA)
    assert unknown.value.code == "schema-unknown"
    assert await opener.unnamed().identity() == named(NEWEST_SCHEMA + 1)


# --- migration -------------------------------------------------------------------------------------------------------

ROWS = [stored(n, namespace=space, version=n) for n, space in enumerate(("a", "a", "b", "c"), 1)]


async def filled(opener: Opener) -> KeyStore:
    store = await opener()
    for row in ROWS:
        assert await store.put_key(row, over=None)
    await store.put_ivk(ivk(1))
    await store.put_blob("a", "ab" * 32, b"blob")
    return store


async def holds_all(store: KeyStore) -> bool:
    assert await store.ivks() == (ivk(1),)
    assert await store.get_blob("a", "ab" * 32) == b"blob"
    assert [await store.get_key(row.namespace, row.kid) for row in ROWS] == ROWS
    assert await store.stored_keys("a") == tuple(ROWS[:2])
    return await store.stored_keys() == tuple(ROWS)


async def test_a_migration_moves_every_row_and_may_be_done_again(old: Opener) -> None:
    store = await filled(old)
    assert await holds_all(store)
    for _ in range(2):
        await store.migrate(2)
        found = await store.identity()
        assert found is not None
        assert found.schema == 2
        assert await holds_all(store)
    again = await old()
    assert await holds_all(again)
    newer = replace(ROWS[0], revision=2, blob=b"newer")
    assert await again.put_key(newer, over=ROWS[0])
    assert not await store.put_key(replace(newer, revision=3), over=ROWS[0])
    assert await store.drop_key(newer)
    assert await again.stored_keys("a") == (ROWS[1],)


async def test_a_store_goes_neither_back_nor_beyond_what_this_release_knows(old: Opener) -> None:
    store = await filled(old)
    for schema, code in ((0, "schema-unknown"), (3, "schema-unknown")):
        with pytest.raises(Refused) as refused:
            await store.migrate(schema)
        assert refused.value.code == code
    await store.migrate(1)
    await store.migrate(2)
    with pytest.raises(Refused) as back:
        await store.migrate(1)
    assert back.value.code == "schema-backwards"
    assert await holds_all(store)


async def test_a_node_that_did_not_hear_of_a_migration_loses_nothing(old: Opener) -> None:
    store, unaware = await filled(old), await old()
    assert await holds_all(unaware)
    await store.migrate(2)
    late = stored(9, namespace="a", version=9)
    with contextlib.suppress(Unavailable):  # of SQLite's: what is read is there, what is written must wait
        assert await unaware.put_key(late, over=None)
    if await store.get_key("a", late.kid) is None:
        await unaware.identity()
        assert await unaware.put_key(late, over=None)
    assert await store.get_key("a", late.kid) == late
    assert late in await store.stored_keys("a")
    assert [await unaware.get_key(row.namespace, row.kid) for row in ROWS] == ROWS


@pytest.mark.integration
@pytest.mark.live
async def test_a_migration_stopped_anywhere_is_taken_up_again(bao: OpenBaoServer, path: Path) -> None:
    """Cut off after each of its writes in turn: what was there is there, and a second try ends."""
    for cut in range(30):
        opener = Opener(path, bao, 1)
        store = await filled(opener)
        stop = CutOff(cut)
        client = bao.client(AppRoleLogin(bao.directory / "store.json"))
        stopped = OpenBaoKeyStore(client, mount="kv", prefix=opener.prefix)
        await stopped.identity()
        for name in ("write", "destroy"):
            setattr(stopped._kv, name, stop.after(getattr(stopped._kv, name)))
        with contextlib.suppress(Unavailable):
            await stopped.migrate(2)
        await stopped.close()
        other = await opener()
        assert await holds_all(other), cut
        await store.migrate(2)
        assert await holds_all(store), cut
        assert await holds_all(other), cut
        for one in opener.opened:
            await one.close()
        if stop.left >= 0:
            return
    raise AssertionError("it never came to its end")


class CutOff:
    """Lets ``left`` calls through; every one after that is not made."""

    def __init__(self, left: int) -> None:
        self.left = left

    def after(self, call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def cut(*args: Any, **more: Any) -> Any:
            self.left -= 1
            if self.left < 0:
                raise Unavailable("unreachable", "cut off")
            return await call(*args, **more)

        return cut


@pytest.mark.integration
@pytest.mark.live
async def test_old_names_are_left_alone_once_nobody_can_write_them(bao: OpenBaoServer, path: Path) -> None:
    opener = Opener(path, bao, 1)
    store = await filled(opener)
    await store.migrate(2)
    asked: list[str] = []
    names = store._kv.names  # type: ignore[attr-defined]

    async def watched(path: str) -> Any:
        asked.append(path)
        return await names(path)

    store._kv.names = watched  # type: ignore[attr-defined]
    for at_s, is_moving in ((1.0, True), (SETTLE_S - 1, True), (SETTLE_S + 2, False), (SETTLE_S + 3, False)):
        opener.clock.now_s = at_s
        await store.migrate(2)
        asked.clear()
        await store.stored_keys("a")
        assert ("keys" in asked) is is_moving, at_s
    assert await holds_all(store)
    for one in opener.opened:
        await one.close()


OF_RELEASE_0_1 = """
CREATE TABLE IF NOT EXISTS keys (
  kid TEXT PRIMARY KEY, namespace TEXT NOT NULL, key TEXT NOT NULL, version INTEGER NOT NULL,
  revision INTEGER NOT NULL, digest TEXT NOT NULL, ivk_kid TEXT NOT NULL, blob BLOB NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS keys_of ON keys (namespace, key, version);
CREATE TABLE IF NOT EXISTS ivks (
  generation INTEGER PRIMARY KEY, kid TEXT NOT NULL UNIQUE, state TEXT NOT NULL, created_at INTEGER NOT NULL,
  wraps INTEGER NOT NULL, blob BLOB NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS blobs (
  tenant TEXT NOT NULL, digest TEXT NOT NULL, blob BLOB NOT NULL, PRIMARY KEY (tenant, digest)
) STRICT;
"""


async def test_a_file_of_release_0_1_is_taken_over_and_that_release_refuses_what_it_became(path: Path) -> None:
    db = sqlite3.connect(path)
    db.executescript(OF_RELEASE_0_1)
    row = ROWS[0]
    db.execute(
        "INSERT INTO keys (namespace, key, version, revision, kid, digest, ivk_kid, blob) VALUES (?,?,?,?,?,?,?,?)",
        (row.namespace, row.key, row.version, row.revision, row.kid, row.digest, row.ivk_kid, row.blob),
    )
    db.commit()
    store = SqliteKeyStore(path)
    assert await store.has_rows()
    assert await store.identity() is None
    await store.found(named(1))
    assert await store.stored_keys() == (row,)
    db.executescript(OF_RELEASE_0_1)  # that release may still open it: nothing has moved yet
    await store.migrate(2)
    before = path.read_bytes()
    with pytest.raises(sqlite3.OperationalError):
        db.executescript(OF_RELEASE_0_1)
    assert path.read_bytes() == before
    assert await store.stored_keys() == (row,)
    db.close()
    await store.close()


async def test_a_migration_that_the_disk_has_no_room_for_changes_nothing(path: Path) -> None:
    store = SqliteKeyStore(path)
    await store.found(named(1))
    for n in range(1, 60):
        assert await store.put_key(replace(stored(n), blob=bytes(2_000)), over=None)
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages + 4}")
    with pytest.raises(Unavailable):
        await store.migrate(2)
    found = await store.identity()
    assert found is not None
    assert found.schema == 1
    assert len(await store.stored_keys()) == 59
    store._db.execute("PRAGMA max_page_count = 100000")
    await store.migrate(2)
    assert len(await store.stored_keys("acme")) == 59
    await store.close()
