"""One contract for every key store: compare-and-set, order, damage, disks that are full."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import pytest
from tests.servers.openbao import KV_RULES, OpenBaoServer, openbao

from keymesh.adapters.openbao_keystore import OpenBaoKeyStore
from keymesh.adapters.openbao_login import AppRoleLogin
from keymesh.adapters.sqlite_keystore import SqliteKeyStore
from keymesh.app.core_api import keep_blob
from keymesh.core.keystore import KeyStore, StoredIvk, StoredKey
from keymesh.model.errors import Integrity, Unavailable
from keymesh.model.ids import Digest, Kid
from keymesh.model.states import IvkState
from keymesh.model.time import Instant


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keystore.db"


@pytest.fixture
def sqlite(path: Path) -> Iterator[SqliteKeyStore]:
    made = SqliteKeyStore(path)
    yield made
    made.close()


class Openable(KeyStore, Protocol):
    def close(self) -> None: ...


Opener = Callable[[], Openable]
LIVE = [pytest.mark.integration, pytest.mark.serial]
_prefixes = itertools.count()


@pytest.fixture(scope="module")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBaoServer]:
    with openbao(tmp_path_factory.mktemp("openbao")) as server:
        server.mount("kv", "kv", {"version": "2"})
        server.policy("store", KV_RULES)
        server.app_role_file("store", "store")
        yield server


@pytest.fixture(params=["sqlite", pytest.param("openbao", marks=LIVE)])
def opener(request: pytest.FixtureRequest, path: Path) -> Iterator[Opener]:
    """Opens the same store again and again, as several nodes of a region do."""
    opened: list[Openable] = []
    if request.param == "openbao":
        server: OpenBaoServer = request.getfixturevalue("bao")
        prefix = f"core/{next(_prefixes)}"

    def open_one() -> Openable:
        if request.param == "sqlite":
            made: Openable = SqliteKeyStore(path)
        else:
            client = server.client(AppRoleLogin(server.directory / "store.json"))
            made = OpenBaoKeyStore(client, mount="kv", prefix=prefix)
        opened.append(made)
        return made

    yield open_one
    for made in opened:
        made.close()


@pytest.fixture
def store(opener: Opener) -> KeyStore:
    return opener()


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


def test_a_key_is_put_once_and_read_whole(store: KeyStore) -> None:
    assert store.get_key(stored().kid) is None
    assert store.put_key(stored(), over=None)
    assert store.get_key(stored().kid) == stored()
    assert not store.put_key(replace(stored(), blob=b"other"), over=None)
    assert store.get_key(stored().kid) == stored()


@pytest.mark.parametrize(
    "change",
    [{"revision": 2}, {"ivk_kid": "9" * 32}, {"blob": b"x"}],
    ids=["revision", "seal", "bytes"],
)
def test_compare_and_set_compares_all_that_can_change(store: KeyStore, change: dict[str, object]) -> None:
    store.put_key(stored(), over=None)
    new = replace(stored(), revision=5, blob=b"new")
    stale = replace(stored(), **change)  # type: ignore[arg-type]
    assert not store.put_key(new, over=stale)
    assert store.get_key(stored().kid) == stored()
    assert store.put_key(new, over=stored())
    assert store.get_key(stored().kid) == new
    assert not store.put_key(stored(), over=stored())


def test_nothing_is_put_over_what_is_gone(store: KeyStore) -> None:
    store.put_key(stored(), over=None)
    store.drop_key(stored().kid)
    store.drop_key(stored().kid)
    assert not store.put_key(replace(stored(), revision=2), over=stored())
    assert store.get_key(stored().kid) is None
    assert store.put_key(stored(), over=None)


def test_of_many_writers_over_one_state_exactly_one_wins(opener: Opener) -> None:
    store = opener()
    store.put_key(stored(), over=None)
    won: list[int] = []
    barrier = threading.Barrier(6)

    def write(n: int) -> None:
        mine = opener()
        over = mine.get_key(stored().kid)
        barrier.wait()
        if mine.put_key(replace(stored(), revision=2, blob=bytes([n])), over=over):
            won.append(n)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    left = store.get_key(stored().kid)
    assert left is not None
    assert left.blob == bytes([won[0]])


def test_of_many_writers_of_a_new_key_exactly_one_wins(opener: Opener) -> None:
    won: list[bool] = []
    barrier = threading.Barrier(6)

    def write(n: int) -> None:
        mine = opener()
        barrier.wait()
        won.append(mine.put_key(replace(stored(), blob=bytes([n])), over=None))

    threads = [threading.Thread(target=write, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == [False] * 5 + [True]


def test_keys_are_listed_by_namespace_key_and_version(store: KeyStore) -> None:
    rows = [
        stored(1, namespace="b", key="l2", version=1),
        stored(2, namespace="a", key="l3/x", version=2),
        stored(3, namespace="a", key="l3/x", version=10),
        stored(4, namespace="a", key="l2", version=2),
        stored(5, namespace="a", key="l2", version=1),
    ]
    for row in rows:
        assert store.put_key(row, over=None)
    assert store.stored_keys("a") == (rows[4], rows[3], rows[1], rows[2])
    assert store.stored_keys() == (*store.stored_keys("a"), rows[0])
    assert store.stored_keys("c") == ()
    assert store.stored_keys("a' OR '1'='1") == ()


def test_what_was_read_before_a_drop_is_not_put_over_what_came_after_it(store: KeyStore) -> None:
    store.put_key(stored(), over=None)
    store.drop_key(stored().kid)
    other = replace(stored(), blob=b"made anew")
    assert store.put_key(other, over=None)
    assert not store.put_key(replace(stored(), revision=2), over=stored())
    assert store.get_key(stored().kid) == other
    assert store.stored_keys("acme") == (other,)


# --- internal keys ---------------------------------------------------------------------------------------------------


def test_internal_keys_newest_first_and_only_their_state_changes(store: KeyStore) -> None:
    assert store.ivks() == ()
    for generation in (1, 3, 2):
        store.put_ivk(ivk(generation))
    assert [i.generation for i in store.ivks()] == [3, 2, 1]
    store.put_ivk(replace(ivk(1, IvkState.GRACE), blob=b"other", created_at=Instant(9), wraps=99))
    assert store.ivks()[2] == ivk(1, IvkState.GRACE)
    store.put_ivk(replace(ivk(1, IvkState.REVOKED), kid=Kid("f" * 32)))  # another key under a taken generation
    assert store.ivks()[2] == ivk(1, IvkState.GRACE)


def test_wraps_are_counted_up(store: KeyStore) -> None:
    store.put_ivk(ivk(1))
    store.put_ivk(ivk(2))
    store.count_wraps(ivk(1).kid, 3)
    store.count_wraps(ivk(1).kid, 2**32)
    store.count_wraps("e" * 32, 1)
    assert [i.wraps for i in store.ivks()] == [0, 2**32 + 3]
    store.put_ivk(ivk(1, IvkState.GRACE))
    assert store.ivks()[1].wraps == 2**32 + 3


def test_wraps_counted_by_several_nodes_are_all_counted(opener: Opener) -> None:
    store = opener()
    store.put_ivk(ivk(1))

    def count() -> None:
        mine = opener()
        for _ in range(3):
            mine.count_wraps(ivk(1).kid, 1)

    threads = [threading.Thread(target=count) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.ivks()[0].wraps == 9


# --- blobs -----------------------------------------------------------------------------------------------------------


def test_blobs_are_each_tenants_own(store: KeyStore) -> None:
    digest = "ab" * 32
    assert store.get_blob("acme", digest) is None
    store.put_blob("acme", digest, b"one")
    store.put_blob("acme", digest, b"one")
    store.put_blob("other", digest, b"two")
    assert (store.get_blob("acme", digest), store.get_blob("other", digest)) == (b"one", b"two")
    store.put_blob("acme", digest, b"mended")
    assert store.get_blob("acme", digest) == b"mended"
    assert (store.count_blobs("acme"), store.count_blobs("other"), store.count_blobs("acm")) == (1, 1, 0)
    store.drop_blob("acme", digest)
    store.drop_blob("acme", digest)
    assert store.count_blobs("acme") == 0
    assert (store.get_blob("acme", digest), store.get_blob("other", digest)) == (None, b"two")


def test_other_regions_may_leave_a_bounded_number(store: KeyStore) -> None:
    for n in range(3):
        keep_blob(store, "acme", f"{n:064x}", b"x", most=3)
    keep_blob(store, "acme", f"{1:064x}", b"mended", most=3)
    assert store.get_blob("acme", f"{1:064x}") == b"mended"
    with pytest.raises(Unavailable) as caught:
        keep_blob(store, "acme", f"{9:064x}", b"x", most=3)
    assert caught.value.code == "too-many-blobs"
    keep_blob(store, "other", f"{9:064x}", b"x", most=3)
    assert store.count_blobs("acme") == 3


# --- life ------------------------------------------------------------------------------------------------------------


def test_everything_is_there_after_a_reopen_and_the_owners_alone(path: Path) -> None:
    first = SqliteKeyStore(path)
    first.put_key(stored(), over=None)
    first.put_ivk(ivk(1))
    first.put_blob("acme", "ab" * 32, b"one")
    assert {oct(file.stat().st_mode & 0o777) for file in path.parent.glob("keystore.db*")} == {"0o600"}
    first.close()
    again = SqliteKeyStore(path)
    assert again.get_key(stored().kid) == stored()
    assert again.ivks() == (ivk(1),)
    assert again.get_blob("acme", "ab" * 32) == b"one"
    again.close()


def test_a_full_disk_is_unavailable_and_changes_nothing(sqlite: SqliteKeyStore) -> None:
    sqlite.put_key(stored(), over=None)
    sqlite.put_ivk(ivk(1))
    pages = sqlite._db.execute("PRAGMA page_count").fetchone()[0]
    sqlite._db.execute(f"PRAGMA max_page_count = {pages}")
    big = bytes(100_000)
    for write in (
        lambda: sqlite.put_key(replace(stored(), revision=2, blob=big), over=stored()),
        lambda: sqlite.put_key(replace(stored(2), blob=big), over=None),
        lambda: sqlite.put_ivk(replace(ivk(2), blob=big)),
        lambda: sqlite.put_blob("acme", "ab" * 32, big),
    ):
        with pytest.raises(Unavailable) as full:
            write()
        assert full.value.code == "storage"
    assert sqlite.stored_keys() == (stored(),)
    assert sqlite.ivks() == (ivk(1),)
    assert sqlite.get_blob("acme", "ab" * 32) is None


@pytest.mark.parametrize("word", ["", "ACTIVE", "act", "active ", "deleted"])
def test_an_internal_key_in_an_unknown_state_is_an_integrity_error(sqlite: SqliteKeyStore, word: str) -> None:
    """Neither a guess nor a crash: what cannot be understood is not used."""
    sqlite.put_ivk(ivk(1))
    sqlite._db.execute("UPDATE ivks SET state = ?", (word,))
    with pytest.raises(Integrity):
        sqlite.ivks()


def test_a_damaged_file_is_an_integrity_error(path: Path) -> None:
    path.write_bytes(b"this is no database" * 300)
    with pytest.raises(Integrity):
        SqliteKeyStore(path)
    path.unlink()
    store = SqliteKeyStore(path)
    for n in range(1, 80):
        store.put_key(replace(stored(n), blob=bytes(600)), over=None)
    store.close()
    raw = bytearray(path.read_bytes())
    raw[4096 * 8 :] = b"\x5a" * (len(raw) - 4096 * 8)
    path.write_bytes(raw)
    again = SqliteKeyStore(path)
    with pytest.raises(Integrity):
        again.stored_keys()
        again.ivks()
    again.close()
