"""I1, I13 and the root bound: no use under a restricted key past its bound, a certificate's T, or L1's end.

Not sampled by uses: an Edge's published lease is judged when it is published and when a bound passes, a node's
``may`` when a bound passes and at intervals; so a use that could have happened counts as one that did.
"""

from __future__ import annotations

from typing import Any

from keymesh.control.messages import Ack
from keymesh.model.ids import MESH_NAMESPACE, RegionId, ServiceName, TenantId
from keymesh.model.machine import Address
from keymesh.model.scope import Scope, ScopeKind
from keymesh.orbital.edge_messages import LeaseGrant
from keymesh.sim.checkers import lens
from keymesh.sim.ledger import Restriction
from keymesh.sim.mesh import Mesh
from keymesh.sim.process import Machine

SLACK_MS = 2_000
_E_SLACK_MS = 60


class Uses:
    """Watches Edges' leases and nodes' answers against true restrictions."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.world = world = mesh.world
        self.ledger = world.ledger
        self.armed: list[tuple[Restriction, str]] = []
        self.l1_armed: dict[str, int] = {}
        self.evidence: dict[tuple[Address, str], tuple[int, int]] = {}  # (node, scope) -> (seq, true end)
        self.edges = [m for m in world.machines.values() if m.kind == "edge"]
        self.nodes = [m for m in world.machines.values() if m.kind == "node"]
        self.ledger.on_restricted.append(self._restricted)
        world.on_publish.append(self._published)
        world.on_l1_disabled.append(self._l1_disabled)
        world.on_send.setdefault(LeaseGrant, []).append(self._granting)

    # --- arming ----------------------------------------------------------------------------------------

    def ttl_ms(self, scope: Scope) -> int:
        ttl = self.mesh.options.ttl_ms
        own = self.ledger.ttl_ms.get(str(scope.tenant)) if scope.tenant is not None else None
        return ttl if own is None else min(ttl, own)

    def _restricted(self, stretch: Restriction) -> None:
        bound = self.ttl_ms(stretch.scope) * (lens.SKEW + 1) // lens.SKEW + SLACK_MS
        self.world.schedule(bound, self._arm, stretch, "I1")

    def _arm(self, stretch: Restriction, invariant: str) -> None:
        if stretch.ended_at is None:
            self.armed.append((stretch, invariant))
            self.check(stretch.scope, invariant, stretch.text)

    def certified(self, scope: str, seq: int, true_t: int) -> None:
        """A certificate for the restriction of ``scope`` by entry ``seq`` says: nothing after ``true_t``."""
        stretch = self.ledger.open.get(scope)
        if stretch is not None and seq >= stretch.first_seq:
            self.world.at(true_t, self._arm, stretch, "I13")

    def _l1_disabled(self, tenant: str) -> None:
        bound = self.mesh.options.l1_ttl_ms * (lens.SKEW + 1) // lens.SKEW + SLACK_MS
        disabled_at = self.world.t

        def arm(a: Any, b: Any) -> None:
            if self.mesh.keys.customer(tenant).disabled_at == disabled_at:
                self.l1_armed[tenant] = disabled_at
                self.check(lens.scope_of(f"tenant:{tenant}"), "I1-root", tenant)

        self.world.schedule(bound, arm)

    # --- judging ----------------------------------------------------------------------------------------

    def sample(self) -> None:
        """Everything that is armed, again."""
        self.armed = [(s, i) for s, i in self.armed if s.ended_at is None]
        for stretch, invariant in self.armed:
            self.check(stretch.scope, invariant, stretch.text)
        for tenant, disabled_at in list(self.l1_armed.items()):
            if self.mesh.keys.customer(tenant).disabled_at == disabled_at:
                self.check(lens.scope_of(f"tenant:{tenant}"), "I1-root", tenant)
            else:
                del self.l1_armed[tenant]

    def check(self, scope: Scope, invariant: str, text: str) -> None:
        """Nobody can use anything under ``scope`` now, and no key of it is in a running node's memory."""
        t = self.world.t
        for m in self.edges:
            if m.published is not None and lens.edge_remaining_ms(m, t) >= 0 and lens.lease_covered(m, scope):
                self.world.fail(
                    invariant, f"{m.proc.name} may still use {text}: {lens.edge_remaining_ms(m, t)} ms left"
                )
        uses = lens.uses_of(scope, self.ledger)
        for m in self.nodes:
            if not m.proc.alive or (scope.kind is ScopeKind.REGION and scope.region != m.proc.region):
                continue
            memory = {} if m.proc.paused else self.mesh.keys.memory.get(m.proc.name, {})
            for tenant, service, version in uses:
                if tenant not in m.state.tenants or not self.ledger.may_hold(m.proc.region, tenant):
                    continue
                verdict = lens.node_allows(m, t, tenant, service, version)
                if verdict.allowed:
                    self.world.fail(invariant, f"{m.address} still allows {tenant}/{service}@{version} under {text}")
                kid = self.ledger.kids[tenant, f"l3/{service}", version]
                if tenant in memory and kid in memory[tenant]:
                    self.world.fail(invariant, f"{m.address} keeps {tenant}/{service}@{version} in memory under {text}")

    def _published(self, m: Machine) -> None:
        lease = m.published
        if lease is None:
            return
        for stretch, invariant in self.armed:
            if stretch.ended_at is None and lens.lease_covered(m, stretch.scope):
                self.world.fail(invariant, f"{m.proc.name} takes a lease under {stretch.text}")
        remaining = lens.edge_remaining_ms(m, self.world.t)
        for (node, text), (seq, end) in self.evidence.items():
            if node == lease.granted_by:
                self._judge_evidence(m, text, seq, end, remaining)

    def _judge_evidence(self, m: Machine, text: str, seq: int, end: int, remaining: int) -> None:
        stretch = self.ledger.open.get(text)
        if stretch is None or seq < stretch.first_seq or not lens.lease_covered(m, stretch.scope):
            return
        over = self.world.t + remaining - end
        if over > _E_SLACK_MS + remaining // 500:
            self.world.fail("I13", f"{m.proc.name} holds a lease under {text} {over} ms past what its Core swore")

    def acked(self, m: Machine, ack: Ack) -> None:
        """A node swears by when its Edges' leases are over."""
        for r in ack.restrictions:
            key = (m.address, r.scope)
            end = self.world.t + r.edge_leases_end_in_ms
            old = self.evidence.get(key)
            if old is None or old[0] < r.seq or end < old[1]:
                self.evidence[key] = (r.seq, end)
            for edge in self.edges:
                if edge.published is not None and edge.published.granted_by == m.address:
                    remaining = lens.edge_remaining_ms(edge, self.world.t)
                    if remaining > 0:
                        self._judge_evidence(edge, r.scope, r.seq, end, remaining)

    # --- grants of Edge leases ----------------------------------------------------------------------------------------

    def _granting(self, m: Machine, to: Address, grant: LeaseGrant) -> None:
        world, ledger = self.world, self.ledger
        region, tenant, service = m.proc.region, grant.tenant, grant.service
        if not ledger.may_hold(region, tenant):
            world.fail("I5", f"{m.address} leases {tenant}")
        if f"edge-lease/{grant.lease_id}" not in m.disk:
            world.fail("I2", f"{m.address} grants lease {grant.lease_id} that is not recorded")
        held = {**lens.durable_restrictions(m, tenant, ledger), **lens.durable_restrictions(m, MESH_NAMESPACE, ledger)}
        scopes = [(lens.scope_of(text), text) for text in held]
        scopes += [
            (lens.scope_of(local.event.scope), f"local {local.event.scope}")
            for local in self.mesh.clients.locals.values()
            if local.region == region and local.recorded_at is not None and lens.holds_local(m, local.event)
        ]
        for scope, text in scopes:
            for version in grant.versions:
                if scope.covers(
                    region=RegionId(region),
                    tenant=TenantId(tenant),
                    service=ServiceName(service),
                    version=version.version,
                ):
                    world.fail(
                        "I3", f"{m.address} leases {tenant}/{service}@{version.version} under {text}, which it holds"
                    )
