"""Everything the Registry's machine holds in memory, and its configuration.

All of it is made anew from the log, the records and the nodes' heartbeats; nothing here is the last copy of anything.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from keymesh.control.entry import FIRST_EPOCH, Leaf, SignedEntry
from keymesh.control.heads import HeadsTree
from keymesh.control.messages import Sealed, VoterRead
from keymesh.control.rows import PolicyRow, SettingsRow, SignersRow, VotersRow
from keymesh.control.signing import Suite
from keymesh.control.standby import StandbyLie
from keymesh.control.state import NamespaceState, Supported
from keymesh.ledger.maptree import MapTree
from keymesh.model.ids import MESH_NAMESPACE, Digest, KeyId, MeshName, Namespace
from keymesh.model.limits import LEAVES_IN_FULL_MAX
from keymesh.model.machine import Address
from keymesh.model.time import NEVER, Instant
from keymesh.orbital.dispatch import MERGE_AFTER, NodeQueue
from keymesh.registry.events import Command
from keymesh.registry.records import CommitRecord, EvidenceRecord, KillRecord, ParkedRecord, WaitRecord


@dataclass(frozen=True, slots=True)
class RegistryConfig:
    """``root_keys`` (key id -> raw public key, hex) and ``root_threshold`` are the pins of the mesh's root.
    ``leaves_in_full``: a heads tree of more leaves is walked, not sent."""

    mesh: MeshName
    suite: Suite
    root_keys: Mapping[KeyId, str]
    root_threshold: int
    merge_after: int = MERGE_AFTER
    leaves_in_full: int = LEAVES_IN_FULL_MAX


@dataclass(slots=True)
class Version:
    """Rows of a namespace after one entry, and the entries that they rest on, without commit proofs.

    ``shown``: the state that was last made of it, when the namespace had ``proofs`` commit proofs.
    """

    rows: dict[str, bytes]
    support: tuple[Supported, ...]
    shown: NamespaceState | None = None
    proofs: int = 0


@dataclass(slots=True)
class Space:
    """One namespace as the log has it.  ``entries[i]`` has seq ``i + 1``; ``offered`` is a seq, 0 for none."""

    name: Namespace
    entries: list[SignedEntry] = field(default_factory=list)
    rows: dict[str, bytes] = field(default_factory=dict)
    support: tuple[Supported, ...] = ()
    versions: dict[int, Version] = field(default_factory=dict)
    uncommitted: deque[int] = field(default_factory=deque)  # oldest first; the first one is being countersigned
    resumes: deque[int] = field(default_factory=deque)  # those of ``uncommitted`` that are resumes
    commits: dict[int, CommitRecord] = field(default_factory=dict)
    offered: int = 0
    restricted: int = 0  # seq of the newest restriction
    shown: int = 0  # seq of the leaf in heads trees; beyond ``offered`` where a restriction stands there
    policy: PolicyRow | None = None
    signers: SignersRow | None = None

    @property
    def seq(self) -> int:
        return len(self.entries)

    @property
    def head(self) -> SignedEntry | None:
        return self.entries[-1] if self.entries else None


@dataclass(slots=True)
class RegionHeads:
    """The leaves of the namespaces that one region may hold; ``shown`` is a copy that others may keep."""

    tree: HeadsTree = field(default_factory=HeadsTree)
    shown: Mapping[str, Leaf] | None = None

    def put(self, namespace: str, leaf: Leaf) -> None:
        self.tree.put(namespace, leaf)
        self.shown = None

    @property
    def root(self) -> Digest:
        return self.tree.root

    def show(self) -> Mapping[str, Leaf]:
        if self.shown is None:
            self.shown = self.tree.leaves
        return self.shown


@dataclass(frozen=True, slots=True)
class Beat:
    """A heartbeat that waits for its answer."""

    nonce: str
    arrived_at: Instant
    manifest_root: str


@dataclass(frozen=True, slots=True)
class ToldHeads:
    """The heads tree that a node was answered with, to walk; ``manifest_root`` is that of the node's heartbeat."""

    tree: MapTree
    leaves: Mapping[str, Leaf]
    manifest_root: str


