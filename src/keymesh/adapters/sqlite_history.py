"""A Core's record of the entries that it passed: one row each, never changed, in the order in which they were recorded.

``place`` only rises.  The oldest of a namespace give way past ``KEPT_MAX``.  After a restore two branches of a
namespace may stand beside each other: the same seq in two epochs.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from keymesh.control.entry import SignedEntry, parse_entry
from keymesh.core.history import Place
from keymesh.crypto.dsse import envelope_from_json, envelope_to_json
from keymesh.model.errors import Integrity, Unavailable

KEPT_MAX: Final = 10_000
VERSION: Final = 2
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS entries (
  place INTEGER PRIMARY KEY AUTOINCREMENT, namespace TEXT NOT NULL, epoch INTEGER NOT NULL, seq INTEGER NOT NULL,
  hash TEXT NOT NULL, envelope BLOB NOT NULL, UNIQUE (namespace, seq, epoch), UNIQUE (namespace, hash)
) STRICT
"""
_INSERT: Final = "INSERT INTO entries (namespace, epoch, seq, hash, envelope) VALUES (?, ?, ?, ?, ?)"


class SqliteHistory:
    """``path`` is created with mode 0600.  Raises Unavailable where the disk does not let it, Integrity where the file
    is damaged."""

    def __init__(self, path: Path, *, kept_max: int = KEPT_MAX) -> None:
        path.touch(mode=0o600, exist_ok=True)
        self._kept_max = kept_max
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0)
        try:
            for sql in ("PRAGMA journal_mode=WAL", "PRAGMA synchronous=FULL"):
                self._query(sql)
            self._migrate()
        except BaseException:
            self._db.close()
            raise

    def _migrate(self) -> None:
        """To this release's schema; version 1 kept no epoch, and had no number either."""
        ((version,),) = self._query("PRAGMA user_version")
        if version == VERSION:
            return
        if version > VERSION:
            raise Integrity("storage", f"the history's file is of a newer release (version {version})")
        self._query("BEGIN IMMEDIATE")
        try:
            old = self._query("SELECT name FROM sqlite_master WHERE name = 'entries'")
            rows = self._query("SELECT envelope FROM entries ORDER BY place") if old else []
            self._query("DROP TABLE IF EXISTS entries")
            self._query(_SCHEMA)
            self._db.executemany(_INSERT, (_row(parse_entry(envelope_from_json(raw))) for (raw,) in rows))
            self._query(f"PRAGMA user_version = {VERSION}")
            self._query("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def last(self, namespace: str) -> Place | None:
        """The newest of the latest epoch."""
        sql = "SELECT seq, hash, epoch FROM entries WHERE namespace = ? ORDER BY epoch DESC, seq DESC LIMIT 1"
        rows = self._query(sql, namespace)
        return Place(*rows[0]) if rows else None

    def lacks(self, entries: Sequence[SignedEntry]) -> list[SignedEntry]:
        """Those that are not recorded."""
        sql = "SELECT 1 FROM entries WHERE namespace = ? AND hash = ?"
        return [e for e in entries if not self._query(sql, e.entry.namespace, e.hash)]

    def append(self, entries: Sequence[SignedEntry]) -> None:
        """All of them in their order, of one namespace or several, durably, or none.  Raises Unavailable."""
        rows = [_row(e) for e in entries]
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.executemany(_INSERT, rows)
                newest = {namespace: seq for namespace, _, seq, _, _ in rows}
                oldest = [(namespace, seq - self._kept_max) for namespace, seq in newest.items()]
                self._db.executemany("DELETE FROM entries WHERE namespace = ? AND seq <= ?", oldest)
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.DatabaseError as bad:
            raise Unavailable("storage", f"history could not be written: {bad}") from bad

    def read(self, namespace: str, *, after: int, most: int) -> list[tuple[int, SignedEntry]]:
        """(place, entry) after that seq, by seq and epoch: ``most``, and what else has the last one's seq."""
        where = "FROM entries WHERE namespace = ? AND seq > ?"
        order = "ORDER BY seq, epoch"
        rows = self._query(f"SELECT place, seq, envelope {where} {order} LIMIT ?", namespace, after, most)
        if len(rows) == most and rows:
            last = rows[-1][1]
            rows = self._query(f"SELECT place, seq, envelope {where} AND seq <= ? {order}", namespace, after, last)
        return [(place, parse_entry(envelope_from_json(raw))) for place, _, raw in rows]

    def _query(self, sql: str, *values: str | int) -> list[Any]:
        try:
            return self._db.execute(sql, values).fetchall()
        except sqlite3.OperationalError as bad:
            raise Unavailable("storage", f"history could not be read: {bad}") from bad
        except sqlite3.DatabaseError as bad:
            raise Integrity("storage", f"the history's file is damaged: {bad}") from bad

    def close(self) -> None:
        self._db.close()


def _row(signed: SignedEntry) -> tuple[str, int, int, str, bytes]:
    entry = signed.entry
    return entry.namespace, entry.epoch, entry.seq, signed.hash, envelope_to_json(signed.envelope)
