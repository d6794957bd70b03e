"""What a voter knows, what of it is recorded, and where its seat is read from.  Decides nothing: see ``voter``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from msgspec import Struct

from keymesh.control import standby
from keymesh.control.commit import voters_of
from keymesh.control.messages import CountersignRequest, EpochOffer, ReadVote, Sealed, SetOffer, StoredHead
from keymesh.control.rows import SettingsRow, get
from keymesh.control.signing import Suite
from keymesh.control.state import NamespaceState
from keymesh.control.trust import Quorum
from keymesh.model.ids import Digest
from keymesh.model.machine import Address, node_address
from keymesh.model.time import Instant

VOTES_PER_BLIND: Final = 256
BLINDS_MAX: Final = 100_000
SEAT_RECORD: Final = "seat"
PROMISE_RECORD: Final = "promise"
SEAL_RECORD: Final = "seal"
VOTE_PREFIX: Final = "vote/"
READ_RETRY_MS: Final = 2_000
TOO_MANY_HEADS: Final = "too-many-heads"
START: Final = Instant(0)


@dataclass(frozen=True, slots=True)
class VoterConfig:
    """``suite`` signs with the key of the node that the voter lives in."""

    mesh: str
    region: str
    suite: Suite
    node: str = ""


class Seat(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where this voter stands: the epoch that it stored, the set in force, whether it is of it.  A record.

    That there is one says that the voter has a memory.  ``nodes``: enrolled, to whom it may grant.
    """

    epoch: int
    set_id: int
    seated: bool
    nodes: tuple[str, ...] = ()
    interval_ms: int = 0


