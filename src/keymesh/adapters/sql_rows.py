"""Rows of the read model read and written: statements that are made once, and changes of a commit sent together."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from functools import cache
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from keymesh.adapters.sql_schema import ENTRIES, HEADS, META, PLACE, ROWS
from keymesh.control.entry import SignedEntry
from keymesh.model.errors import Integrity
from keymesh.registry.projection import Change, Delete

LineKey = tuple[str, int, str]
"""(namespace, seq, region) of an outbox line."""


def place_of(db: sa.Connection, *, lock: bool = False) -> Any:
    """The row that settles who writes next, and at which index; locked until the transaction ends if asked.

    Raises Integrity where it is gone.
    """
    found = db.execute(_LOCKED_PLACE if lock else _PLACE).one_or_none()
    if found is None:
        raise Integrity("projection-damaged", "the row of the index is gone", field="index")
    return found


def make_place(db: sa.Connection) -> None:
    """That row, where it is not there yet."""
    if db.execute(sa.select(PLACE.c.id)).first() is None:
        db.execute(_insert(db.dialect.name, PLACE).on_conflict_do_nothing(), {"id": 1, "idx": 0})


def heads_of(db: sa.Connection, namespaces: Iterable[str]) -> dict[str, tuple[int, str]]:
    """Seq and entry hash of the head of each of ``namespaces`` that has one."""
    found = db.execute(_HEADS_OF, {"namespaces_": sorted(namespaces)})
    return {row.namespace: (row.seq, row.entry_hash) for row in found}


def rows_of(db: sa.Connection, namespace: str) -> dict[str, bytes]:
    """The desired state of ``namespace``."""
    found = db.execute(sa.select(ROWS.c.name, ROWS.c.value).where(ROWS.c.namespace == namespace))
    return {row.name: bytes(row.value) for row in found}


def check_same(db: sa.Connection, index: int, entries: Sequence[SignedEntry]) -> None:
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


def write(db: sa.Connection, changes: Sequence[Change]) -> None:
    """Upsert or delete by the primary key.  Changes of one row become one, and like ones go to the database together:
    a commit of 32 entries costs about what one costs."""
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
        _send(db, _delete(db.dialect.name, table), keys)
    put: dict[tuple[str, tuple[str, ...]], list[dict[str, Any]]] = {}
    for (table, key), values in puts.items():
        row = {**dict(key), **values}
        put.setdefault((table, tuple(row)), []).append(row)
    for (table, columns), rows in put.items():
        _send(db, _upsert(db.dialect.name, table, columns), rows)


def forget(db: sa.Connection, lines: Sequence[dict[str, Any]], kept: Collection[LineKey]) -> None:
    """Those lines of the outbox are no more, but for ``kept``."""
    keys = [(line["namespace"], line["seq"], line["region"]) for line in lines]
    gone = [
        Delete("outbox", (("namespace", namespace), ("seq", seq), ("region", region)))
        for namespace, seq, region in keys
        if (namespace, seq, region) not in kept
    ]
    if gone:
        write(db, gone)


def _send(db: sa.Connection, statement: sa.Delete | sa.Insert, rows: list[dict[str, Any]]) -> None:
    """PostgreSQL takes the rows as one array for each column, in one statement; SQLite is no further than a call."""
    if db.dialect.name == "sqlite":
        db.execute(statement, rows)
    else:
        db.execute(statement, {name: [row[name] for row in rows] for name in rows[0]})


_PLACE: Final = sa.select(PLACE).where(PLACE.c.id == 1)
_LOCKED_PLACE: Final = _PLACE.with_for_update()
_HEADS_OF: Final = sa.select(HEADS.c.namespace, HEADS.c.seq, HEADS.c.entry_hash).where(
    HEADS.c.namespace.in_(sa.bindparam("namespaces_", expanding=True))
)


@cache
def _delete(dialect: str, name: str) -> sa.Delete:
    table = META.tables[name]
    own = list(table.primary_key.columns)
    if dialect == "sqlite":
        return sa.delete(table).where(*(column == sa.bindparam(f"{column.name}_") for column in own))
    return sa.delete(table).where(sa.tuple_(*own).in_(_unnested(own, suffix="_")))


@cache
def _upsert(dialect: str, name: str, columns: tuple[str, ...]) -> sa.Insert:
    """Made once for each shape of row: building a statement costs many times what running it does."""
    table = META.tables[name]
    own = [column.name for column in table.primary_key.columns]
    rest = [column for column in columns if column not in own]
    insert = _insert(dialect, table)
    if dialect != "sqlite":
        insert = insert.from_select(columns, _unnested([table.c[column] for column in columns]))
    statement: sa.Insert = insert.on_conflict_do_nothing(index_elements=own)
    if rest:
        statement = insert.on_conflict_do_update(index_elements=own, set_={c: insert.excluded[c] for c in rest})
    return statement


def _unnested(columns: Sequence[sa.Column[Any]], *, suffix: str = "") -> sa.Select[Any]:
    """Rows made of one array for each of ``columns``, bound under its name and ``suffix``."""
    return sa.select(
        *(sa.func.unnest(sa.bindparam(f"{c.name}{suffix}", type_=postgresql.ARRAY(c.type))) for c in columns)
    )


def _insert(dialect: str, table: sa.Table) -> Any:
    return sqlite.insert(table) if dialect == "sqlite" else postgresql.insert(table)
