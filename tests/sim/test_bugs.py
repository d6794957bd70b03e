"""Every planted bug is found within 200 seeds: the checkers bite."""

from __future__ import annotations

import os

import pytest

from keymesh.sim.bugs import BUGS, Bug
from keymesh.sim.run import first_failure

SEEDS = 200
SOAK = os.environ.get("KEYMESH_SOAK") == "1"


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS, ids=lambda b: b.name)
def test_a_planted_bug_is_found(bug: Bug) -> None:
    """An ordinary run looks first where it was last found; a soak gets no hint."""
    seeds = range(SEEDS) if SOAK else [*bug.seeds, *range(SEEDS)]
    found = first_failure(seeds, bug.planted())
    assert found is not None, f"{bug.name} was not found"
    assert found.invariant != "raised", found.line


def test_there_are_enough_bugs_and_their_names_are_unique() -> None:
    assert len(BUGS) >= 25
    assert len({b.name for b in BUGS}) == len(BUGS)


def test_a_bug_is_gone_when_its_context_closes() -> None:
    for bug in BUGS:
        holder, name, _ = bug.patches[0]
        whole = holder[name] if isinstance(holder, dict) else getattr(holder, name)
        with bug.planted():
            assert (holder[name] if isinstance(holder, dict) else getattr(holder, name)) is not whole
        assert (holder[name] if isinstance(holder, dict) else getattr(holder, name)) is whole
