"""The arithmetic of budgets: shares, periods, charges and what is left, in whole numbers."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keymesh.control.rows import BudgetRow
from keymesh.core import budget
from keymesh.core.budget import Account, Spent
from keymesh.model.periods import Period, end_of, number_at
from keymesh.model.time import Instant

REGIONS = ("eu-central", "eu-west", "us-east", "us-west")
TOTALS = st.integers(0, 10**15)
INSTANTS = st.integers(0, 4_102_444_800_000).map(Instant)  # up to the year 2100


def ms(year: int, month: int, day: int, hour: int = 0, minute: int = 0, second: int = 0) -> Instant:
    return Instant(int(datetime(year, month, day, hour, minute, second, tzinfo=UTC).timestamp()) * 1_000)


# --- periods ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("period", "now", "end"),
    [
        (Period.MINUTE, ms(2026, 11, 28, 7, 30, 59), ms(2026, 11, 28, 7, 31)),
        (Period.HOUR, ms(2026, 11, 28, 7, 30), ms(2026, 11, 28, 8)),
        (Period.DAY, ms(2028, 2, 28, 23, 59, 59), ms(2028, 2, 29)),
        (Period.MONTH, ms(2028, 2, 29), ms(2028, 3, 1)),
        (Period.MONTH, ms(2026, 12, 31, 23, 59, 59), ms(2027, 1, 1)),
    ],
)
def test_a_period_ends_where_the_calendar_says(period: Period, now: Instant, end: Instant) -> None:
    assert end_of(period, number_at(period, now)) == end
    assert number_at(period, end) == number_at(period, now) + 1


@given(st.sampled_from(Period), INSTANTS)
def test_every_instant_is_in_one_period(period: Period, now: Instant) -> None:
    number = number_at(period, now)
    assert end_of(period, number - 1) <= now < end_of(period, number) if number else now < end_of(period, 0)


# --- shares ----------------------------------------------------------------------------------------------------------


@given(TOTALS, TOTALS, st.integers(1, 4), st.integers(0, 3))
def test_shares_add_up_and_none_falls_as_the_budget_rises(a: int, b: int, count: int, home: int) -> None:
    regions = REGIONS[:count]
    at = regions[home % count]
    low, high = sorted((a, b))
    before = [budget.share_of(low, r, regions, at) for r in regions]
    after = [budget.share_of(high, r, regions, at) for r in regions]
    assert (sum(before), sum(after)) == (low, high)
    assert all(x <= y for x, y in zip(before, after, strict=True)), "a change within a period overspends nothing"
    assert max(before) - min(before) <= 1
    assert budget.share_of(low, "mars", regions, at) == 0


# --- accounts --------------------------------------------------------------------------------------------------------

DAY = BudgetRow(version=1, period="day", ops=1_000)


def test_a_new_period_begins_anew_and_an_earlier_one_never_comes_back() -> None:
    noon = ms(2026, 11, 28, 12)
    account = budget.current(None, DAY, noon)
    account = budget.charged(account, budget.touched(account, Instant(noon + 1)), 900, 0)
    assert budget.left_in(account, account.floor, DAY, 1_000, 0) == 100
    tomorrow = budget.current(account, DAY, ms(2026, 11, 29))
    assert budget.left_in(tomorrow, tomorrow.floor, DAY, 1_000, 0) == 1_000
    spent = budget.charged(tomorrow, (tomorrow.floor,), 1_000, 0)
    back = budget.current(spent, DAY, noon)  # the clock was set back
    assert back.floor == tomorrow.floor
    assert budget.left_in(back, back.floor, DAY, 1_000, 0) == 0


def test_another_kind_of_period_begins_with_what_the_last_one_has_spent() -> None:
    noon = ms(2026, 11, 28, 12)
    account = budget.charged(budget.current(None, DAY, noon), (number_at(Period.DAY, noon),), 900, 7)
    month = BudgetRow(version=2, period="month", ops=1_000)
    changed = budget.current(account, month, Instant(noon + 1))
    assert changed.of(changed.floor) == Spent(number_at(Period.MONTH, noon), 900, 7)
    assert budget.current(account, month, ms(2026, 12, 5)).spent == ()


def test_money_is_counted_to_the_billionth() -> None:
    row = BudgetRow(version=1, period="day", money=1, price=3)  # a millionth, at three millionths for 1 000
    account = Account("day", 5)
    share = 1 * budget.NANO_PER_MICRO
    assert budget.left_in(account, 5, row, 0, share) == 333
    account = budget.charged(account, (5,), 333, 333 * row.price)
    assert budget.left_in(account, 5, row, 0, share) == 0, "the billionth that is left buys nothing"
    dearer = BudgetRow(version=2, period="day", money=2, price=1_000)
    assert budget.left_in(account, 5, dearer, 0, 2_000) == 1, "what was bought at the old price stays bought"


@given(st.lists(st.tuples(st.integers(1, 500), st.integers(0, 500)), max_size=30), st.integers(0, 5_000))
def test_whatever_is_granted_and_given_back_the_share_is_kept(moves: list[tuple[int, int]], share: int) -> None:
    row = BudgetRow(version=1, period="day", ops=share)
    account, used = Account("day", 3), 0
    for wants, unused in moves:
        ops = budget.slice_size(budget.left_in(account, 3, row, share, 0), wants)
        account = budget.charged(account, (3,), ops, 0)
        back = min(ops, unused)
        account = budget.charged(account, (3,), -back, 0)
        used += ops - back
        assert account.of(3).ops == used <= share


@given(st.integers(0, 10**15), st.one_of(st.none(), st.integers(0, 10**9)))
def test_a_slice_is_never_more_than_is_left_nor_nothing_where_something_is(left: int, wants: int | None) -> None:
    size = budget.slice_size(left, wants)
    assert 0 <= size <= left
    assert (size > 0) == (left > 0 and wants != 0)
    if wants is None and left >= 16 * budget.SLICE_MIN:
        assert size <= left // 16, "an Edge that dies takes no more than that with it"