@dataclass(slots=True)
class Session:
    """What is known of one node.  ``reported`` is by heartbeat, ``applied`` by heartbeat or acknowledgement."""

    address: Address
    region: str
    node: str
    keys: dict[KeyId, str]
    queue: NodeQueue = field(default_factory=NodeQueue)
    due_at: Instant = field(default=NEVER)  # when the queue wants to be looked at, as of the last ``sessions.push``
    applied: dict[str, Leaf] = field(default_factory=dict)
    reported: Mapping[str, Leaf] = field(default_factory=dict)
    known: bool = False
    told: ToldHeads | None = None
    parked: set[str] = field(default_factory=set)  # namespaces with a record that says why they were parked
    in_step_with: str | None = None  # the heads root that its manifest last equalled
    pending: frozenset[tuple[str, str, int]] = frozenset()
    acked_at: dict[str, Instant] = field(default_factory=dict)
    heard_at: Instant | None = None
    greeted_at: Instant | None = None
    greeted_as: str = ""  # the boot id of the last Hello
    boot_id: str = ""
    counter: int = 0
    old_boots: dict[str, int] = field(default_factory=dict)  # boot id -> its last counter, of the last few lives
    ivk_generation: int = 0
    store_schema: int = 0  # of its key store, as it said; 0: it never did
    store_newest: int = 0
    modes: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Pending:
    """A command on its way into the log.  ``reply_to``: a node that gets ``Recorded``; ``internal``: nobody waits.

    ``after_seq``: the head of its namespace when it was asked for; ``after_ids``: restrictions on their way then.
    """

    command: Command
    reply_to: Address | None = None
    internal: bool = False
    after_seq: int = 0
    after_ids: frozenset[str] = frozenset()


@dataclass(slots=True)
class Append:
    """The one append that is out.  ``index`` is set once it is known to be in the log there."""

    token: str
    group: list[tuple[Pending, SignedEntry]]
    rows: dict[Digest, dict[str, bytes]]  # entry hash -> rows after it
    sent_at: Instant
    index: int | None = None
    unknown: bool = False


@dataclass(slots=True)
class Read:
    """The one read that is out, begun at ``began_at``, and who waits for it."""

    token: str
    began_at: Instant
    beats: dict[Address, Beat]
    kills: list[tuple[str, str]]
    voters: dict[Address, VoterRead]


@dataclass(slots=True)
class Batch:
    """Heartbeats whose read is done; they wait for a majority of voters until ``deadline``."""

    beats: dict[Address, Beat]
    deadline: Instant


@dataclass(slots=True)
class Poll:
    sent_at: Instant
    voices: set[str] = field(default_factory=set)


@dataclass(slots=True)
class Countersigning:
    """The entry of a namespace that voters are being asked about."""

    seq: int
    blind: str = ""  # as the voters were told last
    voices: dict[str, Sealed] = field(default_factory=dict)
    asked_at: Instant | None = None
    persisting: bool = False


@dataclass(slots=True)
class Wait:
    """A ``tenant.destroy`` that waits.  ``before_ms`` passed in earlier lives; now it counts from ``since``, less
    ``hold_ms``, by which our clock has jumped ahead."""

    seq: int
    entry_hash: Digest
    command_id: str
    correlation_id: str
    wait_ms: int
    before_ms: int
    since: Instant
    save_at: Instant
    hold_ms: int = 0
    ask_at: Instant = field(default=Instant(0))


@dataclass(slots=True)
class Kill:
    record: KillRecord
    evidence: Mapping[str, EvidenceRecord]  # replaced, never changed, once the records are read
    persisting: bool = False
    retry_at: int = 0
    hold_ms: int = 0  # by how much our clock has jumped ahead since this record is open
    due: tuple[KillRecord, Mapping[str, EvidenceRecord], int, int] | None = None  # record, words, hold_ms -> when


