"""A Core's sealed KMIP objects on SQLite: WAL, ``synchronous=FULL``, one transaction for each commit or page.

Every change gives its object a new place in the store's one rising count (``position``), so that another region reads
on from where it was; only an object's newest version is kept, so that what waits for a region is bounded by objects,
not by changes.  ``origin`` names this file: one that was made anew has another.  Each row carries a digest of its
bytes, looked at whenever it is read: a damaged one is refused alone.  Deleted bytes are overwritten.

Calls do not wait and are the event loop's; whoever calls ``compact``, in a thread, lets nobody write meanwhile.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from keymesh.model.errors import Integrity, Refused, Unavailable
from keymesh.model.limits import (
    OBJECT_FORKS_MAX,
    OBJECT_FORWARDS_MAX,
    OBJECT_HEADS_MAX,
    OBJECT_PAGE_MAX,
    OBJECT_PAGE_MAX_BYTES,
    OBJECTS_PER_TENANT_MAX,
)
from keymesh.orbital.object_sync import Cursor
from keymesh.orbital.objects import (
    Changes,
    Conflict,
    SealedObject,
    Verdict,
    check_change,
    judge,
    object_as_written,
    object_digest,
    object_to_bytes,
    place,
)

_FORMAT: Final = 1
_FULL_RETRY_MS: Final = 60_000
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS store (
  one INTEGER PRIMARY KEY CHECK (one = 1), origin TEXT NOT NULL, format INTEGER NOT NULL, position INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS objects (
  namespace TEXT NOT NULL, service TEXT NOT NULL, uid TEXT NOT NULL, version INTEGER NOT NULL, gone INTEGER NOT NULL,
  position INTEGER NOT NULL UNIQUE, born INTEGER NOT NULL, source TEXT NOT NULL, digest BLOB NOT NULL,
  raw BLOB NOT NULL, PRIMARY KEY (namespace, service, uid)
) STRICT;
CREATE INDEX IF NOT EXISTS objects_feed ON objects (namespace, position);
CREATE INDEX IF NOT EXISTS objects_found ON objects (namespace, service, born);
CREATE TABLE IF NOT EXISTS names (
  namespace TEXT NOT NULL, service TEXT NOT NULL, name BLOB NOT NULL, uid TEXT NOT NULL,
  PRIMARY KEY (namespace, service, name, uid)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS names_of ON names (namespace, service, uid);
CREATE TABLE IF NOT EXISTS spaces (
  namespace TEXT PRIMARY KEY, head INTEGER NOT NULL, objects INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS spaces_head ON spaces (head);
CREATE TABLE IF NOT EXISTS cursors (
  namespace TEXT NOT NULL, peer TEXT NOT NULL, origin TEXT NOT NULL, position INTEGER NOT NULL,
  PRIMARY KEY (namespace, peer)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS forks (
  number INTEGER PRIMARY KEY, namespace TEXT NOT NULL, service TEXT NOT NULL, uid TEXT NOT NULL, source TEXT NOT NULL,
  digest BLOB NOT NULL, raw BLOB NOT NULL, UNIQUE (namespace, service, uid, digest)
) STRICT;
CREATE TABLE IF NOT EXISTS forwards (
  namespace TEXT NOT NULL, id TEXT NOT NULL, position INTEGER NOT NULL, PRIMARY KEY (namespace, id)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS purged (namespace TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;
"""
_ROW: Final = "service, uid, version, gone, digest, raw"
_AT: Final = "namespace = ? AND service = ? AND uid = ?"


@dataclass(frozen=True, slots=True)
class FeedPage:
    """A tenant's changes, in the order in which they were stored.  ``upto``: read on after it; ``damaged``: rows that
    were passed over."""

    objects: tuple[SealedObject, ...]
    upto: int
    more: bool
    damaged: int


