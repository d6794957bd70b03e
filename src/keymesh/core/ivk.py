"""The life of a region's internal keys (IVKs), planned from what the key store holds (DESIGN section 1).

ACTIVE wraps and unwraps; GRACE only unwraps, for 24 h after its successor was made; DEPRECATED is loaded on demand;
REVOKED is never opened.  A rotation is due after 30 days, after 2^32 wraps, or when the mesh names a later generation.
Re-sealing under the active IVK needs no L1.  Decides only; the shell makes, marks and re-seals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from keymesh.core.keystore import StoredIvk
from keymesh.model.ids import Kid
from keymesh.model.states import IvkState
from keymesh.model.time import Instant

AGE_MAX_MS: Final = 30 * 24 * 3_600_000
WRAPS_MAX: Final = 2**32
WRAPS_RESERVED: Final = 256
"""Wraps are counted in the store in blocks of this many, before they are made; the last block must fit."""
GRACE_MS: Final = 24 * 3_600_000


@dataclass(frozen=True, slots=True)
class MakeIvk:
    """Make and store the ACTIVE IVK of ``generation``."""

    generation: int


@dataclass(frozen=True, slots=True)
class MarkIvk:
    """Record ``kid`` as ``state``."""

    kid: Kid
    state: IvkState


@dataclass(frozen=True, slots=True)
class Reseal:
    """Re-seal under the active IVK what ``kid`` sealed."""

    kid: Kid


IvkAction = MakeIvk | MarkIvk | Reseal

# state -> states it may move to; a missing one is a refusal
TRANSITIONS: Final[dict[IvkState, frozenset[IvkState]]] = {
    IvkState.ACTIVE: frozenset({IvkState.GRACE, IvkState.REVOKED}),
    IvkState.GRACE: frozenset({IvkState.DEPRECATED, IvkState.REVOKED}),
    IvkState.DEPRECATED: frozenset({IvkState.REVOKED}),
    IvkState.REVOKED: frozenset(),
}


def may_wrap(ivk: StoredIvk) -> bool:
    """Only the active one, and never past its bound."""
    return ivk.state is IvkState.ACTIVE and ivk.wraps <= WRAPS_MAX - WRAPS_RESERVED


def may_unwrap(ivk: StoredIvk) -> bool:
    return ivk.state is not IvkState.REVOKED


def stays_loaded(ivk: StoredIvk) -> bool:
    """Whether it is kept in memory; a deprecated one is opened on demand and wiped after."""
    return ivk.state in (IvkState.ACTIVE, IvkState.GRACE)


def rotation_due(active: StoredIvk, now: Instant, *, wanted_generation: int = 0) -> bool:
    """By age, by use, or because the mesh names a later generation.  A clock behind its creation ages nothing."""
    worn = not may_wrap(active)
    return worn or now - active.created_at >= AGE_MAX_MS or active.generation < wanted_generation


def plan_ivk(
    ivks: Sequence[StoredIvk], now: Instant, *, sealed_by: Mapping[str, int], wanted_generation: int = 0
) -> tuple[IvkAction, ...]:
    """What to do now, in order; stopping anywhere and planning afresh converges.

    ``sealed_by``: kid -> how many stored wraps it is around.  A new IVK is made before older ones are demoted, so that
    there is never a moment without one that may wrap; of several active ones (a crash in between) the newest stays.
    Nothing is demoted further, and nothing re-sealed, before there is an active one.
    """
    ordered = sorted(ivks, key=lambda ivk: ivk.generation)
    active = [ivk for ivk in ordered if ivk.state is IvkState.ACTIVE]
    highest = ordered[-1].generation if ordered else 0
    if not active or rotation_due(active[-1], now, wanted_generation=wanted_generation):
        return (MakeIvk(max(highest + 1, wanted_generation)),)
    marks: list[IvkAction] = [MarkIvk(ivk.kid, IvkState.GRACE) for ivk in active[:-1]]
    for ivk, successor in pairwise(ordered):
        if ivk.state is IvkState.GRACE and now - successor.created_at >= GRACE_MS:
            marks.append(MarkIvk(ivk.kid, IvkState.DEPRECATED))
    old = [ivk for ivk in ordered if ivk.kid != active[-1].kid and may_unwrap(ivk)]
    return (*marks, *(Reseal(ivk.kid) for ivk in old if sealed_by.get(ivk.kid, 0) > 0))
