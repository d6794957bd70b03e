"""What becomes of a task that is not taken: an answer, evidence, a closed namespace, or only its restrictions.

A fork closes until a new epoch decides it; what this release does not understand closes until it does.  Neither delays
another namespace.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from keymesh.control import view
from keymesh.control.entry import SignedEntry
from keymesh.control.view import Accepted, Fork, NeedsMesh, Outcome, RefusedTask, Stale
from keymesh.core import overlays, restrictions
from keymesh.core.records import ClosedRecord, QuarantineRecord, closed_name, quarantine_name
from keymesh.core.state import Holding, NodeState, Out, note
from keymesh.model.ids import MESH_NAMESPACE
from keymesh.model.time import Instant

FORK = "fork"
UNKNOWN = "unknown-kind"
QUARANTINE_MAX = 16  # for each namespace: evidence beyond it proves nothing more


@dataclass(frozen=True, slots=True)
class EvidencePending:
    """A namespace is closed for good reason; the Ack follows the record."""

    namespace: str
    outcome: str
    reason: str
    puts: tuple[tuple[str, Any], ...]
    correlation_id: str


def refuse(
    state: NodeState, now: Instant, namespace: str, head: SignedEntry, outcome: Outcome, corr: str, out: Out
) -> None:
    """Do what ``outcome`` asks for, and answer."""
    match outcome:
        case Fork():
            _evidence(state, now, state.holding_or_new(namespace), outcome, corr, out)
        case RefusedTask() if outcome.closes:
            note(out, UNKNOWN, corr, namespace=namespace, detail=outcome.detail)
            _close_unknown(state, now, namespace, head, corr, out)
        case RefusedTask() if outcome.code == view.UNPROVEN_LIFT:
            record = overlays.overlay_of(head, dict(outcome.restrictions), corr)
            overlays.add(state, now, state.holding_or_new(namespace), record, out)
        case RefusedTask():
            note(out, "task-refused", corr, namespace=namespace, code=outcome.code, detail=outcome.detail)
            _answer(state, now, namespace, outcome.code, corr, out)
        case NeedsMesh():
            _answer(state, now, namespace, "needs-mesh", corr, out)
        case Stale() | Accepted():
            restrictions.acknowledge(state, now, namespace, out, outcome="stale", correlation_id=corr)


def _close_unknown(state: NodeState, now: Instant, namespace: str, head: SignedEntry, corr: str, out: Out) -> None:
    """A tenant closes until it is understood.  In ``mesh`` it is enough that no lease is renewed."""
    if namespace == MESH_NAMESPACE:
        _answer(state, now, namespace, UNKNOWN, corr, out)
        return
    order = (head.entry.epoch, head.entry.seq)
    restrictions.close(state, now, state.holding_or_new(namespace), UNKNOWN, order, out)
    puts = ((closed_name(namespace, UNKNOWN), ClosedRecord(namespace, UNKNOWN, *order)),)
    state.persist("closed", EvidencePending(namespace, "refused", UNKNOWN, puts, corr), puts, (), out)


def _answer(state: NodeState, now: Instant, namespace: str, reason: str, corr: str, out: Out) -> None:
    restrictions.acknowledge(state, now, namespace, out, outcome="refused", reason=reason, correlation_id=corr)


def _evidence(state: NodeState, now: Instant, holding: Holding, fork: Fork, corr: str, out: Out) -> None:
    """Two signed histories: keep both, close, say so."""
    namespace = holding.namespace
    other = fork.other.head
    order = (other.entry.epoch, other.entry.seq)
    note(out, FORK, corr, namespace=namespace, held=fork.held.head.hash, other=other.hash)
    restrictions.close(state, now, holding, FORK, order, out)
    kept = state.quarantined.setdefault(namespace, set())
    if other.hash in kept or len(kept) >= QUARANTINE_MAX:
        restrictions.acknowledge(state, now, namespace, out, outcome="quarantined", reason=FORK, correlation_id=corr)
        return
    evidence = QuarantineRecord(namespace, FORK, fork.held.head, other)
    puts = (
        (quarantine_name(namespace, other.hash), evidence),
        (closed_name(namespace, FORK), ClosedRecord(namespace, FORK, *order)),
    )
    pending = EvidencePending(namespace, "quarantined", FORK, puts, corr)
    state.persist("evidence", pending, puts, (), out)


def on_evidence_recorded(state: NodeState, now: Instant, pending: EvidencePending, out: Out) -> None:
    """The evidence is durable: say so, and need not keep it again."""
    for _, record in pending.puts:
        if isinstance(record, QuarantineRecord):
            state.quarantined.setdefault(pending.namespace, set()).add(record.other.hash)
    restrictions.acknowledge(
        state,
        now,
        pending.namespace,
        out,
        outcome=pending.outcome,
        reason=pending.reason,
        correlation_id=pending.correlation_id,
    )
