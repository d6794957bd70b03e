"""The read model in SQL, through SQLAlchemy Core: one schema for SQLite and, later, PostgreSQL.

Brought forward one commit at a time: a commit taken twice changes nothing, one that would skip or rewrite is refused,
and after a crash the log is read on from ``index()``.  Every read says at which index it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import OperationalError

from keymesh.control.entry import SignedEntry
from keymesh.control.log import in_order
from keymesh.model import strict_json
from keymesh.model.errors import Integrity, Unavailable
from keymesh.model.ids import ZERO_DIGEST
from keymesh.registry.projection import Change, Delete, Put, project
from keymesh.registry.records import KillRecord

_META: Final = sa.MetaData()
_NAME: Final = sa.String(128)
_HASH: Final = sa.String(64)
_BIG: Final = sa.BigInteger


def _table(name: str, *columns: sa.Column[Any]) -> sa.Table:
    return sa.Table(name, _META, *columns)


def _key(name: str, kind: Any = _NAME) -> sa.Column[Any]:
    return sa.Column(name, kind, primary_key=True, autoincrement=False)


def _col(name: str, kind: Any = sa.Text, *, null: bool = True) -> sa.Column[Any]:
    return sa.Column(name, kind, nullable=null)


PROJECTION_INDEX: Final = _table("projection_index", _key("id", sa.Integer), _col("idx", _BIG, null=False))
ENTRIES: Final = _table(
    "entries",
    _key("namespace"),
    _key("seq", _BIG),
    _col("idx", _BIG, null=False),
    _col("epoch", _BIG),
    _col("kind", _NAME),
    _col("actor"),
    _col("correlation_id", _NAME),
    _col("command_id", _NAME),
    _col("issued_at", _BIG),
    _col("entry_hash", _HASH),
)
sa.Index("entries_idx", ENTRIES.c.idx)
sa.Index("entries_command", ENTRIES.c.namespace, ENTRIES.c.command_id, unique=True)
HEADS: Final = _table(
    "heads",
    _key("namespace"),
    _col("epoch", _BIG),
    _col("seq", _BIG),
    _col("entry_hash", _HASH),
    _col("state", _HASH),
    _col("idx", _BIG),
)
ROWS: Final = _table("rows", _key("namespace"), _key("name", sa.String(256)), _col("value", sa.LargeBinary))
TENANTS: Final = _table(
    "tenants",
    _key("tenant"),
    _col("version", _BIG),
    _col("home", _NAME),
    _col("domain", _NAME),
    _col("regions"),
    _col("admins"),
    _col("ttl_ms", _BIG),
    _col("standby", _NAME),
    _col("labels"),
)
BINDINGS: Final = _table(
    "bindings", _key("tenant"), _key("binding"), _col("provider", _NAME), _col("descriptor"), _col("state", _NAME)
)
SERVICES: Final = _table(
    "services",
    _key("tenant"),
    _key("service"),
    _col("version", _BIG),
    _col("custody", _NAME),
    _col("edge_ttl_ms", _BIG),
    _col("mint_budget", _BIG),
    _col("open_budget", _BIG),
)
KEYS: Final = _table(
    "keys",
    _key("tenant"),
    _key("key"),
    _key("version", _BIG),
    _col("kid", _HASH),
    _col("revision", _BIG),
    _col("state", _NAME),
    _col("digest", _HASH),
    _col("parent", _NAME),
)
RESTRICTIONS: Final = _table(
    "restrictions",
    _key("namespace"),
    _key("scope", sa.String(256)),
    _col("state", _NAME),
    _col("seq", _BIG),
    _col("command_id", _NAME),
)
REGIONS: Final = _table(
    "regions",
    _key("region"),
    _col("domain", _NAME),
    _col("failure_domain", _NAME),
    _col("ca_fingerprint"),
    _col("ivk_generation", _BIG),
)
NODES: Final = _table("nodes", _key("region"), _key("node"), _col("signing_key", _HASH))
OUTBOX: Final = _table(
    "outbox",
    _key("namespace"),
    _key("seq", _BIG),
    _key("region"),
    _col("idx", _BIG),
    _col("lane", sa.Integer),
    _col("correlation_id", _NAME),
)
sa.Index("outbox_order", OUTBOX.c.region, OUTBOX.c.lane, OUTBOX.c.idx)
KILLS: Final = _table(
    "kill_records",
    _key("namespace"),
    _key("command_id"),
    _col("scope", sa.String(256)),
    _col("action", _NAME),
    _col("status", _NAME),
    _col("seq", _BIG),
    _col("committed_at", _BIG),
    _col("t", _BIG),
    _col("certified_at", _BIG),
    _col("holders"),
)


@dataclass(frozen=True, slots=True)
class Read:
    """Rows as they were at ``index``."""

    index: int
    rows: tuple[dict[str, Any], ...]


class SqlProjection:
    """``url`` is SQLAlchemy's.  Not thread-safe; one writer at a time (the row of the index is compared and set)."""

    def __init__(self, url: str) -> None:
        self._engine = sa.create_engine(url)
        if self._engine.dialect.name == "sqlite":
            sa.event.listen(self._engine, "connect", _tune_sqlite)
        self._rows: dict[str, dict[str, bytes]] = {}
        with self._doing() as db:
            _META.create_all(db)
            if db.execute(sa.select(PROJECTION_INDEX.c.idx)).first() is None:
                db.execute(sa.insert(PROJECTION_INDEX).values(id=1, idx=0))

    @contextmanager
    def _doing(self) -> Iterator[sa.Connection]:
        """One transaction.  Raises Unavailable where the database does not answer or can't write."""
        try:
            with self._engine.begin() as db:
                yield db
        except OperationalError as failed:
            self._rows.clear()
            raise Unavailable("projection", "the read model's database does not answer") from failed
        except BaseException:
            self._rows.clear()
            raise

    def close(self) -> None:
        self._engine.dispose()

    # --- writing -------------------------------------------------------------------------------------------------

    def index(self) -> int:
        with self._doing() as db:
            return _index(db)

    def apply(self, index: int, entries: Sequence[SignedEntry]) -> None:
        """Take the commit at ``index``.

        Raises Integrity where it skips commits, or where the projection holds something else at its place.
        """
        with self._doing() as db:
            current = _index(db)
            if index <= current:
                _check_same(db, index, entries)
                return
            if index != current + 1:
                raise Integrity("projection-skip", f"commit {index} after {current}", field="index")
            changes: list[Change] = []
            heads: dict[str, tuple[int, str]] = {}
            for signed in in_order(entries):
                changes.extend(self._take(db, index, signed, heads))
            _write(db, changes)
            moved = db.execute(
                sa.update(PROJECTION_INDEX)
                .where(PROJECTION_INDEX.c.id == 1, PROJECTION_INDEX.c.idx == current)
                .values(idx=index)
            )
            if moved.rowcount != 1:
                raise Integrity("projection-race", "another writer moved the projection", field="index")

    def catch_up(self, read: tuple[int, Sequence[tuple[int, SignedEntry]]]) -> None:
        """Take the commits of a read of the log, in order."""
        commits: dict[int, list[SignedEntry]] = {}
        for index, signed in read[1]:
            commits.setdefault(index, []).append(signed)
        for index, entries in sorted(commits.items()):
            self.apply(index, entries)

    def _take(
        self, db: sa.Connection, index: int, signed: SignedEntry, heads: dict[str, tuple[int, str]]
    ) -> tuple[Change, ...]:
        """What one entry changes, after those before it in its commit (``heads`` are theirs)."""
        entry = signed.entry
        head = heads.get(entry.namespace)
        if head is None:
            found = db.execute(_HEAD_OF, {"namespace_": entry.namespace}).first()
            head = (0, ZERO_DIGEST) if found is None else (found.seq, found.entry_hash)
        if (entry.seq - 1, entry.prev) != head:
            raise Integrity("projection-chain", f"{entry.namespace}:{entry.seq} does not follow", field="prev")
        heads[entry.namespace] = (entry.seq, signed.hash)
        before = self._rows.get(entry.namespace)
        if before is None:
            before = _rows_of(db, entry.namespace)
        after, changes = project(index, signed, before)
        self._rows[entry.namespace] = after
        return changes

    def put_kill(self, record: KillRecord) -> None:
        """Show a kill-switch record as it now stands."""
        values = (
            ("scope", record.scope),
            ("action", record.action),
            ("status", record.status),
            ("seq", record.seq),
            ("committed_at", record.committed_at),
            ("t", record.t),
            ("certified_at", record.certified_at),
            ("holders", strict_json.dumps(record.holders).decode()),
        )
        with self._doing() as db:
            key = (("namespace", record.namespace), ("command_id", record.command_id))
            _write(db, [Put("kill_records", key, values)])

    def delivered(self, region: str, namespace: str, seq: int) -> None:
        """Forget outbox lines that ``region`` has acknowledged, up to ``seq``."""
        with self._doing() as db:
            db.execute(
                sa.delete(OUTBOX).where(OUTBOX.c.region == region, OUTBOX.c.namespace == namespace, OUTBOX.c.seq <= seq)
            )

    # --- reading -------------------------------------------------------------------------------------------------

    def read(
        self, table: str, *, at_least: int = 0, limit: int = 1_000, after: dict[str, Any] | None = None, **equal: Any
    ) -> Read:
        """Rows of ``table`` where the columns in ``equal`` have these values, in order of the primary key.

        ``at_least``: an index that the caller has seen; ``after``: primary-key values of the last row of the page
        before.  Raises Unavailable where the projection is still behind it.
        """
        found = _META.tables[table]
        query = sa.select(found).order_by(*found.primary_key.columns).limit(limit)
        for name, value in sorted(equal.items()):
            query = query.where(found.c[name] == value)
        if after is not None:
            columns = list(found.primary_key.columns)
            query = query.where(sa.tuple_(*columns) > sa.tuple_(*(sa.literal(after[c.name]) for c in columns)))
        with self._doing() as db:
            index = _index(db)
            if index < at_least:
                raise Unavailable("behind", f"the projection is at {index}, not yet at {at_least}", retry_after_ms=50)
            return Read(index, tuple(dict(row._mapping) for row in db.execute(query)))


