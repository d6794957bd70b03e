"""A Registry on a bench: the real machine, log, signatures and voters' keys; time and the network are the test's."""

from __future__ import annotations

from collections.abc import Coroutine, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import msgspec

from keymesh.adapters.memory_log import MemoryControlLog
from keymesh.control import commit, destruction, trust
from keymesh.control.entry import Leaf
from keymesh.control.heads import heads_root
from keymesh.control.kinds import OFFICER_KINDS, Genesis, RegionJoin, TenantCreate
from keymesh.control.log import Conflict
from keymesh.control.messages import (
    Ack,
    AckMessage,
    AnswerMessage,
    CountersignatureMessage,
    CountersignRequest,
    Heartbeat,
    HeartbeatMessage,
    Poll,
    PollAnswer,
    RestrictionAck,
    SetSealed,
)
from keymesh.control.purge_messages import PurgeReceipt, PurgeReceiptMessage
from keymesh.control.reduce_trust import OFFICERS_ROW, set_digest
from keymesh.control.rows import (
    DelegationRow,
    NodeRow,
    PolicyRow,
    RegionRow,
    RestrictionRow,
    RootRow,
    ServiceRow,
    SettingsRow,
    SignersRow,
    VotersRow,
    get,
)
from keymesh.control.signing import DsseSuite, to_plain
from keymesh.crypto.dsse import Ed25519Signer
from keymesh.model.ids import KeyId, MeshName
from keymesh.model.machine import Booted, BootMark, Note, Persist, Persisted, PersistFailed, Received, Send, Tick, Wake
from keymesh.model.machine import node_address as address
from keymesh.model.time import Instant
from keymesh.orbital.messages import Task
from keymesh.registry import machine
from keymesh.registry.events import (
    AppendConflict,
    Appended,
    AppendLog,
    AppendUnknown,
    CertificateReady,
    Command,
    CommandDone,
    LogRead,
    Project,
    ReadLog,
)

T = TypeVar("T")

MESH = MeshName("example")
REGIONS = {
    "us-east": ("us", "az1"),
    "us-west": ("us", "az2"),
    "eu-central": ("eu", "az3"),
    "eu-west": ("eu", "az4"),
}
VOTERS = ("eu-central", "us-east", "us-west")
NEW_VOTERS = ("eu-west", "us-east", "us-west")
TTL_MS = 60_000
HEARTBEAT_MS = 10_000


def signer(name: str) -> Ed25519Signer:
    return Ed25519Signer.from_seed(name.encode().ljust(32, b"."))


def keys_of(*names: str) -> dict[str, str]:
    return {signer(n).key_id: signer(n).public_key.hex() for n in names}


ROOT = ("root-1", "root-2", "root-3")
OFFICERS = ("officer-1", "officer-2", "officer-3")
EVERY = ("*",)


def rotated(names: tuple[str, ...], n: int) -> tuple[str, ...]:
    """Names of the keys of the ``n``-th set after the founding one."""
    return tuple(f"{name}-of-{n}" for name in names) if n else names


def genesis(voters: tuple[str, ...] = VOTERS, regions: Iterable[str] = REGIONS, ttl_ms: int = TTL_MS) -> Genesis:
    held = {r: REGIONS[r] for r in regions}
    return Genesis(
        root=RootRow(version=1, keys=keys_of(*ROOT), threshold=2),
        delegations={
            "registry": DelegationRow(keys=keys_of("registry"), threshold=1, kinds=EVERY, scope="any"),
            "officers": DelegationRow(keys=keys_of(*OFFICERS), threshold=2, kinds=EVERY, scope="any"),
        },
        settings=SettingsRow(
            ttl_ms=ttl_ms,
            heartbeat_ms=HEARTBEAT_MS,
            l1_probe_ms=10_000,
            l1_ttl_ms=60_000,
            snapshot_ms=30_000,
            salt="5a" * 32,
            development=True,
        ),
        regions={r: RegionRow(domain=d, failure_domain=f, ca_fingerprint=f"ca-{r}") for r, (d, f) in held.items()},
        nodes={f"{r}/n1": NodeRow(signing_key=signer(f"node-{r}").public_key.hex()) for r in held},
        voters=VotersRow(set_id=1, regions=voters),
    )


