"""Whether what the tables hold follows from the log: rows against the map-tree root that the log's entry attests,
typed rows against rows, lines of ``entries`` against entries.

Not checked: the outbox, of which lines go when they are delivered, and kill-switch records, which say more than the
log does.  Every function returns the first thing that is wrong, in a few words for people, or None.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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


@dataclass(frozen=True, slots=True)
class Held:
    """What the tables say of one namespace.  ``line``: index and hash in ``entries`` of what ``head`` names."""

    head: Any = None
    line: tuple[int, str] | None = None
    rows: dict[str, bytes] = field(default_factory=dict)
    typed: dict[tuple[str, Any], dict[str, Any]] = field(default_factory=dict)


def held_of(db: sa.Connection, namespace: str | None = None) -> dict[str, Held]:
    """Every namespace that any table speaks of, or that one alone; a dozen queries either way."""

    def asked(query: sa.Select[Any], column: sa.Column[Any]) -> sa.CursorResult[Any]:
        return db.execute(query if namespace is None else query.where(column == namespace))

    found: dict[str, Held] = {}
    joined = sa.and_(ENTRIES.c.namespace == HEADS.c.namespace, ENTRIES.c.seq == HEADS.c.seq)
    lines = sa.select(HEADS, ENTRIES.c.idx.label("at"), ENTRIES.c.entry_hash.label("hash"))
    for head in asked(lines.outerjoin_from(HEADS, ENTRIES, joined), HEADS.c.namespace):
        found[head.namespace] = Held(head, None if head.at is None else (head.at, head.hash))
    for row in asked(sa.select(ROWS), ROWS.c.namespace):
        found.setdefault(row.namespace, Held()).rows[row.name] = bytes(row.value or b"")
    for table in (*_OF_TENANT, *_OF_MESH, RESTRICTIONS):
        if table in _OF_MESH and namespace not in (None, MESH_NAMESPACE):
            continue
        names = list(table.primary_key.columns.keys())
        for row in db.execute(sa.select(table)) if table in _OF_MESH else asked(sa.select(table), table.c[names[0]]):
            values = dict(row._mapping)
            key = tuple((name, values.pop(name)) for name in names)
            whose = MESH_NAMESPACE if table in _OF_MESH else str(key[0][1])
            found.setdefault(whose, Held()).typed[(table.name, key)] = values
    return found


def wrong_in_namespace(held: Held, namespace: str, leaf: Leaf | None, *, exact: bool) -> str | None:
    """``leaf``: the log's head; where the projection is not ``exact``-ly at the log's index, it may be older."""
    head = held.head
    if head is None:  # not there, or not there yet
        missing = exact and leaf is not None
        return f"head of {namespace}" if missing or held.rows or held.typed else None
    if leaf is None:
        return f"head of {namespace}"
    if head.seq > leaf.seq or (exact and head.seq < leaf.seq):
        return f"head of {namespace}: seq {head.seq}, the log has {leaf.seq}"
    if head.seq == leaf.seq and (head.epoch, head.entry_hash, head.state) != (leaf.epoch, leaf.entry_hash, leaf.state):
        return f"head of {namespace}"
    if held.line != (head.idx, head.entry_hash):
        return f"entries of {namespace}"
    if root_of(held.rows) != head.state:
        return f"rows of {namespace}"
    try:
        wanted = expected(namespace, held.rows)
    except KeymeshError:
        return f"rows of {namespace}"
    for place in wanted.keys() | held.typed.keys():
        if not _equal(wanted.get(place), held.typed.get(place)):
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


def wipe(db: sa.Connection, keep: sa.Table, *, unread: bool) -> None:
    """Empty every table but ``keep``; ``unread``: without looking at pages that cannot be read (PostgreSQL)."""
    for table in META.sorted_tables:
        if table is not keep:
            db.execute(sa.text(f'TRUNCATE "{table.name}"') if unread else sa.delete(table))
