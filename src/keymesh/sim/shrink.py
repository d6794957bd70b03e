"""Makes a failing plan small: ddmin over its items, keeping the invariant that fails (Zeller, Hildebrandt 2002)."""

from __future__ import annotations

from collections.abc import Callable

from keymesh.sim.options import options_of
from keymesh.sim.plan import Item, plan_of
from keymesh.sim.run import Failure, run_seed

Plan = tuple[Item, ...]


def ddmin(items: Plan, fails: Callable[[Plan], bool], *, runs_max: int = 400) -> Plan:
    """A smaller plan that still ``fails``; 1-minimal if ``runs_max`` runs suffice."""
    parts = 2
    runs = 0
    while len(items) >= 2:
        size = max(1, len(items) // parts)
        for start in range(0, len(items), size):
            rest = items[:start] + items[start + size :]
            runs += 1
            if runs > runs_max:
                return items
            if fails(rest):
                items = rest
                parts = max(2, parts - 1)
                break
        else:
            if size == 1:
                return items
            parts = min(len(items), parts * 2)
    return items


def shrink(seed: int, *, runs_max: int = 400) -> tuple[Failure, Plan] | None:
    """(failure, smallest plan found) of a failing seed; None where it does not fail.

    Items after the failure go first: they seldom matter (an end that a checker knows ahead is one that does).
    """
    first = run_seed(seed).failure
    if first is None:
        return None
    whole = plan_of(options_of(seed))
    before = tuple(i for i in whole if i.at_ms <= first.t)
    until = None if first.t >= options_of(seed).heal_at_ms else first.t + 1
    found = [first]

    def fails(items: Plan) -> bool:
        failure = run_seed(seed, plan=items, until=until).failure
        same = failure is not None and failure.invariant == first.invariant
        if same and failure is not None:
            found[0] = failure
        return same

    plan = ddmin(before if fails(before) else whole, fails, runs_max=runs_max)
    return found[0], plan
