"""The voter set changed under faults: seeds, what must happen, planted bugs."""

from __future__ import annotations

from collections import Counter

import pytest

from keymesh.sim.bugs import Bug
from keymesh.sim.bugs_voters import VOTER_BUGS
from keymesh.sim.voters import run_voters

pytestmark = pytest.mark.slow

SEEDS = 12
REACHED = ("changed", "seated", "in-force", "half-way", "CountersignatureMessage-of-set-2", "PollAnswer-of-set-2")


def test_seeds_hold_and_reach_what_a_change_is_about() -> None:
    seen: Counter[str] = Counter()
    for seed in range(SEEDS):
        bad, sometimes = run_voters(seed)
        assert bad is None, (seed, bad)
        seen += sometimes
    assert [name for name in REACHED if not seen[name]] == []


def test_a_seed_is_the_same_again() -> None:
    assert run_voters(3) == run_voters(3)


@pytest.mark.parametrize("bug", VOTER_BUGS, ids=lambda bug: bug.name)
def test_every_planted_bug_is_found(bug: Bug) -> None:
    with bug.planted():
        for seed in (*bug.seeds, *range(SEEDS)):
            if run_voters(seed)[0] is not None:
                return
    pytest.fail("not found")
