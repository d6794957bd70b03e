"""A machine's durable records on SQLite: one transaction for each ``Persist``.

WAL with ``synchronous=FULL``: what ``write`` returned from survives ``kill -9`` and power loss as far as the disk
keeps its word.  A full or read-only disk raises Unavailable and changes nothing; a damaged file raises Integrity.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from keymesh.model.errors import Integrity, Unavailable
from keymesh.orbital.wire import Codec

RECORD_MAX_BYTES: Final = 4 * 1024 * 1024


class SqliteRecords:
    """``path`` is created with mode 0600.  Not for several processes at once (the caller holds the lock).

    Raises Integrity where the file is no database, Unavailable where it cannot be opened.
    """

    def __init__(self, path: Path, codec: Codec) -> None:
        path.touch(mode=0o600, exist_ok=True)
        self._codec = codec
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0)
        self._query("PRAGMA journal_mode=WAL")
        self._query("PRAGMA synchronous=FULL")
        self._query("CREATE TABLE IF NOT EXISTS records (name TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT")

    def read_all(self) -> dict[str, Any]:
        """Every record by its name.  Raises Integrity or Refused where one is damaged."""
        rows = self._query("SELECT name, value FROM records")
        return {name: self._codec.decode(raw, max_bytes=RECORD_MAX_BYTES) for name, raw in rows}

    def read(self, name: str) -> Any | None:
        rows = self._query("SELECT value FROM records WHERE name = ?", name)
        return self._codec.decode(rows[0][0], max_bytes=RECORD_MAX_BYTES) if rows else None

    def _query(self, sql: str, *values: str) -> list[Any]:
        try:
            return self._db.execute(sql, values).fetchall()
        except sqlite3.OperationalError as bad:
            raise Unavailable("storage", f"records could not be read: {bad}") from bad
        except sqlite3.DatabaseError as bad:
            raise Integrity("storage", f"the records' file is damaged: {bad}") from bad

    def write(self, puts: Iterable[tuple[str, Any]], deletes: Iterable[str] = ()) -> None:
        """All of it durably, or nothing.  Raises Unavailable, also for a record too large to be read back."""
        encoded = [(name, self._codec.encode(value)) for name, value in puts]
        if any(len(raw) > RECORD_MAX_BYTES for _, raw in encoded):
            raise Unavailable("storage", f"a record of more than {RECORD_MAX_BYTES} bytes")
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
        except sqlite3.DatabaseError as bad:  # full, locked, read-only, damaged: not durable, whatever the cause
            raise Unavailable("storage", f"records could not be written: {bad}") from bad

    def close(self) -> None:
        self._db.close()
