"""The embedded control log, on SQLite: WAL, ``synchronous=FULL``, one transaction for each commit.

What ``append`` returned from survives ``kill -9``, and power loss as far as the disk keeps its word.  Where the file
lies on a full or failing disk nothing is appended and the caller is told so; where the commit itself failed in a way
that leaves its outcome open the connection is given up, the file opened and checked anew, and the caller told that.
Every opening checks the whole log: a foreign, forked, cut or altered one is refused.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

from keymesh.control import log
from keymesh.control.entry import Leaf, SignedEntry, parse_entry
from keymesh.control.heads import leaf_bytes, parse_leaf
from keymesh.crypto.dsse import envelope_from_json, envelope_to_json
from keymesh.model.errors import Integrity, KeymeshError, Unavailable
from keymesh.model.ids import MESH_NAMESPACE

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS entries (
  idx INTEGER NOT NULL, namespace TEXT NOT NULL, seq INTEGER NOT NULL, envelope BLOB NOT NULL,
  PRIMARY KEY (idx, namespace, seq)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX IF NOT EXISTS entries_place ON entries (namespace, seq);
CREATE TABLE IF NOT EXISTS cmd (
  namespace TEXT NOT NULL, command_id TEXT NOT NULL, idx INTEGER NOT NULL, seq INTEGER NOT NULL,
  PRIMARY KEY (namespace, command_id)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS heads (namespace TEXT PRIMARY KEY, leaf BLOB NOT NULL) STRICT, WITHOUT ROWID;
"""
_FORMAT: Final = "1"
_BUSY_TIMEOUT_S: Final = 5.0
_SETTLED: Final = frozenset(
    {sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN}
)
"""Primary result codes after which SQLite has surely not committed."""

T = TypeVar("T")


class SqliteControlLog:
    """``path`` is created with mode 0600.  Several processes may share it; each compares inside its transaction.

    Opening raises Integrity for a log that is another mesh's or that is not what was appended, Unavailable where the
    disk does not let it.
    """

    def __init__(self, path: Path, *, mesh: str) -> None:
        self._path = path
        self._mesh = mesh
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="control-log")
        self._db: sqlite3.Connection | None = None
        try:
            self._db = self._open()
        except BaseException:
            self._worker.shutdown()
            raise

    async def append(self, entries: Sequence[SignedEntry]) -> int:
        log.check_group(entries, mesh=self._mesh)
        return await self._run(lambda db: _append(db, entries), writes=True)

    async def read(self, after_index: int, limit: int | None = None) -> tuple[int, list[tuple[int, SignedEntry]]]:
        return await self._run(lambda db: _read(db, after_index, limit))

    async def find(self, namespace: str, command_id: str) -> tuple[int, SignedEntry] | None:
        return await self._run(lambda db: _find(db, namespace, command_id))

    async def heads(self) -> tuple[int, dict[str, Leaf]]:
        return await self._run(_heads)

    async def close(self) -> None:
        def shut() -> None:
            if self._db is not None:
                self._db.close()
                self._db = None

        await asyncio.get_running_loop().run_in_executor(self._worker, shut)
        self._worker.shutdown()

    async def _run(self, work: Callable[[sqlite3.Connection], T], *, writes: bool = False) -> T:
        """``work`` on the one thread that owns the connection.  A cancelled caller's work goes on to its end."""
        return await asyncio.get_running_loop().run_in_executor(self._worker, self._guarded, work, writes)

    def _guarded(self, work: Callable[[sqlite3.Connection], T], writes: bool) -> T:
        if self._db is None:
            self._db = self._open()
        try:
            return _transaction(self._db, work, writes=writes)
        except log.UnknownOutcome:
            self._db.close()  # what this connection believes is not to be trusted: begin from the file
            self._db = None
            raise
        except sqlite3.DatabaseError as bad:
            raise _foreign(bad) from bad

    def _open(self) -> sqlite3.Connection:
        try:
            self._path.touch(mode=0o600, exist_ok=True)
            db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=_BUSY_TIMEOUT_S)
        except (OSError, sqlite3.OperationalError) as bad:
            raise Unavailable("storage", f"the control log cannot be opened: {bad}") from bad
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")
            db.executescript(_SCHEMA)
            _transaction(db, self._check, writes=True)
        except sqlite3.DatabaseError as bad:
            db.close()
            raise _foreign(bad) from bad
        except KeymeshError:
            db.close()
            raise
        return db

    def _check(self, db: sqlite3.Connection) -> None:
        """1. The mesh and format are ours (written into a new file).  2. The entries are a log.
        3. Both indexes say of it what it is."""
        meta = dict(db.execute("SELECT name, value FROM meta").fetchall())
        if not meta:
            db.executemany("INSERT INTO meta VALUES (?, ?)", [("mesh", self._mesh), ("format", _FORMAT)])
        elif meta.get("mesh") != self._mesh:
            raise Integrity("foreign-mesh", f"this is the log of mesh {meta.get('mesh')!r}", field="mesh")
        elif meta.get("format") != _FORMAT:
            raise Integrity("unknown-format", "this release does not know this log's format", field="format")
        index, heads = log.check_stored(_stored(db, 0), mesh=self._mesh)
        if heads != _heads(db)[1]:
            raise Integrity("broken-log", "the heads are not those of the entries", field="heads")
        commands = {(s.entry.namespace, s.entry.command_id, i, s.entry.seq) for i, s in _stored(db, 0)}
        if commands != set(db.execute("SELECT namespace, command_id, idx, seq FROM cmd")):
            raise Integrity("broken-log", "the command index is not that of the entries", field="cmd")
        assert index == _index(db)


