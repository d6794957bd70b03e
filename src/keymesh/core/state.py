"""A Core node's state: its configuration, one holding for each namespace, timers, and draws of entropy.

Holds data and the small mechanics that every rule uses; decides nothing.  All of it is memory: what must survive is
in the records that ``Persist`` leaves (see ``records``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any, Final

from keymesh.control.entry import FIRST_EPOCH, Leaf
from keymesh.control.heads import HeadsTree
from keymesh.control.messages import Sealed, StandbyGrant, StandbyRequest
from keymesh.control.rows import KeyRow
from keymesh.control.signing import Suite
from keymesh.control.state import NamespaceState
from keymesh.core.budget import Account
from keymesh.core.clock_watch import ClockWatch
from keymesh.core.events import KeyMinted, KeyRef, KeyRewrapped
from keymesh.core.lease_book import LeaseBook
from keymesh.core.may import Grantor
from keymesh.core.records import EdgeLeaseRecord, LocalRecord, OverlayRecord, PurgeRecord, SliceRecord
from keymesh.core.views import EMPTY_MESH, EMPTY_TENANT, MeshView, Restriction, TenantView
from keymesh.ledger.maptree import MapTree
from keymesh.model.ids import MESH_NAMESPACE, ZERO_DIGEST, Digest, KeyId
from keymesh.model.limits import LEAVES_IN_FULL_MAX
from keymesh.model.machine import Address, BootMark, Note, Persist, node_address
from keymesh.model.scope import Scope
from keymesh.model.time import NEVER, Instant
from keymesh.orbital.walk import Walk

Puts = tuple[tuple[str, Any], ...]
LocalKey = tuple[str, str]
"""Of a local suspension: (namespace, command id)."""
Out = list[Any]
"""Effects of the step in hand, in order; rules append to it."""

NO_LEAF: Final = Leaf(epoch=0, seq=0, entry_hash=ZERO_DIGEST, state=ZERO_DIGEST)
NO_MARK: Final = BootMark("", 0)
START: Final = Instant(0)
PERSISTING_MAX: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """``root_keys`` and ``root_threshold`` are the pinned trust anchor.  ``minter``: this node is its region's one
    fenced minter.  ``heartbeat_ms`` counts until the mesh's own settings are known.  ``leaves_in_full``: a manifest of
    more leaves is walked, not sent.  ``watch_clock``: off only where time is made of ticks, for a search."""

    mesh: str
    region: str
    node: str
    suite: Suite
    root_keys: Mapping[KeyId, str]
    root_threshold: int
    minter: bool = True
    heartbeat_ms: int = 1_000
    leaves_in_full: int = LEAVES_IN_FULL_MAX
    watch_clock: bool = True

    @property
    def address(self) -> Address:
        return node_address(self.region, self.node)


@dataclass(frozen=True, slots=True)
class Lease:
    """A governance lease; dead at ``until``."""

    until: Instant
    grantor: Grantor


@dataclass(slots=True)
class Overlay:
    """Restrictions in force beyond the applied state.  ``recorded``: durable, and so may be acknowledged."""

    record: OverlayRecord
    restrictions: dict[str, Restriction]
    recorded: bool


@dataclass(slots=True)
class L1State:
    """``until`` None: never proved in this life.  ``denied_at``: when a denial was learned; only a success of every
    replica, begun later, ends it.  ``proof_due``: every replica must have succeeded by then."""

    until: Instant | None = None
    denied_at: Instant | None = None
    proof_due: Instant | None = None
    probing_since: Instant | None = None


@dataclass(slots=True)
class Holding:
    """One namespace as this node holds it.  ``leaf`` is of the state that is applied *and* durable."""

    namespace: str
    applied: NamespaceState | None = None
    leaf: Leaf = NO_LEAF
    view: TenantView = EMPTY_TENANT
    overlay: Overlay | None = None
    restrictions: dict[str, Restriction] = field(default_factory=dict)  # of the view and the overlay together
    closed: dict[str, tuple[int, int]] = field(default_factory=dict)  # reason -> (epoch, seq) of what closed it
    lease: Lease | None = None
    l1: L1State = field(default_factory=L1State)
    loaded: dict[tuple[str, int], KeyRef] = field(default_factory=dict)
    loading_since: Instant | None = None
    load_failures: int = 0
    load_not_before: Instant = START
    steady: bool = False  # everything wanted is loaded, and nothing is to be made: a renewal alone asks for no work
    close_timer: Instant = NEVER
    probe_timer: Instant = NEVER
    applied_at: Instant = START


@dataclass(slots=True)
class LocalSuspension:
    """``position``: where the Registry says that its entry is, once known."""

    record: LocalRecord
    scope: Scope
    recorded: bool = False
    position: tuple[int, int] | None = None
    refused: bool = False

    @property
    def key(self) -> LocalKey:
        return self.scope.namespace, self.record.command_id


@dataclass(frozen=True, slots=True)
class Outstanding:
    """The one heartbeat whose answer counts."""

    nonce: str
    sent_at: Instant
    manifest: MapTree
    leaves: Mapping[str, Leaf]  # as applied when it was sent

    @property
    def manifest_root(self) -> Digest:
        return self.manifest.root


@dataclass(frozen=True, slots=True)
class Offer:
    """What the newest accepted answer offers: ``ttl_ms`` from ``start`` to each namespace that has its leaf."""

    start: Instant
    ttl_ms: int
    leaves: Mapping[str, Leaf]


@dataclass(frozen=True, slots=True)
class HeadsWalk:
    """The heads tree of the newest accepted answer is being walked; ``answered`` is the heartbeat, and what the walk
    finds is offered from ``start`` on."""

    walk: Walk
    answered: Outstanding
    start: Instant
    ttl_ms: int


@dataclass(slots=True)
class StandbyAsk:
    """The one request whose grants count; ``done``: a majority has granted.  ``refusals`` are for people."""

    request: StandbyRequest
    sent_at: Instant
    grants: dict[Address, StandbyGrant] = field(default_factory=dict)
    refusals: dict[str, str] = field(default_factory=dict)
    done: bool = False


@dataclass(frozen=True, slots=True)
class StandbyOffer:
    """What a majority of voters offers: ``ttl_ms`` from ``start`` to each namespace that has its head, by blind."""

    epoch: int
    start: Instant
    ttl_ms: int
    heads: Mapping[str, Leaf]


@dataclass(slots=True)
class OpenRevocation:
    """Leases that an Edge was told to drop and has not yet acknowledged."""

    revocation_id: str
    edge: Address
    tenant: str
    service: str
    epoch: int
    seq: int
    correlation_id: str
    lease_ids: set[str]


@dataclass(frozen=True, slots=True)
class Unrecorded:
    """A restriction in force that could not be recorded; ``namespaces`` are closed until it is."""

    pending: Any
    namespaces: tuple[str, ...]


@dataclass(slots=True)
class Purge:
    """The purge of a tenant by entry ``seq``.  ``running``: the shell is at it; ``record``: what is durable of it, of
    this life or an earlier one; ``done``: in this life; ``noted``: a replica of the Registry has the receipt;
    ``pause_ms``: between later ones."""

    seq: int
    running: bool = False
    record: PurgeRecord | None = None
    done: bool = False
    noted: bool = False
    pause_ms: int = 0


@dataclass(slots=True)
class MintState:
    """Minting and re-wrapping in work, by (namespace, key, version)."""

    in_flight: dict[tuple[str, str, int], Instant] = field(default_factory=dict)
    minted: dict[tuple[str, str, int], KeyMinted] = field(default_factory=dict)
    rewrapping: dict[tuple[str, str, int], Instant] = field(default_factory=dict)
    rewrapped: dict[tuple[str, str, int], KeyRewrapped] = field(default_factory=dict)
    not_before: dict[tuple[str, str, int], Instant] = field(default_factory=dict)
    failures: dict[tuple[str, str, int], int] = field(default_factory=dict)


@dataclass(slots=True)
class NodeState:
    """Everything one Core node knows.  Made by ``machine.new_node``; changed by ``machine.step`` alone."""

    config: NodeConfig
    mesh: Holding = field(default_factory=lambda: Holding(MESH_NAMESPACE))
    mesh_view: MeshView = EMPTY_MESH
    tenants: dict[str, Holding] = field(default_factory=dict)
    locals: dict[LocalKey, LocalSuspension] = field(default_factory=dict)
    covered: dict[tuple[str, str | None, int | None], frozenset[str]] = field(default_factory=dict)  # see context
    wanted: dict[str, tuple[TenantView, Mapping[tuple[str, int], KeyRow]]] = field(default_factory=dict)  # see loading
    # this life
    booted: bool = False
    life: str = ""
    mark: BootMark = NO_MARK
    booted_at: Instant = START
    entropy: bytes = b""
    draws: int = 0
    counter: int = 0
    tokens: int = 0
    sealed: bool = True
    ivk_generation: int = 0
    ivk_rotating_since: Instant | None = None
    store_schema: int = 0  # 0: not looked at yet
    store_newest: int = 0
    store_migrating_since: Instant | None = None
    # freshness
    manifest: HeadsTree = field(default_factory=HeadsTree)
    leaves: dict[str, Leaf] = field(default_factory=dict)  # as applied; replaced, never changed
    drift: dict[str, Digest] = field(default_factory=dict)
    snapshot_at: Instant = NEVER
    snapshot_asked_at: Instant | None = None
    outstanding: Outstanding | None = None
    offer: Offer | None = None
    standby_ask: StandbyAsk | None = None
    standby_offer: StandbyOffer | None = None
    standby_said: dict[Address, tuple[StandbyGrant, Sealed]] = field(default_factory=dict)  # each voter's last grant
    handing_in: int = 0  # how often yet the Registry is to be told of them
    liars: set[Address] = field(default_factory=set)  # voters with a proof of a lie on file
    tails: dict[tuple[str, int], NamespaceState] = field(default_factory=dict)  # by epoch, to be handed in
    fetching: set[str] = field(default_factory=set)  # namespaces that other regions are asked for
    walk: HeadsWalk | None = None
    clock: ClockWatch = field(default_factory=ClockWatch)
    answered_sent_at: Instant | None = None
    answered_root: Digest = ZERO_DIGEST
    index_seen: int = 0
    greeted: bool = False
    greetings: int = 0  # to be said yet, since the Registry was lost
    heartbeat_at: Instant = START
    # work
    persisting: dict[str, Any] = field(default_factory=dict)  # token -> what waits for it
    unrecorded: dict[str, Unrecorded] = field(default_factory=dict)
    retrying: bool = False
    edge_leases: LeaseBook[EdgeLeaseRecord] = field(default_factory=LeaseBook)  # unsettled; ``end`` is of this life
    edge_returned: LeaseBook[EdgeLeaseRecord] = field(default_factory=LeaseBook)  # settled before their end, by holders
    accounts: dict[tuple[str, str], Account] = field(default_factory=dict)  # (tenant, service or "") -> what is spent
    slices: LeaseBook[SliceRecord] = field(default_factory=LeaseBook)  # of which something may still come back
    quarantined: dict[str, set[str]] = field(default_factory=dict)  # namespace -> entry hashes kept as evidence
    edge_gone: list[str] = field(default_factory=list)  # record names to delete with the next heartbeat
    waiting: dict[str, dict[Address, str]] = field(default_factory=dict)  # tenant -> Edge refused -> its service
    revocations: dict[str, OpenRevocation] = field(default_factory=dict)
    revoking: bool = False
    purges: dict[str, Purge] = field(default_factory=dict)  # by tenant
    mint: MintState = field(default_factory=MintState)
    # timers
    timers: list[tuple[Instant, int, str, str]] = field(default_factory=list)
    timer_count: int = 0
    woken_at: Instant = NEVER

    @property
    def epoch(self) -> int:
        return self.mesh.leaf.epoch or FIRST_EPOCH

    @property
    def interval_ms(self) -> int:
        settings = self.mesh_view.settings
        return self.config.heartbeat_ms if settings is None else settings.heartbeat_ms

    def holding(self, namespace: str) -> Holding | None:
        return self.mesh if namespace == MESH_NAMESPACE else self.tenants.get(namespace)

    def holding_or_new(self, namespace: str) -> Holding:
        if namespace == MESH_NAMESPACE:
            return self.mesh
        found = self.tenants.get(namespace)
        if found is None:
            found = self.tenants[namespace] = Holding(namespace)
        return found

    def restrictions_changed(self) -> None:
        """A restriction or a local suspension came or went: nothing remembered about them holds."""
        self.covered.clear()
        self.wanted.clear()

    def draw(self, what: str) -> str:
        """128 bits in hex that nobody can foretell and that never come again in this life."""
        self.draws += 1
        return hashlib.sha256(self.entropy + f"{what}/{self.draws}".encode()).hexdigest()[:32]

    def next_counter(self) -> int:
        self.counter += 1
        return self.counter

    def next_token(self, what: str) -> str:
        self.tokens += 1
        return f"{what}/{self.tokens}"

    def persist(self, what: str, pending: Any, puts: Puts, deletes: tuple[str, ...], out: Out) -> None:
        """Record; ``pending`` goes on once that is durable (None: nothing does)."""
        token = self.next_token(what)
        if pending is not None:
            self.persisting[token] = pending
            if len(self.persisting) > PERSISTING_MAX:  # records that an earlier failure of their step left undone
                del self.persisting[next(iter(self.persisting))]
        out.append(Persist(token, puts, deletes))

    def at(self, when: Instant, kind: str, what: str = "") -> None:
        """Have timer ``kind`` fire for ``what`` at ``when``.  Timers are never taken back: the one that fires looks
        whether there is still something to do."""
        self.timer_count += 1
        heappush(self.timers, (when, self.timer_count, kind, what))

    def due(self, now: Instant) -> list[tuple[str, str]]:
        """Timers that are due, oldest first, each once."""
        found: list[tuple[str, str]] = []
        while self.timers and self.timers[0][0] <= now:
            _, _, kind, what = heappop(self.timers)
            found.append((kind, what))
        return found


def spread(seed: str, low_ms: int, high_ms: int) -> int:
    """A number in low_ms..high_ms that depends on ``seed`` alone: jitter without chance."""
    if high_ms <= low_ms:
        return low_ms
    return low_ms + int.from_bytes(hashlib.sha256(seed.encode()).digest()[:4], "big") % (high_ms - low_ms + 1)


def note(out: Out, name: str, correlation_id: str = "", **fields: str | int) -> None:
    """Append a Note, its fields sorted by name."""
    out.append(Note(name, correlation_id, tuple(sorted(fields.items()))))