class Vote(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A blinded leaf that was countersigned.  A record, under ``vote/<blind>/<seq>``."""

    blind: str
    epoch: int
    seq: int
    entry_hash: Digest
    restriction: bool
    serial: int = 0


class Promise(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The epoch that this voter has stored, perhaps long before its node hears of it.  A record."""

    epoch: int
    command_id: str


class Seal(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The highest voter set under which this voter acts no more, whatever its node has heard.  A record."""

    set_id: int


RECORD_TYPES: Final = (Seat, Vote, Promise, Seal)


@dataclass(frozen=True, slots=True)
class MeshApplied:
    """Event: the node has applied and recorded this mesh state; ``seat_of`` reads the seat from it."""

    seat: Seat


@dataclass(frozen=True, slots=True)
class EpochOffered:
    """Event: somebody brings the recovery officers' word; ``officers`` as the node beside this voter knows them.

    ``token`` comes back with the reply.
    """

    token: str
    offer: EpochOffer
    officers: Quorum | None


@dataclass(frozen=True, slots=True)
class SetOffered:
    """Event: somebody brings the officers' word for another voter set; the rest as of ``EpochOffered``."""

    token: str
    offer: SetOffer
    officers: Quorum | None


@dataclass(frozen=True, slots=True)
class EpochReply:
    """Effect: ``stored`` (sealed) once it is durable; or ``refused``."""

    token: str
    stored: Sealed | None
    refused: str = ""


@dataclass(frozen=True, slots=True)
class RegistryHeard:
    """Event: the node beside this voter has accepted an answer to the heartbeat that it sent then."""

    sent_at: Instant


@dataclass(slots=True)
class Recollection:
    """What is being read from the log, to be remembered with the seat that it is for."""

    seat: Seat
    nonce: str
    after: str = ""
    votes: dict[str, ReadVote] = field(default_factory=dict)  # by record name


@dataclass(slots=True)
class VoterState:
    config: VoterConfig
    seat: Seat | None = None
    votes: dict[str, dict[int, Vote]] = field(default_factory=dict)  # by blind, then seq; durable ones only
    waiting: dict[str, Any] = field(default_factory=dict)  # token -> what its Persist was for
    n_tokens: int = 0
    n_serial: int = 0  # of the last vote that is recorded, or on its way
    entropy: bytes = b""
    booted_at: Instant = START
    heard_at: Instant | None = None
    recalling: Recollection | None = None
    wanted: Seat | None = None  # its node has applied it; its record may still be on its way, or have failed
    promise: Promise | None = None
    seal: Seal | None = None
    replaced: int = 0  # the highest set that this voter was of and that its node has seen replaced
    granted: dict[Address, str] = field(default_factory=dict)  # node -> the nonce that was answered last

    @property
    def epoch(self) -> int:
        """That it has stored, by its seat or by a promise."""
        return max(0 if self.seat is None else self.seat.epoch, 0 if self.promise is None else self.promise.epoch)

    @property
    def seats(self) -> list[Seat]:
        """That it has, and those that it is about to take."""
        reading = None if self.recalling is None else self.recalling.seat
        return [seat for seat in (self.seat, self.wanted, reading) if seat is not None]

    @property
    def promising(self) -> int:
        """The highest epoch that was taken up and whose record is still on its way; 0 where none."""
        return max((w[1].epoch for w in self._offers() if isinstance(w[1], Promise)), default=0)

    @property
    def sealed(self) -> int:
        """The highest set under which it acts no more, be the record still on its way; 0 where none."""
        sealing = [w[1].set_id for w in self._offers() if isinstance(w[1], Seal)]
        return max(self.replaced, *sealing, 0 if self.seal is None else self.seal.set_id)

    def _offers(self) -> list[Any]:
        return [
            w for w in self.waiting.values() if isinstance(w, tuple) and isinstance(w[0], EpochOffered | SetOffered)
        ]

    @property
    def pending(self) -> list[Any]:
        """Votes whose record is on its way: (sender, request, deletes, vote)."""
        return [w for w in self.waiting.values() if isinstance(w, tuple) and len(w) == 4]

    @property
    def serial(self) -> int:
        """Of the last thing stored."""
        return max((vote.serial for votes in self.votes.values() for vote in votes.values()), default=0)


def seat_of(mesh: NamespaceState, region: str, *, epoch: int) -> Seat:
    """What ``region`` is to the voter set of ``mesh`` in ``epoch``."""
    voters, settings = voters_of(mesh.rows), get(mesh.rows, "settings", SettingsRow)
    if voters is None:
        return Seat(epoch=epoch, set_id=0, seated=False)
    names = [name.split("/") for name in mesh.rows if name.startswith("node/")]
    return Seat(
        epoch=epoch,
        set_id=voters.set_id,
        seated=region in voters.regions,
        nodes=tuple(sorted(node_address(of, node) for _, of, node in names)) if standby.may_stand_by(voters) else (),
        interval_ms=0 if settings is None else settings.heartbeat_ms,
    )


# --- what is remembered ----------------------------------------------------------------------------------------------


def vote_of(asked: CountersignRequest | ReadVote, serial: int) -> Vote:
    return Vote(
        blind=asked.blind,
        epoch=asked.epoch,
        seq=asked.seq,
        entry_hash=asked.entry_hash,
        restriction=asked.restriction,
        serial=serial,
    )


def vote_name(blind: str, seq: int) -> str:
    return f"{VOTE_PREFIX}{blind}/{seq}"


def stored_heads(state: VoterState) -> list[StoredHead]:
    """The newest restriction of each namespace of which any is stored."""
    newest = [newest_restriction(votes) for votes in state.votes.values()]
    return [head_of(vote) for vote in newest if vote is not None]


def heads_to_be(state: VoterState) -> list[StoredHead]:
    """At least those that will be stored once all that is on its way is recorded; of one namespace perhaps two."""
    return stored_heads(state) + [head_of(vote) for *_, vote in state.pending]


def by_blind(heads: Iterable[StoredHead]) -> tuple[StoredHead, ...]:
    return tuple(sorted(heads, key=lambda head: head.blind))


def head_of(vote: Vote) -> StoredHead:
    return StoredHead(blind=vote.blind, epoch=vote.epoch, seq=vote.seq, entry_hash=vote.entry_hash)


def newest_restriction(votes: dict[int, Vote]) -> Vote | None:
    return max((v for v in votes.values() if v.restriction), key=lambda v: (v.epoch, v.seq), default=None)


def is_forgotten(votes: dict[int, Vote], seq: int) -> bool:
    """Whether a vote at ``seq`` may have been given and dropped since: then none is given again."""
    return seq not in votes and len(votes) >= VOTES_PER_BLIND and seq < sorted(votes)[1]


def overflow(votes: dict[int, Vote]) -> tuple[int, ...]:
    """The oldest votes that make room for one more; never that of the newest restriction, which grants show."""
    excess = len(votes) + 1 - VOTES_PER_BLIND
    newest = newest_restriction(votes)
    kept = None if newest is None else newest.seq
    return tuple([seq for seq in sorted(votes) if seq != kept][:excess]) if excess > 0 else ()
