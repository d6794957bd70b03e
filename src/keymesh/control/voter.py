"""A voter: remembers, durably, every restriction and resume that it was shown, and says so under its signature.

One in each voter region's Core process.  Decides what it may countersign and which polls it answers.  It knows
namespaces by their blinds only.  Two entries in one place get one signature, ever; a signature leaves only after its
record is durable.  It grants a standby lease, once for each nonce, only after the Registry missed three of its own
node's heartbeats, and shows all that it has stored.  One without a memory (a first life, a lost disk, a new seat)
takes no seat, so does neither, until it has read from the log what was there to be countersigned.
Source: DESIGN section 2, "Voters", and section 3, "Standby".
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, Final

from keymesh.control import standby, voter_epoch, voter_seal
from keymesh.control.commit import vote_for
from keymesh.control.messages import (
    CountersignatureMessage,
    CountersignRequest,
    Poll,
    PollAnswer,
    StandbyGrantMessage,
    StandbyRefused,
    StandbyRequest,
    VoterLog,
    VoterRead,
)
from keymesh.control.signing import fits
from keymesh.control.voter_state import BLINDS_MAX as BLINDS_MAX
from keymesh.control.voter_state import PROMISE_RECORD as PROMISE_RECORD
from keymesh.control.voter_state import READ_RETRY_MS as READ_RETRY_MS
from keymesh.control.voter_state import RECORD_TYPES as RECORD_TYPES
from keymesh.control.voter_state import SEAL_RECORD as SEAL_RECORD
from keymesh.control.voter_state import SEAT_RECORD as SEAT_RECORD
from keymesh.control.voter_state import (
    TOO_MANY_HEADS,
    EpochReply,
    is_forgotten,
    overflow,
    stored_heads,
    vote_name,
    vote_of,
)
from keymesh.control.voter_state import VOTE_PREFIX as VOTE_PREFIX
from keymesh.control.voter_state import VOTES_PER_BLIND as VOTES_PER_BLIND
from keymesh.control.voter_state import EpochOffered as EpochOffered
from keymesh.control.voter_state import MeshApplied as MeshApplied
from keymesh.control.voter_state import Recollection as Recollection
from keymesh.control.voter_state import RegistryHeard as RegistryHeard
from keymesh.control.voter_state import Seat as Seat
from keymesh.control.voter_state import SetOffered as SetOffered
from keymesh.control.voter_state import Vote as Vote
from keymesh.control.voter_state import VoterConfig as VoterConfig
from keymesh.control.voter_state import VoterState as VoterState
from keymesh.control.voter_state import seat_of as seat_of
from keymesh.model.errors import KeymeshError
from keymesh.model.ids import check_hex
from keymesh.model.limits import COMMIT_MAX_ENTRIES
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
    Tick,
    Wake,
    node_address,
)
from keymesh.model.time import Instant


def new_voter(config: VoterConfig) -> VoterState:
    return VoterState(config)


def step(state: VoterState, now: Instant, event: object) -> list[Any]:
    """Effects of ``event``, in order; events and messages of others change nothing."""
    handler = _EVENTS.get(type(event))
    return [] if handler is None else handler(state, now, event)


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
    if asked.set_id <= state.sealed:
        return "sealed"
    if asked.epoch < max(state.epoch, state.promising):
        return "old-epoch"
    if asked.epoch > state.epoch:
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


def standby_refusal(state: VoterState, sender: Address, asked: StandbyRequest, now: Instant) -> str | None:
    """Why ``asked`` gets no grant from this voter; None where it gets one."""
    seat = state.seat
    if asked.mesh != state.config.mesh or sender != node_address(asked.region, asked.node):
        return "foreign"
    if seat is None or not seat.seated:
        return "no-memory" if state.recalling is not None else "not-a-voter"
    if asked.set_id != seat.set_id:
        return "other-set"
    if asked.set_id <= state.sealed:
        return "sealed"
    if asked.epoch != max(state.epoch, state.promising):
        return "other-epoch"
    if sender not in seat.nodes:
        return "not-enrolled"
    if not has_missed(state, now):
        return "registry-answers"
    return "answered" if state.granted.get(sender) == asked.nonce else None


def has_missed(state: VoterState, now: Instant) -> bool:
    """Whether the Registry missed three heartbeats of this voter's own node."""
    assert state.seat is not None
    return standby.has_missed(state.heard_at, state.booted_at, state.seat.interval_ms, now)


def needs_memory(old: Seat | None, new: Seat) -> bool:
    """Whether a voter with the record ``old`` has to read the log before it takes ``new``: its set may be another's
    heir, and of what that one committed it need have stored nothing."""
    return new.seated and (old is None or not old.seated or old.set_id != new.set_id)


