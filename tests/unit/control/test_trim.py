"""The log is trimmed only to what a verified backup, every promotable replica and a majority of voters hold."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keymesh.control.trim import Holdings, check_trim, trim_bound
from keymesh.model.errors import Refused

V3 = frozenset({"a", "b", "c"})
ALL = Holdings(backup=90, replicas={"r1": 80, "r2": 85}, voter_sets=(V3,), voters={"a": 70, "b": 75, "c": 1})
indexes = st.none() | st.integers(-1, 9)
holdings = st.builds(
    Holdings,
    backup=indexes,
    replicas=st.dictionaries(st.sampled_from("rst"), indexes),
    voter_sets=st.lists(st.frozensets(st.sampled_from("abcdefg"), max_size=7), max_size=2).map(tuple),
    voters=st.dictionaries(st.sampled_from("abcdefgh"), indexes),
)


@pytest.mark.parametrize(
    ("held", "bound"),
    [
        (ALL, 70),
        (replace(ALL, backup=60), 60),
        (replace(ALL, backup=None), 0),
        (replace(ALL, replicas={}), 70),
        (replace(ALL, replicas={"r1": 80, "r2": 5}), 5),
        (replace(ALL, replicas={"r1": 80, "r2": None}), 0),
        (replace(ALL, voters={"a": 70, "b": 75, "c": 99}), 75),
        (replace(ALL, voters={"a": 70, "x": 75, "y": 99}), 0),
        (replace(ALL, voters={"a": 70, "b": None, "c": None}), 0),
        (replace(ALL, voter_sets=(V3, frozenset({"a", "b", "d"}))), 70),
        (replace(ALL, voter_sets=(V3, frozenset({"d", "e", "f"}))), 0),
        (replace(ALL, voter_sets=(frozenset({"b"}),)), 75),
        (replace(ALL, voter_sets=(frozenset({"a", "c"}),)), 1),
        (replace(ALL, voter_sets=(frozenset(),)), 0),
        (replace(ALL, voter_sets=()), 0),
    ],
)
def test_the_bound(held: Holdings, bound: int) -> None:
    assert trim_bound(held) == bound
    if bound:
        check_trim(bound, held)
    with pytest.raises(Refused) as caught:
        check_trim(bound + 1, held)
    assert caught.value.field == "until_index"


def test_nothing_is_no_place() -> None:
    for index in (0, -1):
        with pytest.raises(Refused):
            check_trim(index, ALL)


@given(held=holdings)
def test_what_may_go_is_held_by_all_of_them(held: Holdings) -> None:
    bound = trim_bound(held)
    assert bound >= 0
    if bound:
        assert held.backup is not None and held.backup >= bound
        assert all(index is not None and index >= bound for index in held.replicas.values())
        for voters in held.voter_sets:
            have = [v for v in voters if (held.voters.get(v) or 0) >= bound]
            assert 2 * len(have) > len(voters)


@given(held=holdings, gone=st.sampled_from("abcdefgrst"))
def test_doubt_never_lets_more_go(held: Holdings, gone: str) -> None:
    doubted = replace(
        held,
        replicas={**held.replicas, gone: None},
        voters={name: index for name, index in held.voters.items() if name != gone},
    )
    assert trim_bound(doubted) <= trim_bound(held)
    assert trim_bound(replace(held, backup=None)) == 0
