"""Budgets under faults: seeds, what must happen, planted bugs."""

from __future__ import annotations

from collections import Counter

import pytest

from keymesh.control import transition
from keymesh.sim.budgets import run_budgets
from keymesh.sim.bugs import Bug
from keymesh.sim.bugs_budgets import BUDGET_BUGS

pytestmark = pytest.mark.slow

SEEDS = (0, 1, 2, 3, 4, 5, 6)
REACHED = ("slice-taken", "slice-empty", "slice-given-back", "edge-died-with-a-slice", "used")


def test_seeds_hold_and_reach_what_a_budget_is_about() -> None:
    seen: Counter[str] = Counter()
    for seed in SEEDS:
        bad, sometimes = run_budgets(seed)
        assert bad is None, (seed, bad)
        seen += sometimes
    assert [name for name in REACHED if not seen[name]] == []
    assert seen["used"] > 10_000, "budgets are of use"


def test_a_seed_is_the_same_again() -> None:
    assert run_budgets(2) == run_budgets(2)


def test_a_resume_that_nobody_committed_frees_nobody_who_missed_the_suspension(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A region comes back to the state after an uncommitted resume, and voters have granted it a lease."""
    monkeypatch.setattr(transition, "_check_passed_over", lambda old, new, proofs: None)
    bad, _ = run_budgets(3)
    assert bad is not None and bad.invariant == "I1"


@pytest.mark.parametrize("bug", BUDGET_BUGS, ids=lambda bug: bug.name)
def test_every_planted_bug_is_found(bug: Bug) -> None:
    with bug.planted():
        for seed in (*bug.seeds, *SEEDS):
            bad, _ = run_budgets(seed)
            if bad is not None and bad.invariant == "B1":
                return
    pytest.fail("not found")
