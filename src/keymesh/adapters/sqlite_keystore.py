"""A region's key store on SQLite, for the embedded mesh: WAL, ``synchronous=FULL``, compare-and-set by content.

A local file answers at once, so its methods never wait.  Schema 1 keeps keys in ``keys``, by kid; schema 2 in
``key_versions``, by namespace and kid, and leaves a view in the old table's place: release 0.1, which knows no
schemas, is refused by SQLite itself when it tries to index it, before it has changed anything.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from keymesh.core.keystore import FIRST_SCHEMA, StoredIvk, StoredKey, StoreIdentity
from keymesh.core.store_rules import check_step
from keymesh.model.errors import Integrity, Unavailable
from keymesh.model.ids import Digest, Kid
from keymesh.model.states import IvkState
from keymesh.model.time import Instant

_BASE: Final = """
CREATE TABLE IF NOT EXISTS store (
  one INTEGER PRIMARY KEY CHECK (one = 1), store_id TEXT NOT NULL, region TEXT NOT NULL, schema INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS ivks (
  generation INTEGER PRIMARY KEY, kid TEXT NOT NULL UNIQUE, state TEXT NOT NULL, created_at INTEGER NOT NULL,
  wraps INTEGER NOT NULL, blob BLOB NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS blobs (
  tenant TEXT NOT NULL, digest TEXT NOT NULL, blob BLOB NOT NULL, PRIMARY KEY (tenant, digest)
) STRICT;
"""
_LAYOUTS: Final = {
    1: (
        "CREATE TABLE IF NOT EXISTS keys ("
        "  kid TEXT PRIMARY KEY, namespace TEXT NOT NULL, key TEXT NOT NULL, version INTEGER NOT NULL,"
        "  revision INTEGER NOT NULL, digest TEXT NOT NULL, ivk_kid TEXT NOT NULL, blob BLOB NOT NULL"
        ") STRICT",
        "CREATE INDEX IF NOT EXISTS keys_of ON keys (namespace, key, version)",
    ),
    2: (
        "CREATE TABLE IF NOT EXISTS key_versions ("
        "  namespace TEXT NOT NULL, kid TEXT NOT NULL, key TEXT NOT NULL, version INTEGER NOT NULL,"
        "  revision INTEGER NOT NULL, digest TEXT NOT NULL, ivk_kid TEXT NOT NULL, blob BLOB NOT NULL,"
        "  PRIMARY KEY (namespace, kid)"
        ") STRICT",
        "CREATE VIEW IF NOT EXISTS keys AS SELECT * FROM key_versions",
    ),
}
_TABLES: Final = {1: "keys", 2: "key_versions"}
_COLUMNS: Final = "namespace, key, version, revision, kid, digest, ivk_kid, blob"
_SAME: Final = "namespace = ? AND kid = ? AND revision = ? AND ivk_kid = ? AND blob = ?"


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


def _same(key: StoredKey) -> tuple[Any, ...]:
    return (key.namespace, key.kid, key.revision, key.ivk_kid, key.blob)


class SqliteKeyStore:
    """``core.keystore.KeyStore``; the file has mode 0600."""

    late_write_s = 0.0

    def __init__(self, path: Path) -> None:
        path.touch(mode=0o600, exist_ok=True)
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0)
        self._keys = ""
        with self._guard() as db:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")

    @contextmanager
    def _guard(self) -> Iterator[sqlite3.Connection]:
        try:
            yield self._db
        except sqlite3.OperationalError as bad:
            raise Unavailable("storage", f"the key store does not answer: {bad}") from bad
        except (sqlite3.DatabaseError, ValueError) as bad:
            raise Integrity("storage", f"the key store's file is damaged: {bad}") from bad

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

    def _table(self) -> str:
        if not self._keys:
            raise Unavailable("store-not-open", "the key store has not been looked at yet")
        return self._keys

    # --- identity and layout -----------------------------------------------------------------------------------------

    async def identity(self) -> StoreIdentity | None:
        with self._guard() as db:
            if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'store'").fetchone():
                return None
            row = db.execute("SELECT store_id, region, schema FROM store").fetchone()
        if row is None:
            return None
        found = StoreIdentity(store_id=row[0], region=row[1], schema=row[2])
        self._keys = _TABLES.get(found.schema, "")
        return found

    async def found(self, identity: StoreIdentity) -> StoreIdentity:
        with self._transaction() as db:
            for statement in _BASE.split(";"):
                db.execute(statement)
            db.execute(
                "INSERT INTO store VALUES (1, ?, ?, ?) ON CONFLICT DO NOTHING",
                (identity.store_id, identity.region, identity.schema),
            )
            schema = db.execute("SELECT schema FROM store").fetchone()[0]
            for statement in _LAYOUTS.get(schema, ()):
                db.execute(statement)
        found = await self.identity()
        assert found is not None
        return found

    async def has_rows(self) -> bool:
        """Whether release 0.1 has written here."""
        with self._guard() as db:
            return bool(db.execute("SELECT 1 FROM sqlite_master WHERE name IN ('ivks', 'keys')").fetchone())

    async def migrate(self, schema: int) -> None:
        """In one transaction: all of it, or nothing."""
        with self._transaction() as db:
            row = db.execute("SELECT schema FROM store").fetchone()
            check_step(row[0], schema)
            if row[0] == FIRST_SCHEMA and schema > FIRST_SCHEMA:
                db.execute("ALTER TABLE keys RENAME TO old_keys")
                db.execute(_LAYOUTS[2][0])
                db.execute(f"INSERT INTO key_versions ({_COLUMNS}) SELECT {_COLUMNS} FROM old_keys")  # noqa: S608
                db.execute("DROP TABLE old_keys")
                db.execute(_LAYOUTS[2][1])
                db.execute("UPDATE store SET schema = 2")
        await self.identity()

    # --- keys --------------------------------------------------------------------------------------------------------

    async def get_key(self, namespace: str, kid: str) -> StoredKey | None:
        sql = f"SELECT {_COLUMNS} FROM {self._table()} WHERE namespace = ? AND kid = ?"  # noqa: S608
        with self._guard() as db:
            row = db.execute(sql, (namespace, kid)).fetchone()
        return None if row is None else _key(row)

    async def put_key(self, stored: StoredKey, *, over: StoredKey | None) -> bool:
        """Compare-and-set in one statement."""
        table = self._table()
        values = (stored.key, stored.version, stored.revision, stored.digest, stored.ivk_kid, stored.blob)
        with self._guard() as db:
            if over is None:
                sql = (
                    f"INSERT INTO {table} (key, version, revision, digest, ivk_kid, blob, namespace, kid) "  # noqa: S608
                    "VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
                )
                done = db.execute(sql, (*values, stored.namespace, stored.kid))
            else:
                sql = (
                    f"UPDATE {table} SET key = ?, version = ?, revision = ?, digest = ?, ivk_kid = ?, blob = ? "  # noqa: S608
                    f"WHERE {_SAME}"
                )
                done = db.execute(sql, (*values, *_same(over)))
            return done.rowcount == 1

    async def drop_key(self, stored: StoredKey) -> bool:
        with self._guard() as db:
            sql = f"DELETE FROM {self._table()} WHERE {_SAME}"  # noqa: S608
            return db.execute(sql, _same(stored)).rowcount == 1

    async def stored_keys(self, namespace: str | None = None) -> tuple[StoredKey, ...]:
        where, values = ("", ()) if namespace is None else ("WHERE namespace = ?", (namespace,))
        sql = f"SELECT {_COLUMNS} FROM {self._table()} {where} ORDER BY namespace, key, version"  # noqa: S608
        with self._guard() as db:
            return tuple(_key(row) for row in db.execute(sql, values).fetchall())

    # --- internal keys -----------------------------------------------------------------------------------------------

    async def ivks(self) -> tuple[StoredIvk, ...]:
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

    async def put_ivk(self, stored: StoredIvk) -> None:
        with self._guard() as db:
            db.execute(
                "INSERT INTO ivks (generation, kid, state, created_at, wraps, blob) VALUES (?, ?, ?, ?, ?, ?) "
                "ON CONFLICT (generation) DO UPDATE SET state = excluded.state "
                "WHERE ivks.kid = excluded.kid",
                (stored.generation, stored.kid, stored.state.value, stored.created_at, stored.wraps, stored.blob),
            )

    async def count_wraps(self, kid: str, n: int) -> None:
        with self._guard() as db:
            db.execute("UPDATE ivks SET wraps = wraps + ? WHERE kid = ?", (n, kid))

    # --- blobs -------------------------------------------------------------------------------------------------------

    async def put_blob(self, tenant: str, digest: str, blob: bytes) -> None:
        with self._guard() as db:
            db.execute(
                "INSERT INTO blobs (tenant, digest, blob) VALUES (?, ?, ?) "
                "ON CONFLICT (tenant, digest) DO UPDATE SET blob = excluded.blob",
                (tenant, digest, blob),
            )

    async def get_blob(self, tenant: str, digest: str) -> bytes | None:
        with self._guard() as db:
            row = db.execute("SELECT blob FROM blobs WHERE tenant = ? AND digest = ?", (tenant, digest)).fetchone()
        return None if row is None else bytes(row[0])

    async def count_blobs(self, tenant: str) -> int:
        with self._guard() as db:
            return int(db.execute("SELECT count(*) FROM blobs WHERE tenant = ?", (tenant,)).fetchone()[0])

    async def blob_digests(self, tenant: str) -> tuple[str, ...]:
        with self._guard() as db:
            rows = db.execute("SELECT digest FROM blobs WHERE tenant = ? ORDER BY digest", (tenant,)).fetchall()
        return tuple(row[0] for row in rows)

    async def purge(self, tenant: str) -> None:
        """Deleted rows leave their bytes in free pages and in the write-ahead log: so the file is written anew without
        them, and the log emptied."""
        with self._transaction() as db:
            db.execute(f"DELETE FROM {self._table()} WHERE namespace = ?", (tenant,))  # noqa: S608
            db.execute("DELETE FROM blobs WHERE tenant = ?", (tenant,))
        with self._guard() as db:
            db.execute("VACUUM")
            busy, _, _ = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise Unavailable("storage", "the key store's log cannot be emptied: somebody else has the file open")

    async def drop_blob(self, tenant: str, digest: str) -> None:
        with self._guard() as db:
            db.execute("DELETE FROM blobs WHERE tenant = ? AND digest = ?", (tenant, digest))

    async def close(self) -> None:
        self._db.close()
