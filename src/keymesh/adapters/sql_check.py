"""Whether what the tables hold follows from the log: rows against the map-tree root that the log's entry attests,
typed rows against rows, lines of ``entries`` against entries.

Not checked: the outbox, of which lines go when they are delivered, and kill-switch records, which say more than the
log does.  Every function returns the first thing that is wrong, in a few words for people, or None.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, Final

import sqlalchemy as sa

from keymesh.adapters.sql_schema import (
    BINDINGS,
    ENTRIES,
    HEADS,
    KEYS,
    META,
    NODES,
    REGIONS,
    RESTRICTIONS,
    ROWS,
    SERVICES,
    TENANTS,
)
from keymesh.control.entry import Leaf, SignedEntry
from keymesh.ledger.maptree import root_of
from keymesh.model.errors import KeymeshError
from keymesh.model.ids import MESH_NAMESPACE
from keymesh.registry.projection import entry_row, expected

_OF_TENANT: Final = (TENANTS, BINDINGS, SERVICES, KEYS)
_OF_MESH: Final = (REGIONS, NODES)
_WINDOW: Final = 1_000  # commits compared at a time


def wrong_in_namespace(db: sa.Connection, namespace: str, leaf: Leaf | None, *, exact: bool) -> str | None:
    """``leaf``: the log's head; where the projection is not ``exact``-ly at the log's index, it may be older."""
    head = db.execute(sa.select(HEADS).where(HEADS.c.namespace == namespace)).one_or_none()
    found = db.execute(sa.select(ROWS.c.name, ROWS.c.value).where(ROWS.c.namespace == namespace))
    rows = {row.name: bytes(row.value) for row in found}
    if head is None:  # not there, or not there yet
        missing = exact and leaf is not None
        return f"head of {namespace}" if missing or rows else _wrong_in_typed(db, namespace, {})
    if leaf is None:
        return f"head of {namespace}"
    if head.seq > leaf.seq or (exact and head.seq < leaf.seq):
        return f"head of {namespace}: seq {head.seq}, the log has {leaf.seq}"
    if head.seq == leaf.seq and (head.epoch, head.entry_hash, head.state) != (leaf.epoch, leaf.entry_hash, leaf.state):
        return f"head of {namespace}"
    line = db.execute(
        sa.select(ENTRIES.c.idx, ENTRIES.c.entry_hash).where(
            ENTRIES.c.namespace == namespace, ENTRIES.c.seq == head.seq
        )
    ).one_or_none()
    if line != (head.idx, head.entry_hash):
        return f"entries of {namespace}"
    if root_of(rows) != head.state:
        return f"rows of {namespace}"
    return _wrong_in_typed(db, namespace, rows)


def _wrong_in_typed(db: sa.Connection, namespace: str, rows: Mapping[str, bytes]) -> str | None:
    try:
        wanted = expected(namespace, rows)
    except KeymeshError:
        return f"rows of {namespace}"
    held: dict[tuple[str, Any], dict[str, Any]] = {}
    for table in (*(_OF_MESH if namespace == MESH_NAMESPACE else _OF_TENANT), RESTRICTIONS):
        query = sa.select(table)
        if table not in _OF_MESH:
            query = query.where(next(iter(table.primary_key.columns)) == namespace)
        for row in db.execute(query):
            values = dict(row._mapping)
            key = tuple((column.name, values.pop(column.name)) for column in table.primary_key.columns)
            held[(table.name, key)] = values
    for place in wanted.keys() | held.keys():
        if not _equal(wanted.get(place), held.get(place)):
            return f"{place[0]} of {namespace}"
    return None


def _equal(wanted: Mapping[str, Any] | None, held: Mapping[str, Any] | None) -> bool:
    if wanted is None or held is None:
        return False
    return all(held[name] == wanted.get(name) for name in held) and wanted.keys() <= held.keys()


def wrong_in_entries(db: sa.Connection, index: int, log: Sequence[tuple[int, SignedEntry]]) -> str | None:
    """The lines of ``entries`` are the entries of the log up to ``index``, and no others."""
    upto = [(at, signed) for at, signed in log if at <= index]
    for window, group in groupby(upto, lambda pair: pair[0] // _WINDOW):
        lines = [{**dict(row.key), **dict(row.values)} for row in (entry_row(*pair) for pair in group)]
        held = db.execute(
            sa.select(ENTRIES)
            .where(ENTRIES.c.idx.between(window * _WINDOW, min(index, (window + 1) * _WINDOW - 1)))
            .order_by(ENTRIES.c.idx, ENTRIES.c.namespace, ENTRIES.c.seq)
        )
        if [dict(row._mapping) for row in held] != lines:
            return f"entries from {max(1, window * _WINDOW)}"
    if db.execute(sa.select(sa.func.count()).select_from(ENTRIES)).scalar_one() != len(upto):
        return "entries of no index"
    return None


def namespaces_held(db: sa.Connection) -> set[str]:
    """Every namespace that any table speaks of."""
    found: set[str] = set()
    for table in (HEADS, ROWS, RESTRICTIONS, *_OF_TENANT):
        found.update(db.execute(sa.select(next(iter(table.primary_key.columns))).distinct()).scalars())
    if any(db.execute(sa.select(sa.literal(1)).select_from(table).limit(1)).first() for table in _OF_MESH):
        found.add(MESH_NAMESPACE)
    return found


def wipe(db: sa.Connection, keep: sa.Table, *, unread: bool) -> None:
    """Empty every table but ``keep``; ``unread``: without looking at pages that cannot be read (PostgreSQL)."""
    for table in META.sorted_tables:
        if table is not keep:
            db.execute(sa.text(f'TRUNCATE "{table.name}"') if unread else sa.delete(table))
