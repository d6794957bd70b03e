"""What regions ask each other about objects, and what follows: where to begin, when to stop, who may hear of it."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keymesh.control.rows import PolicyRow
from keymesh.model.errors import Integrity, Refused
from keymesh.model.limits import OBJECT_COMMIT_MAX, OBJECT_HEADS_MAX, OBJECT_PAGE_MAX
from keymesh.orbital.object_sync import (
    START,
    Cursor,
    ForwardBody,
    HeadsAnswer,
    Lag,
    OfferBody,
    PageAnswer,
    changes_of,
    check_heads,
    forward_of,
    from_octets,
    is_behind,
    is_held,
    may_exchange,
    next_cursor,
    offer_of,
    read_from,
    readable,
    to_octets,
)
from keymesh.orbital.objects import SealedObject, Verdict, object_to_bytes

ONE = SealedObject("acme", "pay", "u1", "eu-1", 1, (b"name",), False, b"sealed")


@pytest.mark.parametrize(
    ("here", "there", "may"),
    [
        ("eu-1", "eu-2", True),
        ("eu-2", "eu-1", True),
        ("eu-1", "eu-1", False),
        ("eu-1", "us-1", False),
        ("us-1", "eu-1", False),
        ("us-1", "us-1", False),
    ],
)
def test_both_regions_must_be_allowed(here: str, there: str, may: bool) -> None:
    policy = PolicyRow(version=1, home="eu-1", domain="eu", regions=("eu-1", "eu-2"), admins=("a",))
    assert may_exchange(policy, here=here, there=there) is may


def test_an_answer_begins_where_the_asker_is_or_at_the_start_of_another_store() -> None:
    assert read_from(Cursor("o", 7), origin="o", head=9) == 7
    assert read_from(Cursor("o", 9), origin="o", head=9) == 9
    assert read_from(Cursor("p", 7), origin="o", head=9) == 0
    assert read_from(Cursor("o", 10), origin="o", head=9) == 0  # an older copy of the file
    assert read_from(START, origin="o", head=9) == 0


def test_a_page_leads_on_or_is_none() -> None:
    asked = Cursor("o", 7)
    assert next_cursor(asked, PageAnswer("o", 9, True, ())) == Cursor("o", 9)
    assert next_cursor(asked, PageAnswer("o", 7, False, ())) == Cursor("o", 7)
    assert next_cursor(asked, PageAnswer("p", 3, True, ())) == Cursor("p", 3)
    for bad in (
        PageAnswer("o", 7, True, ()),
        PageAnswer("", 9, False, ()),
        PageAnswer("o", -1, False, ()),
        PageAnswer("o", 9, False, (b"",) * (OBJECT_PAGE_MAX + 1)),
    ):
        with pytest.raises(Integrity):
            next_cursor(asked, bad)


def test_who_is_behind() -> None:
    assert is_behind(None, origin="o", head=1)
    assert is_behind(Cursor("p", 1), origin="o", head=1)
    assert is_behind(Cursor("o", 1), origin="o", head=2)
    assert is_behind(Cursor("o", 2), origin="o", head=1)
    assert not is_behind(Cursor("o", 1), origin="o", head=1)


def test_a_list_that_goes_nowhere_is_none() -> None:
    good = HeadsAnswer(origin="o", heads=(("acme", 3),), upto=3, more=True)
    assert check_heads(good, after=2) is good
    too_many = tuple((f"t{n}", n) for n in range(OBJECT_HEADS_MAX + 1))
    for bad in (
        HeadsAnswer(origin="", heads=(), upto=3, more=False),
        HeadsAnswer(origin="o", heads=(), upto=3, more=True),
        HeadsAnswer(origin="o", heads=too_many, upto=9_999, more=False),
    ):
        with pytest.raises(Integrity):
            check_heads(bad, after=3)


def test_objects_are_read_one_by_one_and_only_those_of_the_tenant() -> None:
    other = SealedObject("other", "pay", "u1", "eu-1", 1, (), False, b"sealed")
    raws = [b"rubbish", object_to_bytes(ONE), object_to_bytes(other), object_to_bytes(ONE)[:-1]]
    assert readable(raws, "acme") == ([ONE], 3)


def test_bodies_come_back_and_rubbish_is_refused() -> None:
    forward = forward_of("id-1", [(0, ONE)])
    assert changes_of(from_octets(to_octets(forward), ForwardBody)) == [(0, ONE)]
    assert from_octets(to_octets(offer_of([ONE])), OfferBody).objects == (object_to_bytes(ONE),)
    with pytest.raises(Refused):
        changes_of(ForwardBody("id-1", ((0, b""),) * (OBJECT_COMMIT_MAX + 1)))
    with pytest.raises(Integrity):
        changes_of(ForwardBody("id-1", ((0, b"rubbish"),)))


@given(st.one_of(st.binary(max_size=60), st.lists(st.integers() | st.binary(), max_size=5)))
def test_no_body_but_its_own_is_taken(value: object) -> None:
    try:
        raw = value if isinstance(value, bytes) else msgspec.msgpack.encode(value)
    except OverflowError:
        return
    for shape in (PageAnswer, OfferBody, ForwardBody):
        try:
            made = from_octets(raw, shape)
        except Refused:
            continue
        assert isinstance(made, shape)


def test_who_has_it_says_so() -> None:
    assert [is_held(verdict.value) for verdict in Verdict] == [True, True, True, False]
    assert not is_held("whatever")


def test_lag_is_counted_from_when_all_was_here() -> None:
    lag = Lag(began_at=100.0)
    assert lag.seconds("acme", 103.0) == 3.0  # nobody knows better
    lag.was_level(110.0)
    assert lag.seconds("acme", 111.0) == 1.0
    lag.fell_behind("acme")
    lag.was_level(120.0)
    lag.fell_behind("acme")
    assert (lag.seconds("acme", 125.0), lag.seconds("other", 125.0)) == (15.0, 5.0)
    lag.caught_up("acme")
    assert lag.seconds("acme", 125.0) == 5.0
