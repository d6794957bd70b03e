"""A Registry is lost and restored from an older backup, the old one alive: seeds, what must happen, planted bugs."""

from __future__ import annotations

from collections import Counter

import pytest

from keymesh.sim.bugs import Bug
from keymesh.sim.bugs_epochs import EPOCH_BUGS
from keymesh.sim.epochs import run_epochs

pytestmark = pytest.mark.slow

SEEDS = 16
REACHED = (
    "restored", "moved-on", "tail-kept-up", "base-restricts", "closed-unseen", "old-registry-acts", "old-halted",
    "refused-grants-of-a-tail", "refused-unproven-resume", "refused-nobody-has-the-entry",
)  # fmt: skip


def test_seeds_hold_and_reach_what_a_restore_is_about() -> None:
    seen: Counter[str] = Counter()
    for seed in range(SEEDS):
        bad, sometimes = run_epochs(seed)
        assert bad is None, (seed, bad)
        seen += sometimes
    assert [name for name in REACHED if not seen[name]] == []


def test_a_seed_is_the_same_again() -> None:
    assert run_epochs(3) == run_epochs(3)


@pytest.mark.parametrize("bug", EPOCH_BUGS, ids=lambda bug: bug.name)
def test_every_planted_bug_is_found(bug: Bug) -> None:
    with bug.planted():
        for seed in (*bug.seeds, *range(SEEDS)):
            if run_epochs(seed)[0] is not None:
                return
    pytest.fail("not found")
