"""A voter: remembers, durably, every restriction and resume that it was shown, and says so under its signature.

One in each voter region's Core process.  Decides what it may countersign and which polls it answers.  It knows
namespaces by their blinds only.  Two entries in one place get one signature, ever; a signature leaves only after its
record is durable.  Source: DESIGN section 2, "Voters".  Standby grants, epochs and the replacing of seats come with a
later release: they add events to this machine and fields to its records.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from msgspec import Struct

from keymesh.control.commit import vote_for, voters_of
from keymesh.control.messages import CountersignatureMessage, CountersignRequest, Poll, PollAnswer
from keymesh.control.signing import Suite
from keymesh.control.state import NamespaceState
from keymesh.model.errors import KeymeshError
from keymesh.model.ids import Digest, check_hex
from keymesh.model.machine import (
    REGISTRY,
    Address,
    Booted,
    Note,
    Persist,
    Persisted,
    PersistFailed,
    Received,
    Send,
)
from keymesh.model.time import Instant

VOTES_PER_BLIND: Final = 256
BLINDS_MAX: Final = 100_000
SEAT_RECORD: Final = "seat"
VOTE_PREFIX: Final = "vote/"


@dataclass(frozen=True, slots=True)
class VoterConfig:
    """``suite`` signs with the key of the node that the voter lives in."""

    mesh: str
    region: str
    suite: Suite


class Seat(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where this voter stands: the epoch that it stored, the set in force, whether it is of it.  A record."""

    epoch: int
    set_id: int
    seated: bool


