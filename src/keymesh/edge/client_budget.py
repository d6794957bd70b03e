"""The slices of a budget in one Edge's life: what comes with a lease goes in, what is not needed is told.

Of the shell, which gives it the raw clock.  Decides nothing; the machine's part is in ``budgets``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from keymesh.edge.hot import HotPath
from keymesh.edge.hot_lease import Budget, Meter, no_lease
from keymesh.edge.purse import Purse, Unused
from keymesh.edge.snapshot import BudgetUsed, LeaseSnapshot, SlicesUnused
from keymesh.model.time import Instant

_MS_NS: Final = 1_000_000
LOOK_EVERY_S: Final = 0.1


class ShellBudget:
    """``feed`` hands an event to the machine in the middle of a step, and at its end; ``boot_clock`` reads ns."""

    def __init__(self, hot: HotPath, feed: Callable[[Any], None], boot_clock: Callable[[], int]) -> None:
        self._hot = hot
        self._feed = feed
        self._boot_clock = boot_clock
        self._purse = Purse()
        self._left = 0

    @property
    def in_force(self) -> bool:
        return self._purse.window != 0

    @property
    def left(self) -> int | None:
        """Operations; None without a budget."""
        return self._purse.left if self.in_force else None

    def meter(self, lease: LeaseSnapshot, now: Instant) -> Meter:
        """What counts the uses under a new lease, which holds its own slice and what is left of the window's others.

        What is left of another window comes back, once nobody can use it any more.
        """
        terms, policy = lease.terms, lease.policy
        window = 0 if terms is None else terms.window
        unused: Unused = ()
        if window != self._purse.window:
            if self.in_force:
                self._hot.publish(no_lease("starting"))
            unused = self._purse.turn(window)
        budget = None
        if terms is not None:
            self._purse.add(lease.lease_id, terms.ops)
            end_ns = self._boot_clock() + (terms.until - now) * _MS_NS
            budget = Budget(self._purse.stream(), lambda: self._purse.left, end_ns, terms.more)
        self._left = self._purse.left
        if unused:
            self._feed(SlicesUnused(unused))
        return Meter(policy.mint_budget, policy.open_budget, budget)

    def look(self) -> BudgetUsed | None:
        """What the machine is to know, where it may have to ask for more."""
        if not self.in_force:
            return None
        left, short = self._purse.left, self._hot.short
        used, self._left, self._hot.short = max(0, self._left - left), left, 0
        return BudgetUsed(left, max(used, short), self._purse.low or short > 0) if used or short else None

    def trim(self, keep: int) -> None:
        """Give back what is more than that."""
        unused = self._purse.trim(keep)
        self._left = self._purse.left
        if unused:
            self._feed(SlicesUnused(unused))

    def end(self) -> None:
        """Nothing is used any more: all of it comes back."""
        unused = self._purse.turn(0)
        if unused:
            self._feed(SlicesUnused(unused))
