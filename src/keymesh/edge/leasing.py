"""Leases at the Edge: asked for one at a time, accepted once, refreshed early, kept through failed refreshes.

Source: DESIGN sections 1, 3 and 5; ADR-602.
"""

from __future__ import annotations

from typing import Any

from keymesh.edge import budgets, choice, rules
from keymesh.edge.snapshot import BudgetUsed, KeyWanted, LeaseSnapshot, Measured, Publish, SendFailed
from keymesh.edge.state import GRANTED_MAX, EdgeState, Pending, draw, jitter, seen_of
from keymesh.model.errors import KeymeshError
from keymesh.model.machine import Address, Note, Send
from keymesh.model.time import NEVER, Instant, is_live
from keymesh.orbital.edge_messages import LeaseGrant, LeaseReady, LeaseRefused, LeaseRequest


def request(state: EdgeState, now: Instant) -> list[Any]:
    """Ask the current Core for a lease, or a nearer one, unless a request is in flight."""
    if state.pending is not None:
        return []
    config = state.config
    _move(state, now)
    to = config.cores[state.core_index]
    state.pending = Pending(draw(state), to, now)
    state.next_request_at = None
    state.last_request_at = now
    message = LeaseRequest(
        tenant=config.tenant,
        service=config.service,
        nonce=state.pending.nonce,
        signing_key=config.signing_key,
        policy_version=0 if state.policy is None else state.policy.version,
        wants=budgets.wants(state, now),
    )
    return [Send(to, message), *budgets.on_request(state)]


def _move(state: EdgeState, now: Instant) -> None:
    """To a nearer Core, where there is one that is worth it; after a failure, to one that is known to be there."""
    cores, seen = state.config.cores, state.seen
    if state.failures:
        if not choice.is_good(seen.get(cores[state.core_index]), now):
            other = choice.after_failure(cores, seen, state.core_index, now)
            state.core_index = other if choice.is_good(seen.get(cores[other]), now) else state.core_index
        return
    nearer = choice.nearer(cores, seen, state.core_index, state.moves, now)
    if nearer is not None:
        state.core_index = nearer
        choice.moved(state.moves, now)


def drop(state: EdgeState, reason: str) -> list[Any]:
    """Nothing may be used from here on."""
    state.lease = None
    return [Publish(None, reason)]


def on_grant(state: EdgeState, now: Instant, sender: Address, grant: LeaseGrant) -> list[Any]:
    """1. It answers the request in flight.  2. It is for this Edge.  3. Its policy is not older than what was applied,
    4. and is the Registry's word.  5. It has not run out on its way.  Then it replaces the lease, whole."""
    if not rules.answers(state.pending, sender, grant.nonce):
        return [_note("edge.grant-ignored", "nonce")]
    assert state.pending is not None
    pending, state.pending = state.pending, None
    choice.answered(seen_of(state, sender), now - pending.sent_at)
    fault = rules.grant_fault(grant, state.config.tenant, state.config.service)
    if fault is None and not rules.keeps_policy(state.policy, grant.policy):
        fault = "policy-version"
    if fault is None:
        try:
            state.config.verify_policy(grant)
        except KeymeshError as bad:
            fault = bad.code
    if fault is not None:
        _failed(state, now)
        return [_note("edge.grant-refused", fault)]
    state.policy = grant.policy
    ttl_ms = rules.lease_ttl(grant)
    deadline = rules.lease_deadline(pending.sent_at, now, ttl_ms)
    terms = budgets.terms_of(state, now, pending.sent_at, sender, grant)
    if terms is not None and state.budget.left:
        deadline = min(deadline, terms.until)
    lease = LeaseSnapshot(grant.lease_id, grant.nonce, sender, grant.versions, deadline, grant.policy, terms)
    if not rules.is_usable(lease, now):
        _failed(state, now)
        return [_note("edge.grant-refused", "expired")]
    state.lease = lease
    _remember(state, now, lease)
    state.failures = state.hints = 0
    state.hint = None
    state.patience_ms = rules.patience_ms(state.config.request_timeout_ms, ttl_ms)
    _settle_wanted(state, lease)
    after_ms = rules.refresh_after_ms(ttl_ms, jitter(state, grant.lease_id, 1_000))
    due = min(Instant(pending.sent_at + after_ms), budgets.next_request(state, now))
    state.next_request_at = max(now, due)
    return [
        Publish(lease, "granted"),
        Note("edge.leased", "", (("lease", lease.lease_id), ("ttl_ms", ttl_ms), ("versions", len(lease.versions)))),
    ]