def run(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that never waits."""
    try:
        work.send(None)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    raise AssertionError("it waited")


def node(region: str) -> Any:
    return address(region, "n1")


@dataclass
class Bench:
    """``auto_*``: whether the log and the voters answer by themselves, and records are written."""

    log: MemoryControlLog = field(default_factory=lambda: MemoryControlLog(MESH))
    records: dict[str, Any] = field(default_factory=dict)
    now: Instant = field(default=Instant(1_000_000))
    auto_append: bool = True
    auto_read: bool = True
    auto_vote: bool = True
    persists: bool = True
    lives: int = 0

    def __post_init__(self) -> None:
        self.sent: list[tuple[Any, Any]] = []
        self.done: list[CommandDone] = []
        self.notes: list[Note] = []
        self.projected: list[Project] = []
        self.certificates: list[CertificateReady] = []
        self.appends: list[AppendLog] = []
        self.reads: list[ReadLog] = []
        self.wakes: list[Instant] = []
        self.counters: dict[str, int] = {}
        self.suites = {r: DsseSuite(signer(f"node-{r}")) for r in REGIONS}
        self.boot()

    # --- life ----------------------------------------------------------------------------------------------------

    def boot(self) -> None:
        """A (new) life: memory gone, log and records kept."""
        self.lives += 1
        self.state = machine.new_registry(
            machine.RegistryConfig(
                mesh=MESH,
                suite=DsseSuite(signer("registry")),
                root_keys={KeyId(k): v for k, v in keys_of(*ROOT).items()},
                root_threshold=2,
            )
        )
        self.appends.clear()
        self.reads.clear()
        self.wakes.clear()
        entropy = self.lives.to_bytes(1, "big") * 32
        self.feed(Booted(records=dict(self.records), mark=BootMark("b", 0), entropy=entropy))

    def feed(self, event: Any) -> None:
        effects = machine.step(self.state, self.now, event)
        assert type(event) is not Tick or machine.next_due(self.state) > self.now, (
            "what a tick leaves due comes at once"
        )
        for effect in effects:
            match effect:
                case Persist():
                    if not self.persists:
                        self.feed(PersistFailed(effect.token))
                        return
                    self.records.update(effect.puts)
                    for name in effect.deletes:
                        self.records.pop(name, None)
                    self.feed(Persisted(effect.token))
                case Send():
                    self.sent.append((effect.to, effect.message))
                case CommandDone():
                    self.done.append(effect)
                case Note():
                    self.notes.append(effect)
                case Project():
                    self.projected.append(effect)
                case CertificateReady():
                    self.certificates.append(effect)
                case Wake():
                    self.wakes = [effect.at]
                case AppendLog():
                    self.appends.append(effect)
                case ReadLog():
                    self.reads.append(effect)
                case _:
                    raise AssertionError(effect)

    def settle(self) -> None:
        """Let log and voters answer until nothing is left to do at this instant."""
        while True:
            if self.auto_append and self.appends:
                self.do_append()
            elif self.auto_read and self.reads:
                self.do_read()
            elif not (self.auto_vote and self.vote()):
                return

    def do_append(self, *, answer: bool = True) -> None:
        """Carry out the oldest append; ``answer`` False: its outcome is lost."""
        effect = self.appends.pop(0)
        try:
            index = run(self.log.append(effect.entries))
        except Conflict:
            self.feed(AppendConflict(effect.token) if answer else AppendUnknown(effect.token))
        else:
            self.feed(Appended(effect.token, index) if answer else AppendUnknown(effect.token))

    def do_read(self) -> None:
        effect = self.reads.pop(0)
        index, entries = run(self.log.read(effect.after_index))
        self.feed(LogRead(effect.token, index, tuple(entries)))

    def vote(self) -> bool:
        """Voters answer everything that was asked of them; whether there was anything."""
        asked = [(to, m) for to, m in self.sent if isinstance(m, CountersignRequest | Poll)]
        self.sent = [(to, m) for to, m in self.sent if not isinstance(m, CountersignRequest | Poll)]
        for to, message in asked:
            if isinstance(message, Poll):
                self.feed(Received(to, self.poll_answer(to, message)))
            else:
                self.feed(Received(to, self.countersignature(to, message)))
        return bool(asked)

    def poll_answer(self, to: Any, poll: Poll) -> PollAnswer:
        return PollAnswer(
            mesh=poll.mesh, epoch=poll.epoch, set_id=poll.set_id, poll_id=poll.poll_id, voter=region_of(to)
        )

    def countersignature(self, to: Any, asked: CountersignRequest, *, by: str | None = None, serial: int = 0) -> Any:
        region = region_of(to)
        vote = commit.vote_for(asked, region, serial=serial)
        return CountersignatureMessage(countersignature=self.suites[by or region].seal(vote))

    def advance(self, ms: int, *, step_ms: int = 100) -> None:
        """Time goes by, with a tick at each wake and the peers answering."""
        end = self.now + ms
        while self.now < end:
            due = min((w for w in self.wakes if w > self.now), default=end)
            self.now = Instant(min(end, max(due, self.now + 1)))
            self.wakes = [w for w in self.wakes if w > self.now]
            self.feed(Tick())
            self.settle()

    # --- commands ------------------------------------------------------------------------------------------------

    def command(
        self,
        kind: str,
        args: Any,
        *,
        namespace: str,
        command_id: str,
        by: tuple[str, ...] = (),
        not_after: int = 2**52,
        correlation_id: str | None = None,
    ) -> Command:
        plain = msgspec.to_builtins(args)
        authority: tuple[Any, ...] = ()
        if by:
            envelope = trust.make_authority(
                mesh=MESH,
                namespace=namespace,
                command_id=command_id,
                kind=kind,
                args=plain,
                not_after=not_after,
                signers=[signer(n) for n in by],
            )
            authority = (to_plain(envelope),)
        return Command(command_id, namespace, kind, plain, "admin", correlation_id or f"c-{command_id}", authority)

    def submit(self, command: Command) -> CommandDone | None:
        """Submit and settle; its outcome, if it has one by now."""
        before = len(self.done)
        self.feed(command)
        self.settle()
        found = [d for d in self.done[before:] if d.command_id == command.command_id]
        return found[-1] if found else None

    def ok(self, command: Command) -> CommandDone:
        done = self.submit(command)
        assert done is not None
        if done.error is not None:
            raise done.error
        return done

    def found(self, **kwargs: Any) -> None:
        self.ok(self.command("mesh.genesis", genesis(**kwargs), namespace="mesh", command_id="genesis", by=ROOT[:2]))

    def tenant(
        self, name: str, *, regions: tuple[str, ...] = ("us-east", "us-west"), home: str = "us-east", **policy: Any
    ) -> None:
        args = TenantCreate(
            policy=PolicyRow(version=1, home=home, domain=REGIONS[home][0], regions=regions, admins=("ann",), **policy),
            signers=SignersRow(keys=keys_of(f"signer-{name}"), threshold=1),
            binding_id="b1",
            provider="customer-kms",
            descriptor={"url": "https://kms.example"},
        )
        made = self.command("tenant.create", args, namespace=name, command_id=f"create-{name}", by=(f"signer-{name}",))
        self.ok(made)

    def service(self, tenant: str, name: str, version: int = 1) -> None:
        args = {
            "service": name,
            "row": ServiceRow(version=version, custody="leased", edge_ttl_ms=5_000),
        }
        self.ok(self.command("service.set", args, namespace=tenant, command_id=f"svc-{name}-{version}"))

    def scope_command(self, kind: str, scope: str, command_id: str, **kwargs: Any) -> Command:
        namespace = scope.partition(":")[2].partition("/")[0] if scope != "mesh" and "region:" not in scope else "mesh"
        args: dict[str, Any] = {"scope": scope}
        row = get(self.state.spaces[namespace].rows, f"restriction/{scope}", RestrictionRow)
        if row is not None and kind == "resume" and namespace == "mesh":  # the officers name what they end
            args["upto_seq"] = row.seq
        return self.command(kind, args, namespace=namespace, command_id=command_id, **kwargs)

    def change_voters(
        self,
        *,
        set_id: int = 2,
        regions: tuple[str, ...] = NEW_VOTERS,
        replaces: tuple[str, ...] = VOTERS,
        by: tuple[str, ...] = OFFICERS[:2],
    ) -> Command:
        """With the word of every old voter that it has sealed its set."""
        args = {"set_id": set_id, "regions": regions, "replaces": replaces}
        made = self.command("voters.change", args, namespace="mesh", command_id="seats", by=by)
        words = [
            self.suites[r].seal(
                SetSealed(mesh=MESH, set_id=set_id - 1, command_id="seats", voter=r, node="n1", heads=())
            )
            for r in VOTERS
        ]
        return replace(made, words=tuple(words))

    def rotation(self, n: int = 1, **fields: Any) -> Command:
        """To the ``n``-th set of new keys, by all who must sign, or ``by``."""
        rows = self.state.spaces["mesh"].rows
        root, officers = get(rows, "root", RootRow), get(rows, OFFICERS_ROW, DelegationRow)
        assert root is not None
        new_root, new_officers = rotated(ROOT, n), rotated(OFFICERS, n)
        by = fields.pop("by", (*rotated(ROOT, n - 1)[:2], *new_root[:2], *new_officers[:2]))
        args = {
            "root": RootRow(version=root.version + 1, keys=keys_of(*new_root), threshold=2),
            "officers": DelegationRow(keys=keys_of(*new_officers), threshold=2, kinds=OFFICER_KINDS, scope="mesh"),
            "replaces": set_digest(root, officers),
            "genesis": self.state.spaces["mesh"].entries[0].hash,
        }
        return self.command("trust.rotate", args | fields, namespace="mesh", command_id=f"rotate-{n}", by=by)

    def label(self, tenant: str, n: int) -> Command:
        return self.command("tenant.labels", {"labels": {"n": str(n)}}, namespace=tenant, command_id=f"label-{n}")

    def join(self, region: str, nodes: tuple[str, ...]) -> Command:
        domain, failure = REGIONS[region]
        args = RegionJoin(
            region=region,
            row=RegionRow(domain=domain, failure_domain=failure, ca_fingerprint=f"ca-{region}"),
            nodes={n: NodeRow(signing_key=signer(f"node-{region}").public_key.hex()) for n in nodes},
        )
        return self.command("region.join", args, namespace="mesh", command_id=f"join-{region}", by=ROOT[:2])

    # --- nodes ---------------------------------------------------------------------------------------------------

    def heartbeat(self, region: str, /, *, by: str | None = None, **fields: Any) -> HeartbeatMessage:
        counter = self.counters[region] = self.counters.get(region, 0) + 1
        leaves = fields.get("leaves")
        beat = Heartbeat(
            **{
                "mesh": MESH,
                "epoch": 1,
                "region": region,
                "node": "n1",
                "boot_id": "boot-1",
                "counter": counter,
                "nonce": f"nonce-{region}-{counter}",
                "manifest_root": heads_root(leaves or {}),
                "index_seen": 0,
                **fields,
            }
        )
        return HeartbeatMessage(heartbeat=self.suites[by or region].seal(beat))

    def beat(self, region: str, /, **fields: Any) -> None:
        """A heartbeat arrives and everybody answers."""
        self.feed(Received(node(region), self.heartbeat(region, **fields)))
        self.settle()

    def offered(self, region: str) -> dict[str, Leaf]:
        return dict(self.state.regions[region].show())

    def beat_in_step(self, region: str, **fields: Any) -> None:
        """The region has applied all that it is offered."""
        self.beat(region, manifest_root=self.state.regions[region].root, **fields)

    def leaf(self, namespace: str, seq: int) -> Leaf:
        signed = self.state.spaces[namespace].entries[seq - 1]
        return Leaf(epoch=signed.entry.epoch, seq=seq, entry_hash=signed.hash, state=signed.entry.state)

    def restrictions_at(self, namespace: str, seq: int, e_ms: int = 0, open_leases: int = 0) -> tuple[Any, ...]:
        version = self.state.spaces[namespace].versions[seq]
        found = []
        for name in sorted(version.rows):
            row = get(version.rows, name, RestrictionRow) if name.startswith("restriction/") else None
            if row is not None and row.state != "none":
                found.append(
                    RestrictionAck(
                        scope=name.removeprefix("restriction/"),
                        seq=row.seq,
                        entry_hash=None,
                        edge_leases_end_in_ms=e_ms,
                        open_edge_leases=open_leases,
                    )
                )
        return tuple(found)

    def ack(
        self,
        region: str,
        namespace: str,
        seq: int,
        /,
        *,
        outcome: str = "applied",
        reason: str = "",
        e_ms: int = 0,
        open_leases: int = 0,
        by: str | None = None,
        correlation_id: str = "",
        **fields: Any,
    ) -> None:
        """The node says what it did with a task."""
        ack = Ack(
            **{
                "mesh": MESH,
                "region": region,
                "node": "n1",
                "boot_id": "boot-1",
                "counter": 1,
                "namespace": namespace,
                "leaf": self.leaf(namespace, seq),
                "outcome": outcome,
                "reason": reason,
                "restrictions": self.restrictions_at(namespace, seq, e_ms, open_leases),
                "correlation_id": correlation_id or self.state.spaces[namespace].entries[seq - 1].entry.correlation_id,
                **fields,
            }
        )
        self.feed(Received(node(region), AckMessage(ack=self.suites[by or region].seal(ack))))
        self.settle()

    def receipt(self, region: str, /, *, tenant: str = "acme", by: str | None = None, **fields: Any) -> None:
        """The node says that of a purged tenant nothing is left there."""
        space = self.state.spaces[tenant]
        row = get(space.rows, f"restriction/destruction:{tenant}", RestrictionRow)
        assert row is not None
        purge = space.entries[row.seq - 1]
        said = PurgeReceipt(
            **{
                "mesh": MESH,
                "region": region,
                "node": "n1",
                "boot_id": "boot-1",
                "counter": 1,
                "namespace": tenant,
                "epoch": 1,
                "seq": purge.entry.seq,
                "entry_hash": purge.hash,
                "admitted_seq": 1,
                "keys": destruction.key_versions(space.rows),
                "others": (),
                "backups": (),
                "edge_leases_end_in_ms": 0,
                "open_edge_leases": 0,
                "correlation_id": purge.entry.correlation_id,
                **fields,
            }
        )
        sealed = self.suites[by or region].seal(said)
        self.feed(Received(node(region), PurgeReceiptMessage(receipt=sealed)))
        self.settle()

    def ack_tasks(self, region: str) -> int:
        """The node applies and acknowledges every task sent to it so far; how many."""
        count = 0
        while tasks := self.take_tasks(region):
            for task in tasks:
                count += 1
                self.ack(region, task.namespace, task.state.head.entry.seq, correlation_id=task.correlation_id)
        return count

    # --- what came out ---------------------------------------------------------------------------------------------

    def take_tasks(self, region: str) -> list[Task]:
        """Tasks sent to the region's node since last asked."""
        found = [m for to, m in self.sent if to == node(region) and isinstance(m, Task)]
        self.sent = [(to, m) for to, m in self.sent if not (to == node(region) and isinstance(m, Task))]
        return found

    def answers(self, region: str) -> list[AnswerMessage]:
        return [m for to, m in self.sent if to == node(region) and isinstance(m, AnswerMessage)]

    def note_names(self) -> list[str]:
        return [n.name for n in self.notes]


def region_of(to: Any) -> str:
    return str(to).removeprefix("node:").partition("/")[0]


def mesh_up(**kwargs: Any) -> Bench:
    """A mesh of four regions with its genesis applied everywhere."""
    bench = Bench()
    bench.settle()
    bench.found(**kwargs)
    for region in sorted(bench.state.regions):
        bench.beat_in_step(region)
    bench.sent.clear()
    return bench


def with_tenant(name: str = "acme", **kwargs: Any) -> Bench:
    """... and one US tenant with a service ``pay``, applied."""
    bench = mesh_up()
    bench.tenant(name, **kwargs)
    bench.service(name, "pay")
    for region in sorted(REGIONS):
        bench.ack_tasks(region)
        bench.beat_in_step(region)
    bench.sent.clear()
    return bench


def purged(*, wait_ms: int = 10_000) -> Bench:
    """... and that tenant has two keys, and is purged: nobody has said that nothing is left."""
    bench = with_tenant()
    for number, key, parent in ((1, "l2", "b1"), (2, "l3/pay", "1" * 32)):
        made = {"key": key, "version": 1, "kid": f"{number}" * 32, "digest": f"{number}a" * 32, "parent": parent}
        bench.ok(bench.command("key.create", made, namespace="acme", command_id=f"k{number}"))
    args = {"scope": "destruction:acme", "wait_ms": wait_ms}
    bench.ok(bench.command("tenant.destroy", args, namespace="acme", command_id="d1"))
    bench.advance(wait_ms + 100)
    return bench