class Vote(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A blinded leaf that was countersigned.  A record, under ``vote/<blind>/<seq>``."""

    blind: str
    epoch: int
    seq: int
    entry_hash: Digest
    restriction: bool


RECORD_TYPES: Final = (Seat, Vote)


@dataclass(frozen=True, slots=True)
class MeshApplied:
    """Event: the node has applied and recorded this mesh state; ``seat_of`` reads the seat from it."""

    seat: Seat


@dataclass(slots=True)
class VoterState:
    config: VoterConfig
    seat: Seat | None = None
    votes: dict[str, dict[int, Vote]] = field(default_factory=dict)  # by blind, then seq; durable ones only
    waiting: dict[str, Any] = field(default_factory=dict)  # token -> what its Persist was for
    n_tokens: int = 0


def new_voter(config: VoterConfig) -> VoterState:
    return VoterState(config)


def seat_of(mesh: NamespaceState, region: str, *, epoch: int) -> Seat:
    """What ``region`` is to the voter set of ``mesh`` in ``epoch``."""
    voters = voters_of(mesh.rows)
    if voters is None:
        return Seat(epoch=epoch, set_id=0, seated=False)
    return Seat(epoch=epoch, set_id=voters.set_id, seated=region in voters.regions)


def step(state: VoterState, now: Instant, event: object) -> list[Any]:
    """Effects of ``event``, in order; events and messages of others change nothing."""
    handler = _EVENTS.get(type(event))
    return [] if handler is None else handler(state, event)


# --- rules (each small, so that it can be seen to matter) ------------------------------------------------------------


def refusal_of(state: VoterState, asked: CountersignRequest) -> str | None:
    """Why ``asked`` gets no signature from this voter, whatever it remembers; None where it may get one."""
    seat = state.seat
    if asked.mesh != state.config.mesh:
        return "foreign-mesh"
    if seat is None or not seat.seated:
        return "not-a-voter"
    if asked.set_id != seat.set_id:
        return "other-set"
    if asked.epoch < seat.epoch:
        return "old-epoch"
    if asked.epoch > seat.epoch:
        return "future-epoch"
    if asked.seq < 1 or not _well_formed(asked):
        return "malformed"
    return None


def _well_formed(asked: CountersignRequest) -> bool:
    try:
        check_hex("blind", asked.blind, hex_bytes=32)
        check_hex("entry_hash", asked.entry_hash, hex_bytes=32)
    except KeymeshError:
        return False
    return True


def contradicts(vote: Vote, asked: CountersignRequest) -> bool:
    """Another entry in a place that this voter has signed for in this epoch."""
    return vote.epoch == asked.epoch and (vote.entry_hash, vote.restriction) != (asked.entry_hash, asked.restriction)


def is_forgotten(votes: dict[int, Vote], seq: int) -> bool:
    """Whether a vote at ``seq`` may have been given and dropped since: then none is given again."""
    return seq not in votes and len(votes) >= VOTES_PER_BLIND and seq < min(votes)


def answers_poll(state: VoterState, poll: Poll) -> bool:
    seat = state.seat
    return (
        seat is not None
        and seat.seated
        and poll.mesh == state.config.mesh
        and poll.set_id == seat.set_id
        and poll.epoch >= seat.epoch
    )


# --- events ----------------------------------------------------------------------------------------------------------


def _booted(state: VoterState, event: Booted) -> list[Any]:
    for name, record in sorted(event.records.items()):
        if name == SEAT_RECORD:
            state.seat = record
        elif name.startswith(VOTE_PREFIX):
            state.votes.setdefault(record.blind, {})[record.seq] = record
    return []


def _mesh_applied(state: VoterState, event: MeshApplied) -> list[Any]:
    """A newer seat is recorded before it is taken; an older one (a replay) changes nothing."""
    old, new = state.seat, event.seat
    if old is not None and (new == old or (new.epoch, new.set_id) < (old.epoch, old.set_id)):
        return []
    return [_persist(state, new, ((SEAT_RECORD, new),))]


def _received(state: VoterState, event: Received) -> list[Any]:
    message = event.message
    if event.sender != REGISTRY:
        return []
    if type(message) is CountersignRequest:
        return _asked(state, event.sender, message)
    if type(message) is Poll and answers_poll(state, message):
        return [Send(event.sender, _poll_answer(state, message))]
    return []


def _poll_answer(state: VoterState, poll: Poll) -> PollAnswer:
    return PollAnswer(
        mesh=poll.mesh, epoch=poll.epoch, set_id=poll.set_id, poll_id=poll.poll_id, voter=state.config.region
    )


def _asked(state: VoterState, sender: Address, asked: CountersignRequest) -> list[Any]:
    """Sign what is known already; record, then sign, what is new; never two things in one place."""
    reason = refusal_of(state, asked)
    if reason is not None:
        return [_note("countersign-refused", asked, reason)]
    votes = state.votes.get(asked.blind, {})
    vote = votes.get(asked.seq)
    pending = next((w[1] for w in _pending(state) if (w[1].blind, w[1].seq) == (asked.blind, asked.seq)), None)
    if (vote is not None and contradicts(vote, asked)) or (pending is not None and pending != asked):
        return [_note("fork", asked, "another entry was countersigned in this place")]
    if vote is not None and vote.epoch == asked.epoch:
        return [_countersignature(state, sender, asked)]
    if pending is not None:
        return []
    if is_forgotten(votes, asked.seq) or (asked.blind not in state.votes and len(state.votes) >= BLINDS_MAX):
        return [_note("countersign-refused", asked, "no-memory")]
    new = _vote(asked)
    deletes = _overflow(votes)
    puts = ((_name(new.blind, new.seq), new),)
    return [_persist(state, (sender, asked, deletes), puts, tuple(_name(asked.blind, seq) for seq in deletes))]


def _pending(state: VoterState) -> list[Any]:
    return [w for w in state.waiting.values() if isinstance(w, tuple)]


def _overflow(votes: dict[int, Vote]) -> tuple[int, ...]:
    """The oldest votes that make room for one more."""
    excess = len(votes) + 1 - VOTES_PER_BLIND
    return tuple(sorted(votes)[:excess]) if excess > 0 else ()


def _vote(asked: CountersignRequest) -> Vote:
    return Vote(
        blind=asked.blind,
        epoch=asked.epoch,
        seq=asked.seq,
        entry_hash=asked.entry_hash,
        restriction=asked.restriction,
    )


def _name(blind: str, seq: int) -> str:
    return f"{VOTE_PREFIX}{blind}/{seq}"


def _persist(
    state: VoterState, waits: Any, puts: tuple[tuple[str, Any], ...], deletes: tuple[str, ...] = ()
) -> Persist:
    state.n_tokens += 1
    token = f"voter/{state.n_tokens}"
    state.waiting[token] = waits
    return Persist(token, puts, deletes)


def _persisted(state: VoterState, event: Persisted) -> list[Any]:
    waits = state.waiting.pop(event.token, None)
    if waits is None:
        return []
    if isinstance(waits, Seat):
        state.seat = waits
        return []
    sender, asked, deletes = waits
    votes = state.votes.setdefault(asked.blind, {})
    for seq in deletes:
        votes.pop(seq, None)
    votes[asked.seq] = _vote(asked)
    if refusal_of(state, asked) is not None:  # the seat moved on while the disk was busy
        return []
    return [_countersignature(state, sender, asked)]


def _persist_failed(state: VoterState, event: PersistFailed) -> list[Any]:
    """Nothing was promised; the Registry asks again."""
    state.waiting.pop(event.token, None)
    return []


def _countersignature(state: VoterState, to: Address, asked: CountersignRequest) -> Send:
    sealed = state.config.suite.seal(vote_for(asked, state.config.region))
    return Send(to, CountersignatureMessage(countersignature=sealed))


def _note(name: str, asked: CountersignRequest, reason: str) -> Note:
    return Note(name, "", (("blind", asked.blind[:64]), ("seq", asked.seq), ("reason", reason)))


_EVENTS: Final[dict[type, Callable[[VoterState, Any], list[Any]]]] = {
    Booted: _booted,
    MeshApplied: _mesh_applied,
    Received: _received,
    Persisted: _persisted,
    PersistFailed: _persist_failed,
}