def answers_poll(state: VoterState, poll: Poll) -> bool:
    seat = state.seat
    return (
        seat is not None
        and seat.seated
        and poll.mesh == state.config.mesh
        and poll.set_id == seat.set_id
        and poll.set_id > state.sealed
        and poll.epoch >= max(state.epoch, state.promising)
    )


# --- events ----------------------------------------------------------------------------------------------------------


def _booted(state: VoterState, now: Instant, event: Booted) -> list[Any]:
    state.booted_at, state.entropy = now, event.entropy
    for name, record in sorted(event.records.items()):
        if name == SEAT_RECORD:
            state.seat = record
        elif name == PROMISE_RECORD:
            state.promise = record
        elif name == SEAL_RECORD:
            state.seal = record
        elif name.startswith(VOTE_PREFIX):
            state.votes.setdefault(record.blind, {})[record.seq] = record
    state.n_serial = state.serial
    return []


def _epoch_offered(state: VoterState, now: Instant, event: EpochOffered) -> list[Any]:
    taken, effects = voter_epoch.offered(state, now, event)
    return effects if taken is None else [_persist(state, (event, taken), ((PROMISE_RECORD, taken),))]


def _set_offered(state: VoterState, now: Instant, event: SetOffered) -> list[Any]:
    taken, effects = voter_seal.offered(state, now, event)
    return effects if taken is None else [_persist(state, (event, taken), ((SEAL_RECORD, taken),))]


def _registry_heard(state: VoterState, now: Instant, event: RegistryHeard) -> list[Any]:
    state.heard_at = event.sent_at if state.heard_at is None else max(state.heard_at, event.sent_at)
    return []


def _mesh_applied(state: VoterState, now: Instant, event: MeshApplied) -> list[Any]:
    """A newer seat is recorded before it is taken; an older one (a replay) changes nothing.

    Whoever has no memory of a seat reads first, and records both together.
    """
    old, new = state.seat, event.seat
    if new == old or any((new.epoch, new.set_id) < (seat.epoch, seat.set_id) for seat in state.seats):
        return []
    if not needs_memory(old, new):
        state.wanted = new
        return _record_seat(state)
    state.wanted = None
    if state.recalling is not None and state.recalling.seat == new:
        return []
    if old is not None and old.set_id < new.set_id:
        state.replaced = max(state.replaced, old.set_id)  # it has been replaced, whoever has not heard of it
    state.n_tokens += 1
    nonce = hashlib.sha256(state.entropy + f"recall/{state.n_tokens}".encode()).hexdigest()[:32]
    state.recalling = Recollection(new, nonce)
    return _read_on(state, now)


def _record_seat(state: VoterState) -> list[Any]:
    seat = state.wanted
    return [] if seat is None or seat in state.waiting.values() else [_persist(state, seat, ((SEAT_RECORD, seat),))]


def _tick(state: VoterState, now: Instant, event: Tick) -> list[Any]:
    return _record_seat(state) + ([] if state.recalling is None else _read_on(state, now))


def _received(state: VoterState, now: Instant, event: Received) -> list[Any]:
    message = event.message
    if type(message) is StandbyRequest:
        return _standby_asked(state, now, event.sender, message)
    if event.sender != REGISTRY:
        return []
    if type(message) is CountersignRequest:
        return _asked(state, event.sender, message)
    if type(message) is Poll and answers_poll(state, message):
        return [Send(event.sender, _poll_answer(state, message))]
    if type(message) is VoterLog:
        return _log_came(state, now, message)
    return []


def _standby_asked(state: VoterState, now: Instant, sender: Address, asked: StandbyRequest) -> list[Any]:
    """One answer for each nonce, of all that is stored by now."""
    reason, region = standby_refusal(state, sender, asked, now), state.config.region
    grant = standby.grant_for(asked, region, serial=state.serial, heads=[] if reason else stored_heads(state))
    if reason is None and not fits(grant):
        reason = TOO_MANY_HEADS
    if reason is not None:
        return [Send(sender, StandbyRefused(nonce=asked.nonce, voter=region, reason=reason))]
    state.granted[sender] = asked.nonce  # an enrolled node: so many there are
    return [Send(sender, StandbyGrantMessage(grant=state.config.suite.seal(grant)))]


# --- a voter without a memory ----------------------------------------------------------------------------------------


def _read_on(state: VoterState, now: Instant) -> list[Any]:
    reading = state.recalling
    assert reading is not None
    config = state.config
    asked = VoterRead(mesh=config.mesh, region=config.region, nonce=reading.nonce, after=reading.after)
    return [Send(REGISTRY, asked), Wake(Instant(now + READ_RETRY_MS))]


