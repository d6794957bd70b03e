"""A Core's record of the entries that it passed: one row each, never changed, in the order in which they were recorded.

``place`` only rises.  The oldest of a namespace give way past ``KEPT_MAX``.
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
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS entries (
  place INTEGER PRIMARY KEY AUTOINCREMENT, namespace TEXT NOT NULL, seq INTEGER NOT NULL, hash TEXT NOT NULL,
  envelope BLOB NOT NULL, UNIQUE (namespace, seq)
) STRICT
"""


class SqliteHistory:
    """``path`` is created with mode 0600.  Raises Unavailable where the disk does not let it, Integrity where the file
    is damaged."""

    def __init__(self, path: Path, *, kept_max: int = KEPT_MAX) -> None:
        path.touch(mode=0o600, exist_ok=True)
        self._kept_max = kept_max
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0)
        for sql in ("PRAGMA journal_mode=WAL", "PRAGMA synchronous=FULL", _SCHEMA):
            self._query(sql)

    def last(self, namespace: str) -> Place | None:
        rows = self._query("SELECT seq, hash FROM entries WHERE namespace = ? ORDER BY seq DESC LIMIT 1", namespace)
        return Place(*rows[0]) if rows else None

    def append(self, entries: Sequence[SignedEntry]) -> None:
        """All of them in their order, of one namespace or several, durably, or none.  Raises Unavailable."""
        rows = [(e.entry.namespace, e.entry.seq, e.hash, envelope_to_json(e.envelope)) for e in entries]
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.executemany("INSERT INTO entries (namespace, seq, hash, envelope) VALUES (?, ?, ?, ?)", rows)
                newest = {namespace: seq for namespace, seq, _, _ in rows}
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
        """(place, entry) after that seq, in seq order."""
        sql = "SELECT place, envelope FROM entries WHERE namespace = ? AND seq > ? ORDER BY seq LIMIT ?"
        return [
            (place, parse_entry(envelope_from_json(raw))) for place, raw in self._query(sql, namespace, after, most)
        ]

    def _query(self, sql: str, *values: str | int) -> list[Any]:
        try:
            return self._db.execute(sql, values).fetchall()
        except sqlite3.OperationalError as bad:
            raise Unavailable("storage", f"history could not be read: {bad}") from bad
        except sqlite3.DatabaseError as bad:
            raise Integrity("storage", f"the history's file is damaged: {bad}") from bad

    def close(self) -> None:
        self._db.close()
