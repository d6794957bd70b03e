"""L1 leases: the customer's root key opens the tenant's binding every few minutes, or the tenant closes (DESIGN 3).

*Denied* closes at once and is reported; then only a success of every replica, in a call begun later, opens again.
*Unreachable* closes nothing by itself: the lease runs out.  When another node was denied, every replica must succeed
from here within 10 s.
"""

from __future__ import annotations

from keymesh.control.rows import L2_NAME
from keymesh.core import l1_proof, restrictions
from keymesh.core.events import L1Outcome, L1Probed, ProbeL1
from keymesh.core.state import Holding, NodeState, Out, note, spread
from keymesh.core.views import LIVE_STATES, TenantView, key_state
from keymesh.model.time import NEVER, Instant

PROOF_MS = 10_000
PROBE_TIMEOUT_MS = 30_000
DENIED = "l1-denied"
UNPROVEN = "l1-unproven"


def probe_binding(view: TenantView) -> str | None:
    """The binding that the wrapping L2 version is under, else the newest live one's: what L1 must be able to open."""
    wrapping = view.keys.get((L2_NAME, view.wrapping.get(L2_NAME, 0)))
    if wrapping is not None:
        return wrapping.parent
    live = [
        (version, row.parent)
        for (key, version), row in view.keys.items()
        if key == L2_NAME and key_state(row) in LIVE_STATES
    ]
    return max(live)[1] if live else None


def denied(state: NodeState) -> tuple[str, ...]:
    """Tenants whose L1 denied us, for the heartbeat."""
    return tuple(name for name in sorted(state.tenants) if state.tenants[name].l1.denied_at is not None)


def must_prove(holding: Holding) -> bool:
    """Whether only a success of every replica counts."""
    return holding.l1.denied_at is not None or holding.l1.proof_due is not None


def counts(holding: Holding, event: L1Probed) -> bool:
    """Whether a success counts: begun after the last denial, and of every replica where that is asked."""
    if not must_prove(holding):
        return True
    after = holding.l1.denied_at is None or event.started_at >= holding.l1.denied_at
    return event.all_replicas and after


def probe_interval_ms(probe_ms: int, seed: str) -> int:
    """Spread by hash over the last tenth of the interval, never later than it."""
    return spread(seed, probe_ms * 9 // 10, probe_ms)


# --- probing ---------------------------------------------------------------------------------------------------------


def watch(state: NodeState, now: Instant, holding: Holding) -> None:
    """See that a probe of a loaded tenant is planned."""
    if holding.probe_timer == NEVER and holding.loaded:
        _plan(state, now, holding, good=True)


def _plan(state: NodeState, now: Instant, holding: Holding, *, good: bool) -> None:
    settings = state.mesh_view.settings
    routine_ms = state.interval_ms if settings is None else settings.l1_probe_ms
    seed = f"{state.config.address}/{holding.namespace}/{state.counter}"
    delay_ms = probe_interval_ms(routine_ms if good else min(routine_ms, state.interval_ms), seed)
    holding.probe_timer = Instant(now + delay_ms)
    state.at(holding.probe_timer, "probe", holding.namespace)


def on_probe_timer(state: NodeState, now: Instant, namespace: str, out: Out) -> None:
    holding = state.tenants.get(namespace)
    if holding is None or now < holding.probe_timer:
        return
    if holding.loaded or must_prove(holding):
        _probe(state, now, holding, out)
        _plan(state, now, holding, good=not must_prove(holding))
    else:
        holding.probe_timer = NEVER


def _probe(state: NodeState, now: Instant, holding: Holding, out: Out) -> None:
    binding = probe_binding(holding.view)
    since = holding.l1.probing_since
    if binding is not None and (since is None or now >= since + PROBE_TIMEOUT_MS or must_prove(holding)):
        holding.l1.probing_since = now
        out.append(ProbeL1(holding.namespace, binding, must_prove(holding)))


def on_reprobe(state: NodeState, now: Instant, namespace: str, out: Out) -> None:
    """Another node was denied: every replica must succeed from here within 10 s, or the tenant closes."""
    holding = state.tenants.get(namespace)
    if holding is None or must_prove(holding) or not (holding.loaded or holding.loading_since is not None):
        return
    holding.l1.proof_due = Instant(now + PROOF_MS)
    state.at(holding.l1.proof_due, "proof", namespace)
    _probe(state, now, holding, out)
    _plan(state, now, holding, good=False)


def on_proof_timer(state: NodeState, now: Instant, namespace: str, out: Out) -> None:
    holding = state.tenants.get(namespace)
    if holding is not None and holding.l1.proof_due is not None and now >= holding.l1.proof_due:
        _close(state, now, holding, UNPROVEN, out)


# --- outcomes --------------------------------------------------------------------------------------------------------


def on_probed(state: NodeState, now: Instant, event: L1Probed, out: Out) -> bool:
    """Take note of a probe; whether the tenant opened again by it."""
    holding = state.tenants.get(event.namespace)
    if holding is None:
        return False
    holding.l1.probing_since = None
    if event.outcome is L1Outcome.DENIED:
        if event.binding_id == probe_binding(holding.view):
            deny(state, now, holding, out)
        return False
    if event.outcome is L1Outcome.UNREACHABLE:
        if holding.l1.proof_due is not None and event.all_replicas:
            _close(state, now, holding, UNPROVEN, out)
        _plan(state, now, holding, good=False)
        return False
    if event.binding_id != probe_binding(holding.view) or not counts(holding, event):
        return False
    reopened = must_prove(holding)
    holding.l1.denied_at = holding.l1.proof_due = None
    holding.closed.pop(DENIED, None)
    holding.closed.pop(UNPROVEN, None)
    l1_proof.prove(state, holding, event.started_at)
    if reopened:
        note(out, "l1-open-again", tenant=holding.namespace)
    return reopened


def deny(state: NodeState, now: Instant, holding: Holding, out: Out) -> None:
    """L1 refuses us: close at once, tell the Edges, report with a heartbeat now, and ask again each interval."""
    first = holding.l1.denied_at is None
    holding.l1.denied_at = now
    holding.l1.until = None
    _close(state, now, holding, DENIED, out)
    _plan(state, now, holding, good=False)
    if first:
        state.heartbeat_at = now
        state.at(now, "heartbeat")


def _close(state: NodeState, now: Instant, holding: Holding, reason: str, out: Out) -> None:
    if reason not in holding.closed:
        note(out, reason, tenant=holding.namespace)
    restrictions.close(state, now, holding, reason, holding.leaf.order, out)
