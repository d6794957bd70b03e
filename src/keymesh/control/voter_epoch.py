"""A voter and a new epoch: which it stores, and what it says when it has (DESIGN section 3, "Epochs and restore").

What it says is read in the very step in which the record is durable: until then it may have countersigned more, from
then on it countersigns nothing older.  So the union over a majority of such words misses nothing that was committed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from keymesh.control import trust
from keymesh.control.kinds import OPEN_EPOCH
from keymesh.control.messages import EpochOffer, EpochStored, Sealed, SetOffer, SetSealed, StoredHead
from keymesh.control.signing import fits
from keymesh.control.voter_state import (
    TOO_MANY_HEADS,
    EpochOffered,
    EpochReply,
    Promise,
    VoterState,
    by_blind,
    heads_to_be,
    stored_heads,
)
from keymesh.model.errors import KeymeshError
from keymesh.model.ids import MESH_NAMESPACE
from keymesh.model.time import Instant


def promise_of(offer: EpochOffer) -> Promise:
    return Promise(epoch=offer.epoch, command_id=offer.command_id)


def is_signed(offer: EpochOffer, officers: trust.Quorum | None, state: VoterState, now: Instant | None) -> bool:
    """Whether a threshold of the recovery officers gave their word for exactly this, and it has not expired."""
    return has_word(state, now, officers, offer, OPEN_EPOCH, {"epoch": offer.epoch})


def has_word(
    state: VoterState,
    now: Instant | None,
    officers: trust.Quorum | None,
    offer: EpochOffer | SetOffer,
    kind: str,
    args: dict[str, Any],
) -> bool:
    """Whether ``officers`` signed the command of ``kind`` and ``args`` that ``offer`` brings."""
    if officers is None:
        return False
    try:
        trust.verify_authority(
            mesh=state.config.mesh,
            namespace=MESH_NAMESPACE,
            command_id=offer.command_id,
            kind=kind,
            args=args,
            authority=offer.authority,
            quorum=officers,
            suite=state.config.suite,
            now=now,
        )
    except KeymeshError:
        return False
    return True


def refusal_of(state: VoterState, event: EpochOffered, now: Instant) -> str | None:
    """Why the epoch is not stored here; None where it is, or has been under this very word."""
    offer = event.offer
    if offer.mesh != state.config.mesh:
        return "foreign-mesh"
    if state.seat is None or not state.seat.seated:
        return "no-memory" if state.recalling is not None else "not-a-voter"
    if not is_signed(offer, event.officers, state, now):
        return "not-signed"
    if is_sealed(state):
        return "sealed"
    if state.promise == promise_of(offer) and state.seat.epoch < offer.epoch:
        return None
    return "old-epoch" if offer.epoch <= max(state.epoch, state.promising) else None


def is_sealed(state: VoterState) -> bool:
    """Whether its seat is of a set that it sealed: it can't tell what the next one has committed since."""
    return state.seat is not None and state.seat.set_id <= state.sealed


def word_of(state: VoterState, offer: EpochOffer, heads: Iterable[StoredHead]) -> EpochStored:
    return EpochStored(
        mesh=offer.mesh,
        epoch=offer.epoch,
        command_id=offer.command_id,
        voter=state.config.region,
        node=state.config.node,
        heads=by_blind(heads),
    )


def word(state: VoterState, offer: EpochOffer) -> Sealed:
    """What this voter has stored, under its node's key."""
    return state.config.suite.seal(word_of(state, offer, stored_heads(state)))


def offered(state: VoterState, now: Instant, event: EpochOffered) -> tuple[Promise | None, list[Any]]:
    """A promise to record, or what to do instead: refuse, or say again what is stored."""
    promise = promise_of(event.offer)
    refused = refusal_of(state, event, now)
    if refused is None and not fits(word_of(state, event.offer, heads_to_be(state))):
        refused = TOO_MANY_HEADS  # what can't be told is not promised
    if refused is not None:
        return None, [EpochReply(event.token, None, refused)]
    if state.promise == promise:
        return None, [said(state, event.token, word_of(state, event.offer, stored_heads(state)))]
    return promise, []


def stored(state: VoterState, event: EpochOffered, promise: Promise) -> list[Any]:
    """The promise is durable."""
    if promise.epoch < state.epoch:
        return [EpochReply(event.token, None, "old-epoch")]
    state.promise = promise
    return [said(state, event.token, word_of(state, event.offer, stored_heads(state)))]


def said(state: VoterState, token: str, told: EpochStored | SetSealed) -> EpochReply:
    """The reply that tells it; a refusal where no message holds it."""
    return EpochReply(token, state.config.suite.seal(told)) if fits(told) else EpochReply(token, None, TOO_MANY_HEADS)
