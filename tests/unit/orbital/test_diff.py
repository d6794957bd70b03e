"""Differences between wanted and held leaves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keymesh.control.entry import Leaf
from keymesh.model.ids import Digest
from keymesh.orbital import diff
from keymesh.orbital.diff import Gap


def leaf(seq: int, entry: str = "a", state: str = "s", epoch: int = 1) -> Leaf:
    return Leaf(epoch=epoch, seq=seq, entry_hash=Digest(entry * 64), state=Digest(state * 64))


@pytest.mark.parametrize(
    ("wanted", "held", "gap"),
    [
        (leaf(3), leaf(3), None),
        (leaf(3), leaf(2), Gap.LAG),
        (leaf(3), None, Gap.LAG),
        (leaf(3), leaf(3, state="t"), Gap.DRIFT),
        (leaf(3), leaf(3, entry="b"), Gap.FORK),
        (leaf(3), leaf(4), Gap.AHEAD),
        (leaf(1, epoch=2), leaf(9, epoch=1), Gap.LAG),
        (None, leaf(1), Gap.FOREIGN),
        (None, None, None),
    ],
)
def test_gaps(wanted: Leaf | None, held: Leaf | None, gap: Gap | None) -> None:
    assert diff.gap_of(wanted, held) is gap


def test_mesh_comes_first_because_the_others_are_checked_with_it() -> None:
    plan = diff.plan({"acme": leaf(1), "mesh": leaf(1), "beta": leaf(1)}, {})
    assert [d.namespace for d in plan] == ["mesh", "acme", "beta"]


leaves = st.dictionaries(
    st.sampled_from(["mesh", "a", "b", "c"]),
    st.builds(leaf, st.integers(1, 3), st.sampled_from("ab"), st.sampled_from("st")),
)


@given(leaves, leaves)
def test_a_plan_is_empty_exactly_where_nothing_differs(wanted: dict[str, Leaf], held: dict[str, Leaf]) -> None:
    plan = diff.plan(wanted, held)
    assert (plan == ()) is (wanted == held)
    assert plan == diff.plan(dict(reversed(wanted.items())), held)
