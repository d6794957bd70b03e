"""Taking tasks: judged by the trusted view, restrictions first, grants after their record (DESIGN sections 2 and 4).

*Applied* means verified, durably recorded, every restriction in it in force; only that is acknowledged and only that
renews a lease.  Duplicates, re-orderings and replays change nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from keymesh.control import view
from keymesh.control.entry import SignedEntry
from keymesh.control.rows import RestrictionRow, encode
from keymesh.control.state import NamespaceState
from keymesh.control.trust import Pins
from keymesh.control.view import Accepted, Fork, NeedsMesh, Offered, Outcome, RefusedTask, Stale
from keymesh.core import leases, loading, local, regional, restrictions, snapshot, upkeep
from keymesh.core import views as decoded
from keymesh.core.records import (
    ClosedRecord,
    OverlayRecord,
    QuarantineRecord,
    closed_name,
    overlay_name,
    quarantine_name,
    state_name,
)
from keymesh.core.state import Holding, NodeState, Out, Overlay, note
from keymesh.ledger.maptree import root_of
from keymesh.model.errors import KeymeshError
from keymesh.model.ids import MESH_NAMESPACE
from keymesh.model.machine import REGISTRY, Address
from keymesh.model.time import Instant
from keymesh.orbital.messages import Task

FORK = "fork"
UNKNOWN = "unknown-kind"
CORRUPT = "corrupt"
QUARANTINE_MAX = 16  # for each namespace: evidence beyond it proves nothing more


@dataclass(frozen=True, slots=True)
class ApplyPending:
    """States that are applied once durable, ``mesh`` first; ``correlation_id`` is the task's."""

    states: tuple[NamespaceState, ...]
    correlation_id: str


@dataclass(frozen=True, slots=True)
class OverlayPending:
    record: OverlayRecord


@dataclass(frozen=True, slots=True)
class EvidencePending:
    """A namespace is closed for good reason; the Ack follows the record."""

    namespace: str
    outcome: str
    reason: str
    puts: tuple[tuple[str, Any], ...]
    correlation_id: str


# --- judging ---------------------------------------------------------------------------------------------------------


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


def judge(state: NodeState, held: NamespaceState | None, offer: view.Offer, mesh: NamespaceState | None) -> Outcome:
    """The trusted view's word on ``offer``."""
    config = state.config
    pins = Pins(config.mesh, config.root_keys, config.root_threshold)
    return view.accept(held, offer, mesh, config.suite, pins=pins, epoch=state.epoch)


def is_held(holding: Holding | None, signed: SignedEntry) -> bool:
    return holding is not None and holding.applied is not None and holding.applied.head.hash == signed.hash


def on_task(state: NodeState, now: Instant, sender: Address, task: Task, out: Out) -> None:
    """Apply a task, or say why not.

    1. What is applied already is acknowledged again.
    2. The mesh state that came along is taken first, where it is newer.
    3. Restrictions of what is accepted act at once; then everything is recorded; then it applies.
    4. An unproven lift applies only what the new rows restrict, and keeps the leaf.
    5. A fork, or what this release does not understand, closes the namespace.
    """
    if sender != REGISTRY:
        note(out, "task-ignored", task.correlation_id, sender=sender)
        return
    holding = state.holding(task.namespace)
    if is_held(holding, task.state.head) and not task.force:
        restrictions.acknowledge(state, now, task.namespace, out, outcome="stale", correlation_id=task.correlation_id)
        return
    mesh = state.mesh.applied
    taken: list[NamespaceState] = []
    if task.mesh is not None and task.namespace != MESH_NAMESPACE and not is_held(state.mesh, task.mesh.head):
        came = judge(state, held_state(state.mesh), Offered(MESH_NAMESPACE, task.mesh), mesh)
        if isinstance(came, Accepted):
            mesh = came.state
            taken.append(came.state)
        elif not isinstance(came, Stale):
            _refuse(state, now, MESH_NAMESPACE, task.mesh.head, came, task.correlation_id, out)
    outcome = judge(state, held_state(holding), task, mesh)
    if isinstance(outcome, Accepted):
        taken.append(outcome.state)
    if taken:
        _take(state, now, taken, task.correlation_id, out)
    if not isinstance(outcome, Accepted):
        _refuse(state, now, task.namespace, task.state.head, outcome, task.correlation_id, out)