def _log_came(state: VoterState, now: Instant, page: VoterLog) -> list[Any]:
    """A page of what was there to be countersigned; with the last, votes and seat are recorded in one step.

    What this voter signs from now on gets serials that no earlier life can have used: that one stored at most
    ``COMMIT_MAX_ENTRIES`` things for each commit of the log.
    """
    reading = state.recalling
    if reading is None or page.mesh != state.config.mesh:
        return []
    if (page.nonce, page.after) != (reading.nonce, reading.after):
        return []
    for vote in page.votes:
        reading.votes[vote_name(vote.blind, vote.seq)] = vote
    if page.next_after:
        reading.after = page.next_after
        return _read_on(state, now)
    serial = max(state.n_serial, (page.index + 1) * COMMIT_MAX_ENTRIES)
    puts = [(name, vote_of(vote, serial)) for name, vote in sorted(reading.votes.items())]
    return [_persist(state, (reading, serial), ((SEAT_RECORD, reading.seat), *puts))]


def _remember(state: VoterState, reading: Recollection, serial: int) -> None:
    """What was read is durable: the seat is taken, unless another is being read for by now."""
    if state.recalling is not reading:
        return
    state.recalling = None
    state.n_serial = max(state.n_serial, serial)
    for vote in reading.votes.values():
        state.votes.setdefault(vote.blind, {})[vote.seq] = vote_of(vote, serial)
    state.seat = reading.seat


# --- polls and countersignatures -------------------------------------------------------------------------------------


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
    pending = next((w[1] for w in state.pending if (w[1].blind, w[1].seq) == (asked.blind, asked.seq)), None)
    if (vote is not None and contradicts(vote, asked)) or (pending is not None and pending != asked):
        return [_note("fork", asked, "another entry was countersigned in this place")]
    if vote is not None and vote.epoch == asked.epoch:
        return [_countersignature(state, sender, asked, vote.serial)]
    if pending is not None:
        return []
    if is_forgotten(votes, asked.seq) or (asked.blind not in state.votes and len(state.votes) >= BLINDS_MAX):
        return [_note("countersign-refused", asked, "no-memory")]
    state.n_serial += 1
    new = vote_of(asked, state.n_serial)
    deletes = overflow(votes)
    puts = ((vote_name(new.blind, new.seq), new),)
    waits = (sender, asked, deletes, new)
    return [_persist(state, waits, puts, tuple(vote_name(asked.blind, seq) for seq in deletes))]


def _persist(
    state: VoterState, waits: Any, puts: tuple[tuple[str, Any], ...], deletes: tuple[str, ...] = ()
) -> Persist:
    state.n_tokens += 1
    token = f"voter/{state.n_tokens}"
    state.waiting[token] = waits
    return Persist(token, puts, deletes)


def _persisted(state: VoterState, now: Instant, event: Persisted) -> list[Any]:
    waits = state.waiting.pop(event.token, None)
    if waits is None:
        return []
    if isinstance(waits, Seat):
        state.seat = waits
        state.wanted = None if state.wanted == waits else state.wanted
        state.recalling = None if not waits.seated else state.recalling
        return []
    if isinstance(waits[0], EpochOffered):
        return voter_epoch.stored(state, *waits)
    if isinstance(waits[0], SetOffered):
        return voter_seal.stored(state, *waits)
    if isinstance(waits[0], Recollection):
        _remember(state, *waits)
        return []
    sender, asked, deletes, vote = waits
    votes = state.votes.setdefault(asked.blind, {})
    for seq in deletes:
        votes.pop(seq, None)
    votes[asked.seq] = vote
    if refusal_of(state, asked) is not None:  # the seat moved on while the disk was busy
        return []
    return [_countersignature(state, sender, asked, vote.serial)]


def _persist_failed(state: VoterState, now: Instant, event: PersistFailed) -> list[Any]:
    """Nothing was promised, sealed or signed: who wanted it asks again, and a tick records the seat or reads again."""
    waits = state.waiting.pop(event.token, None)
    if isinstance(waits, Seat):
        return [Wake(Instant(now + READ_RETRY_MS))]
    if isinstance(waits, tuple) and isinstance(waits[0], EpochOffered | SetOffered):
        return [EpochReply(waits[0].token, None, "storage")]
    return []


def _countersignature(state: VoterState, to: Address, asked: CountersignRequest, serial: int) -> Send:
    sealed = state.config.suite.seal(vote_for(asked, state.config.region, serial=serial))
    return Send(to, CountersignatureMessage(countersignature=sealed))


def _note(name: str, asked: CountersignRequest, reason: str) -> Note:
    return Note(name, "", (("blind", asked.blind[:64]), ("seq", asked.seq), ("reason", reason)))


_EVENTS: Final[dict[type, Callable[[VoterState, Instant, Any], list[Any]]]] = {
    Booted: _booted,
    MeshApplied: _mesh_applied,
    EpochOffered: _epoch_offered,
    SetOffered: _set_offered,
    RegistryHeard: _registry_heard,
    Tick: _tick,
    Received: _received,
    Persisted: _persisted,
    PersistFailed: _persist_failed,
}
