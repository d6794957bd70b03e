"""Records on disk: all of a write or nothing, whatever the disk does, and back after a reopen."""

from __future__ import annotations

import resource
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from keymesh.adapters.sqlite_records import RECORD_MAX_BYTES, SqliteRecords
from keymesh.control.messages import Poll
from keymesh.control.voter import RECORD_TYPES
from keymesh.model.errors import Integrity, KeymeshError, Refused, Unavailable
from keymesh.orbital.wire import MESSAGES, Codec


def poll(n: int, pad: int = 0) -> Poll:
    return Poll(mesh="m" * pad, epoch=1, set_id=1, poll_id=n)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "records.db"


@pytest.fixture
def records(path: Path) -> Iterator[SqliteRecords]:
    made = SqliteRecords(path, MESSAGES)
    yield made
    made.close()


@contextmanager
def page_limit(records: SqliteRecords) -> Iterator[None]:
    """No page more than now."""
    pages = records._db.execute("PRAGMA page_count").fetchone()[0]
    records._db.execute(f"PRAGMA max_page_count = {pages}")
    yield
    records._db.execute("PRAGMA max_page_count = 1073741823")


@contextmanager
def file_limit(records: SqliteRecords) -> Iterator[None]:
    """No file of this process may grow past 40 kB: what a full disk or a quota looks like from here."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def read_only(records: SqliteRecords) -> Iterator[None]:
    records._db.execute("PRAGMA query_only = ON")
    yield
    records._db.execute("PRAGMA query_only = OFF")


def test_what_is_written_is_read_by_the_next_life(records: SqliteRecords, path: Path) -> None:
    records.write([("a", poll(1)), ("b", poll(2))])
    records.write([("a", poll(3)), ("c", poll(4))], ["b", "never-there"])
    records.write([], [])
    assert records.read_all() == {"a": poll(3), "c": poll(4)}
    assert (records.read("a"), records.read("b")) == (poll(3), None)
    records.close()
    again = SqliteRecords(path, MESSAGES)
    assert again.read_all() == {"a": poll(3), "c": poll(4)}
    again.close()


def test_a_copy_taken_without_closing_has_all_that_was_acknowledged(
    records: SqliteRecords, path: Path, tmp_path: Path
) -> None:
    """As after a kill: the files as they lie there, log and all."""
    for n in range(50):
        records.write([(f"k{n}", poll(n))])
    other = tmp_path / "other"
    other.mkdir()
    for file in path.parent.glob("records.db*"):
        if not file.name.endswith("-shm"):
            (other / file.name).write_bytes(file.read_bytes())
    again = SqliteRecords(other / "records.db", MESSAGES)
    assert len(again.read_all()) == 50
    again.close()


def test_a_name_deleted_and_put_at_once_is_there(records: SqliteRecords) -> None:
    records.write([("a", poll(1))])
    records.write([("a", poll(2))], ["a"])
    assert records.read_all() == {"a": poll(2)}


def test_files_are_the_owners_alone(records: SqliteRecords, path: Path) -> None:
    records.write([("a", poll(1))])
    files = list(path.parent.glob("records.db*"))
    assert len(files) == 3
    assert {oct(file.stat().st_mode & 0o777) for file in files} == {"0o600"}


def test_every_commit_reaches_the_disk(records: SqliteRecords) -> None:
    assert records._db.execute("PRAGMA synchronous").fetchone()[0] == 2  # FULL
    assert records._db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"


@pytest.mark.parametrize("limit", [page_limit, file_limit, read_only])
def test_a_full_disk_is_unavailable_and_changes_nothing(
    records: SqliteRecords, path: Path, limit: Callable[[SqliteRecords], Iterator[None]]
) -> None:
    records.write([("kept", poll(1)), ("gone", poll(2))])
    before = records.read_all()
    with limit(records):  # type: ignore[attr-defined]
        for _ in range(3):
            with pytest.raises(Unavailable) as full:
                records.write([("small", poll(3)), ("big", poll(4, 200_000))], ["gone"])
            assert full.value.code == "storage"
            assert records.read_all() == before
    records.write([("small", poll(3))], ["gone"])
    assert records.read_all() == {"kept": poll(1), "small": poll(3)}
    records.close()
    again = SqliteRecords(path, MESSAGES)
    assert again.read_all() == {"kept": poll(1), "small": poll(3)}
    again.close()


def test_a_locked_database_is_unavailable(records: SqliteRecords, path: Path) -> None:
    records._db.execute("PRAGMA busy_timeout = 1")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable):
        records.write([("a", poll(1))])
    other.execute("ROLLBACK")
    other.close()
    records.write([("a", poll(1))])
    assert records.read("a") == poll(1)


def test_an_unknown_type_among_several_writes_nothing(records: SqliteRecords) -> None:
    with pytest.raises(TypeError):
        records.write([("a", poll(1)), ("b", object())])
    assert records.read_all() == {}
    records.write([("c", poll(1))])


def test_what_could_not_be_read_back_is_not_written(records: SqliteRecords, path: Path) -> None:
    with pytest.raises(Unavailable, match="more than"):
        records.write([("a", poll(1)), ("big", poll(2, RECORD_MAX_BYTES))])
    assert records.read_all() == {}
    room = RECORD_MAX_BYTES - len(MESSAGES.encode(poll(1)))
    records.write([("big", poll(1, room))])
    assert records.read("big") == poll(1, room)


@pytest.mark.parametrize("damage", [b"", b"{}", b"junk", b'{"t":"Poll","v":{}}', b'{"t":"Seat","v":{}}', b"\xff" * 9])
def test_a_damaged_record_is_an_error_and_never_a_guess(records: SqliteRecords, damage: bytes) -> None:
    records.write([("a", poll(1)), ("b", poll(2))])
    records._db.execute("UPDATE records SET value = ? WHERE name = 'b'", (damage,))
    for read in (records.read_all, lambda: records.read("b")):
        with pytest.raises(KeymeshError):
            read()
    assert records.read("a") == poll(1)


def test_records_of_another_machine_are_refused(records: SqliteRecords, path: Path) -> None:
    records.write([("a", poll(1))])
    records.close()
    other = SqliteRecords(path, Codec(RECORD_TYPES))
    with pytest.raises(Refused):
        other.read_all()
    other.close()


def test_a_file_that_is_no_database_is_an_integrity_error(tmp_path: Path) -> None:
    path = tmp_path / "records.db"
    path.write_bytes(b"not a database at all, " * 400)
    with pytest.raises(Integrity):
        SqliteRecords(path, MESSAGES)


def test_a_torn_page_is_an_integrity_error(tmp_path: Path) -> None:
    path = tmp_path / "records.db"
    records = SqliteRecords(path, MESSAGES)
    records.write([(f"k{n}", poll(n, 500)) for n in range(100)])
    records.close()
    raw = bytearray(path.read_bytes())
    raw[4096:] = b"\xa5" * (len(raw) - 4096)
    path.write_bytes(raw)
    again = SqliteRecords(path, MESSAGES)
    with pytest.raises(Integrity):
        again.read_all()
    with pytest.raises(Unavailable):
        again.write([("k1", poll(1))])
    again.close()
