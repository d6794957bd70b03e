"""Planted bugs of the restore: each must be found by the checkers of ``epochs`` (see ``bugs``)."""

from __future__ import annotations

from typing import Any, Final

from keymesh.control import view, voter, voter_epoch
from keymesh.control.voter_state import EpochReply
from keymesh.core import tails
from keymesh.registry import restore
from keymesh.sim.bugs import Bug

_order = view._order
_refusal_of = voter.refusal_of
_standby_refusal = voter.standby_refusal


def _say_and_promise_nothing(state: Any, now: Any, event: Any) -> Any:
    """The voter's word is a mere read: it goes on countersigning after it."""
    refused = voter_epoch.refusal_of(state, event, now)
    if refused is not None:
        return None, [EpochReply(event.token, None, refused)]
    return None, [EpochReply(event.token, voter_epoch.word(state, event.offer))]


def _drop_the_tail(state: Any, now: Any, held: Any, taken: Any, out: Any) -> Any:
    return tails.NOTHING


def _by_seq_alone(held: Any, state: Any, *, force: bool) -> Any:
    """A superseded Registry's entry is newer where its seq is higher."""
    found = _order(held, state, force=force)
    stale = isinstance(found, view.Stale) and held.head.hash != state.head.hash
    return None if stale and state.head.entry.seq > held.head.entry.seq else found


def _sign_in_any_epoch(state: Any, asked: Any) -> Any:
    reason = _refusal_of(state, asked)
    return None if reason == "old-epoch" else reason


def _grant_in_any_epoch(state: Any, sender: Any, asked: Any, now: Any) -> Any:
    reason = _standby_refusal(state, sender, asked, now)
    return None if reason == "other-epoch" else reason


def _answer_any_poll(state: Any, poll: Any) -> bool:
    return state.seat is not None and state.seat.seated and poll.set_id == state.seat.set_id


def _nothing(*args: Any, **kwargs: Any) -> None:
    return None


EPOCH_BUGS: Final[tuple[Bug, ...]] = (
    Bug("base-of-one-voter", ((restore, "check_majority", _nothing),)),
    Bug("base-of-earlier-reads", ((voter_epoch, "offered", _say_and_promise_nothing),)),
    Bug("tail-dropped-by-its-holder", ((tails, "leave", _drop_the_tail),)),
    Bug("old-registry-applied-as-newer", ((view, "_order", _by_seq_alone),)),
    Bug("voter-signs-in-the-old-epoch", ((voter, "refusal_of", _sign_in_any_epoch),)),
    Bug("voter-grants-in-the-old-epoch", ((voter, "standby_refusal", _grant_in_any_epoch),)),
    Bug("voter-answers-the-old-registry", ((voter, "answers_poll", _answer_any_poll),)),
    Bug("unseen-restriction-forgotten", ((restore, "_close_unseen", _nothing),)),
)