class SqliteObjects:
    """``path`` is created with mode 0600.  ``new_origin``: taken where the file is new.

    Raises Unavailable where the disk does not let it, Integrity where the file is damaged or of a later release.
    """

    def __init__(self, path: Path, *, new_origin: str) -> None:
        path.touch(mode=0o600, exist_ok=True)
        self._path = path
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0)
        for sql in ("PRAGMA journal_mode=WAL", "PRAGMA synchronous=FULL", "PRAGMA secure_delete=ON"):
            self._query(sql)
        with self._transaction() as db:
            for statement in _SCHEMA.split(";"):
                db.execute(statement)
            db.execute("INSERT INTO store VALUES (1, ?, ?, 0) ON CONFLICT DO NOTHING", (new_origin, _FORMAT))
        self.origin, found = self._query("SELECT origin, format FROM store")[0]
        if found != _FORMAT:
            raise Integrity("storage", f"the objects' file has format {found}, this release knows {_FORMAT}")
        self.forbidden: set[str] = {row[0] for row in self._query("SELECT namespace FROM purged")}

    # --- reading -----------------------------------------------------------------------------------------------------

    def get(self, namespace: str, service: str, uid: str) -> SealedObject | None:
        """Raises Integrity where that object is damaged."""
        rows = self._query(f"SELECT {_ROW} FROM objects WHERE {_AT}", namespace, service, uid)  # noqa: S608
        return _checked(namespace, rows[0]) if rows else None

    def source(self, namespace: str, service: str, uid: str) -> str | None:
        """The region from which the held version came; empty for one that was committed here."""
        rows = self._query(f"SELECT source FROM objects WHERE {_AT}", namespace, service, uid)  # noqa: S608
        return rows[0][0] if rows else None

    def find(
        self, namespace: str, service: str, name: bytes | None, *, after: int, most: int
    ) -> tuple[list[SealedObject], int, int]:
        """(objects, where to read on, damaged ones that were passed over), in the order in which they came here.

        ``after``: 0, or where to read on.  ``name``: only those that have it.
        """
        where, values = "namespace = ? AND service = ?", [namespace, service]
        more: list[Any] = []
        if name is not None:
            where += " AND uid IN (SELECT uid FROM names WHERE namespace = ? AND service = ? AND name = ?)"
            more = [namespace, service, name]
        sql = f"SELECT born, {_ROW} FROM objects WHERE {where} AND born > ? ORDER BY born LIMIT ?"  # noqa: S608
        rows = self._query(sql, *values, *more, after, most)
        found = [one for row in rows if (one := _readable(namespace, row[1:])) is not None]
        return found, rows[-1][0] if rows else after, len(rows) - len(found)

    def changes(self, namespace: str, *, after: int) -> FeedPage:
        """What was stored after ``after``, at most one page of it."""
        sql = f"SELECT position, {_ROW} FROM objects WHERE namespace = ? AND position > ? ORDER BY position LIMIT ?"  # noqa: S608
        objects: list[SealedObject] = []
        upto, size, damaged = after, 0, 0
        with self._guard() as db, closing(db.execute(sql, (namespace, after, OBJECT_PAGE_MAX + 1))) as rows:
            for n, (position, *row) in enumerate(rows):
                if n == OBJECT_PAGE_MAX or size > OBJECT_PAGE_MAX_BYTES:
                    return FeedPage(tuple(objects), upto, True, damaged)
                upto, one = position, _readable(namespace, row)
                damaged += one is None
                size += len(row[-1])
                objects += [] if one is None else [one]
        return FeedPage(tuple(objects), upto, False, damaged)

    def heads(self, *, after: int) -> list[tuple[str, int]]:
        """(tenant, its last change) of those that changed after ``after``, the longest ago first."""
        sql = "SELECT namespace, head FROM spaces WHERE head > ? ORDER BY head LIMIT ?"
        return self._query(sql, after, OBJECT_HEADS_MAX)

    def head(self, namespace: str) -> int:
        """The place of that tenant's last change."""
        rows = self._query("SELECT head FROM spaces WHERE namespace = ?", namespace)
        return int(rows[0][0]) if rows else 0

    def counts(self) -> dict[str, int]:
        """Objects of each tenant, the destroyed ones too."""
        return dict(self._query("SELECT namespace, objects FROM spaces ORDER BY namespace"))

    def cursor(self, namespace: str, peer: str) -> Cursor | None:
        rows = self._query("SELECT origin, position FROM cursors WHERE namespace = ? AND peer = ?", namespace, peer)
        return Cursor(*rows[0]) if rows else None

    def forks(self) -> int:
        """How many are kept as evidence."""
        return int(self._query("SELECT count(*) FROM forks")[0][0])

    # --- writing -----------------------------------------------------------------------------------------------------

    def commit(self, namespace: str, service: str, changes: Changes, *, forward: str = "") -> tuple[SealedObject, ...]:
        """All of them durably, or none; returns the objects as they are held then.

        ``forward``: the id of a commit that another region handed over; one that was done already is not done again.
        Raises Conflict, Refused, Unavailable, Integrity.
        """
        with self._write(namespace) as db:
            if (
                forward
                and db.execute("SELECT 1 FROM forwards WHERE namespace = ? AND id = ?", (namespace, forward)).fetchone()
            ):
                held = [self.get(namespace, service, after.uid) for _, after in changes]
                return tuple(one for one in held if one is not None)
            for expected, after in changes:
                check_change(self.get(namespace, service, after.uid), expected, after)
            self.check_names(changes)
            positions = [self._put(after, source="") for _, after in changes]
            if forward:
                db.execute("INSERT INTO forwards VALUES (?, ?, ?)", (namespace, forward, positions[-1]))
                db.execute(
                    "DELETE FROM forwards WHERE namespace = ?1 AND position <= (SELECT position FROM forwards "
                    "WHERE namespace = ?1 ORDER BY position DESC LIMIT 1 OFFSET ?2)",
                    (namespace, OBJECT_FORWARDS_MAX),
                )
        return tuple(after for _, after in changes)

    def check_names(self, changes: Changes) -> None:
        """Raises Conflict where a name is a living object's that is not among ``changes``."""
        changed = {after.uid for _, after in changes}
        for _, after in changes:
            for name in () if after.gone else after.names:
                sql = (
                    "SELECT n.uid FROM names n JOIN objects o USING (namespace, service, uid) "
                    "WHERE n.namespace = ? AND n.service = ? AND n.name = ? AND o.gone = 0"
                )
                owners = {row[0] for row in self._query(sql, after.namespace, after.service, name)}
                if owners - changed:
                    raise Conflict.of_name()

    def receive(
        self, namespace: str, offered: Iterable[SealedObject], *, source: str, cursor: Cursor | None = None
    ) -> list[Verdict]:
        """Judge what region ``source`` offers, store what is newer, and how far its changes are read: durably."""
        with self._write(namespace) as db:
            verdicts = [self._take(one, source) for one in offered]
            if cursor is not None:
                db.execute(
                    "INSERT OR REPLACE INTO cursors VALUES (?, ?, ?, ?)",
                    (namespace, source, cursor.origin, cursor.position),
                )
        return verdicts

    def _take(self, offered: SealedObject, source: str) -> Verdict:
        try:
            held = self.get(*place(offered))
        except Integrity:  # damaged: any whole one is better
            held = None
        verdict = judge(held, offered)
        if verdict is Verdict.STORE:
            self._put(offered, source=source)
        elif verdict is Verdict.FORK:
            raw = object_to_bytes(offered)
            self._db.execute(
                "INSERT OR IGNORE INTO forks (namespace, service, uid, source, digest, raw) SELECT ?, ?, ?, ?, ?, ? "
                "WHERE (SELECT count(*) FROM forks) < ?",
                (*place(offered), source, object_digest(raw), raw, OBJECT_FORKS_MAX),
            )
        return verdict

    def _put(self, one: SealedObject, *, source: str) -> int:
        """Raises Unavailable where the tenant has as many objects as it may."""
        db, raw = self._db, object_to_bytes(one)
        position = int(db.execute("UPDATE store SET position = position + 1 RETURNING position").fetchall()[0][0])
        found = db.execute(f"SELECT born FROM objects WHERE {_AT}", place(one)).fetchone()  # noqa: S608
        held = db.execute("SELECT objects FROM spaces WHERE namespace = ?", (one.namespace,)).fetchone()
        count = (held[0] if held else 0) + (found is None)
        if found is None and count > OBJECTS_PER_TENANT_MAX:
            raise Unavailable(
                "too-many-objects", f"at most {OBJECTS_PER_TENANT_MAX} of one tenant", retry_after_ms=_FULL_RETRY_MS
            )
        born = position if found is None else found[0]
        row = (one.version, int(one.gone), position, born, source, object_digest(raw), raw)
        db.execute("INSERT OR REPLACE INTO objects VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (*place(one), *row))
        db.execute(f"DELETE FROM names WHERE {_AT}", place(one))  # noqa: S608
        names = [(one.namespace, one.service, name, one.uid) for name in one.names]
        db.executemany("INSERT INTO names VALUES (?, ?, ?, ?)", names)
        db.execute("INSERT OR REPLACE INTO spaces VALUES (?, ?, ?)", (one.namespace, position, count))
        return position

    def forget_cursors(self, namespace: str) -> None:
        """All that other regions have of that tenant is read again."""
        with self._transaction() as db:
            db.execute("DELETE FROM cursors WHERE namespace = ?", (namespace,))

    # --- a tenant that is no more ------------------------------------------------------------------------------------

    def forbid(self, namespace: str) -> None:
        """From now on nothing of that tenant is written, in this life."""
        self.forbidden.add(namespace)

    def purge_some(self, namespace: str, *, most: int) -> bool:
        """Delete up to ``most`` of a forbidden tenant's objects, for good in every life; whether none is left."""
        with self._transaction() as db:
            db.execute("INSERT OR IGNORE INTO purged VALUES (?)", (namespace,))
            db.execute(
                "DELETE FROM objects WHERE rowid IN (SELECT rowid FROM objects WHERE namespace = ? LIMIT ?)",
                (namespace, most),
            )
            if db.execute("SELECT 1 FROM objects WHERE namespace = ? LIMIT 1", (namespace,)).fetchone():
                return False
            for table in ("names", "spaces", "cursors", "forks", "forwards"):
                db.execute(f"DELETE FROM {table} WHERE namespace = ?", (namespace,))  # noqa: S608
        return True

    def compact(self) -> None:
        """Write the file anew, without what was deleted, and empty its log.  Takes time; by a connection of its own."""
        try:
            with closing(sqlite3.connect(self._path, isolation_level=None, timeout=30.0)) as db:
                db.execute("VACUUM")
                busy, _, _ = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.OperationalError as bad:
            raise Unavailable("storage", f"the objects' file cannot be written anew: {bad}") from bad
        if busy:
            raise Unavailable("storage", "the objects' log cannot be emptied: somebody else has the file open")

    # --- SQLite ------------------------------------------------------------------------------------------------------

    @contextmanager
    def _write(self, namespace: str) -> Iterator[sqlite3.Connection]:
        if namespace in self.forbidden:
            raise Refused("destroyed", "this tenant is destroyed", field="tenant")
        with self._transaction() as db:
            yield db

    @contextmanager
    def _guard(self) -> Iterator[sqlite3.Connection]:
        try:
            yield self._db
        except sqlite3.OperationalError as bad:
            raise Unavailable("storage", f"the objects' file does not answer: {bad}") from bad
        except sqlite3.DatabaseError as bad:
            raise Integrity("storage", f"the objects' file is damaged: {bad}") from bad

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._guard() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")

    def _query(self, sql: str, *values: Any) -> list[Any]:
        with self._guard() as db:
            return db.execute(sql, values).fetchall()

    def close(self) -> None:
        self._db.close()


def _checked(namespace: str, row: Sequence[Any]) -> SealedObject:
    service, uid, version, gone, digest, raw = row
    if object_digest(raw) != digest:
        raise Integrity("object-damaged", "the object's bytes are not those that were stored")
    one = object_as_written(raw)
    if (*place(one), one.version, int(one.gone)) != (namespace, service, uid, version, gone):
        raise Integrity("object-damaged", "the object lies in another one's place")
    return one


def _readable(namespace: str, row: Sequence[Any]) -> SealedObject | None:
    try:
        return _checked(namespace, row)
    except Integrity:
        return None
