"""Taking tasks: judged by the trusted view, restrictions first, grants after their record (DESIGN sections 2 and 4).

*Applied* means verified, durably recorded, every restriction in it in force; only that is acknowledged and only that
renews a lease.  Duplicates, re-orderings and replays change nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from keymesh.control import view
from keymesh.control.entry import SignedEntry
from keymesh.control.rows import PolicyRow, get
from keymesh.control.state import NamespaceState
from keymesh.control.trust import Pins
from keymesh.control.view import Accepted, Offered, Outcome, Stale
from keymesh.core import (
    leases,
    loading,
    local,
    overlays,
    purging,
    refusals,
    regional,
    restrictions,
    snapshot,
    standby,
    tails,
    upkeep,
)
from keymesh.core import views as decoded
from keymesh.core.records import closed_name, overlay_name, state_name
from keymesh.core.state import Holding, NodeState, Out, note
from keymesh.ledger.maptree import root_of
from keymesh.model.errors import KeymeshError
from keymesh.model.ids import MESH_NAMESPACE
from keymesh.model.machine import REGISTRY, Address
from keymesh.model.time import Instant
from keymesh.orbital.messages import Task

CORRUPT = "corrupt"
RESIDENCY = "residency"


@dataclass(frozen=True, slots=True)
class ApplyPending:
    """States that are applied once durable, ``mesh`` first; ``correlation_id`` is the task's.

    ``left``: what an earlier epoch's tail leaves behind, recorded with them.
    """

    states: tuple[NamespaceState, ...]
    correlation_id: str
    left: tails.Left = tails.NOTHING


# --- judging ---------------------------------------------------------------------------------------------------------


def judge(state: NodeState, held: NamespaceState | None, offer: view.Offer, mesh: NamespaceState | None) -> Outcome:
    """The trusted view's word on ``offer``."""
    config = state.config
    pins = Pins(config.mesh, config.root_keys, config.root_threshold)
    epoch = state.epoch if mesh is None else max(state.epoch, mesh.head.entry.epoch)
    return view.accept(held, offer, mesh, config.suite, pins=pins, epoch=epoch)


def is_held(holding: Holding | None, signed: SignedEntry) -> bool:
    return holding is not None and holding.applied is not None and holding.applied.head.hash == signed.hash


def is_foreign(state: NodeState, task: Task) -> bool:
    """Whether the task is of a tenant that is not held here and, by its own policy, may not be (I5)."""
    if task.namespace == MESH_NAMESPACE or state.holding(task.namespace) is not None:
        return False
    try:
        policy = get(task.state.rows, "policy", PolicyRow)
    except KeymeshError:
        return False  # malformed: judged, and refused, as such
    return policy is not None and state.config.region not in policy.regions


def on_task(state: NodeState, now: Instant, sender: Address, task: Task, out: Out) -> None:
    """Apply a task, or say why not.

    1. What is applied already is acknowledged again.
    2. The mesh state that came along is taken first, where it is newer.
    3. Restrictions of what is accepted act at once; then everything is recorded; then it applies.
    4. An unproven lift applies only what the new rows restrict, and keeps the leaf.
    5. A fork, or what this release does not understand, closes the namespace.
    """
    if sender != REGISTRY and not standby.is_asked_for(state, sender, task):
        note(out, "task-ignored", task.correlation_id, sender=sender)
        return
    if is_foreign(state, task):  # nothing of it is kept or named here, not even in a note
        note(out, "task-refused", task.correlation_id, code=RESIDENCY)
        restrictions.acknowledge(
            state, now, task.namespace, out, outcome="refused", reason=RESIDENCY, correlation_id=task.correlation_id
        )
        return
    holding = state.holding(task.namespace)
    if is_held(holding, task.state.head) and not task.force:
        restrictions.acknowledge(state, now, task.namespace, out, outcome="stale", correlation_id=task.correlation_id)
        return
    mesh = state.mesh.applied
    taken: list[NamespaceState] = []
    left = tails.NOTHING
    if task.mesh is not None and task.namespace != MESH_NAMESPACE and not is_held(state.mesh, task.mesh.head):
        held_mesh = overlays.held_state(state.mesh)
        came = judge(state, held_mesh, Offered(MESH_NAMESPACE, task.mesh), mesh)
        if isinstance(came, Accepted):
            mesh = came.state
            taken.append(came.state)
            left += tails.leave(state, now, held_mesh, came, out)
        elif not isinstance(came, Stale):
            refusals.refuse(state, now, MESH_NAMESPACE, task.mesh.head, came, task.correlation_id, out)
    held = overlays.held_state(holding)
    outcome = judge(state, held, task, mesh)
    if isinstance(outcome, Accepted):
        taken.append(outcome.state)
        left += tails.leave(state, now, held, outcome, out)
    if taken:
        _take(state, now, taken, task.correlation_id, out, left)
    if not isinstance(outcome, Accepted):
        refusals.refuse(state, now, task.namespace, task.state.head, outcome, task.correlation_id, out)


