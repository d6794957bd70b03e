"""Restrictions seen beyond the applied state: in force at once, recorded apart, never taken away by themselves.

One is laid over a namespace while a state that restricts is on its way to its record, and when all that is wrong with
a newer state is a lift without proof (so that Lane 0 waits for no resume).  It goes when a state at or after it is
applied; until then new states are compared with it too, so that it is only lifted with a proof.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from keymesh.control import view
from keymesh.control.entry import SignedEntry
from keymesh.control.rows import RestrictionRow, encode
from keymesh.control.state import NamespaceState
from keymesh.core import restrictions
from keymesh.core import views as decoded
from keymesh.core.records import OverlayRecord, overlay_name
from keymesh.core.state import Holding, NodeState, Out, Overlay
from keymesh.model.time import Instant


@dataclass(frozen=True, slots=True)
class OverlayPending:
    record: OverlayRecord


def held_state(holding: Holding | None) -> NamespaceState | None:
    """What a new state is compared with: as applied, restricted also by what is in force beyond it, so that these
    restrictions too are only lifted with a proof."""
    if holding is None or holding.applied is None or holding.overlay is None:
        return None if holding is None else holding.applied
    rows = dict(holding.applied.rows)
    applied = decoded.restriction_rows(rows)
    for text, row in holding.overlay.record.rows.items():
        if text not in applied or applied[text].seq < row.seq:
            rows[f"restriction/{text}"] = encode(row)
    return replace(holding.applied, rows=rows)


def overlay_of(head: SignedEntry, rows: dict[str, RestrictionRow], corr: str) -> OverlayRecord:
    entry = head.entry
    return OverlayRecord(entry.namespace, entry.epoch, entry.seq, head.hash, corr, rows)


def supersedes(new: NamespaceState, overlay: Overlay) -> bool:
    return (new.head.entry.epoch, new.head.entry.seq) >= (overlay.record.epoch, overlay.record.seq)


def lay_over(state: NodeState, now: Instant, holding: Holding, record: OverlayRecord, out: Out) -> bool:
    """Put the restrictions of ``record`` in force beyond what is applied; whether any is new.

    An earlier overlay's restrictions stay beside them: an overlay only adds.
    """
    namespace = holding.namespace
    found = {text: made for text, row in record.rows.items() if (made := decoded.restriction_of(namespace, text, row))}
    fresh = restrictions.newer(holding.restrictions, found)
    if not fresh:
        return False
    before = holding.overlay
    merged = dict(record.rows)
    if before is not None:
        for text, row in before.record.rows.items():
            if text not in merged or merged[text].seq < row.seq:
                merged[text] = row
    if before is not None and (before.record.epoch, before.record.seq) > (record.epoch, record.seq):
        record = replace(before.record, rows=merged)
    else:
        record = replace(record, rows=merged)
    holding.overlay = make_overlay(record, recorded=False)
    restrictions.refresh(state, holding)
    for restriction in fresh:
        restrictions.enforce(state, now, restriction.scope, (record.epoch, restriction.seq), record.correlation_id, out)
    return True


def make_overlay(record: OverlayRecord, *, recorded: bool) -> Overlay:
    made = {
        text: restriction
        for text, row in record.rows.items()
        if (restriction := decoded.restriction_of(record.namespace, text, row)) is not None
    }
    return Overlay(record, made, recorded)


def add(state: NodeState, now: Instant, holding: Holding, record: OverlayRecord, out: Out) -> None:
    """An unproven lift: what it restricts acts, and is recorded and acknowledged; the leaf stays."""
    lay_over(state, now, holding, record, out)
    overlay = holding.overlay
    if overlay is not None and not overlay.recorded:
        _persist(state, overlay.record, out)
    else:
        _answer(state, now, record, out)


def _persist(state: NodeState, record: OverlayRecord, out: Out) -> None:
    state.persist("overlay", OverlayPending(record), ((overlay_name(record.namespace), record),), (), out)


def on_recorded(state: NodeState, now: Instant, pending: OverlayPending, out: Out) -> None:
    record = pending.record
    holding = state.holding_or_new(record.namespace)
    if holding.overlay is not None and holding.overlay.record == record:
        holding.overlay.recorded = True
    _answer(state, now, record, out)


def restore(state: NodeState, record: OverlayRecord, out: Out) -> None:
    """Take up restrictions seen beyond the applied state, unless it has caught up with them."""
    holding = state.holding_or_new(record.namespace)
    if holding.leaf.order < (record.epoch, record.seq):
        holding.overlay = make_overlay(record, recorded=True)
        restrictions.refresh(state, holding)
    else:
        state.persist("overlay-gone", None, (), (overlay_name(record.namespace),), out)


def _answer(state: NodeState, now: Instant, record: OverlayRecord, out: Out) -> None:
    restrictions.acknowledge(
        state,
        now,
        record.namespace,
        out,
        outcome="refused",
        reason=view.UNPROVEN_LIFT,
        correlation_id=record.correlation_id,
    )