def _tune_sqlite(connection: Any, _record: Any) -> None:
    """The log is the truth, so the projection may lose its last commits at a power cut, never its consistency."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.execute("PRAGMA busy_timeout=5000")
    cursor.close()


def _index(db: sa.Connection) -> int:
    return int(db.execute(sa.select(PROJECTION_INDEX.c.idx).where(PROJECTION_INDEX.c.id == 1)).scalar_one())


def _rows_of(db: sa.Connection, namespace: str) -> dict[str, bytes]:
    found = db.execute(sa.select(ROWS.c.name, ROWS.c.value).where(ROWS.c.namespace == namespace))
    return {row.name: bytes(row.value) for row in found}


def _check_same(db: sa.Connection, index: int, entries: Sequence[SignedEntry]) -> None:
    """What was taken at ``index`` is what is offered again.  Raises Integrity."""
    for signed in entries:
        entry = signed.entry
        held = db.execute(
            sa.select(ENTRIES.c.idx, ENTRIES.c.entry_hash).where(
                ENTRIES.c.namespace == entry.namespace, ENTRIES.c.seq == entry.seq
            )
        ).first()
        if held is None or (held.idx, held.entry_hash) != (index, signed.hash):
            raise Integrity("projection-rewrite", f"commit {index} is not what was taken there", field="index")


def _write(db: sa.Connection, changes: Sequence[Change]) -> None:
    """Upsert or delete by the primary key.  Changes of one row become one, and like ones go to the database together:
    a commit of 32 entries costs about what one costs, since the Registry's loop waits meanwhile."""
    deletes: dict[tuple[str, Any], None] = {}
    puts: dict[tuple[str, Any], dict[str, Any]] = {}
    for change in changes:
        place = (change.table, change.key)
        if isinstance(change, Delete):
            deletes[place] = None
            puts.pop(place, None)
        else:
            puts.setdefault(place, {}).update(change.values)
    gone: dict[str, list[dict[str, Any]]] = {}
    for table, key in deletes:
        gone.setdefault(table, []).append({f"{name}_": value for name, value in key})
    for table, keys in gone.items():
        db.execute(_delete(table), keys)
    put: dict[tuple[str, tuple[str, ...]], list[dict[str, Any]]] = {}
    for (table, key), values in puts.items():
        row = {**dict(key), **values}
        put.setdefault((table, tuple(row)), []).append(row)
    for (table, columns), rows in put.items():
        db.execute(_upsert(db.dialect.name, table, columns), rows)


_HEAD_OF: Final = sa.select(HEADS.c.seq, HEADS.c.entry_hash).where(HEADS.c.namespace == sa.bindparam("namespace_"))


@cache
def _delete(name: str) -> sa.Delete:
    table = _META.tables[name]
    return sa.delete(table).where(*(column == sa.bindparam(f"{column.name}_") for column in table.primary_key.columns))


@cache
def _upsert(dialect: str, name: str, columns: tuple[str, ...]) -> sa.Insert:
    """Made once for each shape of row: building a statement costs many times what running it does."""
    table = _META.tables[name]
    own = [column.name for column in table.primary_key.columns]
    rest = [column for column in columns if column not in own]
    insert = sqlite.insert(table) if dialect == "sqlite" else postgresql.insert(table)
    if not rest:
        return insert.on_conflict_do_nothing(index_elements=own)
    return insert.on_conflict_do_update(index_elements=own, set_={c: insert.excluded[c] for c in rest})
