"""What a region passed over: fetched afterwards, proved by its own chain, recorded in the order of its seq."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import msgspec
import pytest

from keymesh.adapters.sqlite_history import SqliteHistory
from keymesh.control import build
from keymesh.control.entry import SignedEntry
from keymesh.core import history
from keymesh.core.history import GAP_MAX, Place
from keymesh.crypto.dsse import envelope_to_json
from keymesh.model.errors import Integrity, Unavailable
from keymesh.model.ids import Digest
from tests.unit.control.world import Mesh


@pytest.fixture
def entries() -> list[SignedEntry]:
    """Seq 1 to 5 of one tenant."""
    world = Mesh()
    found = [world.tenant().head]
    for version in range(1, 5):
        found.append(world.service(version=version).head)
    assert [e.entry.seq for e in found] == [1, 2, 3, 4, 5]
    return found


def place(signed: SignedEntry) -> Place:
    return Place(signed.entry.seq, signed.hash, signed.entry.epoch)


def test_what_is_missing_begins_behind_the_last_record_and_is_not_without_end(entries: list[SignedEntry]) -> None:
    head = entries[-1]
    assert history.missing(None, head) == 1
    assert history.missing(place(entries[2]), head) == 4
    assert history.missing(place(head), head) == 6
    far = SignedEntry(entry=type(head.entry)(**{f: getattr(head.entry, f) for f in head.entry.__struct_fields__} | {
        "seq": GAP_MAX + 100
    }), hash=head.hash, envelope=head.envelope)  # fmt: skip
    assert history.missing(place(entries[2]), far) == 101


def test_a_chain_up_to_the_applied_head_is_taken(entries: list[SignedEntry]) -> None:
    history.check_chain(None, entries, entries[-1])
    history.check_chain(place(entries[1]), entries[2:], entries[-1])
    history.check_chain(place(entries[0]), entries[3:], entries[-1])  # of a long absence the older ones are left out


def test_heads_at_hand_need_not_be_fetched(entries: list[SignedEntry]) -> None:
    head = entries[-1]
    due = history.plan(place(entries[1]), entries[2:], head)
    assert due is not None
    assert (due.run, due.first, due.has_gap) == (tuple(entries[2:]), 3, False)
    whole = history.plan(None, entries, head)
    assert whole is not None
    assert (whole.run, whole.has_gap) == (tuple(entries), False)
    assert history.plan(place(head), entries, head) is None


def test_of_heads_only_those_that_lead_to_the_applied_one_count(entries: list[SignedEntry]) -> None:
    """A hole, another tenant's, another branch, a head of long ago or one that is passed: what is before is fetched."""
    head, other = entries[-1], Mesh().tenant("beta").head
    branch = SignedEntry(entry=entries[3].entry, hash=Digest("0" * 64), envelope=entries[3].envelope)
    cases = {
        "none": [],
        "a hole": [entries[1], entries[2]],
        "a stranger": [other],
        "another branch": [entries[2], branch],
        "its own again": [head, head],
    }
    for how, passed in cases.items():
        due = history.plan(place(entries[0]), passed, head)
        assert due is not None, how
        assert (due.run, due.first, due.has_gap) == ((head,), 2, True), how
    tail = history.plan(place(entries[0]), [entries[1], entries[3], entries[3]], head)
    assert tail is not None
    assert (tail.run, tail.has_gap) == (tuple(entries[3:]), True)
    recorded = history.plan(place(entries[2]), entries[:4], head)
    assert recorded is not None
    assert (recorded.run, recorded.has_gap) == (tuple(entries[3:]), False)


def test_what_does_not_fit_is_refused(entries: list[SignedEntry]) -> None:
    head, other = entries[-1], Mesh().tenant("beta").head
    cases = {
        "nothing": (None, []),
        "cut short": (None, entries[:-1]),
        "a hole": (None, [*entries[:2], *entries[3:]]),
        "another order": (None, [entries[1], entries[0], *entries[2:]]),
        "twice": (None, [entries[0], *entries]),
        "a stranger in front": (None, [other, *entries[1:]]),
        "recorded already": (place(entries[2]), entries[2:]),
        "another past": (Place(2, "0" * 64, 1), entries[2:]),
    }
    for how, (last, fetched) in cases.items():
        with pytest.raises(Integrity):
            history.check_chain(last, fetched, head)
            pytest.fail(how)


def test_records_keep_their_order_and_survive(tmp_path: Path, entries: list[SignedEntry]) -> None:
    store = SqliteHistory(tmp_path / "h.db")
    assert store.last("acme") is None
    store.append(entries[:2])
    store.append(entries[2:4])
    store.close()
    store = SqliteHistory(tmp_path / "h.db")
    store.append(entries[4:])
    assert store.last("acme") == place(entries[-1])
    rows = store.read("acme", after=1, most=9)
    assert [e for _, e in rows] == entries[1:]
    assert [at for at, _ in rows] == sorted(at for at, _ in rows)
    assert store.read("beta", after=0, most=9) == []
    assert (tmp_path / "h.db").stat().st_mode & 0o777 == 0o600


def test_nothing_is_recorded_twice_and_then_nothing_of_it(tmp_path: Path, entries: list[SignedEntry]) -> None:
    store = SqliteHistory(tmp_path / "h.db")
    store.append(entries[:3])
    with pytest.raises(Unavailable):
        store.append(entries[2:])
    assert store.last("acme") == place(entries[2])


