"""The arithmetic of budgets: what is spent in which period, what is left of a region's share, how large a slice is.

Pure and in whole numbers.  Money is counted in billionths (``nano``): a price of p millionths for 1 000 operations is p
billionths for one, so nothing is ever rounded.  What is granted counts as spent; only what is given back does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from keymesh.control.rows import BudgetRow
from keymesh.model.periods import Period, end_of, number_at
from keymesh.model.time import Instant

NANO_PER_MICRO: Final = 1_000
SLICE_MIN: Final = 100
AHEAD_MS: Final = 60_000
"""So long before a period ends a slice is counted in the next one as well, and holds in both."""


@dataclass(frozen=True, slots=True)
class Spent:
    """What was granted in the period of that number."""

    number: int
    ops: int = 0
    nano: int = 0


@dataclass(frozen=True, slots=True)
class Account:
    """What one budget of this node has spent.  ``floor``: the newest period that was seen; older ones are forgotten."""

    period: str
    floor: int
    spent: tuple[Spent, ...] = ()

    def of(self, number: int) -> Spent:
        return next((s for s in self.spent if s.number == number), Spent(number))


def share_of(total: int, region: str, regions: Sequence[str], home: str) -> int:
    """That region's part of ``total``: equal parts, what does not divide to the home first.

    Parts add up to ``total``, and none falls where ``total`` rises: so a budget that is changed within a period is
    overspent by no cut between the regions.  0 for a region that is not allowed.
    """
    order = sorted(regions, key=lambda name: (name != home, name))
    if region not in order:
        return 0
    return (total + len(order) - 1 - order.index(region)) // len(order)


def current(account: Account | None, row: BudgetRow, now: Instant) -> Account:
    """The account as of ``now``: never a period before the newest that was seen, whatever the clock says.

    Where the kind of period has changed, what was spent in the last one counts in the new one.
    """
    period = Period(row.period)
    number = number_at(period, now)
    if account is None:
        return Account(row.period, number)
    if account.period != row.period:
        open_still = [s for s in account.spent if end_of(Period(account.period), s.number) > now]
        carried = Spent(number, sum(s.ops for s in open_still), sum(s.nano for s in open_still))
        return Account(row.period, number, (carried,) if open_still else ())
    floor = max(number, account.floor)
    return Account(account.period, floor, tuple(s for s in account.spent if s.number >= floor))


def touched(account: Account, until: Instant) -> tuple[int, ...]:
    """The periods in which something granted now, that may be used before ``until``, may be used."""
    last = number_at(Period(account.period), Instant(until - 1))
    return tuple(range(account.floor, max(last, account.floor) + 1))


def left_in(account: Account, number: int, row: BudgetRow, ops_share: int, nano_share: int) -> int:
    """Operations that may still be granted in that period."""
    spent = account.of(number)
    left = [] if row.ops is None else [ops_share - spent.ops]
    if row.money is not None:
        left.append((nano_share - spent.nano) // row.price)
    return max(0, min(left))


def charged(account: Account, numbers: Sequence[int], ops: int, nano: int) -> Account:
    """``ops`` more (or fewer, where negative) in each of ``numbers`` that the account still knows."""
    spent = {s.number: s for s in account.spent}
    for number in numbers:
        if number >= account.floor:
            old = spent.get(number, Spent(number))
            spent[number] = Spent(number, max(0, old.ops + ops), max(0, old.nano + nano))
    return replace(account, spent=tuple(spent[number] for number in sorted(spent)))


def window_end(row: BudgetRow, account: Account) -> Instant:
    """When the account's newest period ends."""
    return end_of(Period(row.period), account.floor)


def ahead_ms(row: BudgetRow) -> int:
    """How long before its end the next period is granted with it."""
    length = end_of(Period(row.period), 1) - end_of(Period(row.period), 0)
    return min(AHEAD_MS, length // 4)


def slice_size(left: int, wants: int | None) -> int:
    """How much of what is left one Edge is granted at once: a small part, more where it used much, all of little."""
    usual = left // 16 if wants is None else min(wants, left // 4)
    return min(left, max(SLICE_MIN, usual)) if wants != 0 else 0
