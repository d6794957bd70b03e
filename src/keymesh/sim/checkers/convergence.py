"""I10, I11, I2 and I14 after the faults: the mesh comes back to what the log says, by itself, and in time."""

from __future__ import annotations

from keymesh.model.ids import MESH_NAMESPACE
from keymesh.model.states import KeyState, Mode
from keymesh.sim.checkers import lens
from keymesh.sim.mesh import Mesh
from keymesh.sim.process import Machine

SETTLE_MS = 4_000  # processes that were dead start, read the log, unseal
BACKOFF_MS = 36_000  # the longest pause of any retry


class Convergence:
    """Called at the moments that I10 names."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.world = mesh.world
        self.ledger = mesh.world.ledger

    def schedule(self, healed_at: int) -> None:
        o = self.mesh.options
        world = self.world
        two = 2 * o.heartbeat_ms + SETTLE_MS
        world.at(healed_at + two, lambda a, b: self.restrictions(healed_at))
        world.at(healed_at + two + o.snapshot_ms + BACKOFF_MS, lambda a, b: self.everything())

    def restrictions(self, since: int) -> None:
        """Every restriction that was in the log when the faults stopped is in force at every holder."""
        for m in self._nodes():
            for namespace, facts in self.ledger.restrictions.items():
                if not self.ledger.may_hold(m.proc.region, namespace):
                    continue
                for text, seq in self.ledger.restricted(namespace, len(self.ledger.facts[namespace])).items():
                    if self.ledger.facts[namespace][seq - 1].logged_at > since or not facts:
                        continue
                    if lens.durable_restrictions(m, namespace, self.ledger).get(text, 0) < seq:
                        self.world.fail("I10", f"{m.address} lacks {text} by {namespace}:{seq}")

    def everything(self) -> None:
        """Heads, leases, keys, commands, Edges."""
        for m in self._nodes():
            for namespace in self.ledger.facts:
                if self.ledger.may_hold(m.proc.region, namespace):
                    self._judge_node(m, namespace)
        for key, asked in self.mesh.clients.asked.items():
            if asked.done_at is None:
                self.world.fail("I10", f"command {key[1]} ({asked.command.kind}) was never answered")
        for local in self.mesh.clients.locals.values():
            self._judge_local(local)
        for m in self.world.machines.values():
            if m.kind == "edge":
                self._judge_edge(m)

    def _nodes(self) -> list[Machine]:
        return [m for m in self.world.machines.values() if m.kind == "node"]

    def _judge_node(self, m: Machine, namespace: str) -> None:
        t, head = self.world.t, self.ledger.head(namespace)
        assert head is not None
        held = lens.durable_seq(m, namespace)
        if held < self._settled_seq(namespace):
            self.world.fail("I10", f"{m.address} has {namespace}:{held}, the log {head.seq}")
        if namespace == MESH_NAMESPACE or self._all_restricted(m, namespace) or self._never_minted(m, namespace):
            return
        mode, why = lens.node_mode(m, t, namespace)
        if mode is not Mode.SYNCED:
            self.world.fail("I10", f"{m.address} is {mode.value} for {namespace}: {why}")
        self._judge_keys(m, namespace)

    def _settled_seq(self, namespace: str) -> int:
        """The newest entry older than a heartbeat: what every holder has by now."""
        limit = self.world.t - 2 * self.mesh.options.heartbeat_ms
        return max((f.seq for f in self.ledger.facts[namespace] if f.logged_at <= limit), default=0)

    def _open_scopes(self, m: Machine, namespace: str) -> list[str]:
        texts = [
            t for ns in (MESH_NAMESPACE, namespace) for t in self.ledger.restricted(ns, len(self.ledger.facts[ns]))
        ]
        texts += [x.event.scope for x in self.mesh.clients.locals.values() if lens.holds_local(m, x.event)]
        return texts

    def _all_restricted(self, m: Machine, namespace: str) -> bool:
        return any(
            lens.scope_of(t).covers(region=m.proc.region, tenant=namespace, service=None, version=None)  # type: ignore[arg-type]
            for t in self._open_scopes(m, namespace)
        )

    def _never_minted(self, m: Machine, namespace: str) -> bool:
        """Its home region is restricted, and makes no keys; there is nothing to load, and no root key to ask."""
        view = m.state.tenants[namespace].view
        home = next((n for n in self._nodes() if view.policy is not None and n.proc.region == view.policy.home), None)
        return not view.keys and home is not None and self._all_restricted(home, namespace)

    def _judge_keys(self, m: Machine, namespace: str) -> None:
        """Every active version is in memory, with the bytes that its kid stands for."""
        holding = m.state.tenants[namespace]
        memory = self.mesh.keys.kids(m.proc.name, namespace)
        scopes = [lens.scope_of(t) for t in self._open_scopes(m, namespace)]
        for (key, version), row in holding.view.keys.items():
            if self.ledger.kids.get((namespace, key, version)) != row.kid:
                self.world.fail("I11", f"{namespace}/{key}@{version} has another kid at {m.address} than in the log")
            service = None if key == "l2" else key.partition("/")[2]
            covered = any(
                s.covers(region=m.proc.region, tenant=namespace, service=service, version=version)  # type: ignore[arg-type]
                for s in scopes
            )
            if row.state == KeyState.ACTIVE.value and not covered and row.kid not in memory:
                self.world.fail("I11", f"{m.address} has lost {namespace}/{key}@{version}")

    def _judge_local(self, local: object) -> None:
        event, region = local.event, local.region  # type: ignore[attr-defined]
        m = next(n for n in self._nodes() if n.proc.region == region)
        if lens.holds_local(m, event) and self.ledger.may_hold(region, lens.scope_of(event.scope).namespace):
            fact = self.ledger.by_command.get((lens.scope_of(event.scope).namespace, event.command_id))
            if fact is None and self._forwardable(event.scope):
                self.world.fail("I10", f"local suspension {event.command_id} of {event.scope} never became an entry")

    def _forwardable(self, scope: str) -> bool:
        stretch = self.ledger.open.get(scope)
        return stretch is None or not stretch.revoked

    def _judge_edge(self, m: Machine) -> None:
        """An Edge of an unrestricted service holds a lease with a version to wrap under."""
        config = m.state.config
        node = next(n for n in self._nodes() if n.proc.region == m.proc.region)
        if any(
            lens.scope_of(t).covers(region=config.region, tenant=config.tenant, service=config.service, version=None)
            for t in self._open_scopes(node, config.tenant)
        ):
            return
        wanted = self._usable_version(node, config.tenant, config.service)
        if wanted and (m.published is None or lens.edge_remaining_ms(m, self.world.t) < 0):
            self.world.fail("I14", f"{m.proc.name} has no lease although {config.tenant}/{config.service} is served")

    def _usable_version(self, node: Machine, tenant: str, service: str) -> bool:
        return any(
            ns == tenant
            and key == f"l3/{service}"
            and lens.node_allows(node, self.world.t, tenant, service, version).allowed
            for ns, key, version in self.ledger.kids
        )