def _transaction(db: sqlite3.Connection, work: Callable[[sqlite3.Connection], T], *, writes: bool) -> T:
    """``work`` in one transaction, undone where it raises.  Raises UnknownOutcome where the commit's end is open."""
    db.execute("BEGIN IMMEDIATE" if writes else "BEGIN")
    try:
        result = work(db)
    except BaseException:
        _roll_back(db)
        raise
    try:
        db.execute("COMMIT")
    except sqlite3.OperationalError as bad:
        settled = bad.sqlite_errorcode & 0xFF in _SETTLED
        _roll_back(db)
        if writes and not settled:
            raise log.UnknownOutcome("unknown-outcome", f"the commit failed: {bad}") from bad
        raise
    return result


def _roll_back(db: sqlite3.Connection) -> None:
    if db.in_transaction:
        try:
            db.execute("ROLLBACK")
        except sqlite3.OperationalError as bad:
            raise log.UnknownOutcome("unknown-outcome", f"could not be rolled back: {bad}") from bad


def _foreign(bad: sqlite3.DatabaseError) -> KeymeshError:
    """SQLite's failures in our words."""
    if isinstance(bad, sqlite3.OperationalError):
        full = bad.sqlite_errorcode & 0xFF == sqlite3.SQLITE_FULL
        return Unavailable("disk-full" if full else "storage", f"the control log cannot be used: {bad}")
    return Integrity("broken-log", f"the file is not a sound database: {bad}")


def _append(db: sqlite3.Connection, entries: Sequence[SignedEntry]) -> int:
    after = log.check_heads(entries, _heads_of(db, {MESH_NAMESPACE, *(s.entry.namespace for s in entries)}))
    log.check_new_commands(entries, _known(db, entries))
    index = _index(db) + 1
    rows: list[tuple[Any, ...]] = []
    commands: list[tuple[Any, ...]] = []
    for signed in log.in_order(entries):
        entry = signed.entry
        rows.append((index, entry.namespace, entry.seq, envelope_to_json(signed.envelope)))
        commands.append((entry.namespace, entry.command_id, index, entry.seq))
    db.executemany("INSERT INTO entries VALUES (?, ?, ?, ?)", rows)
    db.executemany("INSERT INTO cmd VALUES (?, ?, ?, ?)", commands)
    moved = sorted({s.entry.namespace for s in entries})
    db.executemany("INSERT OR REPLACE INTO heads VALUES (?, ?)", [(n, leaf_bytes(after[n])) for n in moved])
    return index


def _known(db: sqlite3.Connection, entries: Sequence[SignedEntry]) -> Iterator[tuple[str, str]]:
    for signed in entries:
        pair = (signed.entry.namespace, signed.entry.command_id)
        if db.execute("SELECT 1 FROM cmd WHERE namespace = ? AND command_id = ?", pair).fetchone() is not None:
            yield pair


def _index(db: sqlite3.Connection) -> int:
    index = db.execute("SELECT MAX(idx) FROM entries").fetchone()[0]
    return 0 if index is None else int(index)


def _heads(db: sqlite3.Connection) -> tuple[int, dict[str, Leaf]]:
    return _index(db), {name: parse_leaf(raw) for name, raw in db.execute("SELECT namespace, leaf FROM heads")}


def _heads_of(db: sqlite3.Connection, namespaces: set[str]) -> dict[str, Leaf]:
    found = {}
    for name in namespaces:
        row = db.execute("SELECT leaf FROM heads WHERE namespace = ?", (name,)).fetchone()
        if row is not None:
            found[name] = parse_leaf(row[0])
    return found


def _stored(db: sqlite3.Connection, after_index: int) -> Iterator[tuple[int, SignedEntry]]:
    found = db.execute(
        "SELECT idx, namespace, seq, envelope FROM entries WHERE idx > ? ORDER BY idx, namespace, seq", (after_index,)
    )
    for index, namespace, seq, raw in found:
        yield index, _entry(namespace, seq, raw)


def _entry(namespace: str, seq: int, raw: bytes) -> SignedEntry:
    """What a row holds.  Raises Integrity where it is not the entry of its place."""
    try:
        signed = parse_entry(envelope_from_json(raw))
    except KeymeshError as bad:
        raise Integrity("broken-log", f"{namespace}:{seq} is not an entry: {bad.message}", field="envelope") from bad
    if (signed.entry.namespace, signed.entry.seq) != (namespace, seq):
        raise Integrity("broken-log", f"another entry stands at {namespace}:{seq}", field="envelope")
    return signed


def _read(db: sqlite3.Connection, after_index: int, limit: int | None) -> tuple[int, list[tuple[int, SignedEntry]]]:
    return _index(db), log.take(_stored(db, after_index), limit)


def _find(db: sqlite3.Connection, namespace: str, command_id: str) -> tuple[int, SignedEntry] | None:
    found = db.execute(
        "SELECT e.idx, e.namespace, e.seq, e.envelope FROM cmd c JOIN entries e ON e.idx = c.idx"
        " AND e.namespace = c.namespace AND e.seq = c.seq WHERE c.namespace = ? AND c.command_id = ?",
        (namespace, command_id),
    ).fetchone()
    return None if found is None else (found[0], _entry(found[1], found[2], found[3]))
