"""Planted bugs of a change of voters: each must be found by the checkers of ``voters`` (see ``bugs``)."""

from __future__ import annotations

from typing import Any, Final

from keymesh.control import voter, voter_seal
from keymesh.control.voter_state import EpochReply, VoterState
from keymesh.registry import spaces, voter_change
from keymesh.sim.bugs import Bug
from keymesh.sim.voters import VotersRun


def _say_and_seal_nothing(state: Any, now: Any, event: Any) -> Any:
    """The voter's word is a mere read: it goes on under the old set."""
    refused = voter_seal.refusal_of(state, event, now)
    if refused is not None:
        return None, [EpochReply(event.token, None, refused)]
    return None, [EpochReply(event.token, voter_seal.word(state, event.offer))]


def _any_memory(old: Any, new: Any) -> bool:
    """Who has had a seat needs no union."""
    return bool(new.seated and (old is None or not old.seated))


def _yes(*args: Any, **kwargs: Any) -> bool:
    return True


def _nothing(*args: Any, **kwargs: Any) -> None:
    return None


_NEVER: Final[Any] = property(lambda state: 0)
VOTER_BUGS: Final[tuple[Bug, ...]] = (
    Bug("change-without-sealing", ((voter_seal, "offered", _say_and_seal_nothing),)),
    Bug("seal-recorded-and-ignored", ((VoterState, "sealed", _NEVER),)),
    Bug(
        "change-by-the-new-majority-only",
        ((voter_change, "is_enough", _yes), (VotersRun, "needed", lambda run: 1)),
    ),
    Bug("seat-without-the-union", ((voter, "needs_memory", _any_memory),)),
    Bug("voices-of-two-sets-added-up", ((spaces, "_forget_voices", _nothing),), seeds=(17,)),
)
