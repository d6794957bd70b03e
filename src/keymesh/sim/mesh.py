"""Builds a seed's mesh: the production machines wired into a world, genesis in the log, tenants on their way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from functools import partial
from typing import Any, Final

import msgspec

from keymesh.control import build, trust, voter
from keymesh.control.checks import EVERY_KIND
from keymesh.control.entry import SignedEntry
from keymesh.control.evidence import Statement
from keymesh.control.kinds import OFFICER_KINDS, Genesis
from keymesh.control.messages import (
    AnswerMessage,
    CountersignRequest,
    Poll,
    StandbyGrantMessage,
    StandbyRequest,
    VoterLog,
)
from keymesh.control.rows import DelegationRow, NodeRow, RegionRow, RootRow, SettingsRow, VotersRow
from keymesh.core import machine as core_machine
from keymesh.core.events import Reconnected, Unsealed
from keymesh.core.records import state_name
from keymesh.core.state import NodeConfig
from keymesh.edge import machine as edge_machine
from keymesh.edge import policy
from keymesh.edge.snapshot import Connected, EdgeConfig, Publish
from keymesh.model.ids import MESH_NAMESPACE, MeshName
from keymesh.model.machine import REGISTRY, Address, Persisted, edge_address, node_address
from keymesh.model.time import Instant
from keymesh.registry import commands
from keymesh.registry import machine as registry_machine
from keymesh.registry.events import AppendLog, CertificateReady, Command, LogMoved, Project, ReadLog
from keymesh.registry.state import RegistryConfig
from keymesh.sim.client import DOMAIN, MESH, Clients
from keymesh.sim.clocks import WALL_EPOCH_MS, HostClock
from keymesh.sim.draw import mix, stream_of
from keymesh.sim.faults import Faults
from keymesh.sim.keys import KeyShells
from keymesh.sim.ledger import Fact
from keymesh.sim.options import NODE, EdgeSpec, Options
from keymesh.sim.plan import COMMANDS, Item, edge_name
from keymesh.sim.process import Machine, Process
from keymesh.sim.suite import FakeSealed, FakeSuite
from keymesh.sim.world import World

UNSEAL_MS: Final = 40
_RECONNECT_MS: Final = 250
_RETRY_MS: Final = 2_000
MESH_RECORD: Final = state_name(MESH_NAMESPACE)
SALT: Final = "5a" * 32
_HINT_MS: Final = 100  # how often a replica looks whether the log has moved
REPLICAS: Final = ("registry-2",)


class Mesh:
    """A world with everything in it, ready to run."""

    def __init__(self, options: Options, plan: tuple[Item, ...]) -> None:
        self.options = options
        self.plan = plan
        self.world = world = World(options)
        self.suites: dict[str, FakeSuite] = {}
        self.roots = tuple(self.suite(f"root-{i}") for i in range(3))
        self.officers = tuple(self.suite(f"officer-{i}") for i in range(3))
        self.root_keys = {s.key_id: s.public_hex for s in self.roots}
        self.registry_suite = self.suite("registry")
        self.registry_suites = [self.registry_suite, *(self.suite(n) for n in REPLICAS[: options.registries - 1])]
        self.pins = trust.Pins(mesh=MESH, root_keys=self.root_keys, threshold=2)
        self.keys = KeyShells(world)
        signers = {t.name: self.suite(f"signer-{t.name}") for t in options.tenants}
        self.clients = Clients(world, self.officers[:2], signers)
        self.faults = Faults(world, self.keys, self._foreign_append)
        self.on_publish: list[Callable[[Machine, str], None]] = []
        self.on_certificate: list[Callable[[Machine, CertificateReady], None]] = []
        self.foreign = 0
        world.voter_messages = frozenset((CountersignRequest, Poll, StandbyRequest, VoterLog))
        world.handlers |= {
            AppendLog: self._append,
            ReadLog: self._read,
            Project: lambda m, e: None,
            CertificateReady: self._certificate,
            Publish: self._publish,
        }
        world.corrupt = corrupted
        world.after.setdefault(Persisted, []).append(self._persisted)
        world.after.setdefault(AnswerMessage, []).append(self._heard)
        self._build()
        world.on_boot.append(self._booted)
        if options.registries > 1:
            world.on_logged.append(self._hint)

    def suite(self, name: str) -> FakeSuite:
        return self.suites.setdefault(name, FakeSuite(name))

    # --- building ----------------------------------------------------------------------------------------

    def _build(self) -> None:
        o = self.options
        rates = dict(o.ppm)
        self._add_registry(
            "registry", o.registry_regions[0], self.registry_suite, HostClock("registry", rates["registry"], 3)
        )
        for name, region, suite in zip(REPLICAS, o.registry_regions[1:], self.registry_suites[1:], strict=False):
            self._add_registry(name, region, suite, HostClock(name, -rates["registry"], 11))
        for region in o.regions:
            self._add_region(region, HostClock(region, rates[region], 5))
        for edge in o.edges:
            self._add_edge(edge, HostClock(edge_name(edge), -rates[edge.region], 7))

    def _add_registry(self, name: str, region: str, suite: FakeSuite, host: HostClock) -> None:
        proc = self.world.add_process(name, region, host)
        config = RegistryConfig(MeshName(MESH), suite, self.root_keys, 2, leaves_in_full=self.options.leaves_in_full)
        self.world.add_machine(
            proc, "registry", Address(name), partial(registry_machine.new_registry, config), registry_machine.step
        )

    def _add_region(self, region: str, host: HostClock) -> None:
        world = self.world
        proc = world.add_process(region, region, host)
        address = node_address(region, NODE)
        suite = self.suite(f"node-{region}")
        config = NodeConfig(
            mesh=MESH, region=region, node=NODE, suite=suite, root_keys=self.root_keys, root_threshold=2,
            heartbeat_ms=self.options.heartbeat_ms, leaves_in_full=self.options.leaves_in_full,
            watch_clock=self.options.watch_clock,
        )  # fmt: skip
        world.add_machine(proc, "node", address, partial(core_machine.new_node, config), core_machine.step)
        if region in self.options.voters:
            self.add_voter(region)

    def add_voter(self, region: str) -> None:
        """A voter's machine in the process of that region's Core; whether it has a seat the log says."""
        config = voter.VoterConfig(mesh=MESH, region=region, suite=self.suite(f"node-{region}"), node=NODE)
        build = partial(voter.new_voter, config)
        self.world.add_machine(self.world.processes[region], "voter", node_address(region, NODE), build, voter.step)

    def _add_edge(self, edge: EdgeSpec, host: HostClock) -> None:
        world = self.world
        name = edge_name(edge)
        proc = world.add_process(name, edge.region, host)
        address = edge_address(edge.region, edge.tenant, edge.service, edge.instance)
        world.add_machine(proc, "edge", address, partial(self._new_edge, edge, proc), edge_machine.step)

    def _new_edge(self, edge: EdgeSpec, proc: Process) -> Any:
        suite = self.suite(f"{proc.name}#{proc.life}")  # each life has its own key
        config = EdgeConfig(
            region=edge.region,
            tenant=edge.tenant,
            service=edge.service,
            instance=edge.instance,
            cores=(node_address(edge.region, NODE),),
            suite=suite,
            signing_key=suite.public_hex,
            verify_policy=PolicyCheck(self.registry_suites),
        )
        return edge_machine.new_edge(config)

    # --- starting ----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Genesis into the log, every process booted, the tenants asked for, the plan scheduled."""
        world = self.world
        world.log.put((self._genesis(),))
        for proc in list(world.processes.values()):
            world.boot(proc)
        for i, tenant in enumerate(self.options.tenants):
            world.schedule(1_000 + i * 50, lambda t, _: self.clients.onboard(t), tenant)
        world.schedule(10_000, lambda a, b: setattr(world.network, "quiet", False))
        for item in self.plan:
            world.at(item.at_ms, self._run_item, item)

    def _run_item(self, item: Item, _: Any) -> None:
        if item.what in COMMANDS:
            self.clients.run(item)
        else:
            self.faults.run(item)

    def _genesis(self) -> SignedEntry:
        o = self.options
        keys = {k: v for suite in self.registry_suites for k, v in _plain(suite).items()}
        online = DelegationRow(keys=keys, threshold=1, kinds=(EVERY_KIND,), scope="any")
        officers = DelegationRow(
            keys={s.key_id: s.public_hex for s in self.officers},
            threshold=2,
            kinds=OFFICER_KINDS,
            scope="any",
        )
        args = Genesis(
            root=RootRow(version=1, keys={str(k): v for k, v in self.root_keys.items()}, threshold=2),
            delegations={"registry": online, "officers": officers},
            settings=SettingsRow(
                ttl_ms=o.ttl_ms,
                heartbeat_ms=o.heartbeat_ms,
                l1_probe_ms=o.l1_probe_ms,
                l1_ttl_ms=o.l1_ttl_ms,
                snapshot_ms=o.snapshot_ms,
                salt=SALT,
                development=True,
            ),
            regions={r: RegionRow(domain=DOMAIN, failure_domain=r, ca_fingerprint="ab" * 32) for r in o.regions},
            nodes={f"{r}/{NODE}": NodeRow(signing_key=self.suite(f"node-{r}").public_hex) for r in o.regions},
            voters=VotersRow(set_id=1, regions=tuple(sorted(o.voters))),
        )
        founded = build.make_genesis(
            args, mesh=MESH, root_signers=self.roots[:2], registry=self.registry_suite, issued_at=WALL_EPOCH_MS
        )
        return founded.head

    # --- shells that are nobody else's -----------------------------------------------------------------------

    def _hint(self, fact: Fact) -> None:
        """Replicas see the log move, sooner or later; some hints are lost, and a late one may be old."""
        for n, m in enumerate(self.world.registries):
            draw = mix(self.options.seed, stream_of("hint", str(n)), fact.index)
            if draw & 7:
                late_ms = 4_000 if draw & 0xF0 == 0 else 0
                self.world.schedule(
                    1 + (draw >> 8) % _HINT_MS + late_ms, self.world.reply, (m, m.proc.life), LogMoved(fact.index)
                )

    def _append(self, m: Machine, e: AppendLog) -> None:
        self.world.log.append(e.entries, e.token, self.world.reply, (m, m.proc.life))

    def _read(self, m: Machine, e: ReadLog) -> None:
        self.world.log.read(e.after_index, e.token, self.world.reply, (m, m.proc.life))

    def _certificate(self, m: Machine, e: CertificateReady) -> None:
        for hook in self.on_certificate:
            hook(m, e)

    @staticmethod
    def statement_of(e: CertificateReady) -> Statement:
        statement: Statement = e.certificate.statement.message
        return statement

    def _publish(self, m: Machine, e: Publish) -> None:
        m.published = e.lease
        for note in self.on_publish:
            note(m, e.reason)
        for hook in self.world.on_publish:
            hook(m)

    def _booted(self, proc: Process) -> None:
        """A Core unseals itself after a moment; Edges (re)connect."""
        world = self.world
        machine = proc.machines[0]
        if machine.kind == "node":
            generation = self.keys.ivk.setdefault(proc.region, 1)
            world.schedule(UNSEAL_MS, world.reply, (machine, proc.life), Unsealed(generation))
            self._seat(machine)
            for other in world.machines.values():
                if other.kind == "edge" and other.proc.region == proc.region:
                    world.schedule(60, world.deliver, other, Connected(machine.address))
        elif machine.kind == "registry":
            for i, region in enumerate(self.options.regions):
                life = (machine, proc.life)
                world.schedule(_RECONNECT_MS + 90 * i, self._reconnect, node_address(region, NODE), life)
        elif machine.kind == "edge":
            world.schedule(5, world.reply, (machine, proc.life), Connected(node_address(proc.region, NODE)))

    def _reconnect(self, address: Any, life: Any) -> None:
        """A Core tries until the Registry's new life answers."""
        world = self.world
        node = world.machines[address]
        registry, number = life
        if registry.proc.life != number:
            return
        if registry.proc.alive and world.network.connected(registry.proc.name, node.proc.name):
            world.deliver(node, Reconnected())
        else:
            world.schedule(_RETRY_MS, self._reconnect, address, life)

    def _persisted(self, m: Machine, event: Persisted) -> None:
        """A Core tells the voter in its process of every mesh state that it has recorded."""
        if m.kind == "node":
            self._seat(m)

    def _heard(self, m: Machine, event: Any) -> None:
        """A Core tells the voter in its process when the Registry has answered it."""
        seated, sent_at = self.world.voters.get(m.address), m.state.answered_sent_at
        if seated is not None and seated.state is not None and sent_at is not None:
            self.world.run(seated, voter.RegistryHeard(sent_at))

    def _seat(self, m: Machine) -> None:
        seated = self.world.voters.get(m.address)
        held = m.disk.get(MESH_RECORD)
        if seated is not None and held is not None:
            seat = voter.seat_of(held, m.proc.region, epoch=held.head.entry.epoch)
            if seated.state is not None and seated.state.seat != seat:  # None: the process is still booting
                self.world.run(seated, voter.MeshApplied(seat))

    def _foreign_append(self, tenant: str) -> bool:
        """Another Registry replica appends an entry; whatever ours has under way conflicts."""
        registry = self.world.machines[REGISTRY]
        if registry.state is None or self.world.log.down:
            return False
        space = registry.state.spaces.get(tenant)
        mesh = registry.state.spaces.get(MESH_NAMESPACE)
        head = self.world.log.heads.get(tenant)
        if space is None or mesh is None or head is None or space.head is None or space.head.hash != head.hash:
            return False
        self.foreign += 1
        command = Command(
            f"foreign-{self.foreign}", tenant, "tenant.labels", {"labels": {"f": "1"}}, "admin", "foreign"
        )
        signed, _ = commands.plan_entry(
            command, head=head, rows=space.rows, mesh_head=mesh.head, mesh_rows=mesh.rows, signers=space.signers,
            pins=self.pins, epoch=1, suite=self.registry_suite, now=Instant(WALL_EPOCH_MS + self.world.t),
        )  # fmt: skip
        return self.world.log.put((signed,)) is not None


