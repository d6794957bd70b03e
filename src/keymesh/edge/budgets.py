"""The Edge's part of a budget: ask for more before it is used up, give back what is not needed, never use it too late.

A slice holds until its window ends, whichever lease it came with; the hot path counts it down (``purse``).  Shortly
before the end a slice of the next window is asked for, which the Core counts in both.  Source: docs/budgets.md.
"""

from __future__ import annotations

from typing import Any, Final

from msgspec import UNSET, UnsetType

from keymesh.edge.snapshot import BudgetUsed, SlicesUnused, Terms, Trim
from keymesh.edge.state import EdgeState, address_at, jitter
from keymesh.model.machine import Address, Send
from keymesh.model.time import NEVER, Instant, is_live
from keymesh.orbital.edge_messages import LeaseGrant, SliceReturned, SliceReturnedMessage

ASK_GAP_MS: Final = 100
AFTER_MS: Final = 1_000
KEEP_MIN: Final = 100
WANT_MIN: Final = 100
SLICES_MAX: Final = 256


def wants(state: EdgeState, now: Instant) -> int | UnsetType:
    """What a request asks for: the usual first slice, nothing, or twice what was used since the last ones."""
    held = state.budget
    used = max(held.used, held.asked)
    if not held.window or not (held.left or used):
        return UNSET
    return max(WANT_MIN, 2 * used) if held.low or now >= ask_ahead_at(state) else 0


def ask_ahead_at(state: EdgeState) -> Instant:
    """When the window after this one is worth a question; spread, so that not all Edges ask at once."""
    held = state.budget
    if held.until >= NEVER:
        return NEVER
    quarter = held.ahead_ms // 4
    return Instant(held.until - quarter - jitter(state, f"ahead/{held.window}", 2 * quarter))


def next_request(state: EdgeState, now: Instant) -> Instant:
    """When the budget wants the next request, whatever the lease does: ahead of the window's end, or just after it."""
    ahead = ask_ahead_at(state)
    if ahead > now:
        return ahead
    return Instant(state.budget.until + jitter(state, f"after/{state.budget.window}", AFTER_MS))


def on_request(state: EdgeState) -> list[Any]:
    """A request is sent: what lies idle is given back, so that others find it."""
    held = state.budget
    used, held.used = held.used, 0
    keep = max(KEEP_MIN, 4 * max(used, held.asked))
    held.asked = used
    return [Trim(keep)] if held.window and not held.low and held.left > 2 * keep else []


def terms_of(state: EdgeState, now: Instant, sent_at: Instant, core: Address, grant: LeaseGrant) -> Terms | None:
    """What the grant means for the slices held, counted from when the request was *sent*.

    An empty slice of an earlier window takes nothing from one that is held already.
    """
    held, said = state.budget, grant.slice
    if isinstance(said, UnsetType):
        held.window, held.until = 0, NEVER
        return None
    kept = not said.ops and said.window < held.window and is_live(held.until, now)
    if not kept:
        if said.window != held.window:
            held.left = 0
            held.ahead_ms = max(0, said.ahead_ms)
        held.window, held.until = said.window, Instant(sent_at + max(0, said.ends_in_ms))
    held.more = said.more
    held.left += max(0, said.ops)
    held.low = not held.left
    if said.ops > 0:
        while len(held.granted_by) >= SLICES_MAX:
            del held.granted_by[next(iter(held.granted_by))]
        held.granted_by[grant.lease_id] = core
    return Terms(max(0, said.ops), held.window, held.until, said.more)


def on_used(state: EdgeState, now: Instant, event: BudgetUsed) -> bool:
    """Whether more is to be asked for now."""
    held = state.budget
    held.left, held.low = event.left, event.low
    held.used += event.used
    last = state.last_request_at
    rested = last is None or now >= last + ASK_GAP_MS
    return bool(held.window) and event.low and held.more and rested and state.lease is not None


def on_unused(state: EdgeState, now: Instant, event: SlicesUnused) -> list[Any]:
    """Said once: what is lost on the way stays spent until the next word on that slice."""
    effects: list[Any] = []
    for lease_id, unused in event.unused:
        core = state.budget.granted_by.get(lease_id)
        if core is not None:
            returned = SliceReturned(lease_id=lease_id, edge=address_at(state, core), unused=unused)
            effects.append(Send(core, SliceReturnedMessage(returned=state.config.suite.seal(returned))))
    return effects