# --- accepted --------------------------------------------------------------------------------------------------------


def _take(state: NodeState, now: Instant, taken: list[NamespaceState], corr: str, out: Out) -> None:
    deletes: list[str] = []
    for new in taken:
        namespace = new.head.entry.namespace
        rows = decoded.restriction_rows(new.rows)
        holding = state.holding_or_new(namespace)
        if holding.overlay is not None and _supersedes(new, holding.overlay):
            deletes.append(overlay_name(namespace))
        in_force = {text: row for text, row in rows.items() if row.state != "none"}
        _lay_over(state, now, holding, overlay_of(new.head, in_force, corr), out)
    puts = tuple((state_name(new.head.entry.namespace), new) for new in taken)
    state.persist("apply", ApplyPending(tuple(taken), corr), puts, tuple(deletes), out)


def overlay_of(head: SignedEntry, rows: dict[str, RestrictionRow], corr: str) -> OverlayRecord:
    entry = head.entry
    return OverlayRecord(entry.namespace, entry.epoch, entry.seq, head.hash, corr, rows)


def _supersedes(new: NamespaceState, overlay: Overlay) -> bool:
    return new.leaf.order >= (overlay.record.epoch, overlay.record.seq)


def _lay_over(state: NodeState, now: Instant, holding: Holding, record: OverlayRecord, out: Out) -> bool:
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


def on_applied(state: NodeState, now: Instant, pending: ApplyPending, out: Out) -> None:
    """The record is durable: it applies, is acknowledged, and what it allows is done."""
    for new in pending.states:
        holding = state.holding_or_new(new.head.entry.namespace)
        if holding.leaf.order > new.leaf.order:
            continue  # recorded on a second try that had left it out
        if new.leaf == holding.leaf:
            loading.doubt_all(holding)
        install(state, now, holding, new)
        _reopen(state, holding, out)
        note(
            out,
            "applied",
            pending.correlation_id,
            namespace=holding.namespace,
            epoch=holding.leaf.epoch,
            seq=holding.leaf.seq,
        )
        restrictions.acknowledge(state, now, holding.namespace, out, correlation_id=pending.correlation_id)
        follow(state, now, holding, out)
    local.release(state, out)


def install(state: NodeState, now: Instant, holding: Holding, new: NamespaceState) -> None:
    """``new`` is durable and becomes what is applied."""
    holding.applied = new
    holding.leaf = new.leaf
    if holding.namespace == MESH_NAMESPACE:
        state.mesh_view = decoded.mesh_view(new.rows)
    else:
        holding.view = decoded.tenant_view(holding.namespace, new.rows)
    if holding.overlay is not None and _supersedes(new, holding.overlay):
        holding.overlay = None
    restrictions.refresh(state, holding)
    snapshot.on_applied(state, now, holding)


def _reopen(state: NodeState, holding: Holding, out: Out) -> None:
    """What kept the namespace closed is over: it was understood after all, or a new epoch decided the fork."""
    epoch = holding.leaf.epoch
    for reason, order in list(holding.closed.items()):
        understood = reason in (UNKNOWN, CORRUPT) and holding.leaf.order >= order
        if understood or (reason == FORK and epoch > order[0]):
            del holding.closed[reason]
            if reason != CORRUPT:
                state.persist("reopen", None, (), (closed_name(holding.namespace),), out)


def follow(state: NodeState, now: Instant, holding: Holding, out: Out) -> None:
    """What an applied state allows: leases, key loads, minting, the region's IVK."""
    if holding is state.mesh:
        snapshot.plan(state, now)
        leases.credit_all(state, now, out)
        regional.reconcile(state, now, out)
        upkeep.settle_all(state, now, out)
    else:
        leases.credit(state, now, holding)
        upkeep.settle(state, now, holding, out)


