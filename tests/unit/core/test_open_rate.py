"""Open rates: one alarm for one excess, an end to it, and nothing kept where nobody asked."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from keymesh.core.open_rate import SERVICES_MAX, WINDOW_MS, OpenRates, Rate
from keymesh.model.time import Instant


def test_an_alarm_is_raised_once_above_the_limit_and_stands_until_it_is_quiet() -> None:
    rates = OpenRates()
    assert not rates.opened(Instant(1_000), "acme", "pay", 100, 100), "at the limit"
    assert rates.opened(Instant(2_000), "acme", "pay", 1, 100)
    assert not rates.opened(Instant(3_000), "acme", "pay", 500, 100), "raised already"
    assert list(rates.standing(Instant(3_000))) == [("acme", "pay")]
    assert not rates.opened(Instant(3_000 + WINDOW_MS), "acme", "pay", 50, 100), "half of the limit is not below it"
    assert rates.standing(Instant(3_000))
    assert not rates.opened(Instant(3_000 + 2 * WINDOW_MS), "acme", "pay", 1, 100)
    assert not rates.standing(Instant(3_000 + 2 * WINDOW_MS))
    assert rates.opened(Instant(4_000 + 2 * WINDOW_MS), "acme", "pay", 100, 100), "the next excess"


def test_services_and_tenants_are_counted_apart() -> None:
    rates = OpenRates()
    assert not rates.opened(Instant(1), "acme", "pay", 80, 100)
    assert not rates.opened(Instant(1), "globex", "pay", 80, 100)
    assert not rates.opened(Instant(1), "acme", "mail", 80, 100)
    assert rates.per_minute(Instant(1), "acme", "pay") == 80


def test_without_a_limit_nothing_is_kept() -> None:
    rates = OpenRates()
    rates.opened(Instant(1), "acme", "pay", 80, 100)
    assert not rates.opened(Instant(2), "acme", "pay", 10**9, None)
    assert rates.rates == {}


def test_there_is_room_for_so_many_services() -> None:
    rates = OpenRates()
    for n in range(SERVICES_MAX + 5):
        rates.opened(Instant(1), "acme", f"s{n}", 1, 9)
    assert len(rates.rates) == SERVICES_MAX


@given(st.lists(st.tuples(st.integers(0, 20_000), st.integers(0, 50)), max_size=40))
def test_a_rate_is_what_was_opened_in_the_last_minute(moves: list[tuple[int, int]]) -> None:
    """To the second in which a report came; steps are bounded by the window, not by the reports."""
    rate, now, seen = Rate(), 0, []
    for wait, opens in moves:
        now += wait
        rate.add(Instant(now), opens)
        seen.append((now - now % 1_000, opens))
        assert rate.per_minute(Instant(now)) == sum(n for at, n in seen if at > now - WINDOW_MS)
        assert len(rate.steps) <= WINDOW_MS // 1_000 + 1
