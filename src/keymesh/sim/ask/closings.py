"""How long a region that no Registry can reach goes on: from the cut to the end of the last lease that it holds.

A region is cut off while no Registry that is up, has its log and reaches a majority of the voters can exchange messages
with it; whatever fault brought that about.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from keymesh.core.may import Grantor
from keymesh.model.machine import node_address
from keymesh.model.states import Mode
from keymesh.sim.ask.question import Question
from keymesh.sim.ask.seen import Sample, Seen
from keymesh.sim.checkers import lens
from keymesh.sim.mesh import Mesh
from keymesh.sim.options import NODE
from keymesh.sim.process import Machine, Process


@dataclass(slots=True, eq=False)
class _Cut:
    """``open``: tenants that were served when it began and are not closed yet."""

    node: Machine
    at: int
    life: int
    open: set[str] = field(default_factory=set)


class Closings:
    """Follows every cut and every lease that outlives it."""

    def __init__(self, mesh: Mesh, question: Question, seen: Seen) -> None:
        self.mesh = mesh
        self.world = mesh.world
        self.question = question
        self.seen = seen
        self._unseen = seen.unseen["time_to_closed"]
        self._cuts: dict[str, _Cut] = {}
        self._nodes = {region: mesh.world.machines[node_address(region, NODE)] for region in question.regions}
        mesh.faults.watches.append(self._look)
        self.world.on_crash.append(self._crashed)
        self.world.on_boot.append(self._look)

    def _look(self, _: Any = None) -> None:
        """Something began or ended."""
        for region, node in self._nodes.items():
            cut = self._cuts.get(region)
            if self._is_heard(node):
                if cut is not None:
                    self._unseen += Counter({"healed-first": len(self._cuts.pop(region).open)})
            elif cut is None and node.proc.alive and not node.proc.paused:
                self._begin(region, node)

    def _crashed(self, proc: Process) -> None:
        cut = self._cuts.pop(proc.name, None)
        if cut is not None:
            self._unseen += Counter({"died-first": len(cut.open)})
        self._look()

    def _is_heard(self, node: Machine) -> bool:
        world = self.world
        if world.log.down:
            return False
        majority = len(self.question.voters) // 2 + 1 if len(self.question.voters) >= 3 else 0
        return any(
            self._reach(registry.proc, node.proc)
            and sum(self._reach(registry.proc, self._nodes[voter].proc) for voter in self.question.voters) >= majority
            for registry in world.registries
        )

    def _reach(self, a: Process, b: Process) -> bool:
        up = a.alive and b.alive and not a.paused and not b.paused
        return up and self.world.network.connected(a.name, b.name)

    def _begin(self, region: str, node: Machine) -> None:
        cut = self._cuts[region] = _Cut(node, self.world.t, node.proc.life)
        for tenant in self.question.tenants:
            if region in tenant.regions and self._until(cut, tenant.name) is not None:
                cut.open.add(tenant.name)
                self._arm(cut, tenant.name)

    def _until(self, cut: _Cut, tenant: str) -> int | None:
        """The true time at which its lease there is over; None where it has none, or is not served."""
        holding = cut.node.state.tenants.get(tenant)
        lease, mesh_lease = holding and holding.lease, cut.node.state.mesh.lease
        mode, why = lens.node_mode(cut.node, self.world.t, tenant)
        if lease is None or mesh_lease is None or (mode in (Mode.CLOSED, Mode.SEALED) and "lease" not in why):
            return None
        return int(cut.node.proc.clock.true_time(min(lease.until, mesh_lease.until)))

    def _arm(self, cut: _Cut, tenant: str) -> None:
        until = self._until(cut, tenant)
        self.world.at(self.world.t if until is None else until, self._check, cut, tenant)

    def _check(self, cut: _Cut, tenant: str) -> None:
        """Its lease is over, unless it was renewed meanwhile."""
        if self._cuts.get(cut.node.proc.name) is not cut or tenant not in cut.open:
            return
        mode, _ = lens.node_mode(cut.node, self.world.t, tenant)
        holding = cut.node.state.tenants.get(tenant)
        if mode is Mode.STANDBY or (holding and holding.lease and holding.lease.grantor is Grantor.VOTERS):
            self._unseen["standby-took-over"] += 1
        elif mode in (Mode.CLOSED, Mode.SEALED):
            self._sample(cut, tenant)
        else:
            self.world.schedule(1, self._again, cut, tenant)
            return
        cut.open.discard(tenant)

    def _again(self, cut: _Cut, tenant: str) -> None:
        if self._cuts.get(cut.node.proc.name) is cut:
            self._arm(cut, tenant)

    def _sample(self, cut: _Cut, tenant: str) -> None:
        lag, what = self.world.t - cut.at, f"{tenant} in {cut.node.proc.region}"
        self.seen.samples["time_to_closed"].append(
            Sample(lag, cut.at, what, lag, self.question.closing_bound_ms(tenant))
        )

    def finish(self) -> None:
        """What is open at the end has been so for less than its bound, or is worse than any sample."""
        for cut in self._cuts.values():
            for tenant in sorted(cut.open):
                if self.world.t - cut.at > self.question.closing_bound_ms(tenant):
                    self._sample(cut, tenant)
                else:
                    self._unseen["not-over-at-the-end"] += 1
