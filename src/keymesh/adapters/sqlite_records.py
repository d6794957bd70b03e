"""A machine's durable records on SQLite: one transaction for each ``Persist``.

WAL with ``synchronous=FULL``: what ``write`` returned from survives ``kill -9`` and power loss as far as the disk
keeps its word.  A full or read-only disk raises Unavailable and changes nothing.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from keymesh.model.errors import Unavailable
from keymesh.orbital.wire import Codec

_MAX_RECORD_BYTES = 4 * 1024 * 1024


class SqliteRecords:
    """``path`` is created with mode 0600.  Not for several processes at once (the caller holds the lock)."""

    def __init__(self, path: Path, codec: Codec) -> None:
        path.touch(mode=0o600, exist_ok=True)
        self._codec = codec
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute("CREATE TABLE IF NOT EXISTS records (name TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT")

    def read_all(self) -> dict[str, Any]:
        rows = self._db.execute("SELECT name, value FROM records").fetchall()
        return {name: self._codec.decode(raw, max_bytes=_MAX_RECORD_BYTES) for name, raw in rows}

    def read(self, name: str) -> Any | None:
        row = self._db.execute("SELECT value FROM records WHERE name = ?", (name,)).fetchone()
        return None if row is None else self._codec.decode(row[0], max_bytes=_MAX_RECORD_BYTES)

    def write(self, puts: Iterable[tuple[str, Any]], deletes: Iterable[str] = ()) -> None:
        """All of it durably, or nothing.  Raises Unavailable."""
        encoded = [(name, self._codec.encode(value)) for name, value in puts]
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.executemany("DELETE FROM records WHERE name = ?", [(name,) for name in deletes])
                self._db.executemany("INSERT OR REPLACE INTO records (name, value) VALUES (?, ?)", encoded)
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.OperationalError as bad:
            raise Unavailable("storage", f"records could not be written: {bad}") from bad

    def close(self) -> None:
        self._db.close()
