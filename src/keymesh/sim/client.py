"""The people: administrators who issue commands at the Registry, or restrictions at a region, and try again.

A plan's command finds its operands when it runs, from what is truly in the log, so that deleting other items leaves
it meaningful.  A command is repeated under its id until the Registry has answered for good.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from keymesh.control import trust
from keymesh.control.signing import to_plain
from keymesh.core.events import LocalRestrict, ReplyLocal
from keymesh.model.errors import Refused
from keymesh.model.ids import MESH_NAMESPACE
from keymesh.model.machine import node_address
from keymesh.model.scope import destruction_of, parse_scope
from keymesh.registry.events import Command, CommandDone
from keymesh.sim.clocks import WALL_EPOCH_MS
from keymesh.sim.draw import mix, stream_of
from keymesh.sim.options import NODE, Options, TenantSpec
from keymesh.sim.plan import NEWEST, Item
from keymesh.sim.process import Machine
from keymesh.sim.suite import FakeSuite
from keymesh.sim.world import World

MESH: Final = "sim"
DOMAIN: Final = "earth"
_RETRY_MS: Final = 2_500
_NOT_AFTER: Final = WALL_EPOCH_MS * 2
_STREAM: Final = stream_of("client")


@dataclass(slots=True)
class Asked:
    """A command on its way.  ``done_at``: when it was answered for good."""

    command: Command
    done_at: int | None = None
    refused: str = ""
    tries: int = 0

    def is_open(self) -> bool:
        return self.done_at is None


@dataclass(slots=True)
class Local:
    """A restriction issued at a region.  ``recorded_at``: when the region promised it."""

    event: LocalRestrict
    region: str
    recorded_at: int | None = None

    def is_open(self) -> bool:
        return self.recorded_at is None


class Clients:
    """``officers`` sign for mesh-wide commands, ``signers[tenant]`` for the tenant's."""

    def __init__(self, world: World, officers: tuple[FakeSuite, ...], signers: Mapping[str, FakeSuite]) -> None:
        self.world = world
        self.options: Options = world.options
        self.officers = officers
        self.signers = signers
        self.denies_standby: frozenset[str] = frozenset(t.name for t in self.options.tenants if not t.standby)
        self.asked: dict[tuple[str, str], Asked] = {}
        self.locals: dict[tuple[str, str], Local] = {}
        self.count = 0
        self.turn = 0
        self._binding: dict[str, int] = {}
        self._makes: dict[str, Callable[..., None]] = {
            "suspend": self._scope_command,
            "resume": self._scope_command,
            "revoke": self._scope_command,
            "destroy": self._destroy,
            "cancel-destroy": self._cancel_destroy,
            "want-key": self._want_key,
            "want-rewrap": self._want_rewrap,
            "set-service": self._set_service,
            "labels": self._labels,
            "rotate-ivk": self._rotate_ivk,
            "switch-l1": self._switch_l1,
        }
        world.handlers |= {CommandDone: self._done, ReplyLocal: self._local_done}

    # --- set-up ------------------------------------------------------------------------------------------------------

    def onboard(self, tenant: TenantSpec) -> None:
        """Create the tenant and its services; their first keys are wanted with them."""
        args = {
            "policy": {
                "version": 1,
                "home": tenant.home,
                "domain": DOMAIN,
                "regions": sorted(tenant.regions),
                "admins": ["admin"],
                "ttl_ms": tenant.ttl_ms,
                "standby": "deny" if tenant.name in self.denies_standby else "allow",
            },
            "signers": {"keys": dict(self.signers[tenant.name].keys), "threshold": 1},
            "binding_id": "b1",
            "provider": "dev",
            "descriptor": {"replicas": len(tenant.regions)},
        }
        self._binding[tenant.name] = 1
        self.ask("tenant.create", tenant.name, args, by=(self.signers[tenant.name],))
        for i, service in enumerate(tenant.services):
            self.world.schedule(2_000 + i * 10, lambda a, b: self._set_service(None, tenant.name, a), service)

    # --- commands ----------------------------------------------------------------------------------------------------

    def run(self, item: Item) -> None:
        if item.what == "repeat":
            self._repeat(item)
        elif item.what == "local-suspend":
            self._local(str(item.args[0]), str(item.args[1]))
        else:
            self._makes[item.what](item, *item.args)

    def ask(self, kind: str, namespace: str, args: dict[str, Any], *, by: tuple[FakeSuite, ...] = ()) -> None:
        self.count += 1
        command_id = f"c{self.count}"
        authority = (self.authority(by, namespace, command_id, kind, args),) if by else ()
        command = Command(command_id, namespace, kind, args, "admin", f"k{self.count}", authority)
        self.take(Asked(command))

    def take(self, asked: Asked) -> None:
        """Ask for it until it is answered for good."""
        self.asked[asked.command.namespace, asked.command.command_id] = asked
        self._try(asked, None)

    def authority(
        self, suites: tuple[FakeSuite, ...], namespace: str, command_id: str, kind: str, args: Any
    ) -> dict[str, Any]:
        word = trust.make_authority(
            mesh=MESH,
            namespace=namespace,
            command_id=command_id,
            kind=kind,
            args=args,
            not_after=_NOT_AFTER,
            signers=suites,
        )
        return to_plain(word)

    def _try(self, asked: Asked, _: Any) -> None:
        if asked.done_at is None:
            asked.tries += 1
            self.world.deliver(self._replica(), asked.command)
            if asked.is_open():
                self.world.schedule(_RETRY_MS, self._try, asked)

    def _replica(self) -> Machine:
        """One of the Registry's, another each time."""
        self.turn += 1
        replicas = self.world.registries
        return replicas[mix(self.options.seed, _STREAM, self.turn) % len(replicas)]

    def _done(self, m: Machine, e: CommandDone) -> None:
        asked = self.asked.get((e.namespace, e.command_id))
        if asked is None:
            return
        if e.error is not None:
            if isinstance(e.error, Refused):
                asked.done_at = self.world.t
                asked.refused = e.error.code
                self.world.sometimes[f"refused-{e.error.code}"] += 1
            return
        fact = self.world.ledger.by_command.get((e.namespace, e.command_id))
        if fact is None or (fact.seq, fact.index) != (e.seq, e.index):
            self.world.fail("I2", f"command {e.command_id} acknowledged but not in the log at {e.namespace}:{e.seq}")
        if e.duplicate:
            self.world.sometimes["duplicate-answered"] += 1
        if asked.done_at is None:
            asked.done_at = self.world.t

    # --- what the items mean -----------------------------------------------------------------------------------------

    def _scope_command(self, item: Item, scope: str) -> None:
        if scope.endswith(f"@{NEWEST}"):
            scope = self._newest(scope.removesuffix(NEWEST))
        parsed = parse_scope(scope)
        wide = parsed.needs_four_eyes
        args = {"scope": scope, "reason": "", "abandon_children": True}
        if wide and item.what == "resume":  # the officers sign for the suspension that they see
            head = self.world.ledger.head(parsed.namespace)
            args["upto_seq"] = 0 if head is None else head.restrictions.get(scope, ("", 0))[1]
        self.ask(item.what, parsed.namespace, args, by=self.officers if wide else ())

    def _destroy(self, item: Item, tenant: str, wait_ms: int) -> None:
        self.ask("tenant.destroy", tenant, {"scope": str(destruction_of(tenant)), "wait_ms": wait_ms, "reason": ""})

    def _cancel_destroy(self, item: Item, tenant: str) -> None:
        self.ask("tenant.cancel-destroy", tenant, {"scope": str(destruction_of(tenant))})

    def _newest(self, prefix: str) -> str:
        """The scope of the newest version that was made of a service key; ``prefix`` is all of it but the number."""
        tenant, _, service = prefix.removeprefix("key:").removesuffix("@").partition("/")
        made = [v for (t, key, v) in self.world.ledger.kids if (t, key) == (tenant, f"l3/{service}")]
        return f"{prefix}{max(made, default=1)}"

    def _want_key(self, item: Item | None, tenant: str, key: str) -> None:
        facts = self.world.ledger.facts.get(tenant, ())
        version = 1 + max(
            (f.args["version"] for f in facts if f.kind == "key.want" and f.args["key"] == key), default=1
        )
        self.ask("key.want", tenant, {"key": key, "version": version})

    def _want_rewrap(self, item: Item, tenant: str, key: str) -> None:
        facts = self.world.ledger.facts.get(tenant, ())
        kids = [f.args["kid"] for f in facts if f.kind == "key.create" and f.args["key"] == "l2"]
        if kids:
            self.ask("key.want-rewrap", tenant, {"key": key, "parent": kids[-1]})

    def _set_service(self, item: Item | None, tenant: str, service: str) -> None:
        facts = self.world.ledger.facts.get(tenant, ())
        version = 1 + sum(f.kind == "service.set" and f.args["service"] == service for f in facts)
        row = {
            "version": version,
            "custody": "leased",
            "edge_ttl_ms": max(1_000, self.options.edge_ttl_ms - (version % 3) * 500),
            "mint_budget": None,
            "open_budget": None,
        }
        self.ask("service.set", tenant, {"service": service, "row": row})

    def _labels(self, item: Item, tenant: str) -> None:
        self.ask("tenant.labels", tenant, {"labels": {"n": str(self.count)}})

    def _rotate_ivk(self, item: Item, region: str) -> None:
        facts = self.world.ledger.facts.get(MESH_NAMESPACE, ())
        done = sum(f.kind == "region.rotate-ivk" and f.args["region"] == region for f in facts)
        self.ask("region.rotate-ivk", MESH_NAMESPACE, {"region": region, "generation": 2 + done})

    def _switch_l1(self, item: Item, tenant: str) -> None:
        self._binding[tenant] += 1
        args = {"binding_id": f"b{self._binding[tenant]}", "provider": "dev", "descriptor": {"replicas": 1}}
        self.ask("l1.switch", tenant, args, by=(self.signers[tenant],))

    def _repeat(self, item: Item) -> None:
        """Somebody sends an old command again, under its id."""
        if self.asked:
            keys = list(self.asked)
            asked = self.asked[keys[mix(self.options.seed, _STREAM, item.at_ms) % len(keys)]]
            self.world.sometimes["command-repeated"] += 1
            self.world.deliver(self._replica(), asked.command)

    def _local(self, scope: str, region: str) -> None:
        """An administrator suspends at a region; asks again until it is promised."""
        self.count += 1
        namespace = parse_scope(scope).namespace
        number = 1 + sum(of == namespace for of, _ in self.locals)  # ids of different tenants meet
        event = LocalRestrict(f"l{number}", scope, "suspend", "admin", f"k{self.count}", ())
        local = self.locals[namespace, event.command_id] = Local(event, region)
        self._try_local(local, None)

    def _try_local(self, local: Local, _: Any) -> None:
        if local.is_open():
            self.world.deliver(self.world.machines[node_address(local.region, NODE)], local.event)
            if local.is_open():
                self.world.schedule(_RETRY_MS, self._try_local, local)

    def _local_done(self, m: Machine, e: ReplyLocal) -> None:
        local = self.locals[parse_scope(e.scope).namespace, e.command_id]
        if e.recorded and local.recorded_at is None:
            local.recorded_at = self.world.t
            self.world.sometimes["local-restriction"] += 1
        elif not e.recorded:
            self.world.sometimes[f"local-refused-{e.reason}"] += 1
