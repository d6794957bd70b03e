"""A voter and the end of its set: when it seals, and what it says when it has (DESIGN section 2, "Voters").

What it says is read in the very step in which the seal is durable: until then it may have countersigned more, from then
on it acts under no set up to that one.  So once a majority has sealed a set, no majority of it commits or grants again,
and what was committed under it is in the union of their words.  A seal is for good: whether the new set comes to be in
force or not.
"""

from __future__ import annotations

from typing import Any

from keymesh.control import trust
from keymesh.control.kinds import CHANGE_VOTERS
from keymesh.control.messages import Sealed, SetOffer, SetSealed
from keymesh.control.voter_epoch import has_word
from keymesh.control.voter_state import EpochReply, Seal, SetOffered, VoterState, stored_heads
from keymesh.model.time import Instant


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


def word(state: VoterState, offer: SetOffer) -> Sealed:
    """What this voter has stored, under its node's key."""
    said = SetSealed(
        mesh=offer.mesh,
        set_id=offer.set_id - 1,
        command_id=offer.command_id,
        voter=state.config.region,
        node=state.config.node,
        heads=tuple(sorted(stored_heads(state), key=lambda head: head.blind)),
    )
    return state.config.suite.seal(said)


def offered(state: VoterState, now: Instant, event: SetOffered) -> tuple[Seal | None, list[Any]]:
    """A seal to record, or what to do instead: refuse, or say again what is stored."""
    refused = refusal_of(state, event, now)
    if refused is not None:
        return None, [EpochReply(event.token, None, refused)]
    seal = Seal(set_id=event.offer.set_id - 1)
    if state.seal is not None and state.seal.set_id >= seal.set_id:
        return None, [EpochReply(event.token, word(state, event.offer))]
    state.sealing = seal.set_id
    return seal, []


def stored(state: VoterState, event: SetOffered, seal: Seal) -> list[Any]:
    """The seal is durable."""
    state.seal = seal
    return [EpochReply(event.token, word(state, event.offer))]


def not_stored(state: VoterState, waits: Any) -> list[Any]:
    """The disk refused: nothing is sealed, nor anything else that waited for it."""
    if not isinstance(waits, tuple) or not isinstance(waits[0], SetOffered):
        return []
    state.sealing = 0
    return [EpochReply(waits[0].token, None, "storage")]