def _plain(suite: FakeSuite) -> dict[str, str]:
    return {str(k): v for k, v in suite.keys.items()}


class PolicyCheck:
    """``edge.policy`` over the simulation's suite; an entry that was found good once is not parsed again."""

    def __init__(self, registries: Sequence[FakeSuite]) -> None:
        self._registry = registries[0]
        self._keys = {r.key_id: r.public_hex for r in registries}

    def __call__(self, grant: Any) -> None:
        envelope = grant.policy_entry
        key = (envelope.payload, grant.tenant, grant.service, grant.policy)
        if key not in _GOOD_POLICIES:
            policy.verify_policy(grant, mesh=MESH, registry_keys=self._keys, suite=self._registry)
            if len(_GOOD_POLICIES) > 4_096:
                _GOOD_POLICIES.clear()
            _GOOD_POLICIES.add(key)


_GOOD_POLICIES: set[Any] = set()


def corrupted(message: Any, draw: int) -> Any:
    """``message`` with its seal broken, or nothing where the transport would have noticed."""
    fields = ("grant",) if type(message) is StandbyGrantMessage else ("heartbeat", "answer", "ack", "countersignature")
    for field in fields:
        sealed = getattr(message, field, None)
        if sealed is not None:
            forged = FakeSealed(copy(sealed.message), sealed.key_id, sealed.proof)
            return msgspec.structs.replace(message, **{field: forged})
    return None


def genuine(sealed: FakeSealed) -> bool:
    """Whether nobody tampered with it on its way."""
    return sealed.proof.message is sealed.message
