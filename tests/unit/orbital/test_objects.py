"""Sealed objects: whose version counts, who may change what, and their one form in bytes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keymesh.control.rows import PolicyRow
from keymesh.model.errors import Integrity, Refused
from keymesh.model.limits import OBJECT_COMMIT_MAX, OBJECT_NAMES_MAX, OBJECT_SEALED_MAX_BYTES
from keymesh.orbital.objects import (
    Conflict,
    SealedObject,
    Verdict,
    at_home,
    check_change,
    check_changes,
    judge,
    object_from_bytes,
    object_to_bytes,
    plan_writer,
    writer,
)

ONE = SealedObject("acme", "pay", "u1", "eu-1", 1, (b"name",), False, b"sealed")
LARGEST = replace(ONE, names=(), sealed=bytes(OBJECT_SEALED_MAX_BYTES))
POLICY = PolicyRow(version=1, home="eu-1", domain="eu", regions=("eu-1", "eu-2"), admins=("a",))

labels = st.from_regex(r"\A[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?\Z").filter(lambda text: text != "mesh")
objects = st.builds(
    SealedObject,
    namespace=labels,
    service=labels,
    uid=st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._:-]{0,20}\Z"),
    home=labels,
    version=st.integers(1, 2**53),
    names=st.lists(st.binary(min_size=1, max_size=64), max_size=4, unique=True).map(tuple),
    gone=st.booleans(),
    sealed=st.binary(min_size=1, max_size=300),
)
versions = st.builds(
    lambda version, gone, sealed: replace(ONE, version=version, gone=gone, sealed=sealed),
    st.integers(1, 4),
    st.booleans(),
    st.sampled_from([b"a", b"b"]),
)


@pytest.mark.parametrize(
    ("held", "offered", "verdict"),
    [
        (None, ONE, Verdict.STORE),
        (ONE, ONE, Verdict.SAME),
        (ONE, replace(ONE, version=2), Verdict.STORE),
        (ONE, replace(ONE, version=7, gone=True), Verdict.STORE),
        (replace(ONE, version=3), replace(ONE, version=2), Verdict.STALE),
        (replace(ONE, version=3), replace(ONE, version=2, gone=True), Verdict.STALE),
        (ONE, replace(ONE, sealed=b"other"), Verdict.FORK),
        (ONE, replace(ONE, names=()), Verdict.FORK),
        (ONE, replace(ONE, gone=True), Verdict.FORK),
        (ONE, replace(ONE, home="eu-2"), Verdict.FORK),
        (replace(ONE, gone=True), replace(ONE, version=2), Verdict.FORK),
        (replace(ONE, gone=True), replace(ONE, version=2, gone=True), Verdict.STORE),
    ],
)
def test_what_a_holder_makes_of_an_offer(held: SealedObject | None, offered: SealedObject, verdict: Verdict) -> None:
    assert judge(held, offered) is verdict


def test_two_objects_are_never_judged_as_one() -> None:
    for other in (replace(ONE, uid="u2"), replace(ONE, service="mail"), replace(ONE, namespace="other")):
        with pytest.raises(ValueError, match="two objects"):
            judge(ONE, other)


@given(st.lists(versions, max_size=12))
def test_whatever_comes_a_holder_never_goes_back_and_nothing_destroyed_returns(offers: list[SealedObject]) -> None:
    held: SealedObject | None = None
    for offered in offers:
        before = held
        if judge(held, offered) is Verdict.STORE:
            held = offered
        assert held is not None
        if before is not None:
            assert held.version >= before.version
            assert held.gone or not before.gone
        assert judge(held, held) is Verdict.SAME


@given(st.lists(st.integers(1, 5), min_size=1), st.randoms(use_true_random=False))
def test_with_one_writer_any_order_and_repetition_ends_in_the_newest(numbers: list[int], chance: object) -> None:
    """One history, delivered any number of times in any order."""
    history = [replace(ONE, version=n, sealed=bytes([n]), gone=n == 5) for n in range(1, max(numbers) + 1)]
    held: SealedObject | None = None
    for n in [*numbers, *reversed(numbers)]:
        verdict = judge(held, history[n - 1])
        assert verdict is not Verdict.FORK
        held = history[n - 1] if verdict is Verdict.STORE else held
    assert held == history[max(numbers) - 1]


def test_the_writer_is_the_home_while_it_is_allowed_and_then_the_tenants() -> None:
    assert writer(replace(ONE, home="eu-2"), POLICY) == "eu-2"
    assert writer(replace(ONE, home="us-1"), POLICY) == "eu-1"


def test_new_objects_are_made_here_and_changes_go_whole_to_their_one_writer() -> None:
    far, lost = replace(ONE, uid="far", home="eu-2"), replace(ONE, uid="lost", home="us-1")
    held = {one.uid: one for one in (ONE, far, lost)}
    new = (0, replace(ONE, uid="new"))
    assert plan_writer([new], held, POLICY, here="eu-2") == "eu-2"
    assert plan_writer([new, (1, replace(far, version=2))], held, POLICY, here="eu-1") == "eu-2"
    assert plan_writer([(1, replace(lost, version=2)), (1, replace(ONE, version=2))], held, POLICY, here="x") == "eu-1"
    with pytest.raises(Refused) as refused:
        plan_writer([(1, replace(far, version=2)), (1, replace(ONE, version=2))], held, POLICY, here="eu-1")
    assert refused.value.code == "several-writers"
    with pytest.raises(Conflict):
        plan_writer([(1, replace(ONE, uid="absent", version=2))], held, POLICY, here="eu-1")
    assert [one.home for _, one in at_home([new, (1, far)], "eu-1")] == ["eu-1", "eu-1"]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ([], "changes"),
        ([(0, replace(ONE, uid=f"u{n}", names=())) for n in range(OBJECT_COMMIT_MAX + 1)], "changes"),
        (
            [(0, replace(ONE, uid=f"u{n}", names=(), sealed=bytes(OBJECT_SEALED_MAX_BYTES))) for n in range(4)],
            "changes",
        ),
        ([(0, replace(ONE, service="mail"))], "changes"),
        ([(0, replace(ONE, namespace="other"))], "changes"),
        ([(1, ONE)], "version"),
        ([(0, replace(ONE, version=2))], "version"),
        ([(0, ONE), (0, replace(ONE, names=()))], "changes"),
        ([(0, ONE), (0, replace(ONE, uid="u2"))], "names"),
        ([(0, replace(ONE, sealed=b""))], "sealed"),
        ([(0, replace(ONE, sealed=bytes(OBJECT_SEALED_MAX_BYTES + 1)))], "sealed"),
        ([(0, replace(ONE, names=(b"",)))], "names"),
        ([(0, replace(ONE, names=(b"a", b"a")))], "names"),
        ([(0, replace(ONE, names=tuple(bytes([n]) for n in range(OBJECT_NAMES_MAX + 1))))], "names"),
        ([(0, replace(ONE, uid="../u"))], "uid"),
    ],
)
def test_what_is_no_commit_is_refused_by_its_field(changes: list[tuple[int, SealedObject]], field: str) -> None:
    with pytest.raises(Refused) as refused:
        check_changes("acme", "pay", changes)
    assert refused.value.field == field


def test_names_of_the_destroyed_are_free_within_a_commit_too() -> None:
    check_changes("acme", "pay", [(1, replace(ONE, version=2, gone=True)), (0, replace(ONE, uid="u2"))])


def test_a_change_meets_the_version_that_it_expects_and_raises_nobody_from_the_dead() -> None:
    check_change(None, 0, ONE)
    check_change(ONE, 1, replace(ONE, version=2))
    for held, expected in ((None, 1), (ONE, 0), (ONE, 2)):
        with pytest.raises(Conflict):
            check_change(held, expected, ONE)
    with pytest.raises(Refused) as refused:
        check_change(replace(ONE, gone=True), 1, replace(ONE, version=2))
    assert refused.value.code == "gone"


# --- bytes -----------------------------------------------------------------------------------------------------------


def test_the_form_to_the_byte() -> None:
    raw = object_to_bytes(replace(ONE, gone=True))
    assert raw == (
        b"keymesh/object/1\x00\x00\x00\x04acme\x00\x00\x00\x03pay\x00\x00\x00\x02u1\x00\x00\x00\x04eu-1"
        b"\x00\x00\x00\x00\x00\x00\x00\x01\x01\x00\x00\x00\x01\x00\x00\x00\x04name\x00\x00\x00\x06sealed"
    )


@given(objects)
def test_every_object_comes_back(one: SealedObject) -> None:
    assert object_from_bytes(object_to_bytes(one)) == one


@given(objects, st.data())
def test_a_cut_or_longer_form_is_no_object(one: SealedObject, data: st.DataObject) -> None:
    raw = object_to_bytes(one)
    with pytest.raises(Integrity):
        object_from_bytes(raw[: data.draw(st.integers(0, len(raw) - 1))])
    with pytest.raises(Integrity):
        object_from_bytes(raw + b"\0")


@given(st.binary(max_size=400).map(lambda tail: b"keymesh/object/1" + tail))
def test_hostile_bytes_are_an_integrity_error_or_the_one_form(raw: bytes) -> None:
    try:
        one = object_from_bytes(raw)
    except Integrity:
        return
    assert object_to_bytes(one) == raw


def test_sealed_bytes_are_not_shown() -> None:
    assert "sealed" not in repr(ONE)
