"""A region's key store on SQLite, for the embedded mesh: WAL, ``synchronous=FULL``, compare-and-set by revision."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from keymesh.core.keystore import StoredIvk, StoredKey
from keymesh.model.errors import Integrity, Unavailable
from keymesh.model.ids import Digest, Kid
from keymesh.model.states import IvkState
from keymesh.model.time import Instant

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS keys (
  kid TEXT PRIMARY KEY, namespace TEXT NOT NULL, key TEXT NOT NULL, version INTEGER NOT NULL,
  revision INTEGER NOT NULL, digest TEXT NOT NULL, ivk_kid TEXT NOT NULL, blob BLOB NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS keys_of ON keys (namespace, key, version);
CREATE TABLE IF NOT EXISTS ivks (
  generation INTEGER PRIMARY KEY, kid TEXT NOT NULL UNIQUE, state TEXT NOT NULL, created_at INTEGER NOT NULL,
  wraps INTEGER NOT NULL, blob BLOB NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS blobs (
  tenant TEXT NOT NULL, digest TEXT NOT NULL, blob BLOB NOT NULL, PRIMARY KEY (tenant, digest)
) STRICT;
"""
_KEY_COLUMNS: Final = "namespace, key, version, revision, kid, digest, ivk_kid, blob"


def _key(row: tuple[Any, ...]) -> StoredKey:
    namespace, key, version, revision, kid, digest, ivk_kid, blob = row
    return StoredKey(
        namespace=namespace,
        key=key,
        version=version,
        revision=revision,
        kid=Kid(kid),
        digest=Digest(digest),
        ivk_kid=ivk_kid,
        blob=blob,
    )


class SqliteKeyStore:
    """``core.keystore.KeyStore``; the file has mode 0600."""

    def __init__(self, path: Path) -> None:
        path.touch(mode=0o600, exist_ok=True)
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0)
        with self._guard() as db:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")
            db.executescript(_SCHEMA)

    @contextmanager
    def _guard(self) -> Iterator[sqlite3.Connection]:
        try:
            yield self._db
        except sqlite3.OperationalError as bad:
            raise Unavailable("storage", f"the key store does not answer: {bad}") from bad
        except (sqlite3.DatabaseError, ValueError) as bad:
            raise Integrity("storage", f"the key store's file is damaged: {bad}") from bad

    def get_key(self, kid: str) -> StoredKey | None:
        with self._guard() as db:
            row = db.execute(f"SELECT {_KEY_COLUMNS} FROM keys WHERE kid = ?", (kid,)).fetchone()  # noqa: S608
        return None if row is None else _key(row)

    def put_key(self, stored: StoredKey, *, over: StoredKey | None) -> bool:
        """Compare-and-set in one statement."""
        values = (
            stored.namespace,
            stored.key,
            stored.version,
            stored.revision,
            stored.digest,
            stored.ivk_kid,
            stored.blob,
            stored.kid,
        )
        with self._guard() as db:
            if over is None:
                done = db.execute(
                    "INSERT INTO keys (namespace, key, version, revision, digest, ivk_kid, blob, kid) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                    values,
                )
            else:
                done = db.execute(
                    "UPDATE keys SET namespace = ?, key = ?, version = ?, revision = ?, digest = ?, ivk_kid = ?, "
                    "blob = ? WHERE kid = ? AND revision = ? AND ivk_kid = ? AND blob = ?",
                    (*values, over.revision, over.ivk_kid, over.blob),
                )
            return done.rowcount == 1

    def drop_key(self, kid: str) -> None:
        with self._guard() as db:
            db.execute("DELETE FROM keys WHERE kid = ?", (kid,))

    def stored_keys(self, namespace: str | None = None) -> tuple[StoredKey, ...]:
        order = "ORDER BY namespace, key, version"
        with self._guard() as db:
            if namespace is None:
                rows = db.execute(f"SELECT {_KEY_COLUMNS} FROM keys {order}").fetchall()  # noqa: S608
            else:
                rows = db.execute(
                    f"SELECT {_KEY_COLUMNS} FROM keys WHERE namespace = ? {order}",  # noqa: S608
                    (namespace,),
                ).fetchall()
        return tuple(_key(row) for row in rows)

    def ivks(self) -> tuple[StoredIvk, ...]:
        with self._guard() as db:
            rows = db.execute(
                "SELECT generation, kid, state, created_at, wraps, blob FROM ivks ORDER BY generation DESC"
            ).fetchall()
            return tuple(
                StoredIvk(
                    generation=generation,
                    kid=Kid(kid),
                    state=IvkState(state),
                    created_at=Instant(created_at),
                    wraps=wraps,
                    blob=blob,
                )
                for generation, kid, state, created_at, wraps, blob in rows
            )

    def put_ivk(self, stored: StoredIvk) -> None:
        with self._guard() as db:
            db.execute(
                "INSERT INTO ivks (generation, kid, state, created_at, wraps, blob) VALUES (?, ?, ?, ?, ?, ?) "
                "ON CONFLICT (generation) DO UPDATE SET state = excluded.state "
                "WHERE ivks.kid = excluded.kid",
                (stored.generation, stored.kid, stored.state.value, stored.created_at, stored.wraps, stored.blob),
            )

    def count_wraps(self, kid: str, n: int) -> None:
        with self._guard() as db:
            db.execute("UPDATE ivks SET wraps = wraps + ? WHERE kid = ?", (n, kid))

    def put_blob(self, tenant: str, digest: str, blob: bytes) -> None:
        with self._guard() as db:
            db.execute(
                "INSERT INTO blobs (tenant, digest, blob) VALUES (?, ?, ?) "
                "ON CONFLICT (tenant, digest) DO UPDATE SET blob = excluded.blob",
                (tenant, digest, blob),
            )

    def get_blob(self, tenant: str, digest: str) -> bytes | None:
        with self._guard() as db:
            row = db.execute("SELECT blob FROM blobs WHERE tenant = ? AND digest = ?", (tenant, digest)).fetchone()
        return None if row is None else bytes(row[0])

    def count_blobs(self, tenant: str) -> int:
        with self._guard() as db:
            return int(db.execute("SELECT count(*) FROM blobs WHERE tenant = ?", (tenant,)).fetchone()[0])

    def drop_blob(self, tenant: str, digest: str) -> None:
        with self._guard() as db:
            db.execute("DELETE FROM blobs WHERE tenant = ? AND digest = ?", (tenant, digest))

    def close(self) -> None:
        self._db.close()
