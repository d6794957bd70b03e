"""A Core node on a bench: the real machine over a signed mesh; disk, time, key shell and network are the test's."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, TypeVar

from keymesh.control.entry import Leaf
from keymesh.control.heads import heads_root
from keymesh.control.messages import Ack, AckMessage, Answer, AnswerMessage, Heartbeat, HeartbeatMessage
from keymesh.control.state import NamespaceState
from keymesh.core import machine
from keymesh.core.context import may_use, tenant_mode
from keymesh.core.events import DropKeys, KeyRef, KeysLoaded, LoadKeys, Unsealed
from keymesh.core.may import Verdict
from keymesh.core.state import Holding, NodeConfig, NodeState
from keymesh.model.ids import MESH_NAMESPACE
from keymesh.model.machine import (
    REGISTRY,
    Address,
    Booted,
    BootMark,
    Note,
    Persist,
    Persisted,
    PersistFailed,
    Received,
    Send,
    Tick,
    Wake,
    edge_address,
)
from keymesh.model.states import Lane, Mode, Operation
from keymesh.model.time import Instant
from keymesh.orbital.edge_messages import (
    EdgeAck,
    EdgeAckMessage,
    LeaseGrant,
    LeaseRefused,
    LeaseRequest,
    LeaseReturned,
    LeaseReturnedMessage,
    Revocation,
)
from keymesh.orbital.messages import Task
from keymesh.sim.suite import FakeSuite
from tests.unit.control.world import Mesh

M = TypeVar("M")

REGION = "us-east"
TTL_MS = 60_000
TENANT = "acme"
SERVICE = "pay"
L2_KID = hashlib.sha256(b"acme/l2/1").hexdigest()[:32]
L3_KID = hashlib.sha256(b"acme/l3/pay/1").hexdigest()[:32]


class Edge:
    """An Edge's side of the protocol, by hand."""

    def __init__(self, name: str = "e1", *, region: str = REGION, tenant: str = TENANT, service: str = SERVICE) -> None:
        self.suite = FakeSuite(f"edge-{name}")
        self.address = edge_address(region, tenant, service, name)
        self.tenant, self.service = tenant, service
        self.nonces = 0

    def request(self, **changed: Any) -> LeaseRequest:
        self.nonces += 1
        fields = {
            "tenant": self.tenant,
            "service": self.service,
            "nonce": f"n{self.nonces}",
            "signing_key": self.suite.public_hex,
            "policy_version": 0,
        }
        return LeaseRequest(**{**fields, **changed})

    def ack(self, lease_id: str, revocation_id: str, **changed: Any) -> EdgeAckMessage:
        fields = {"lease_id": lease_id, "revocation_id": revocation_id, "edge": self.address, "dropped": True}
        return EdgeAckMessage(ack=self.suite.seal(EdgeAck(**{**fields, **changed})))

    def give_back(self, lease_id: str, **changed: Any) -> LeaseReturnedMessage:
        fields = {"lease_id": lease_id, "edge": self.address}
        return LeaseReturnedMessage(returned=self.suite.seal(LeaseReturned(**{**fields, **changed})))


