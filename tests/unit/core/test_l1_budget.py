"""A budget of calls to each account of the customers' L1s: kept, shared out, halved where a provider throttles."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from keymesh.core.l1_budget import (
    ACCOUNTS_MAX,
    BURST,
    CALLS_PER_S,
    CALLS_PER_S_MIN,
    LEFT_FOR_LOADS,
    LOAD_WAIT_MAX_MS,
    PROBE_WAIT_MAX_MS,
    RECOVERY_MS,
    Budget,
)
from keymesh.model.time import Instant

T0 = Instant(1_000_000)


def at(ms: int) -> Instant:
    return Instant(T0 + ms)


def test_a_burst_at_once_and_then_by_the_rate() -> None:
    budget = Budget()
    assert {budget.take("a", T0, urgent=True) for _ in range(BURST)} == {0}
    waits = [budget.take("a", T0, urgent=True) for _ in range(CALLS_PER_S)]
    assert waits[0] == 1_000 // CALLS_PER_S and waits[-1] == 1_000
    assert budget.take("b", T0, urgent=True) == 0, "another account has its own"


def test_probes_leave_room_for_loads() -> None:
    budget = Budget()
    for _ in range(BURST - LEFT_FOR_LOADS):
        assert budget.take("a", T0, urgent=False) == 0
    assert budget.take("a", T0, urgent=False) != 0
    assert budget.take("a", T0, urgent=True) == 0


def test_what_would_wait_too_long_is_not_taken() -> None:
    budget = Budget()
    for urgent, limit_ms in ((False, PROBE_WAIT_MAX_MS), (True, LOAD_WAIT_MAX_MS)):
        while (wait := budget.take("a", T0, urgent=urgent)) is not None:
            assert wait <= limit_ms
        before = budget.accounts["a"].calls
        assert budget.take("a", T0, urgent=urgent) is None
        assert budget.accounts["a"].calls == before
    assert budget.take("a", at(LOAD_WAIT_MAX_MS + 1_000), urgent=True) is not None


def test_throttled_it_goes_at_half_the_rate_and_recovers() -> None:
    budget = Budget()
    budget.throttled("a", T0)
    assert budget.accounts["a"].per_s == CALLS_PER_S / 2
    assert budget.take("a", T0, urgent=True) == round(2_000 / CALLS_PER_S)
    for _ in range(20):
        budget.throttled("a", T0)
    assert budget.accounts["a"].per_s == CALLS_PER_S_MIN
    budget.take("a", at(RECOVERY_MS), urgent=True)
    assert budget.accounts["a"].per_s == CALLS_PER_S


def test_accounts_have_a_limit_and_time_that_goes_back_gives_nothing() -> None:
    budget = Budget()
    for n in range(ACCOUNTS_MAX + 3):
        budget.take(f"a{n}", T0, urgent=True)
    assert len(budget.accounts) == ACCOUNTS_MAX
    name = next(iter(budget.accounts))
    before = budget.accounts[name].calls
    budget.take(name, Instant(T0 - 5_000), urgent=True)
    assert budget.accounts[name].calls == before - 1


@given(st.lists(st.tuples(st.integers(0, 400), st.booleans()), min_size=1, max_size=300))
def test_in_no_second_are_there_more_calls_than_burst_and_rate(calls: list[tuple[int, bool]]) -> None:
    budget, now, made = Budget(), 0, list[int]()
    for pause_ms, urgent in calls:
        now += pause_ms
        for _ in range(20):
            wait = budget.take("a", at(now), urgent=urgent)
            if wait is not None:
                made.append(now + wait)
    for start in range(0, max(made, default=0) + 1, 1_000):
        assert sum(start <= when < start + 1_000 for when in made) <= BURST + CALLS_PER_S + 1
