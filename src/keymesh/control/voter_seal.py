"""A voter and the end of its set: when it seals, and what it says when it has (DESIGN section 2, "Voters").

What it says is read in the very step in which the seal is durable: until then it may have countersigned more, from then
on it acts under no set up to that one.  So once a majority has sealed a set, no majority of it commits or grants again,
and what was committed under it is in the union of their words.  A seal is for good: whether the new set comes to be in
force or not.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from keymesh.control import trust
from keymesh.control.kinds import CHANGE_VOTERS
from keymesh.control.messages import Sealed, SetOffer, SetSealed, StoredHead
from keymesh.control.signing import fits
from keymesh.control.voter_epoch import has_word, said
from keymesh.control.voter_state import (
    TOO_MANY_HEADS,
    EpochReply,
    Seal,
    SetOffered,
    VoterState,
    by_blind,
    heads_to_be,
    stored_heads,
)
from keymesh.model.limits import HTTP_BODY_MAX_BYTES
from keymesh.model.time import Instant

WORDS_MAX_BYTES: Final = HTTP_BODY_MAX_BYTES - 128 * 1024  # of one request, beside the command and its signatures


def args_of(offer: SetOffer) -> dict[str, Any]:
    """Of the command that the officers signed."""
    return {"set_id": offer.set_id, "regions": list(offer.regions), "replaces": list(offer.replaces)}


def is_signed(offer: SetOffer, officers: trust.Quorum | None, state: VoterState, now: Instant | None) -> bool:
    """Whether a threshold of the officers gave their word for exactly this, and it has not expired."""
    return has_word(state, now, officers, offer, CHANGE_VOTERS, args_of(offer))


def refusal_of(state: VoterState, event: SetOffered, now: Instant) -> str | None:
    """Why the set is not sealed here; None where it is, or was."""
    offer, seat = event.offer, state.seat
    if offer.mesh != state.config.mesh:
        return "foreign-mesh"
    if seat is None or not seat.seated:
        return "no-memory" if state.recalling is not None else "not-a-voter"
    if not is_signed(offer, event.officers, state, now):
        return "not-signed"
    return None if offer.set_id == seat.set_id + 1 else "other-set"


def word_of(state: VoterState, offer: SetOffer, heads: Iterable[StoredHead]) -> SetSealed:
    return SetSealed(
        mesh=offer.mesh,
        set_id=offer.set_id - 1,
        command_id=offer.command_id,
        voter=state.config.region,
        node=state.config.node,
        heads=by_blind(heads),
    )


def word(state: VoterState, offer: SetOffer) -> Sealed:
    """What this voter has stored, under its node's key."""
    return state.config.suite.seal(word_of(state, offer, stored_heads(state)))


def offered(state: VoterState, now: Instant, event: SetOffered) -> tuple[Seal | None, list[Any]]:
    """A seal to record, or what to do instead: refuse, or say again what is stored."""
    refused = refusal_of(state, event, now)
    if refused is None and not _can_be_told(state, event.offer):
        refused = TOO_MANY_HEADS
    if refused is not None:
        return None, [EpochReply(event.token, None, refused)]
    seal = Seal(set_id=event.offer.set_id - 1)
    if state.seal is not None and state.seal.set_id >= seal.set_id:
        return None, [said(state, event.token, word_of(state, event.offer, stored_heads(state)))]
    return seal, []


def _can_be_told(state: VoterState, offer: SetOffer) -> bool:
    """A seal is for good, so nothing is sealed that the Registry could not be told: the words of every seat that is
    replaced come to it in one request."""
    told = word_of(state, offer, heads_to_be(state))
    return fits(told) and fits(told, sealed_max_bytes=WORDS_MAX_BYTES // max(1, len(offer.replaces)))


def stored(state: VoterState, event: SetOffered, seal: Seal) -> list[Any]:
    """The seal is durable."""
    state.seal = seal
    return [said(state, event.token, word_of(state, event.offer, stored_heads(state)))]
