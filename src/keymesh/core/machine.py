"""A Core node's protocol machine: one step at a time, no I/O, no clock, no key bytes (DESIGN section 12).

Only dispatches.  The rules are in ``leases``, ``apply``, ``restrictions``, ``may``, ``edges``, ``revoking``,
``l1_lease``, ``loading``, ``minter``, ``local``, ``snapshot`` and ``regional``, as module-level functions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from keymesh.control.messages import (
    AnswerMessage,
    Recorded,
    ReprobeL1,
    StandbyGrantMessage,
    StandbyRefused,
    StateRequest,
)
from keymesh.control.purge_messages import PurgeNoted
from keymesh.core import (
    apply,
    boot,
    edges,
    heads_walk,
    l1_lease,
    leases,
    loading,
    local,
    minter,
    overlays,
    purging,
    refusals,
    regional,
    restrictions,
    revoking,
    slices,
    snapshot,
    standby,
    tails,
    unrecorded,
    upkeep,
)
from keymesh.core.events import (
    IvkRotated,
    KeyMinted,
    KeyRewrapped,
    KeysLoaded,
    L1Probed,
    LocalRestrict,
    MintFailed,
    Reconnected,
    RewrapFailed,
    Sealed,
    SnapshotTaken,
    StoreSeen,
    TenantPurged,
    Unsealed,
    UseBudget,
)
from keymesh.core.state import NodeConfig, NodeState, Out, note
from keymesh.model.machine import (
    REGISTRY,
    Booted,
    ClockWentAhead,
    ClockWentBack,
    Persist,
    Persisted,
    PersistFailed,
    Received,
    Tick,
    ask_tick,
)
from keymesh.model.time import NEVER, Instant
from keymesh.orbital.edge_messages import EdgeAckMessage, LeaseRequest, LeaseReturnedMessage, SliceReturnedMessage
from keymesh.orbital.messages import Hello, ManifestTell, TailTaken, Task

__all__ = ["NodeConfig", "NodeState", "new_node", "step"]


def new_node(config: NodeConfig) -> NodeState:
    """A machine that waits for ``Booted``."""
    return NodeState(config)


def step(state: NodeState, now: Instant, event: Any) -> Out:
    """Effects of ``event``, to be carried out in order.  Before ``Booted`` nothing has an effect.

    Records come last: what depends on one is the effect of its ``Persisted``, and a record that fails takes nothing
    else with it.
    """
    out: Out = []
    kind = type(event)
    if kind in _EVENTS and (state.booted or kind is Booted):
        _EVENTS[kind](state, now, event, out)
        due = state.timers[0][0] if state.timers else NEVER
        state.woken_at = ask_tick(state.woken_at, due, now, out)
        for effect in out:
            if type(effect) is Persist:
                return _records_last(out)
    return out


def _records_last(out: Out) -> Out:
    records = [effect for effect in out if type(effect) is Persist]
    return [effect for effect in out if type(effect) is not Persist] + records


# --- life ------------------------------------------------------------------------------------------------------------


def _on_booted(state: NodeState, now: Instant, event: Booted, out: Out) -> None:
    """Take up what earlier lives recorded: states, then what restricts beyond them, then Edge leases; then tell the
    Edges again of everything in force, greet the Registry and ask for leases."""
    state.booted = True
    state.mark, state.booted_at, state.entropy = event.mark, now, event.entropy
    state.life = state.draw("life")
    boot.take_up(state, now, [event.records[name] for name in sorted(event.records)], out)
    for holding in (state.mesh, *state.tenants.values()):
        for restriction in holding.restrictions.values():
            order = (holding.leaf.epoch, restriction.seq)
            restrictions.enforce(state, now, restriction.scope, order, "", out)
        purging.reconcile(state, now, holding, out)
        for order in holding.closed.values():
            revoking.revoke(state, now, revoking.whole(holding.namespace), order, "", out)
    for suspension in state.locals.values():
        restrictions.enforce(state, now, suspension.scope, (0, 0), suspension.record.correlation_id, out)
    slices.settle(state, now, out)
    state.at(now, "heartbeat")
    snapshot.plan(state, now)


def _on_tick(state: NodeState, now: Instant, _: Tick, out: Out) -> None:
    state.woken_at = NEVER
    for kind, what in state.due(now):
        _TIMERS[kind](state, now, what, out)


def _on_clock_went_back(state: NodeState, now: Instant, _: ClockWentBack, out: Out) -> None:
    leases.void_all(state, now, out)


def _on_clock_went_ahead(state: NodeState, now: Instant, event: ClockWentAhead, out: Out) -> None:
    state.woken_at = NEVER  # the tick that was asked for would come so much later by our clock: ask anew
    state.clock.forget()
    edges.extend_all(state, event.by_ms)
    slices.extend_all(state, now, event.by_ms, out)


def _on_reconnected(state: NodeState, now: Instant, _: Reconnected, out: Out) -> None:
    leases.on_reconnected(state, now, out)


def _on_unsealed(state: NodeState, now: Instant, event: Unsealed, out: Out) -> None:
    state.sealed = False
    state.ivk_generation = event.ivk_generation
    regional.reconcile(state, now, out)
    upkeep.settle_all(state, now, out)


def _on_sealed(state: NodeState, now: Instant, _: Sealed, out: Out) -> None:
    state.sealed = True
    loading.drop_all(state, out)


def _on_lease_end(state: NodeState, now: Instant, lease_id: str, out: Out) -> None:
    lease = revoking.on_lease_end(state, now, lease_id)
    if lease is not None:
        restrictions.acknowledge_lease(state, now, lease, out)


# --- records ---------------------------------------------------------------------------------------------------------


def _on_persisted(state: NodeState, now: Instant, event: Persisted, out: Out) -> None:
    pending = state.persisting.pop(event.token, None)
    if pending is None:
        return
    match pending:
        case apply.ApplyPending():
            apply.on_applied(state, now, pending, out)
        case overlays.OverlayPending():
            overlays.on_recorded(state, now, pending, out)
        case refusals.EvidencePending():
            refusals.on_evidence_recorded(state, now, pending, out)
        case edges.GrantPending():
            edges.on_granted(state, now, pending, out)
        case slices.UsePending():
            slices.on_used(pending, out)
        case purging.PurgePending():
            purging.on_recorded(state, now, pending, out)
        case local.LocalPending():
            local.on_persisted(state, pending, out)
        case local.ReleasePending():
            for namespace in local.on_released(state, pending, out):
                upkeep.settle_namespace(state, now, namespace, out)
    unrecorded.succeeded(state, now, pending, out)


def _on_persist_failed(state: NodeState, now: Instant, event: PersistFailed, out: Out) -> None:
    pending = state.persisting.pop(event.token, None)
    if isinstance(pending, edges.GrantPending):
        edges.on_grant_failed(state, pending, out)
    elif isinstance(pending, slices.UsePending):
        slices.on_use_failed(state, pending, out)
    elif pending is not None:
        if isinstance(pending, purging.PurgePending):
            purging.on_record_failed(state, now, pending, out)
        if isinstance(pending, local.LocalPending):
            local.on_failed(state, pending, out)
        unrecorded.failed(state, now, pending, out)
    else:
        note(out, "persist-failed", what=event.token.partition("/")[0])


# --- messages --------------------------------------------------------------------------------------------------------


def _on_received(state: NodeState, now: Instant, event: Received, out: Out) -> None:
    kind = type(event.message)
    if kind in _MESSAGES:
        _MESSAGES[kind](state, now, event, out)


def _on_task(state: NodeState, now: Instant, event: Received, out: Out) -> None:
    if event.sender == REGISTRY:
        state.greetings = 0
    apply.on_task(state, now, event.sender, event.message, out)


def _on_answer(state: NodeState, now: Instant, event: Received, out: Out) -> None:
    leases.on_answer(state, now, event.sender, event.message, out)
    standby.hand_in(state, now, out)


def _on_told(state: NodeState, now: Instant, event: Received, out: Out) -> None:
    leases.on_told(state, now, event.sender, event.message, out)


def _on_heartbeat_timer(state: NodeState, now: Instant, what: str, out: Out) -> None:
    """A heartbeat; and, where the Registry has missed too many, a word to the voters."""
    beats = now >= state.heartbeat_at
    leases.on_heartbeat_timer(state, now, what, out)
    if beats:
        standby.ask(state, now, out)


def _on_standby_grant(state: NodeState, now: Instant, event: Received, out: Out) -> None:
    standby.on_grant(state, now, event.sender, event.message, out)


def _on_standby_refused(state: NodeState, now: Instant, event: Received, out: Out) -> None:
    standby.on_refused(state, now, event.sender, event.message, out)


def _on_state_request(state: NodeState, now: Instant, event: Received, out: Out) -> None:
    standby.on_state_request(state, now, event.sender, event.message, out)


def _on_recorded(state: NodeState, now: Instant, event: Received, out: Out) -> None:
    if event.sender == REGISTRY:
        local.on_recorded(state, now, event.message, out)


def _on_reprobe(state: NodeState, now: Instant, event: Received, out: Out) -> None:
    if event.sender == REGISTRY:
        l1_lease.on_reprobe(state, now, event.message.namespace, out)


def _on_request(state: NodeState, now: Instant, event: Received, out: Out) -> None:
    edges.on_request(state, now, event.sender, event.message, out)


def _on_edge_ack(state: NodeState, now: Instant, event: Received, out: Out) -> None:
    lease = revoking.on_edge_ack(state, event.sender, event.message, out)
    if lease is not None:
        restrictions.acknowledge_lease(state, now, lease, out)


def _on_lease_returned(state: NodeState, now: Instant, event: Received, out: Out) -> None:
    lease = revoking.on_lease_returned(state, event.sender, event.message, out)
    if lease is not None:
        restrictions.acknowledge_lease(state, now, lease, out)


def _on_hello(state: NodeState, now: Instant, event: Received, out: Out) -> None:
    revoking.on_hello(state, event.sender, out)


# --- the shell's answers ---------------------------------------------------------------------------------------------


def _on_loaded(state: NodeState, now: Instant, event: KeysLoaded, out: Out) -> None:
    denied = loading.on_loaded(state, now, event, out)
    holding = state.tenants.get(event.namespace)
    if holding is not None:
        if denied:
            l1_lease.deny(state, now, holding, out)
        upkeep.settle(state, now, holding, out)


def _on_probed(state: NodeState, now: Instant, event: L1Probed, out: Out) -> None:
    l1_lease.on_probed(state, now, event, out)
    upkeep.settle_namespace(state, now, event.namespace, out)


def _on_local_restrict(state: NodeState, now: Instant, event: LocalRestrict, out: Out) -> None:
    local.on_restrict(state, now, event, out)


def _on_minted(state: NodeState, now: Instant, event: KeyMinted, out: Out) -> None:
    minter.on_minted(state, event, out)


def _on_rewrapped(state: NodeState, now: Instant, event: KeyRewrapped, out: Out) -> None:
    minter.on_rewrapped(state, event, out)


def _on_ivk_rotated(state: NodeState, now: Instant, event: IvkRotated, out: Out) -> None:
    regional.on_rotated(state, event, out)
    regional.reconcile(state, now, out)


def _on_store_seen(state: NodeState, now: Instant, event: StoreSeen, out: Out) -> None:
    regional.on_store_seen(state, now, event, out)


def _on_snapshot_taken(state: NodeState, now: Instant, event: SnapshotTaken, out: Out) -> None:
    snapshot.on_taken(state, event, out)


Handler = Callable[[NodeState, Instant, Any, Out], None]

_EVENTS: Final[dict[type, Handler]] = {
    Booted: _on_booted,
    Tick: _on_tick,
    Received: _on_received,
    Persisted: _on_persisted,
    PersistFailed: _on_persist_failed,
    ClockWentAhead: _on_clock_went_ahead,
    ClockWentBack: _on_clock_went_back,
    Reconnected: _on_reconnected,
    Unsealed: _on_unsealed,
    Sealed: _on_sealed,
    KeysLoaded: _on_loaded,
    L1Probed: _on_probed,
    LocalRestrict: _on_local_restrict,
    KeyMinted: _on_minted,
    MintFailed: minter.on_mint_failed,
    KeyRewrapped: _on_rewrapped,
    RewrapFailed: minter.on_rewrap_failed,
    IvkRotated: _on_ivk_rotated,
    SnapshotTaken: _on_snapshot_taken,
    StoreSeen: _on_store_seen,
    TenantPurged: purging.on_purged,
    UseBudget: slices.on_use,
}

_MESSAGES: Final[dict[type, Callable[[NodeState, Instant, Received, Out], None]]] = {
    Task: _on_task,
    AnswerMessage: _on_answer,
    StandbyGrantMessage: _on_standby_grant,
    StandbyRefused: _on_standby_refused,
    StateRequest: _on_state_request,
    ManifestTell: _on_told,
    TailTaken: lambda state, now, event, out: tails.on_taken(state, event.sender, event.message, out),
    Recorded: _on_recorded,
    PurgeNoted: purging.on_noted,
    ReprobeL1: _on_reprobe,
    LeaseRequest: _on_request,
    EdgeAckMessage: _on_edge_ack,
    LeaseReturnedMessage: _on_lease_returned,
    SliceReturnedMessage: lambda state, now, event, out: slices.on_returned(state, event.sender, event.message, out),
    Hello: _on_hello,
}

_TIMERS: Final[dict[str, Callable[[NodeState, Instant, str, Out], None]]] = {
    "heartbeat": _on_heartbeat_timer,
    "greet": leases.greet_again,
    "close": loading.on_close_timer,
    "load": loading.on_load_timer,
    "walk": heads_walk.on_timer,
    "probe": l1_lease.on_probe_timer,
    "proof": l1_lease.on_proof_timer,
    "revoke": revoking.on_timer,
    "purge": purging.on_timer,
    "edge-end": _on_lease_end,
    "slice-end": lambda state, now, what, out: slices.on_end(state, now, what),
    "snapshot": snapshot.on_timer,
    "record": unrecorded.on_timer,
}
