"""Root and officer keys rotated under faults, with a thief about: seeds, what must happen, planted bugs."""

from __future__ import annotations

from collections import Counter

import pytest

from keymesh.sim.bugs import Bug
from keymesh.sim.bugs_rotation import ROTATION_BUGS
from keymesh.sim.rotation import run_rotation

pytestmark = pytest.mark.slow

SEEDS = 12
REACHED = (
    "trust-rotated",
    "applied-2",
    "applied-3",
    "in-force",
    "thief",
    "forged",
    "wide-suspend-under-2",
    "wide-resume-under-3",
    "refused-below-threshold",
)


def test_seeds_hold_and_reach_what_a_rotation_is_about() -> None:
    seen: Counter[str] = Counter()
    for seed in range(SEEDS):
        bad, sometimes = run_rotation(seed)
        assert bad is None, (seed, bad)
        seen += sometimes
    assert [name for name in REACHED if not seen[name]] == []


def test_a_seed_is_the_same_again() -> None:
    assert run_rotation(3) == run_rotation(3)


@pytest.mark.parametrize("bug", ROTATION_BUGS, ids=lambda bug: bug.name)
def test_every_planted_bug_is_found(bug: Bug) -> None:
    with bug.planted():
        for seed in (*bug.seeds, *range(SEEDS)):
            if run_rotation(seed)[0] is not None:
                return
    pytest.fail("not found")