# --- refused ---------------------------------------------------------------------------------------------------------


def _refuse(
    state: NodeState, now: Instant, namespace: str, head: SignedEntry, outcome: Outcome, corr: str, out: Out
) -> None:
    match outcome:
        case Fork():
            _evidence(state, now, state.holding_or_new(namespace), outcome, corr, out)
        case RefusedTask() if outcome.closes:
            note(out, UNKNOWN, corr, namespace=namespace, detail=outcome.detail)
            _close_unknown(state, now, namespace, head, corr, out)
        case RefusedTask() if outcome.code == view.UNPROVEN_LIFT:
            record = overlay_of(head, dict(outcome.restrictions), corr)
            _add_restrictions(state, now, state.holding_or_new(namespace), record, out)
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
    puts = ((closed_name(namespace), ClosedRecord(namespace, UNKNOWN, *order)),)
    state.persist("closed", EvidencePending(namespace, "refused", UNKNOWN, puts, corr), puts, (), out)


def _answer(state: NodeState, now: Instant, namespace: str, reason: str, corr: str, out: Out) -> None:
    restrictions.acknowledge(state, now, namespace, out, outcome="refused", reason=reason, correlation_id=corr)


def _add_restrictions(state: NodeState, now: Instant, holding: Holding, record: OverlayRecord, out: Out) -> None:
    """An unproven lift: what it restricts acts, and is recorded and acknowledged; the leaf stays."""
    _lay_over(state, now, holding, record, out)
    overlay = holding.overlay
    if overlay is not None and not overlay.recorded:
        _persist_overlay(state, overlay.record, out)
    else:
        _answer(state, now, holding.namespace, view.UNPROVEN_LIFT, record.correlation_id, out)


def _persist_overlay(state: NodeState, record: OverlayRecord, out: Out) -> None:
    state.persist("overlay", OverlayPending(record), ((overlay_name(record.namespace), record),), (), out)


def on_overlay_recorded(state: NodeState, now: Instant, pending: OverlayPending, out: Out) -> None:
    record = pending.record
    holding = state.holding_or_new(record.namespace)
    if holding.overlay is not None and holding.overlay.record == record:
        holding.overlay.recorded = True
    _answer(state, now, record.namespace, view.UNPROVEN_LIFT, record.correlation_id, out)


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
        (closed_name(namespace), ClosedRecord(namespace, FORK, *order)),
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


# --- boot ------------------------------------------------------------------------------------------------------------


def restore_overlay(state: NodeState, record: OverlayRecord, out: Out) -> None:
    """Take up restrictions seen beyond the applied state, unless it has caught up with them."""
    holding = state.holding_or_new(record.namespace)
    if holding.leaf.order < (record.epoch, record.seq):
        holding.overlay = make_overlay(record, recorded=True)
        restrictions.refresh(state, holding)
    else:
        state.persist("overlay-gone", None, (), (overlay_name(record.namespace),), out)


def restore(state: NodeState, now: Instant, new: NamespaceState, out: Out) -> None:
    """Take up a namespace of an earlier life.  Rows that rotted keep their place and their restrictions, are shown as
    drift, and close the namespace until they are applied anew."""
    holding = state.holding_or_new(new.head.entry.namespace)
    try:
        install(state, now, holding, new)
    except KeymeshError as bad:
        note(out, CORRUPT, namespace=holding.namespace, code=bad.code)
        holding.closed[CORRUPT] = holding.leaf.order
    stored = root_of(new.rows)
    if stored != holding.leaf.state:
        holding.closed[CORRUPT] = holding.leaf.order
        state.drift[holding.namespace] = stored
        state.manifest.put(holding.namespace, snapshot.reported(holding.leaf, stored))
        note(out, CORRUPT, namespace=holding.namespace, code="state-mismatch")
