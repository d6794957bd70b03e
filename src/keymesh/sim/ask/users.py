"""The users: who asks for encryptions and decryptions, where they turn when a region does not answer, what they saw.

The users of one service in one region ask its Edges first, then those of the tenant's other regions, the nearest first.
Between users and Edges no link is ever cut: what is measured is the mesh, not the internet before it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from keymesh.edge.snapshot import KeyWanted
from keymesh.model.machine import Address, edge_address
from keymesh.sim.ask.orders import Orders
from keymesh.sim.ask.question import WARM_MS, Question
from keymesh.sim.ask.seen import Asked, Sample, Seen
from keymesh.sim.checkers import lens
from keymesh.sim.mesh import Mesh
from keymesh.sim.options import HOUR_MS, EdgeSpec, TenantSpec
from keymesh.sim.plan import Item
from keymesh.sim.process import Machine

_DEADLY: Final = ("region-death", "wipe")


@dataclass(slots=True)
class _User:
    """``places``: (region, its Edges), its own first.  ``kid``: under which its newest record is protected."""

    tenant: str
    service: str
    region: str
    places: list[tuple[str, list[Machine]]] = field(default_factory=list)
    kid: str | None = None


@dataclass(slots=True)
class _Death:
    region: str
    tenant: str
    at: int
    over: bool = False
    forbidden: bool = False  # an order held up whoever would have taken over


class Users:
    """Asks, counts, and times what follows the death of a region."""

    def __init__(self, mesh: Mesh, question: Question, orders: Orders, seen: Seen) -> None:
        self.mesh = mesh
        self.world = mesh.world
        self.question = question
        self.orders = orders
        self.seen = seen
        self._deaths: list[_Death] = []
        self._users = [
            self._user(tenant, service, region)
            for tenant in question.tenants
            for service in tenant.services
            for region in question.regions
            if region in tenant.regions and question.edges[region]
        ]
        every = question.operation_every_ms
        for n, user in enumerate(self._users):
            self.world.at(WARM_MS + n * every // len(self._users), self._ask, user)
        mesh.faults.watches.append(self._struck)

    def _user(self, tenant: TenantSpec, service: str, region: str) -> _User:
        options = self.mesh.options
        near = sorted(tenant.regions, key=lambda other: (other != region, options.delay_ms(region, other), other))
        places = [(other, self._edges(EdgeSpec(other, tenant.name, service, ""))) for other in near]
        return _User(tenant.name, service, region, places)

    def _edges(self, of: EdgeSpec) -> list[Machine]:
        names: list[Address] = [
            edge_address(of.region, of.tenant, of.service, f"e{n + 1}") for n in range(self.question.edges[of.region])
        ]
        return [self.world.machines[name] for name in names]

    # --- asking ------------------------------------------------------------------------------------------------------

    def _ask(self, user: _User, _: Any) -> None:
        t, q = self.world.t, self.question
        if t >= q.asked_until_ms:
            return
        self.world.schedule(q.operation_every_ms, self._ask, user)
        hour = self.seen.hours.setdefault((user.tenant, (t - WARM_MS) // HOUR_MS), Asked())
        if self.orders.restricted(user.tenant, user.service):
            for death in self._open(user):
                death.forbidden = True
            for asked in (hour, *self.seen.operations.values()):
                asked.by_order += 1
            return
        if user.kid is not None:
            self._one("decrypt", user, hour)
        self._one("encrypt", user, hour)

    def _one(self, operation: str, user: _User, hour: Asked) -> None:
        where, took_ms = self._try(operation, user)
        for asked in (hour, self.seen.operations[operation]):
            asked.asked += 1
            asked.served += where is not None
            asked.elsewhere += where not in (None, user.region)
        if operation == "decrypt" and where is not None:
            self._decrypted(user, where, self.world.t + took_ms)

    def _try(self, operation: str, user: _User) -> tuple[str | None, int]:
        """Which region served it, and after how long."""
        took_ms = 0
        for region, edges in user.places:
            there_and_back = 2 * self.mesh.options.delay_ms(user.region, region)
            for edge in edges:
                if self._serves(edge, operation, user):
                    return region, took_ms + there_and_back
            answers = any(edge.proc.alive and not edge.proc.paused for edge in edges)
            took_ms += there_and_back if answers or not edges else self.question.timeout_ms
        return None, took_ms

    def _serves(self, edge: Machine, operation: str, user: _User) -> bool:
        lease = edge.published
        usable = edge.proc.alive and not edge.proc.paused and lease is not None
        if not usable or lens.edge_remaining_ms(edge, self.world.t) < 0:
            return False
        if operation == "encrypt":
            if lease.wrapping_kid is None:
                return False
            user.kid = lease.wrapping_kid
            return True
        if user.kid in lease.kids:
            return True
        self.world.deliver(edge, KeyWanted())
        return False

    # --- a region dies -----------------------------------------------------------------------------------------------

    def _struck(self, item: Item | None) -> None:
        if item is None or item.what not in _DEADLY:
            return
        region, unseen = str(item.args[0]), self.seen.unseen["rto"]
        for tenant in self.question.tenants:
            if region not in tenant.regions or not self.question.edges[region]:
                continue
            if not any(other != region and self.question.edges[other] for other in tenant.regions):
                unseen["no-other-region"] += 1
            elif not any((d.region, d.tenant, d.over) == (region, tenant.name, False) for d in self._deaths):
                self._deaths.append(_Death(region, tenant.name, self.world.t))

    def _decrypted(self, user: _User, where: str, at: int) -> None:
        for death in self._open(user):
            death.over = True
            if where == death.region or death.forbidden:
                why = "forbidden-meanwhile" if death.forbidden else "back-itself-first"
                self.seen.unseen["rto"][why] += 1
            else:
                what = f"{death.tenant} from {death.region} to {where}"
                self.seen.samples["rto"].append(Sample(at - death.at, death.at, what))

    def _open(self, user: _User) -> list[_Death]:
        of = (user.region, user.tenant)
        return [death for death in self._deaths if not death.over and (death.region, death.tenant) == of]

    def finish(self) -> None:
        """Deaths that nobody took over."""
        still = sum(not death.over for death in self._deaths)
        self.seen.unseen["rto"] += Counter({"not-over-at-the-end": still})
