"""The people: administrators who use the kill switch and rotate keys at random times.

Who orders a suspension asks the Registry; where that has not answered in ten seconds, also the tenant's nearest region
that is up.  Once a certificate says that nothing is used any more, and has said so for five seconds, it is resumed.
"""

from __future__ import annotations

import random
from typing import Any, Final

from keymesh.model.machine import node_address
from keymesh.model.scope import parse_scope
from keymesh.sim.ask.orders import Orders
from keymesh.sim.ask.question import WARM_MS, Question
from keymesh.sim.ask.strikes import arrivals
from keymesh.sim.client import Asked
from keymesh.sim.mesh import Mesh
from keymesh.sim.options import NODE, TenantSpec
from keymesh.sim.plan import Item

PATIENCE_MS: Final = 10_000
AFTER_PROOF_MS: Final = 5_000


class People:
    """One order at a time for each tenant: one that is not over yet is let be."""

    def __init__(self, mesh: Mesh, question: Question, orders: Orders, seed: int) -> None:
        self.mesh = mesh
        self.world = mesh.world
        self.question = question
        self.orders = orders
        self._suspended: dict[str, Asked] = {}  # tenant -> the newest suspension that was asked for
        orders.on_certificate.append(self._proved)
        until = question.asked_until_ms
        rng = random.Random(f"{seed}/ask-orders")
        for at in arrivals(rng, question.kill_switches_per_hour, WARM_MS, until):
            tenant = rng.choice(question.tenants)
            scopes = [f"tenant:{tenant.name}", *(f"service:{tenant.name}/{s}" for s in tenant.services)]
            self.world.at(at, self.suspend, tenant, rng.choice(scopes))
        rng = random.Random(f"{seed}/ask-writes")
        for at in arrivals(rng, question.writes_per_hour, WARM_MS, until):
            tenant = rng.choice(question.tenants)
            item = Item(at, "want-key", (tenant.name, f"l3/{rng.choice(tenant.services)}"))
            self.world.at(at, lambda item, _: self.mesh.clients.run(item), item)

    def suspend(self, tenant: TenantSpec, scope: str) -> None:
        """Somebody uses the kill switch now."""
        before = self._suspended.get(tenant.name)
        busy = any(o.scope.tenant == tenant.name and o.command and o.ended_at is None for o in self.orders.all)
        if busy or (before is not None and before.is_open()):
            return
        clients = self.mesh.clients
        clients.run(Item(self.world.t, "suspend", (scope,)))
        asked = self._suspended[tenant.name] = next(reversed(clients.asked.values()))
        self.world.schedule(PATIENCE_MS, self._at_a_region, (asked, tenant), scope)

    def _at_a_region(self, job: Any, scope: Any) -> None:
        asked, tenant = job
        if asked.done_at is None:
            delay_ms = self.mesh.options.delay_ms
            for region in sorted(tenant.regions, key=lambda r: (delay_ms(tenant.home, r), r)):
                proc = self.world.machines[node_address(region, NODE)].proc
                if proc.alive and not proc.paused:
                    self.mesh.clients.run(Item(self.world.t, "local-suspend", (scope, region)))
                    return

    def _proved(self, scope: str, speaks_from: int) -> None:
        self.world.at(speaks_from + AFTER_PROOF_MS, self._resume, scope)

    def _resume(self, scope: Any, _: Any) -> None:
        if scope in self.world.ledger.open and parse_scope(scope).tenant in self._suspended:
            self.mesh.clients.run(Item(self.world.t, "resume", (scope,)))
