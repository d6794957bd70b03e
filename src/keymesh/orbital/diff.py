"""Differences between what a node should hold and what its manifest says: lag, drift, fork (DESIGN section 4).

Pure: equal inputs give equal plans.  What is done about a difference is the Registry's to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from keymesh.control.entry import Leaf
from keymesh.model.ids import Namespace
from keymesh.model.states import Lane


class Gap(Enum):
    LAG = "lag"  # lower seq, or nothing at all
    DRIFT = "drift"  # same entry, other content
    FORK = "fork"  # same (epoch, seq), other entry
    AHEAD = "ahead"  # newer than desired: it got what is not offered yet
    FOREIGN = "foreign"  # held, though this region may not hold it


@dataclass(frozen=True, slots=True)
class Difference:
    namespace: Namespace
    gap: Gap
    wanted: Leaf | None
    held: Leaf | None


def gap_of(wanted: Leaf | None, held: Leaf | None) -> Gap | None:
    """How ``held`` falls short of ``wanted``; None where it does not."""
    if wanted is None:
        return None if held is None else Gap.FOREIGN
    if held is None or held.order < wanted.order:
        return Gap.LAG
    if held.order > wanted.order:
        return Gap.AHEAD
    if held.entry_hash != wanted.entry_hash:
        return Gap.FORK
    return None if held.state == wanted.state else Gap.DRIFT


def plan(desired: Mapping[str, Leaf], actual: Mapping[str, Leaf]) -> tuple[Difference, ...]:
    """Every difference, by namespace; ``mesh`` first, because the others are checked with it."""
    out = []
    for name in sorted(desired.keys() | actual.keys(), key=lambda n: (n != "mesh", n)):
        wanted, held = desired.get(name), actual.get(name)
        gap = gap_of(wanted, held)
        if gap is not None:
            out.append(Difference(Namespace(name), gap, wanted, held))
    return tuple(out)


def force_sync_lane(*, restricts: bool) -> Lane:
    """Drift is put right in Lane 0 where the wanted state restricts anything: the node may lack exactly that."""
    return Lane.RESTRICTION if restricts else Lane.ONBOARDING
