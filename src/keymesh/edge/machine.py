"""The Edge as a state machine: ``step(state, now, event) -> effects``, no I/O, no clock, no chance, no key bytes.

Stateless across lives (ADR-602): nothing is persisted, a restarted Edge asks for a lease and goes on.  What may be
used is published as a ``LeaseSnapshot``; ``hot`` mints and opens under it without asking anyone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from keymesh.edge import budgets, leasing, leaving, revoking, usage
from keymesh.edge.snapshot import (
    BudgetUsed,
    Closing,
    Connected,
    EdgeConfig,
    KeyWanted,
    Measured,
    SendFailed,
    SlicesUnused,
    UsageCounted,
)
from keymesh.edge.state import EdgeState, new_edge
from keymesh.model.machine import Address, Booted, ClockWentAhead, ClockWentBack, Received, Send, Tick, ask_tick
from keymesh.model.time import NEVER, Instant
from keymesh.orbital.edge_messages import LeaseGrant, LeaseReady, LeaseRefused, Revocation, UsageRecorded
from keymesh.orbital.messages import Hello

__all__ = ["EdgeConfig", "EdgeState", "new_edge", "step"]


def step(state: EdgeState, now: Instant, event: Any) -> list[Any]:
    """What follows from ``event``, in order.  An event of a type that is not listed is our bug and raises KeyError."""
    if state.closed and not _outlives(event):
        return []
    effects = _EVENTS[type(event)](state, now, event)
    state.woken_at = ask_tick(state.woken_at, leasing.next_due(state), now, effects)
    return effects


def _outlives(event: Any) -> bool:
    """Whether ``event`` is of use after the end: only the last usage is still told, and what was not used."""
    return type(event) in (UsageCounted, SlicesUnused) or (
        type(event) is Received and type(event.message) is UsageRecorded
    )


def _booted(state: EdgeState, now: Instant, event: Booted) -> list[Any]:
    state.entropy = event.entropy
    return leasing.request(state, now)


def _tick(state: EdgeState, now: Instant, event: Tick) -> list[Any]:
    state.woken_at = NEVER
    return leasing.tick(state, now)


def _clock(state: EdgeState, now: Instant, event: ClockWentBack) -> list[Any]:
    return leasing.on_clock_went_back(state, now)


def _connected(state: EdgeState, now: Instant, event: Connected) -> list[Any]:
    """Say hello, so that the Core repeats what was not delivered; and ask it soon where nothing is held.

    A stream that opens is a hint as good as ``LeaseReady``, and no better: one that opens and breaks all the time
    must not make the Edge spin.
    """
    config = state.config
    hello = Hello(region=config.region, node=config.instance, boot_id=config.signing_key[:32])
    asks = state.lease is None and state.pending is None
    return [Send(event.core, hello), *(leasing.on_hint(state, now, event.core) if asks else [])]


def _clock_ahead(state: EdgeState, now: Instant, event: ClockWentAhead) -> list[Any]:
    """The tick that was asked for would come so much later by our clock: it is asked for anew."""
    state.woken_at = NEVER
    return []


def _received(state: EdgeState, now: Instant, event: Received) -> list[Any]:
    handler = _MESSAGES.get(type(event.message))
    return [] if handler is None else handler(state, now, event.sender, event.message)


_EVENTS: Final[dict[type, Callable[[EdgeState, Instant, Any], list[Any]]]] = {
    Booted: _booted,
    Tick: _tick,
    Received: _received,
    ClockWentAhead: _clock_ahead,
    ClockWentBack: _clock,
    Connected: _connected,
    SendFailed: leasing.on_send_failed,
    Measured: leasing.on_measured,
    KeyWanted: leasing.on_key_wanted,
    Closing: leaving.on_closing,
    UsageCounted: usage.on_counted,
    BudgetUsed: leasing.on_budget_used,
    SlicesUnused: budgets.on_unused,
}
_MESSAGES: Final[dict[type, Callable[[EdgeState, Instant, Address, Any], list[Any]]]] = {
    LeaseGrant: leasing.on_grant,
    LeaseRefused: leasing.on_refused,
    LeaseReady: leasing.on_ready,
    Revocation: revoking.on_revocation,
    UsageRecorded: usage.on_recorded,
}
