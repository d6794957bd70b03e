"""Shrinking: ddmin finds the few items that matter; a failing seed shrinks to a plan that still fails the same way."""

from __future__ import annotations

from keymesh.sim.bugs import BUGS
from keymesh.sim.options import options_of
from keymesh.sim.plan import Item, plan_of
from keymesh.sim.run import run_seed
from keymesh.sim.shrink import ddmin, shrink


def _items(n: int) -> tuple[Item, ...]:
    return tuple(Item(i, "x") for i in range(n))


def test_ddmin_keeps_exactly_what_matters() -> None:
    items = _items(97)
    wanted = {items[3], items[50], items[51]}
    runs: list[int] = []

    def fails(plan: tuple[Item, ...]) -> bool:
        runs.append(len(plan))
        return wanted <= set(plan)

    assert set(ddmin(items, fails)) == wanted
    assert len(runs) < 200


def test_ddmin_stops_at_its_limit() -> None:
    runs: list[int] = []

    def fails(plan: tuple[Item, ...]) -> bool:
        runs.append(1)
        return False

    assert ddmin(_items(64), fails, runs_max=10) == _items(64)
    assert len(runs) <= 10


def test_a_failing_seed_shrinks() -> None:
    bug = next(b for b in BUGS if b.name == "gap-blocks-lane-0")
    # of seed 2 the plan up to the failure passes: an item after it, an end that is known ahead, matters
    with bug.planted():
        found = shrink(2, runs_max=60)
        assert found is not None
        failure, plan = found
        again = run_seed(2, plan=plan, until=failure.t + 1).failure
    assert failure.invariant == "I8"
    assert again == failure
    assert 0 < len(plan) <= len(plan_of(options_of(2))) // 2


def test_a_clean_seed_does_not_shrink() -> None:
    assert shrink(4) is None
