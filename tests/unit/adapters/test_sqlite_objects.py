"""The file of sealed objects: whole commits, names, the feed that others read, damage, and a tenant's end."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from keymesh.adapters import sqlite_objects
from keymesh.adapters.sqlite_objects import SqliteObjects
from keymesh.model.errors import Integrity, Refused, Unavailable
from keymesh.orbital.object_sync import Cursor
from keymesh.orbital.objects import Conflict, SealedObject, Verdict

ONE = SealedObject("acme", "pay", "u1", "eu-1", 1, (b"name",), False, b"CANARY-of-one")


def new(uid: str, *names: bytes, namespace: str = "acme", sealed: bytes = b"sealed") -> tuple[int, SealedObject]:
    return 0, SealedObject(namespace, "pay", uid, "eu-1", 1, names, False, sealed)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "objects.db"


@pytest.fixture
def store(path: Path) -> Iterator[SqliteObjects]:
    made = SqliteObjects(path, new_origin="origin-1")
    yield made
    made.close()


def uids(found: tuple[list[SealedObject], int, int]) -> list[str]:
    return [one.uid for one in found[0]]


def find(store: SqliteObjects, name: bytes | None) -> list[str]:
    return uids(store.find("acme", "pay", name, after=0, most=100))


def raw_bytes(path: Path) -> bytes:
    return b"".join(one.read_bytes() for one in sorted(path.parent.glob(f"{path.name}*")))


def test_what_was_committed_is_there_after_a_restart(path: Path) -> None:
    store = SqliteObjects(path, new_origin="origin-1")
    store.commit("acme", "pay", [(0, ONE)])
    store.commit("acme", "pay", [(1, replace(ONE, version=2, names=()))])
    store.close()
    assert path.stat().st_mode & 0o777 == 0o600
    again = SqliteObjects(path, new_origin="origin-2")
    assert again.get("acme", "pay", "u1") == replace(ONE, version=2, names=())
    assert again.origin == "origin-1"
    assert again.head("acme") == 2
    again.close()


def test_a_file_made_anew_has_another_origin(path: Path) -> None:
    SqliteObjects(path, new_origin="origin-1").close()
    for one in path.parent.glob("objects.db*"):
        one.unlink()
    assert SqliteObjects(path, new_origin="origin-2").origin == "origin-2"


def test_a_commit_is_all_or_nothing(store: SqliteObjects) -> None:
    store.commit("acme", "pay", [(0, ONE), new("u2", b"second")])
    for changes in (
        [new("u3"), (2, replace(ONE, version=3))],
        [new("u3"), (0, ONE)],
        [new("u3"), new("u4", b"second")],
        [new("u3"), (1, SealedObject("acme", "pay", "absent", "eu-1", 2, (), False, b"x"))],
    ):
        with pytest.raises(Conflict):
            store.commit("acme", "pay", changes)
    assert find(store, None) == ["u1", "u2"]
    assert store.counts() == {"acme": 2}


def test_names_are_one_living_objects_and_move_with_it(store: SqliteObjects) -> None:
    store.commit("acme", "pay", [(0, ONE), new("u2", b"second")])
    with pytest.raises(Conflict) as conflict:
        store.commit("acme", "pay", [new("u3", b"name")])
    assert conflict.value.name_taken
    # two objects may exchange their names in one commit; another service or tenant does not matter
    two = store.get("acme", "pay", "u2")
    assert two is not None
    store.commit(
        "acme",
        "pay",
        [(1, replace(ONE, version=2, names=(b"second",))), (1, replace(two, version=2, names=(b"name",)))],
    )
    assert (find(store, b"name"), find(store, b"second")) == (["u2"], ["u1"])
    store.commit("acme", "mail", [(0, replace(ONE, service="mail"))])
    store.commit("other", "pay", [(0, replace(ONE, namespace="other"))])
    # destroyed: its name is free, and it is found by it still, the oldest first
    store.commit("acme", "pay", [(2, replace(ONE, version=3, names=(b"second",), gone=True)), new("u3", b"second")])
    assert find(store, b"second") == ["u1", "u3"]
    with pytest.raises(Refused, match="destroyed"):
        store.commit("acme", "pay", [(3, replace(ONE, version=4, names=()))])


def test_a_forward_that_comes_again_is_not_done_again(store: SqliteObjects) -> None:
    store.commit("acme", "pay", [(0, ONE)], forward="f1")
    store.commit("acme", "pay", [(1, replace(ONE, version=2))], forward="f2")
    assert store.commit("acme", "pay", [(0, ONE)], forward="f1") == (replace(ONE, version=2),)
    assert store.head("acme") == 2
    with pytest.raises(Conflict):
        store.commit("acme", "pay", [(0, ONE)], forward="f3")


def test_remembered_forwards_are_bounded(store: SqliteObjects, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_objects, "OBJECT_FORWARDS_MAX", 3)
    for n in range(1, 9):
        store.commit("acme", "pay", [(n - 1, replace(ONE, version=n))], forward=f"f{n}")
    assert [row[0] for row in store._query("SELECT id FROM forwards ORDER BY position")] == ["f6", "f7", "f8"]


def test_the_feed_holds_each_object_once_by_its_newest_place(
    store: SqliteObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_objects, "OBJECT_PAGE_MAX", 2)
    store.commit("acme", "pay", [new("u1"), new("u2"), new("u3")])
    store.commit("other", "pay", [new("x", namespace="other")])
    one = store.get("acme", "pay", "u1")
    assert one is not None
    store.commit("acme", "pay", [(1, replace(one, version=2))])
    seen, after, more = [], 0, True
    while more:
        page = store.changes("acme", after=after)
        seen += [(o.uid, o.version) for o in page.objects]
        after, more = page.upto, page.more
    assert seen == [("u2", 1), ("u3", 1), ("u1", 2)]
    assert after == store.head("acme") == 5
    assert store.changes("acme", after=after).objects == ()
    assert store.heads(after=0) == [("other", 4), ("acme", 5)]
    assert store.heads(after=4) == [("acme", 5)]


def test_a_page_ends_past_its_bytes(store: SqliteObjects, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_objects, "OBJECT_PAGE_MAX_BYTES", 100)
    store.commit("acme", "pay", [new(f"u{n}", sealed=bytes(200)) for n in range(1, 4)])
    page = store.changes("acme", after=0)
    assert ([one.uid for one in page.objects], page.more) == (["u1"], True)


def test_what_others_offer_is_judged_and_the_cursor_is_kept_with_it(store: SqliteObjects) -> None:
    cursor = Cursor("far", 7)
    fork, other = replace(ONE, sealed=b"fork"), new("u2", b"name")[1]
    assert store.receive("acme", [ONE, other], source="eu-2", cursor=cursor) == [Verdict.STORE, Verdict.STORE]
    assert store.receive("acme", [ONE, fork, fork], source="eu-2") == [Verdict.SAME, Verdict.FORK, Verdict.FORK]
    assert store.get("acme", "pay", "u1") == ONE
    assert store.forks() == 1
    assert store.cursor("acme", "eu-2") == cursor
    assert store.cursor("acme", "eu-3") is None
    assert find(store, b"name") == ["u1", "u2"]  # two regions gave one name while cut off: both stay
    assert (store.source("acme", "pay", "u1"), store.source("acme", "pay", "none")) == ("eu-2", None)


def test_evidence_is_bounded(store: SqliteObjects, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_objects, "OBJECT_FORKS_MAX", 2)
    store.commit("acme", "pay", [(0, ONE)])
    store.receive("acme", [replace(ONE, sealed=bytes([n])) for n in range(5)], source="eu-2")
    assert store.forks() == 2


def test_a_tenant_has_no_more_objects_than_it_may(store: SqliteObjects, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_objects, "OBJECTS_PER_TENANT_MAX", 2)
    store.commit("acme", "pay", [new("u1"), new("u2")])
    for refused in (
        lambda: store.commit("acme", "pay", [new("u3")]),
        lambda: store.receive("acme", [new("u3")[1]], source="eu-2"),
    ):
        with pytest.raises(Unavailable) as full:
            refused()
        assert full.value.code == "too-many-objects"
    store.commit("acme", "pay", [(1, replace(new("u1")[1], version=2))])
    store.commit("other", "pay", [new("u1", namespace="other")])


def damage(path: Path, sql: str) -> None:
    db = sqlite3.connect(path, isolation_level=None)
    db.execute(sql)
    db.close()


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE objects SET raw = CAST('x' AS BLOB) WHERE uid = 'u1'",
        "UPDATE objects SET version = 9 WHERE uid = 'u1'",
        "UPDATE objects SET gone = 1 WHERE uid = 'u1'",
        "UPDATE objects SET (raw, digest) = (SELECT raw, digest FROM objects WHERE uid = 'u2') WHERE uid = 'u1'",
    ],
)
def test_a_damaged_object_is_refused_alone_and_a_whole_one_takes_its_place(
    store: SqliteObjects, path: Path, sql: str
) -> None:
    store.commit("acme", "pay", [(0, ONE), new("u2", b"second")])
    damage(path, sql)
    with pytest.raises(Integrity):
        store.get("acme", "pay", "u1")
    with pytest.raises(Integrity):
        store.commit("acme", "pay", [(1, replace(ONE, version=2))])
    assert store.find("acme", "pay", None, after=0, most=10)[0::2] == ([new("u2", b"second")[1]], 1)
    page = store.changes("acme", after=0)
    assert ([one.uid for one in page.objects], page.damaged, page.upto) == (["u2"], 1, 2)
    assert store.receive("acme", [ONE], source="eu-2") == [Verdict.STORE]
    assert store.get("acme", "pay", "u1") == ONE


def test_a_file_that_is_no_database_is_an_integrity_error(path: Path) -> None:
    path.write_bytes(b"no database " * 400)
    with pytest.raises(Integrity):
        SqliteObjects(path, new_origin="o")


def test_a_file_of_a_later_format_is_left_alone(path: Path) -> None:
    SqliteObjects(path, new_origin="o").close()
    damage(path, "UPDATE store SET format = 2")
    with pytest.raises(Integrity, match="format 2"):
        SqliteObjects(path, new_origin="o")


def test_a_full_disk_changes_nothing(store: SqliteObjects) -> None:
    store.commit("acme", "pay", [(0, ONE)])
    pages = store._query("PRAGMA page_count")[0][0]
    store._query(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(Unavailable):
        store.commit("acme", "pay", [new(f"u{n}", sealed=bytes(200_000)) for n in (2, 3)])
    assert find(store, None) == ["u1"]
    assert store.head("acme") == 1


def test_of_a_purged_tenant_no_byte_stays_and_nothing_comes_back(store: SqliteObjects, path: Path) -> None:
    store.commit("acme", "pay", [(0, ONE), *[new(f"u{n}") for n in range(2, 8)]])
    store.commit("acme", "pay", [(1, replace(ONE, version=2))])
    store.receive("acme", [replace(ONE, version=2, sealed=b"CANARY-of-a-fork")], source="eu-2", cursor=Cursor("f", 3))
    store.commit("other", "pay", [new("x", namespace="other", sealed=b"REMAINS")])
    assert b"CANARY" in raw_bytes(path)
    store.forbid("acme")
    with pytest.raises(Refused):
        store.commit("acme", "pay", [new("late")])
    assert not store.purge_some("acme", most=3)
    assert not store.purge_some("acme", most=3)
    assert store.purge_some("acme", most=3)
    store.compact()
    assert b"CANARY" not in raw_bytes(path)
    assert b"REMAINS" in raw_bytes(path)
    assert (store.head("acme"), store.cursor("acme", "eu-2"), store.forks(), find(store, None)) == (0, None, 0, [])
    store.close()
    again = SqliteObjects(path, new_origin="o")
    with pytest.raises(Refused, match="destroyed"):
        again.receive("acme", [ONE], source="eu-2")
    assert again.get("other", "pay", "x") is not None
    again.close()
