"""What nodes, voters and the Registry say to each other about freshness and commitment (DESIGN sections 2, 3, 5).

Signed ones travel as ``Sealed``: a DSSE envelope in production, an object in simulation; ``signing.Suite`` makes and
opens both.  Times are durations in ms, never instants of somebody else's clock.
"""

from __future__ import annotations

from typing import Any, dataclass_transform

from msgspec import Struct

from keymesh.control.entry import Leaf
from keymesh.model.ids import Digest

Sealed = Any
"""Only a ``Suite`` looks inside: a DSSE envelope in its JSON form, or in simulation an object of its own."""


@dataclass_transform(frozen_default=True, kw_only_default=True)  # subclasses inherit both from Struct
class Message(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all messages."""


class PendingItem(Message):
    """A grant in work: this node does not yet hold (or, for L2, has not yet opened) that key revision."""

    namespace: str
    key: str
    version: int
    revision: int


class Heartbeat(Message):
    """Node to Registry, signed by the node.  ``boot_id`` names this life of the process, ``counter`` rises in it.

    ``manifest_root`` is the map-tree root over the leaves as applied, each state recomputed from what is stored;
    ``leaves`` come along when the last answer's root differed.
    """

    mesh: str
    epoch: int
    region: str
    node: str
    boot_id: str
    counter: int
    nonce: str
    manifest_root: Digest
    index_seen: int
    leaves: dict[str, Leaf] | None = None
    pending: tuple[PendingItem, ...] = ()
    ivk_generation: int = 0
    modes: dict[str, str] | None = None  # tenant -> Mode value, for people
    l1_denied: tuple[str, ...] = ()  # tenants whose L1 denies this node; others are told to prove theirs


class Answer(Message):
    """Registry to node, signed by the Registry, accepted once for its nonce.

    ``poll_age_ms``: by how long the poll that a majority of voters answered was sent before the heartbeat arrived
    (0 where after); the lease starts that much earlier.  ``index``: of a linearizable read begun after the heartbeat
    arrived.  ``heads_root``: over one leaf for each namespace that this region may hold.  ``clock_ms``: what the
    Registry's clock showed when it answered; ``clock`` names that clock, anew after each of its jumps.
    """

    mesh: str
    epoch: int
    region: str
    node: str
    nonce: str
    index: int
    ttl_ms: int
    poll_age_ms: int
    heads_root: Digest
    clock: str
    clock_ms: int


class AnswerMessage(Message):
    """``leaves`` are unsigned: they count only where their root is the signed one."""

    answer: Sealed
    leaves: dict[str, Leaf] | None = None


class HeartbeatMessage(Message):
    heartbeat: Sealed


class CountersignRequest(Message):
    """Registry to voter.  ``blind`` = HMAC-SHA256(mesh salt, namespace) in hex."""

    mesh: str
    epoch: int
    set_id: int
    blind: str
    seq: int
    entry_hash: Digest
    restriction: bool


class Countersignature(Message, omit_defaults=True):
    """Signed by the voter's node key, after it is durable there.

    ``serial`` numbers what this voter has stored, and only rises: a standby grant of the same voter with at least this
    serial must show the entry (``control/standby.py``).  0: of a release that did not number.
    """

    mesh: str
    epoch: int
    set_id: int
    voter: str  # region
    blind: str
    seq: int
    entry_hash: Digest
    restriction: bool
    serial: int = 0


class CountersignatureMessage(Message):
    countersignature: Sealed


class Poll(Message):
    mesh: str
    epoch: int
    set_id: int
    poll_id: int


class PollAnswer(Message):
    mesh: str
    epoch: int
    set_id: int
    poll_id: int
    voter: str


class StandbyRequest(Message):
    """Node to voter: the Registry is silent here; grant me a lease.  It counts from when this was sent."""

    mesh: str
    epoch: int
    set_id: int
    region: str
    node: str
    nonce: str
    ttl_ms: int


class StoredHead(Message):
    """The newest restriction that a voter has stored of one namespace, which it knows by its blind alone."""

    blind: str
    epoch: int
    seq: int
    entry_hash: Digest


class StandbyGrant(Message):
    """Voter to node, signed by the voter's node key: a lease, if a majority of the set says so to the same nonce.

    ``heads``: of every namespace of which the voter has stored a restriction, sorted by blind.  ``serial``: of the
    last thing that it stored; what it countersigned up to there is in ``heads``, or the grant is a lie.
    """

    mesh: str
    epoch: int
    set_id: int
    voter: str  # region
    region: str
    node: str
    nonce: str
    ttl_ms: int
    serial: int
    heads: tuple[StoredHead, ...]


class StandbyGrantMessage(Message):
    grant: Sealed


class StandbyUsed(Message):
    """Node to Registry, when that is back: the newest grant of each voter that this node counted meanwhile."""

    grants: tuple[Sealed, ...]


class StandbyRefused(Message):
    """Voter to node, for people: why it grants nothing.  Nothing rests on it."""

    nonce: str
    voter: str
    reason: str


class StateRequest(Message):
    """Node to node of another region: send me this namespace, if you have it at least there."""

    namespace: str
    epoch: int
    seq: int


class EpochOffer(Message):
    """The recovery officers' word for epoch ``epoch``: store it, and say what you have stored so far.

    ``authority``: signed envelopes over the command ``epoch.open`` of that id.
    """

    mesh: str
    epoch: int
    command_id: str
    authority: tuple[dict[str, Any], ...]


class EpochStored(Message):
    """Signed by the voter's node: from here on it countersigns, grants and answers nothing of an earlier epoch.

    ``heads``: the newest restriction of every namespace that it has countersigned until then; in the same durable step.
    """

    mesh: str
    epoch: int
    command_id: str
    voter: str  # region
    node: str
    heads: tuple[StoredHead, ...]


class SetOffer(Message):
    """The officers' word for voter set ``set_id``: seal the one that it replaces, and say what you have stored.

    ``authority``: signed envelopes over the command ``voters.change`` of that id.
    """

    mesh: str
    set_id: int
    regions: tuple[str, ...]
    replaces: tuple[str, ...]
    command_id: str
    authority: tuple[dict[str, Any], ...]


class SetSealed(Message):
    """Signed by the voter's node: it countersigns, grants and answers nothing under set ``set_id`` or an earlier one.

    ``heads``: the newest restriction of every namespace that it has stored until then; in the same durable step.
    """

    mesh: str
    set_id: int
    command_id: str
    voter: str  # region
    node: str
    heads: tuple[StoredHead, ...]


class VoterRead(Message):
    """Voter to Registry: I have no memory; what has been countersigned?  ``after``: where the last page ended."""

    mesh: str
    region: str
    nonce: str
    after: str


class ReadVote(Message):
    """An entry that voters are asked to countersign, as the log has it."""

    blind: str
    epoch: int
    seq: int
    entry_hash: Digest
    restriction: bool


class VoterLog(Message):
    """Registry to voter, after a linearizable read of the log begun when the request was there; in pages.

    ``next_after``: what to ask for next; empty on the last page.  ``index``: of that read.
    """

    mesh: str
    nonce: str
    after: str
    index: int
    votes: tuple[ReadVote, ...]
    next_after: str


class RestrictionAck(Message):
    """One restriction in force at a node, and by when the Edge leases that it granted under it are over."""

    scope: str
    seq: int
    entry_hash: Digest | None  # of the entry that set it, where the node applied exactly that entry
    edge_leases_end_in_ms: int
    open_edge_leases: int


class Ack(Message):
    """Node to Registry, signed: applied ``leaf`` of ``namespace``, durably, every restriction in it in force."""

    mesh: str
    region: str
    node: str
    boot_id: str
    counter: int
    namespace: str
    leaf: Leaf
    outcome: str  # "applied", "stale", "quarantined", "refused"
    reason: str
    restrictions: tuple[RestrictionAck, ...]
    correlation_id: str


class AckMessage(Message):
    ack: Sealed


class SubmitVersion(Message):
    """Minter to Registry: the version exists as stored bytes, re-opened.  ``holders``: regions that have the blob."""

    namespace: str
    key: str
    version: int
    kid: str
    digest: str
    parent: str
    holders: tuple[str, ...]
    correlation_id: str


class SubmitRewrap(Message):
    namespace: str
    key: str
    version: int
    revision: int
    digest: str
    parent: str
    correlation_id: str


class ForwardRestriction(Message):
    """Node to Registry: a local suspension that wants to become an entry.  Repeated until ``Recorded``.

    ``options``: its arguments beside the scope, as whoever signed ``authority`` signed them.
    """

    command_id: str
    scope: str
    action: str  # "suspend" or "revoke"
    actor: str
    correlation_id: str
    authority: tuple[dict[str, Any], ...] = ()
    options: dict[str, Any] = {}


class Recorded(Message):
    """Registry to node: the command is entry (epoch, seq) of ``namespace``, or was refused for good."""

    command_id: str
    namespace: str
    epoch: int
    seq: int
    refused: str = ""


class ReprobeL1(Message):
    """Registry to the tenant's other nodes: L1 denied one of you; every replica must succeed from there within 10 s."""

    namespace: str
