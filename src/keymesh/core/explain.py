"""Why a tenant is in its mode here, what ends it, what comes then and when: for people.  Decides nothing.

Pure, from the same state that ``may`` judges, so that it cannot say other than what holds.  Source: DESIGN section 3.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from keymesh.control.standby import may_stand_by
from keymesh.core import clock_watch, context, leases
from keymesh.core.may import FRESH_INTERVALS
from keymesh.core.state import Holding, NodeState
from keymesh.model.scope import destruction_of
from keymesh.model.states import Mode
from keymesh.model.time import Instant

ANSWER: Final = "an answer of the Registry"
VOTERS: Final = "leases from a majority of the voters"


class Explanation(Struct, frozen=True, kw_only=True):
    """``ends``: what ends the mode.  ``then``: the mode that comes by itself after ``ends_in_ms`` if nothing happens;
    both null where only an event ends it."""

    mode: str
    reason: str
    why: str
    ends: str
    then: str | None
    ends_in_ms: int | None


def explain(state: NodeState, now: Instant, namespace: str) -> Explanation:
    """Of a tenant that this node holds."""
    holding = state.tenants[namespace]
    mode, reason = context.tenant_mode(state, now, namespace)
    if reason == "closed" and holding.closed:
        reason = ", ".join(sorted(holding.closed))
    why, ends = _words(state, now, holding, mode, reason)
    until, then = _what_comes(state, now, holding, mode)
    return Explanation(
        mode=mode.value,
        reason=reason,
        why=why,
        ends=ends,
        then=None if then is None else then.value,
        ends_in_ms=None if until is None else max(0, until - now),
    )


def _words(state: NodeState, now: Instant, holding: Holding, mode: Mode, reason: str) -> tuple[str, str]:
    match mode:
        case Mode.SYNCED:
            return "the Registry answers", "the Registry missing three heartbeats of this node"
        case Mode.AUTONOMOUS:
            return f"{silence(state, now)}; its lease is still valid", f"{ANSWER}, or the end of its lease"
        case Mode.STANDBY:
            silent = silence(state, now) if leases.is_silent(state, now) else "the Registry answers but does not renew"
            return f"{silent}; a majority of the voters has granted a lease", (
                f"{ANSWER} that renews, or no majority of the voters granting before this lease ends"
            )
        case Mode.SEALED:
            return "the MasterKey is not in memory", "unsealing the region"
        case Mode.CLOSED if (found := holding.restrictions.get(str(destruction_of(holding.namespace)))) is not None:
            if found.state == "revoked":
                return "the tenant is destroyed", "nothing"
            return "the tenant is to be destroyed", "its destruction being cancelled"
        case Mode.CLOSED:
            return _closed(state, now, holding, reason)


def _closed(state: NodeState, now: Instant, holding: Holding, reason: str) -> tuple[str, str]:
    if reason == "l1-lease":
        return "the customer's root key has not been reached for longer than its ttl", "the root key answering"
    if reason not in ("lease", "mesh-lease"):
        return f"kept closed: {reason}", "what closed it being settled"
    if state.clock.drifts:
        return _off(state.clock.ppm), (
            f"{clock_watch.WATCHED_MS // 60_000} minutes within {clock_watch.ASSUMED_PPM / 10_000:g} %"
        )
    if not leases.is_silent(state, now):
        if state.standby_ask is None or not state.standby_ask.refusals:
            return "the Registry's answer awaits something that is not applied here yet", "its being applied"
        return f"the Registry answers but does not renew, and {lacking(state, holding)}", f"its renewal, or {VOTERS}"
    barred = no_standby(state, holding)
    if barred:
        return f"{silence(state, now)}, its lease is over, and {barred}", ANSWER
    return f"{silence(state, now)}, its lease is over, and {lacking(state, holding)}", f"{ANSWER}, or {VOTERS}"


def _off(ppm: int) -> str:
    return f"this node's clock runs {abs(ppm) / 10_000:.2f} % {'faster' if ppm > 0 else 'slower'} than the Registry's"


def silence(state: NodeState, now: Instant) -> str:
    sent_at = state.answered_sent_at
    if sent_at is None:
        return "the Registry has not answered since this node started"
    return f"the Registry has answered no heartbeat sent within the last {(now - sent_at) // 1000} s"


def no_standby(state: NodeState, holding: Holding) -> str:
    """Why there is no Standby for this tenant at all; empty where there may be."""
    if not may_stand_by(state.mesh_view.voters):
        return "the mesh has fewer than three voters"
    return "" if leases.allows_standby(holding.view.policy) else "the tenant denies Standby"


def lacking(state: NodeState, holding: Holding) -> str:
    """What is missing to a lease of the voters'."""
    asked, offer = state.standby_ask, state.standby_offer
    if asked is None:
        return "the voters have not been asked yet"
    if asked.done and offer is not None and not leases.may_stand_by(state, holding, offer):
        return "voters have stored a restriction that is not applied here: other regions are asked for it"
    granted = sorted({state.mesh_view.nodes[a].region for a in asked.grants if a in state.mesh_view.nodes})
    said = [f"{region} refuses ({why})" for region, why in sorted(asked.refusals.items()) if region not in granted]
    return (
        f"no majority of the voters grants: {', '.join([*(f'{r} grants' for r in granted), *said]) or 'none answers'}"
    )


def _what_comes(state: NodeState, now: Instant, holding: Holding, mode: Mode) -> tuple[Instant | None, Mode | None]:
    """When the mode ends by itself, and what follows."""
    if mode is Mode.SYNCED and state.answered_sent_at is not None:
        return Instant(state.answered_sent_at + FRESH_INTERVALS * state.interval_ms + 1), Mode.AUTONOMOUS
    if mode not in (Mode.AUTONOMOUS, Mode.STANDBY):
        return None, None
    mesh = state.mesh.lease
    ends = [end for end in (holding.lease and holding.lease.until, mesh and mesh.until, holding.l1.until) if end]
    return Instant(min(ends)), Mode.CLOSED
