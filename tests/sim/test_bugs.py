"""Every planted bug is found within 200 seeds: the checkers bite."""

from __future__ import annotations

import os

import pytest

from keymesh.sim.bugs import BUGS, Bug
from keymesh.sim.run import first_failure

SEEDS = 200
SOAK = os.environ.get("KEYMESH_SOAK") == "1"


# Where the ordinary run looks; it plants only these.  A soak plants every bug and gets no hint.
KNOWN = {
    "lease-from-receipt": 0,
    "poll-age-ignored": 0,
    "tenant-ttl-ignored": 0,
    "renewed-without-apply": 2,
    "replayed-answer": 0,
    "clock-back-ignored": 1,
    "l1-denied-ignored": 2,
    "l1-lease-too-long": 0,
    "edge-lease-uncapped": 0,
    "edge-keeps-revoked-lease": 0,
    "edge-leases-forgotten": 11,
    "lower-lane-first": 3,
}
PLANTED = [bug for bug in BUGS if SOAK or bug.name in KNOWN]


@pytest.mark.slow
@pytest.mark.parametrize("bug", PLANTED, ids=lambda b: b.name)
def test_a_planted_bug_is_found(bug: Bug) -> None:
    """In a soak without the hint where to look, and all of them."""
    seeds = range(SEEDS) if SOAK else [KNOWN[bug.name], *range(20)]
    found = first_failure(seeds, bug.planted())
    assert found is not None, f"{bug.name} was not found"
    assert found.invariant != "raised", found.line


def test_there_are_enough_bugs_and_their_names_are_unique() -> None:
    assert len(BUGS) >= 15
    assert len({b.name for b in BUGS}) == len(BUGS)


def test_a_bug_is_gone_when_its_context_closes() -> None:
    for bug in BUGS:
        holder, name, _ = bug.patches[0]
        whole = holder[name] if isinstance(holder, dict) else getattr(holder, name)
        with bug.planted():
            assert (holder[name] if isinstance(holder, dict) else getattr(holder, name)) is not whole
        assert (holder[name] if isinstance(holder, dict) else getattr(holder, name)) is whole
