"""IVK life cycle: the tables written out again, the bounds, and a plan that converges from anywhere."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keymesh.core import ivk
from keymesh.core.ivk import WRAPS_RESERVED, MakeIvk, MarkIvk, Reseal, plan_ivk
from keymesh.core.keystore import StoredIvk
from keymesh.model.ids import Kid
from keymesh.model.states import IvkState
from keymesh.model.time import Instant

NOW = Instant(10**12)
DAY = 24 * 3_600_000
A, G, D, R = IvkState.ACTIVE, IvkState.GRACE, IvkState.DEPRECATED, IvkState.REVOKED


def stored(generation: int, state: IvkState = A, *, age_ms: int = 0, wraps: int = 0) -> StoredIvk:
    return StoredIvk(
        generation=generation,
        kid=Kid(f"{generation:032x}"),
        state=state,
        created_at=Instant(NOW - age_ms),
        wraps=wraps,
        blob=b"",
    )


@pytest.mark.parametrize(
    ("state", "wraps", "unwraps", "loaded", "next_states"),
    [
        (A, True, True, True, {G, R}),
        (G, False, True, True, {D, R}),
        (D, False, True, False, {R}),
        (R, False, False, False, set()),
    ],
)
def test_states(state: IvkState, wraps: bool, unwraps: bool, loaded: bool, next_states: set[IvkState]) -> None:
    one = stored(1, state)
    assert (ivk.may_wrap(one), ivk.may_unwrap(one), ivk.stays_loaded(one)) == (wraps, unwraps, loaded)
    assert ivk.TRANSITIONS[state] == next_states


def test_the_first_one() -> None:
    assert plan_ivk([], NOW, sealed_by={}) == (MakeIvk(1),)
    assert plan_ivk([], NOW, sealed_by={}, wanted_generation=4) == (MakeIvk(4),)


@pytest.mark.parametrize(
    ("age_ms", "wraps", "wanted", "due"),
    [
        (0, 0, 0, False),
        (30 * DAY - 1, 0, 0, False),
        (30 * DAY, 0, 0, True),
        (0, 2**32 - WRAPS_RESERVED, 0, False),
        (0, 2**32 - WRAPS_RESERVED + 1, 0, True),
        (0, 2**32, 0, True),
        (0, 0, 1, False),
        (0, 0, 2, True),
        (-DAY, 0, 0, False),
    ],
)
def test_when_a_rotation_is_due(age_ms: int, wraps: int, wanted: int, due: bool) -> None:
    one = stored(1, age_ms=age_ms, wraps=wraps)
    assert plan_ivk([one], NOW, sealed_by={}, wanted_generation=wanted) == ((MakeIvk(2),) if due else ())


def test_past_its_bound_it_wraps_no_more() -> None:
    """Wraps are counted in blocks before they are made: the last block must fit."""
    assert ivk.may_wrap(stored(1, wraps=2**32 - WRAPS_RESERVED))
    assert not ivk.may_wrap(stored(1, wraps=2**32 - WRAPS_RESERVED + 1))


def test_of_two_active_the_newest_stays() -> None:
    assert plan_ivk([stored(2), stored(1)], NOW, sealed_by={}) == (MarkIvk(stored(1).kid, G),)


def test_grace_is_24_h_from_the_successor() -> None:
    old = stored(1, G, age_ms=20 * DAY)
    assert plan_ivk([old, stored(2, age_ms=DAY - 1)], NOW, sealed_by={}) == ()
    assert plan_ivk([old, stored(2, age_ms=DAY)], NOW, sealed_by={}) == (MarkIvk(old.kid, D),)


def test_what_older_ones_sealed_is_resealed_but_never_from_a_revoked_one() -> None:
    held = [stored(1, R), stored(2, D), stored(3, G), stored(4)]
    sealed_by: dict[str, int] = {one.kid: 1 for one in held}
    assert plan_ivk(held, NOW, sealed_by=sealed_by) == (Reseal(held[1].kid), Reseal(held[2].kid))


def test_a_revoked_active_one_is_replaced_by_a_higher_generation() -> None:
    assert plan_ivk([stored(3, R)], NOW, sealed_by={}) == (MakeIvk(4),)


@given(
    states=st.lists(st.sampled_from(list(IvkState)), max_size=5),
    ages=st.lists(st.integers(0, 40 * DAY), min_size=5, max_size=5),
    sealed=st.lists(st.integers(0, 2), min_size=5, max_size=5),
    wanted=st.integers(0, 7),
    stops=st.lists(st.integers(0, 3), max_size=8),
)
def test_stop_anywhere_plan_afresh_converge(
    states: list[IvkState], ages: list[int], sealed: list[int], wanted: int, stops: list[int]
) -> None:
    held = {n + 1: stored(n + 1, state, age_ms=ages[n]) for n, state in enumerate(states)}
    by: dict[str, int] = {held[n + 1].kid: sealed[n] for n in range(len(states))}
    for stop in [*stops, *[99] * 5]:
        for action in plan_ivk(list(held.values()), NOW, sealed_by=by, wanted_generation=wanted)[:stop]:
            match action:
                case MakeIvk(generation):
                    assert generation not in held
                    held[generation] = stored(generation)
                case MarkIvk(kid, state):
                    generation = int(kid, 16)
                    assert state in ivk.TRANSITIONS[held[generation].state]
                    held[generation] = replace(held[generation], state=state)
                case Reseal(kid):
                    assert ivk.may_unwrap(held[int(kid, 16)])
                    by[kid] = 0
    assert plan_ivk(list(held.values()), NOW, sealed_by=by, wanted_generation=wanted) == ()
    assert sum(ivk.may_wrap(one) for one in held.values()) == 1
    assert max(held.values(), key=lambda one: one.generation).generation >= wanted
