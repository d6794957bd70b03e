"""I13: a certificate accounts for every holder, its arithmetic is at least what true events demand, and it is kept."""

from __future__ import annotations

from keymesh.control.evidence import Statement
from keymesh.model.scope import ScopeKind
from keymesh.model.time import Instant
from keymesh.registry.events import CertificateReady
from keymesh.sim.checkers import lens
from keymesh.sim.checkers.uses import SLACK_MS, Uses
from keymesh.sim.mesh import Mesh
from keymesh.sim.options import NODE
from keymesh.sim.process import Machine


class Certificates:
    """Judges each certificate as it is issued."""

    def __init__(self, mesh: Mesh, uses: Uses) -> None:
        self.mesh = mesh
        self.world = mesh.world
        self.ledger = mesh.world.ledger
        self.uses = uses
        mesh.on_certificate.append(self._issued)

    def _issued(self, m: Machine, e: CertificateReady) -> None:
        statement: Statement = self.mesh.statement_of(e)
        world = self.world
        scope = lens.scope_of(statement.scope)
        fact = self.ledger.by_command.get((scope.namespace, statement.command_id))
        if fact is None or fact.committed_at is None:
            world.fail("I13", f"a certificate for {statement.scope}, which is not committed")
            return
        regions = (
            frozenset(self.mesh.options.regions)
            if scope.kind is ScopeKind.MESH
            else frozenset({str(scope.region)})
            if scope.kind is ScopeKind.REGION
            else self.ledger.allowed[scope.namespace]
        )
        named = {h.node for h in statement.holders}
        for region in sorted(regions):
            if f"node:{region}/{NODE}" not in named:
                world.fail("I13", f"the certificate for {statement.scope} leaves out {region}")
        true_t = m.proc.clock.true_time(Instant(statement.t))
        for holder in statement.holders:
            if holder.evidence == "bound":
                world.sometimes["certificate-by-bound"] += 1
                ttl = self.uses.ttl_ms(scope)
                if holder.t - statement.committed_at < ttl + ttl // 1_000 + SLACK_MS:
                    world.fail("I13", f"{holder.node} is declared dead without the slack")
                if world.t < fact.committed_at + ttl + SLACK_MS // 2:
                    world.fail("I13", f"{holder.node} is declared dead before any lease can be over")
        world.sometimes["certificate"] += 1
        self.uses.certified(statement.scope, fact.seq, max(true_t, world.t))