# --- accepted --------------------------------------------------------------------------------------------------------


def _take(
    state: NodeState,
    now: Instant,
    taken: list[NamespaceState],
    corr: str,
    out: Out,
    left: tails.Left = tails.NOTHING,
) -> None:
    deletes: list[str] = []
    for new in taken:
        namespace = new.head.entry.namespace
        rows = decoded.restriction_rows(new.rows)
        holding = state.holding_or_new(namespace)
        if holding.overlay is not None and overlays.supersedes(new, holding.overlay):
            deletes.append(overlay_name(namespace))
        in_force = {text: row for text, row in rows.items() if row.state != "none"}
        overlays.lay_over(state, now, holding, overlays.overlay_of(new.head, in_force, corr), out)
    puts = tuple((state_name(new.head.entry.namespace), new) for new in taken)
    puts += tails.puts(state, left)
    state.persist("apply", ApplyPending(tuple(taken), corr, left), puts, tuple(deletes), out)


def on_applied(state: NodeState, now: Instant, pending: ApplyPending, out: Out) -> None:
    """The record is durable: it applies, is acknowledged, and what it allows is done."""
    tails.recorded(state, pending.left)
    for new in pending.states:
        holding = state.holding_or_new(new.head.entry.namespace)
        leaf = new.leaf
        if (holding.leaf.epoch, holding.leaf.seq) > (leaf.epoch, leaf.seq):
            continue  # recorded on a second try that had left it out
        if leaf == holding.leaf:
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
    local.release(state, now, out)


def install(state: NodeState, now: Instant, holding: Holding, new: NamespaceState) -> None:
    """``new`` is durable and becomes what is applied."""
    holding.applied = new
    holding.leaf = new.leaf
    if holding.namespace == MESH_NAMESPACE:
        state.mesh_view = decoded.mesh_view(new.rows)
    else:
        holding.view = decoded.tenant_view(holding.namespace, new.rows)
    if holding.overlay is not None and overlays.supersedes(new, holding.overlay):
        holding.overlay = None
    restrictions.refresh(state, holding)
    snapshot.on_applied(state, now, holding)


def _reopen(state: NodeState, holding: Holding, out: Out) -> None:
    """What kept the namespace closed is over: it was understood after all, or a new epoch decided the fork."""
    epoch = holding.leaf.epoch
    for reason, order in list(holding.closed.items()):
        understood = reason in (refusals.UNKNOWN, CORRUPT) and holding.leaf.order >= order
        if understood or (reason == refusals.FORK and epoch > order[0]):
            del holding.closed[reason]
            if reason != CORRUPT:
                state.persist("reopen", None, (), (closed_name(holding.namespace, reason),), out)


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
        purging.reconcile(state, now, holding, out)


# --- boot ------------------------------------------------------------------------------------------------------------


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
