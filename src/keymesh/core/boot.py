"""What a node takes up of its earlier lives: applied states first, then what restricts beyond them, then the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keymesh.control.standby import StandbyLie
from keymesh.control.state import NamespaceState
from keymesh.core import apply, edges, local, overlays, purging, slices, tails
from keymesh.core.records import (
    BudgetRecord,
    ClockRecord,
    ClosedRecord,
    EdgeLeaseRecord,
    LocalRecord,
    OverlayRecord,
    PurgeRecord,
    QuarantineRecord,
    SliceRecord,
    TailRecord,
)
from keymesh.core.state import NodeState, Out
from keymesh.model.machine import Address
from keymesh.model.time import Instant


def take_up(state: NodeState, now: Instant, records: Sequence[Any], out: Out) -> None:
    """Every record, in its place; nothing acts yet."""
    for record in records:
        if isinstance(record, NamespaceState):
            apply.restore(state, now, record, out)
    for record in records:
        match record:
            case OverlayRecord():
                overlays.restore(state, record, out)
            case LocalRecord():
                local.restore(state, record)
            case ClosedRecord():
                state.holding_or_new(record.namespace).closed[record.reason] = (record.epoch, record.seq)
            case QuarantineRecord():
                state.quarantined.setdefault(record.namespace, set()).add(record.other.hash)
            case EdgeLeaseRecord():
                edges.restore(state, record, now)
            case BudgetRecord():
                state.accounts[record.tenant, record.service] = record.account
            case SliceRecord():
                slices.restore(state, record)
            case TailRecord():
                tails.restore(state, record)
            case PurgeRecord():
                purging.restore(state, record)
            case ClockRecord():
                state.clock.remember(record.ppm)
            case StandbyLie():
                state.liars.add(Address(record.voter))