@dataclass(slots=True)
class RegistryState:
    config: RegistryConfig
    booted: bool = False  # the log was read and verified
    halted: str = ""  # the log is not what it must be: why
    booted_at: Instant = field(default=Instant(0))
    life: str = ""  # prefix of this life's tokens
    clock_jumps: int = 0
    serial: int = 0
    index: int = 0
    spaces: dict[str, Space] = field(default_factory=dict)
    regions: dict[str, RegionHeads] = field(default_factory=dict)
    sessions: dict[Address, Session] = field(default_factory=dict)
    nodes_of: dict[str, list[Session]] = field(default_factory=dict)  # the same, by region
    due_sessions: set[Address] = field(default_factory=set)  # whose ``due_at`` is not NEVER
    settings: SettingsRow | None = None
    voters: VotersRow | None = None
    superseded_by: int = 0  # the highest epoch that a node of this mesh has shown
    # commands
    urgent: deque[Pending] = field(default_factory=deque)
    routine: deque[Pending] = field(default_factory=deque)
    queued_resumes: Counter[str] = field(default_factory=Counter)
    done: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)  # (ns, command) -> (seq, index)
    append: Append | None = None
    # reads and heartbeats
    read: Read | None = None
    read_retry_at: Instant | None = None
    beats: dict[Address, Beat] = field(default_factory=dict)
    kill_reads: list[tuple[str, str]] = field(default_factory=list)
    voter_reads: dict[Address, VoterRead] = field(default_factory=dict)
    moved: int = 0  # where somebody has seen the log, until a read begins
    batches: list[Batch] = field(default_factory=list)
    polls: dict[int, Poll] = field(default_factory=dict)
    poll_base: int = 0
    polled_at: Instant | None = None  # when the newest poll was sent
    majority_at: Instant | None = None  # when the newest poll that a majority answered was sent
    # commits, kill switch, keys
    countersigning: dict[str, Countersigning] = field(default_factory=dict)
    lies: dict[str, StandbyLie] = field(default_factory=dict)  # voter region -> the proof against it
    commit_records: dict[str, CommitRecord] = field(
        default_factory=dict
    )  # from earlier lives, until their entry is read
    kills: dict[tuple[str, str], Kill] = field(default_factory=dict)  # (namespace, command)
    open_kills: dict[tuple[str, int], tuple[str, str]] = field(default_factory=dict)  # (scope, seq) -> kill
    evidence: dict[tuple[str, str], dict[str, EvidenceRecord]] = field(
        default_factory=dict
    )  # by kill, then node; from earlier lives, until the entry is read
    waits: dict[str, Wait] = field(default_factory=dict)  # tenants that are to be destroyed
    wait_records: dict[str, WaitRecord] = field(default_factory=dict)  # of earlier lives, until their entry is read
    parked_records: list[ParkedRecord] = field(default_factory=list)  # from earlier lives, until their node is read
    pre_active: dict[tuple[str, str, int], tuple[Instant, int]] = field(default_factory=dict)  # since, seq
    reviewed_at: Instant = field(default=Instant(0))  # when one that had waited long enough was last looked at
    holders: dict[tuple[str, str, int], frozenset[str]] = field(default_factory=dict)
    retiring: set[str] = field(default_factory=set)  # namespaces with a binding to retire
    asked: set[tuple[str, str]] = field(default_factory=set)  # internal commands under way
    persisting: dict[str, Any] = field(default_factory=dict)  # token -> record that something waits for
    transactions: dict[str, tuple[str, ...]] = field(default_factory=dict)  # one for each step that records anything
    wake_at: Instant = NEVER  # the tick that is asked for

    @property
    def epoch(self) -> int:
        """That the log is in: its mesh head's."""
        mesh = self.spaces.get(MESH_NAMESPACE)
        return FIRST_EPOCH if mesh is None or mesh.head is None else mesh.head.entry.epoch

    def token(self, what: str) -> str:
        """A name for a request that no other life of the Registry uses."""
        self.serial += 1
        return f"{what}-{self.life}-{self.serial}"