def _remember(state: EdgeState, now: Instant, lease: LeaseSnapshot) -> None:
    """Every lease that the Cores count until its end, also one that a later one took the place of: for the return."""
    live = {name: held for name, held in state.granted.items() if is_live(held[1], now)}
    while len(live) >= GRANTED_MAX:
        del live[next(iter(live))]
    state.granted = {**live, lease.lease_id: (lease.granted_by, lease.deadline)}


def _settle_wanted(state: EdgeState, lease: LeaseSnapshot) -> None:
    """Nothing new for an unknown kid: the next one waits twice as long."""
    if state.wanted_kids is None:
        return
    in_vain = lease.kids <= state.wanted_kids
    state.wanted_kids = None
    doubled = max(rules.KEY_WANTED_GAP_MS, 2 * state.wanted_gap_ms)
    state.wanted_gap_ms = min(rules.KEY_WANTED_GAP_MAX_MS, doubled) if in_vain else 0


def on_refused(state: EdgeState, now: Instant, sender: Address, refused: LeaseRefused) -> list[Any]:
    if not rules.answers(state.pending, sender, refused.nonce):
        return []
    assert state.pending is not None
    choice.answered(seen_of(state, sender), now - state.pending.sent_at)
    state.pending = None
    effects: list[Any] = [_note("edge.lease-refused", refused.code)]
    if rules.refusal_drops(refused.code) or state.lease is None:
        effects += drop(state, refused.code)
    state.failures += 1
    state.wanted_kids = None
    wait = rules.refused_wait_ms(refused.code, refused.retry_after_ms, state.failures)
    state.next_request_at = Instant(now + wait + jitter(state, refused.nonce, wait // 4))
    if rules.may_ask_elsewhere(refused.code):
        _ask_elsewhere(state, now)
    _heed(state, now)
    return effects


def _ask_elsewhere(state: EdgeState, now: Instant) -> None:
    """This Core cannot serve now: at once where another is known to, else in its turn."""
    choice.failed(seen_of(state, state.config.cores[state.core_index]), now)
    state.core_index = choice.after_failure(state.config.cores, state.seen, state.core_index, now)
    if choice.is_good(state.seen.get(state.config.cores[state.core_index]), now):
        state.next_request_at = now


def on_ready(state: EdgeState, now: Instant, sender: Address, ready: LeaseReady) -> list[Any]:
    """A Core that refused would grant now: ask it.  While a request is in flight its answer comes first."""
    if not rules.names_edge(ready, state.config, sender):
        return [_note("edge.hint-ignored", "stranger")]
    if not rules.heeds_hint(state.lease, state.failures):
        return []
    return on_hint(state, now, sender)


def on_hint(state: EdgeState, now: Instant, core: Address) -> list[Any]:
    """``core`` is worth a question: at once, or as soon as the hints before it allow."""
    state.hints = rules.hints_that_count(state.hints, state.hinted_at, now)
    state.hinted_at = now
    state.hint = core
    if state.pending is None:
        _heed(state, now)
    return tick(state, now)


def _heed(state: EdgeState, now: Instant) -> None:
    """Let the next request be due as soon as the hint may bring it, and go to the Core that gave it."""
    core, state.hint = state.hint, None
    if core is None:
        return
    last = state.last_request_at
    at = now if last is None else Instant(max(now, last + rules.hint_gap_ms(state.hints)))
    if state.next_request_at is None or at < state.next_request_at:
        state.hints += 1
        state.next_request_at = at
        state.core_index = state.config.cores.index(core)
        choice.said_ready(seen_of(state, core))


def on_send_failed(state: EdgeState, now: Instant, event: SendFailed) -> list[Any]:
    if state.pending is None or state.pending.nonce != event.nonce:
        return []
    state.pending = None
    _failed(state, now)
    return []


def on_measured(state: EdgeState, now: Instant, event: Measured) -> list[Any]:
    """A short question to one of the Cores was answered, or not.  One that we rely on and that is gone is left before
    the lease has to be renewed."""
    if event.core not in state.config.cores:
        return []
    seen = seen_of(state, event.core)
    if event.rtt_ms is not None:
        choice.answered(seen, event.rtt_ms)
        return []
    choice.failed(seen, now)
    if event.core != state.config.cores[state.core_index] or state.pending is not None:
        return []
    other = choice.after_failure(state.config.cores, state.seen, state.core_index, now)
    if not choice.is_good(state.seen.get(state.config.cores[other]), now):
        return []
    state.core_index = other
    return request(state, now)


def on_key_wanted(state: EdgeState, now: Instant, event: KeyWanted) -> list[Any]:
    """An unknown kid may be a version that came after the lease: ask anew, and ever more rarely in vain.

    Just after another request it is asked for as soon as the gap is over, unless that request failed.
    """
    last = state.last_request_at
    if state.pending is not None or (last is not None and now < last + state.wanted_gap_ms):
        return []
    at = now if last is None else Instant(max(now, last + rules.KEY_WANTED_GAP_MS))
    if at > now and state.failures:
        return []
    state.wanted_kids = frozenset() if state.lease is None else state.lease.kids
    if at == now:
        return request(state, now)
    if state.next_request_at is None or at < state.next_request_at:
        state.next_request_at = at
    return []


def on_budget_used(state: EdgeState, now: Instant, event: BudgetUsed) -> list[Any]:
    """More of the budget is asked for with a new lease, ahead of need."""
    return request(state, now) if budgets.on_used(state, now, event) else []


def on_clock_went_back(state: EdgeState, now: Instant) -> list[Any]:
    """Leases and answers in flight were measured by a clock that nobody trusts any more."""
    state.pending = None
    state.failures = 0
    return [*drop(state, "clock"), _note("edge.clock-went-back", "dropped"), *request(state, now)]


def tick(state: EdgeState, now: Instant) -> list[Any]:
    """Whatever is due: the lease's end, the request's patience, the next request."""
    effects: list[Any] = []
    if state.lease is not None and not rules.is_usable(state.lease, now):
        effects += drop(state, "expired")
    if state.pending is not None and now >= state.pending.sent_at + _patience_ms(state, state.pending, now):
        state.pending = None
        _failed(state, now)
    if state.next_request_at is not None and now >= state.next_request_at:
        effects += request(state, now)
    return effects


def next_due(state: EdgeState) -> Instant:
    """When ``tick`` has something to do."""
    due = NEVER if state.lease is None else state.lease.deadline
    if state.pending is not None:
        due = Instant(min(due, state.pending.sent_at + _patience_ms(state, state.pending, state.pending.sent_at)))
    if state.next_request_at is not None and state.next_request_at < due:
        due = state.next_request_at
    return due


def _patience_ms(state: EdgeState, pending: Pending, now: Instant) -> int:
    """How long that request may stay unanswered: less, where another Core is known to answer sooner."""
    hedge = choice.hedge_ms(state.config.cores, state.seen, state.config.cores.index(pending.to), now)
    return state.patience_ms if hedge is None else min(state.patience_ms, hedge)


def _failed(state: EdgeState, now: Instant) -> None:
    """Another Core: at once where it is known to be there, else after a while; a live lease is left alone."""
    state.failures += 1
    state.wanted_kids = None
    wait = rules.backoff_ms(state.failures, jitter(state, f"retry/{state.draws}", 1_000))
    state.next_request_at = Instant(now + wait)
    _ask_elsewhere(state, now)
    _heed(state, now)


def _note(name: str, why: str) -> Note:
    return Note(name, "", (("why", why),))
