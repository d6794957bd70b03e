"""Planted bugs of a rotation of keys: each must be found by the checkers of ``rotation`` (see ``bugs``)."""

from __future__ import annotations

from typing import Any, Final

from keymesh.control import proofs, reduce_trust, succession, transition, view
from keymesh.control.state import LIFTS
from keymesh.registry import spaces
from keymesh.sim.bugs import Bug


def _nothing(*args: Any, **kwargs: Any) -> None:
    return None


def _yes(*args: Any, **kwargs: Any) -> bool:
    return True


def _root_alone(args: Any) -> Any:
    """Officers stay those that they were."""
    return {"root": args.root}


def _by_the_first(sets: Any, rows: Any, entry: Any, *, least: int = 0) -> Any:
    """Once in force, for ever in force."""
    return {**rows, **sets[0].rows} if sets else rows


_LIFTS: Final[Any] = LIFTS
ROTATION_BUGS: Final[tuple[Bug, ...]] = (
    Bug("old-keys-go-on-counting-at-holders", ((succession, "rows_at", _by_the_first),)),
    Bug(
        "trust-set-taken-back",
        (
            (transition, "_check_trust_set", _nothing),
            (proofs.Proofs, "newer", proofs.Proofs.of),
        ),
    ),
    Bug("rotation-before-its-commit", ((spaces, "AWAITED", _LIFTS), (view, "_check_rotations", _nothing))),
    Bug("rotation-without-the-voters", ((view, "_check_rotations", _nothing),)),
    Bug("epoch-by-officers-of-its-own", ((view, "_is_opened_by", _yes),)),
    Bug("officers-not-rotated", ((reduce_trust, "given_by", _root_alone),)),
)
