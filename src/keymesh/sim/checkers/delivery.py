"""I8 at the Registry: restrictions leave in Lane 0 the moment they are in the log; lower lanes give way to them."""

from __future__ import annotations

from typing import Any

from keymesh.model.machine import Address, Booted
from keymesh.model.states import Lane
from keymesh.orbital.messages import Task
from keymesh.registry.events import Appended, LogRead, Project
from keymesh.sim.checkers import lens
from keymesh.sim.ledger import RESTRICTING, Fact, Restriction
from keymesh.sim.mesh import Mesh
from keymesh.sim.process import Machine

_GATE_MS = 1_900
_NEW_MS = 5_000
_PUSH_MS = 12_000
_NOISE = frozenset(("loss", "duplicate", "reorder", "corrupt", "replay"))


class Delivery:
    """Watches what the Registry sends after it learned of a restriction."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.world = world = mesh.world
        self.ledger = world.ledger
        self.known: list[tuple[int, Fact]] = []  # restrictions lately learned by the running Registry, with when
        self.fresh: list[Fact] = []
        self.sent_at = -1
        self.sent: set[tuple[Address, str, int]] = set()
        self.booted = False
        world.handlers[Project] = self._project
        self.ledger.on_restricted.append(self._restricted)
        world.on_send.setdefault(Task, []).append(self._sending)
        for kind in (Appended, LogRead):
            world.after.setdefault(kind, []).append(self._stepped)
        world.after.setdefault(Booted, []).append(self._booted)

    def _booted(self, m: Machine, event: Any) -> None:
        if m.kind == "registry":
            self.known.clear()
            self.fresh.clear()
            self.booted = False

    # --- push ----------------------------------------------------------------------------------------------------

    def _restricted(self, stretch: Restriction) -> None:
        """Where nothing is broken, every Edge has dropped what is restricted soon after the commit."""
        if self._all_well():
            self.world.schedule(_PUSH_MS, self._pushed, stretch, self._troubles())

    def _all_well(self) -> bool:
        return self.world.network.whole() and all(
            p.alive and not p.paused and not p.disk_full and not p.torn and p.fuse < 0
            for p in self.world.processes.values()
        )

    def _troubles(self) -> int:
        return sum(n for name, n in self.world.faults.items() if name not in _NOISE)

    def _pushed(self, stretch: Restriction, troubles: int) -> None:
        if stretch.ended_at is not None or troubles != self._troubles() or not self._all_well():
            return
        self.world.sometimes["push-judged"] += 1
        for m in self.world.machines.values():
            if (
                m.kind == "edge"
                and lens.edge_remaining_ms(m, self.world.t) >= 0
                and lens.lease_covered(m, stretch.scope)
            ):
                self.world.fail("I8", f"{m.proc.name} was not told of {stretch.text} though nothing is broken")

    # --- Lane 0 and the others -----------------------------------------------------------------------------------

    def _project(self, m: Machine, e: Project) -> None:
        for signed in e.entries:
            if signed.entry.kind in RESTRICTING:
                fact = self.ledger.by_hash[signed.hash]
                if self.world.t - fact.logged_at < _NEW_MS:
                    self.fresh.append(fact)

    def _stepped(self, m: Machine, event: Any) -> None:
        """The step that took a restriction in also sent it to every node that may hold it."""
        t = self.world.t
        if not self.booted:  # what was in the log before this life goes out when nodes are heard
            self.booted = m.state.booted
            self.fresh.clear()
        for fact in self.fresh:
            for node in self.world.machines.values():
                if node.kind == "node" and self.ledger.may_hold(node.proc.region, fact.namespace):
                    if not self._superseded(fact) and not self._was_sent(node.address, fact):
                        self.world.fail(
                            "I8", f"{fact.namespace}:{fact.seq} {fact.kind} was not sent to {node.address} at once"
                        )
            self.known.append((t, fact))
        self.fresh.clear()
        self.known = [(at, fact) for at, fact in self.known if t - at < _GATE_MS]

    def _was_sent(self, node: Address, fact: Fact) -> bool:
        return self.sent_at == self.world.t and any(
            a == node and ns == fact.namespace and seq >= fact.seq for a, ns, seq in self.sent
        )

    def _superseded(self, fact: Fact) -> bool:
        later = self.ledger.facts[fact.namespace][fact.seq :]
        return any(f.args.get("scope") == fact.args["scope"] for f in later if f.kind in (*RESTRICTING, "resume"))

    def _sending(self, m: Machine, to: Address, task: Task) -> None:
        t = self.world.t
        if task.lane is Lane.RESTRICTION:
            if self.sent_at != t:
                self.sent.clear()
                self.sent_at = t
            self.sent.add((to, task.namespace, task.state.head.entry.seq))
            return
        node = self.world.machines[to]
        for at, fact in self.known:
            if t - at >= _GATE_MS or not self.ledger.may_hold(node.proc.region, fact.namespace):
                continue
            if self._superseded(fact):
                continue
            held = lens.durable_restrictions(node, fact.namespace, self.ledger).get(fact.args["scope"], 0)
            if held < fact.seq:
                self.world.fail(
                    "I8", f"{to} is handed lane {int(task.lane)} before {fact.namespace}:{fact.seq} in Lane 0"
                )