class Bench:
    """``disk_works``: whether records can be written.  ``loads``: whether the key shell loads what it is asked for."""

    def __init__(self, mesh: Mesh | None = None, *, region: str = REGION, minter: bool = True) -> None:
        self.mesh = mesh or furnished()
        self.region = region
        self.minter = minter
        self.now = Instant(1_000_000)
        self.boottime = 500_000
        self.boot_id = "kernel-1"
        self.disk: dict[str, Any] = {}
        self.disk_works = True
        self.crash_at_persist = False
        self.loads = True
        self.l1 = "ok"
        self.memory: set[str] = set()
        self.lives = 0
        self.out: list[Any] = []
        self.wakes: list[Instant] = []
        self.state: NodeState
        self.boot()

    # --- life --------------------------------------------------------------------------------------------------------

    def boot(self, *, unseal: bool = True) -> None:
        """A new life: memory gone, disk kept."""
        self.lives += 1
        self.wakes, self.memory = [], set()
        suite = self.mesh.nodes[self.region]
        self.state = machine.new_node(
            NodeConfig(
                mesh=self.mesh.name,
                region=self.region,
                node="n1",
                suite=suite,
                root_keys=self.mesh.pins.root_keys,
                root_threshold=2,
                minter=self.minter,
            )
        )
        mark = BootMark(self.boot_id, self.boottime)
        self.feed(Booted(records=dict(self.disk), mark=mark, entropy=bytes([self.lives]) * 32))
        if unseal:
            self.feed(Unsealed(ivk_generation=1))

    def reboot(self, *, kernel: bool = False) -> None:
        """Crash and come back; ``kernel``: as another boot of the machine."""
        if kernel:
            self.boot_id += "'"
            self.boottime = 1_000
        self.boot()

    def feed(self, event: Any) -> None:
        for effect in machine.step(self.state, self.now, event):
            self.out.append(effect)
            match effect:
                case Persist():
                    if self.crash_at_persist:
                        return
                    if not self.disk_works:
                        self.feed(PersistFailed(effect.token))
                        return
                    self.disk.update(effect.puts)
                    for name in effect.deletes:
                        self.disk.pop(name, None)
                    self.feed(Persisted(effect.token))
                case Wake():
                    self.wakes = [effect.at]
                case DropKeys():
                    self._drop(effect)
                case LoadKeys() if self.loads:
                    self.load(effect)
                case _:
                    pass

    def _drop(self, effect: DropKeys) -> None:
        self.memory = set() if effect.kids is None else self.memory - set(effect.kids)

    def load(self, effect: LoadKeys, *, started_at: int | None = None, only: tuple[KeyRef, ...] | None = None) -> None:
        """The key shell's answer: L1 is asked for L2s not in memory."""
        refs = effect.keys if only is None else only
        needs_l1 = any(ref.key == "l2" for ref in refs)
        l1 = self.l1 if needs_l1 else "unused"
        good = l1 in ("ok", "unused")
        self.memory |= {ref.kid for ref in refs} if good else set()
        self.feed(
            KeysLoaded(
                namespace=effect.namespace,
                loaded=refs if good else (),
                failed=() if good else tuple((ref, l1) for ref in refs),
                l1=l1,
                l1_started_at=Instant(self.now if started_at is None else started_at),
            )
        )

    def advance(self, ms: int) -> None:
        """Time goes by, with a Tick at each Wake."""
        end = self.now + ms
        while (due := min((w for w in self.wakes if w <= end), default=None)) is not None:
            self.boottime += max(0, due - self.now)
            self.now = Instant(max(self.now, due))
            self.wakes = [w for w in self.wakes if w > due]
            self.feed(Tick())
        self.boottime += end - self.now
        self.now = Instant(end)

    # --- what came out -----------------------------------------------------------------------------------------------

    def take(self) -> list[Any]:
        """Effects since the last look."""
        taken, self.out = self.out, []
        return taken

    def sent(self, shape: type[M]) -> list[M]:
        """Messages of ``shape`` since the last look, which this is not."""
        return [e.message for e in self.out if isinstance(e, Send) and isinstance(e.message, shape)]

    def effects(self, shape: type[M]) -> list[M]:
        return [e for e in self.out if isinstance(e, shape)]

    def heartbeat_leaf(self, namespace: str) -> Leaf:
        """As the manifest shows it."""
        return self.state.manifest.leaves[namespace]

    def sent_heartbeats(self) -> list[HeartbeatMessage]:
        return self.sent(HeartbeatMessage)

    def notes(self) -> list[str]:
        return [e.name for e in self.out if isinstance(e, Note)]

    def acks(self) -> list[Ack]:
        return [message.ack.message for message in self.sent(AckMessage)]

    def heartbeat(self) -> Heartbeat:
        """The newest heartbeat."""
        found: Heartbeat = self.sent(HeartbeatMessage)[-1].heartbeat.message
        return found

    def holding(self, tenant: str = TENANT) -> Holding:
        return self.state.tenants[tenant]

    # --- the Registry's side -----------------------------------------------------------------------------------------

    def receive(self, message: Any, sender: Address = REGISTRY) -> None:
        self.feed(Received(sender, message))

    def task(
        self, state: NamespaceState, *, mesh: NamespaceState | None = None, force: bool = False, corr: str = "corr"
    ) -> Task:
        entry = state.head.entry
        task_id = f"{entry.namespace}:{entry.epoch}:{entry.seq}:{state.head.hash[:16]}"
        return Task(task_id, Lane.ROUTINE, entry.namespace, state, corr, mesh, force)

    def give(self, state: NamespaceState, **kwargs: Any) -> None:
        self.receive(self.task(state, **kwargs))

    def give_all(self) -> None:
        """The newest state of mesh and tenant."""
        self.give(self.mesh.mesh)
        for name in sorted(self.mesh.states):
            if name != MESH_NAMESPACE:
                self.give(self.mesh.states[name])

    def beat(self) -> Heartbeat:
        """Have the node send a heartbeat now."""
        self.state.heartbeat_at = self.now
        self.state.at(self.now, "heartbeat")
        self.feed(Tick())
        return self.heartbeat()

    def leaves(self) -> dict[str, Leaf]:
        return {name: state.leaf for name, state in self.mesh.states.items()}

    def answer(
        self,
        heartbeat: Heartbeat,
        *,
        leaves: Mapping[str, Leaf] | None = None,
        by: Any = None,
        with_leaves: bool = True,
        **changed: Any,
    ) -> AnswerMessage:
        """What the Registry says to ``heartbeat``: the newest leaves, unless others are given."""
        offered = dict(self.leaves() if leaves is None else leaves)
        fields = {
            "mesh": self.mesh.name,
            "epoch": 1,
            "region": self.region,
            "node": "n1",
            "nonce": heartbeat.nonce,
            "index": 7,
            "ttl_ms": TTL_MS,
            "poll_age_ms": 0,
            "heads_root": heads_root(offered),
            "clock": "registry/0",
            "clock_ms": self.now,
        }
        answer = Answer(**{**fields, **changed})
        sealed = (by or self.mesh.registry).seal(answer)
        return AnswerMessage(answer=sealed, leaves=offered if with_leaves else None)

    def renew(self, **kwargs: Any) -> None:
        """One heartbeat, answered at once."""
        self.receive(self.answer(self.beat(), **kwargs))

    def up(self) -> Bench:
        """Everything applied, leased and loaded."""
        self.give_all()
        self.renew()
        assert self.mode() is Mode.SYNCED, tenant_mode(self.state, self.now, TENANT)
        self.take()
        return self

    # --- questions ---------------------------------------------------------------------------------------------------

    def mode(self, tenant: str = TENANT) -> Mode:
        return tenant_mode(self.state, self.now, tenant)[0]

    def may(self, op: Operation = Operation.UNWRAP, *, version: int = 1, service: str = SERVICE) -> Verdict:
        return may_use(self.state, self.now, TENANT, service, version, op)

    # --- the Edge's side ---------------------------------------------------------------------------------------------

    def lease(self, edge: Edge) -> LeaseGrant:
        """A lease for ``edge``, which must be granted."""
        self.receive(edge.request(), edge.address)
        grants = self.sent(LeaseGrant)
        assert grants, self.sent(LeaseRefused)
        return grants[-1]

    def refusal(self, edge: Edge, **changed: Any) -> str:
        before = len(self.sent(LeaseGrant))
        self.receive(edge.request(**changed), edge.address)
        assert len(self.sent(LeaseGrant)) == before
        return self.sent(LeaseRefused)[-1].code

    def revocations(self) -> list[Revocation]:
        return self.sent(Revocation)


def furnished() -> Mesh:
    """A mesh with one tenant that has one service and a version of both keys."""
    mesh = Mesh()
    mesh.furnished(TENANT)
    return mesh


def want(mesh: Mesh, key: str, version: int) -> NamespaceState:
    return mesh.do(TENANT, "key.want", {"key": key, "version": version})


def next_version(mesh: Mesh, key: str, version: int, parent: str) -> NamespaceState:
    """A further version of ``key``, wanted, made and wrapping."""
    want(mesh, key, version)
    return mesh.key_version(TENANT, key, version, parent)