def test_the_oldest_give_way(tmp_path: Path, entries: list[SignedEntry]) -> None:
    store = SqliteHistory(tmp_path / "h.db", kept_max=3)
    store.append(entries)
    assert [e.entry.seq for _, e in store.read("acme", after=0, most=9)] == [3, 4, 5]


def test_several_namespaces_are_recorded_together_or_not_at_all(tmp_path: Path, entries: list[SignedEntry]) -> None:
    beta = Mesh().tenant("beta").head
    store = SqliteHistory(tmp_path / "h.db", kept_max=2)
    store.append([*entries[:3], beta, entries[3]])
    assert [e.entry.seq for _, e in store.read("acme", after=0, most=9)] == [3, 4]
    assert store.last("beta") == place(beta)
    with pytest.raises(Unavailable):
        store.append([entries[4], beta])
    assert store.last("acme") == place(entries[3])


def test_a_damaged_file_is_an_integrity_error(tmp_path: Path) -> None:
    file = tmp_path / "h.db"
    file.write_bytes(b"this is no database, and long enough to be looked at" * 50)
    with pytest.raises(Integrity):
        SqliteHistory(file)
    with pytest.raises(sqlite3.DatabaseError):
        sqlite3.connect(file).execute("SELECT * FROM sqlite_master")


# --- a later epoch, on another branch ---------------------------------------------------------------------------------


def branch(from_seq: int, length: int, epoch: int = 2) -> list[SignedEntry]:
    """A chain that leaves the first epoch's after ``from_seq`` entries and goes on to ``length``."""
    world = Mesh()
    found = [world.tenant().head]
    for version in range(1, length):
        state = world.service(version=version)
        found.append(state.head)
    kept = found[:from_seq]
    for old in found[from_seq:]:
        entry = msgspec.structs.replace(old.entry, epoch=epoch, prev=Digest(kept[-1].hash), command_id=f"b{epoch}")
        kept.append(build.sign_entry(entry, world.registry))
    return kept


@pytest.mark.parametrize("length", [3, 4, 5, 6, 9])
def test_the_branch_of_a_later_epoch_is_recorded_beside_the_old_one(
    tmp_path: Path, entries: list[SignedEntry], length: int
) -> None:
    """However far it is by the time: below the record, at its height, right above, beyond."""
    store = SqliteHistory(tmp_path / "h.db")
    store.append(entries)
    other = branch(2, length)
    head = other[-1]
    due = history.plan(store.last("acme"), [], head)
    assert due is not None
    found = other[due.first - 1 :]
    if history.is_fork(due.last, found[0], head):
        found = other[history.missing(None, head) - 1 :]
    history.check_chain(due.last, found, head)
    store.append(store.lacks(found))
    assert store.last("acme") == place(head)
    recorded = [e for _, e in store.read("acme", after=0, most=99)]
    assert {e.hash for e in recorded} == {e.hash for e in (*entries, *other)}
    assert history.plan(store.last("acme"), [], head) is None
    pages: list[SignedEntry] = []
    while page := store.read("acme", after=pages[-1].entry.seq if pages else 0, most=2):
        pages += [e for _, e in page]
    assert pages == recorded, "no page ends between two entries of one seq"


def test_a_later_epoch_that_goes_on_from_the_record_is_no_branch(tmp_path: Path, entries: list[SignedEntry]) -> None:
    after = branch(5, 7)
    due = history.plan(place(entries[-1]), after[5:], after[-1])
    assert due is not None and (due.first, due.has_gap, due.is_beside) == (6, False, False)
    assert not history.is_fork(due.last, due.run[0], after[-1])
    history.check_chain(due.last, due.run, after[-1])


def test_a_branch_of_the_same_epoch_is_refused(entries: list[SignedEntry]) -> None:
    same = branch(2, 9, epoch=1)
    assert not history.is_fork(place(entries[-1]), same[5], same[-1])
    with pytest.raises(Integrity):
        history.check_chain(place(entries[-1]), same[5:], same[-1])
    with pytest.raises(Integrity):
        history.check_chain(place(entries[-1]), same, same[-1])


def test_a_file_of_the_release_before_is_taken_over(tmp_path: Path, entries: list[SignedEntry]) -> None:
    old = sqlite3.connect(tmp_path / "h.db")
    old.execute(
        "CREATE TABLE entries (place INTEGER PRIMARY KEY AUTOINCREMENT, namespace TEXT NOT NULL, seq INTEGER NOT NULL,"
        " hash TEXT NOT NULL, envelope BLOB NOT NULL, UNIQUE (namespace, seq)) STRICT"
    )
    rows = [("acme", e.entry.seq, e.hash, envelope_to_json(e.envelope)) for e in entries]
    old.executemany("INSERT INTO entries (namespace, seq, hash, envelope) VALUES (?, ?, ?, ?)", rows)
    old.commit()
    old.close()
    for _ in range(2):
        store = SqliteHistory(tmp_path / "h.db")
        assert [e for _, e in store.read("acme", after=0, most=9)] == entries
        assert store.last("acme") == place(entries[-1])
        store.close()
    newer = sqlite3.connect(tmp_path / "h.db")
    newer.execute("PRAGMA user_version = 3")
    newer.close()
    with pytest.raises(Integrity):
        SqliteHistory(tmp_path / "h.db")
