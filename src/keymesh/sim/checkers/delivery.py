"""I8 at the Registry: restrictions leave in Lane 0 the moment they are in the log; lower lanes give way to them, also
where a node comes back to old ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from keymesh.model.limits import TASK_TRIES_MAX
from keymesh.model.machine import Address, Booted
from keymesh.model.states import Lane
from keymesh.orbital.messages import Hello, Task
from keymesh.registry.events import Appended, LogRead, Project
from keymesh.sim.checkers import lens
from keymesh.sim.ledger import LIFTING, RESTRICTING, Fact, Restriction
from keymesh.sim.mesh import Mesh
from keymesh.sim.process import Machine, Process

_GATE_MS = 1_900
_NEW_MS = 5_000
_PUSH_MS = 12_000
_NOISE = frozenset(("loss", "duplicate", "reorder", "corrupt", "replay"))


@dataclass(slots=True)
class Learned:
    """What one replica of the Registry has learned lately in its present life."""

    known: list[tuple[int, Fact]] = field(default_factory=list)  # restrictions, with when by its clock
    fresh: list[Fact] = field(default_factory=list)
    sent_at: int = -1
    sent: set[tuple[Address, str, int]] = field(default_factory=set)
    booted: bool = False
    greeted: dict[Address, int] = field(default_factory=dict)  # by which node, and when by its own clock


class Delivery:
    """Watches what each replica of the Registry sends after it learned of a restriction."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.world = world = mesh.world
        self.ledger = world.ledger
        self.learned: dict[Address, Learned] = {}
        self.wiped_at: dict[str, int] = {}
        world.on_wipe.append(self._wiped)
        world.handlers[Project] = self._project
        self.ledger.on_restricted.append(self._restricted)
        world.on_send.setdefault(Task, []).append(self._sending)
        for kind in (Appended, LogRead):
            world.after.setdefault(kind, []).append(self._stepped)
        world.after.setdefault(Booted, []).append(self._booted)
        world.after.setdefault(Hello, []).append(self._greeted)

    def _booted(self, m: Machine, event: Any) -> None:
        if m.kind == "registry":
            self.learned[m.address] = Learned()

    def _greeted(self, m: Machine, event: Any) -> None:
        """A node is back: all restrictions are new to it.  (What greets again at once was answered already.)"""
        if m.kind == "registry" and (session := m.state.sessions.get(event.sender)) is not None:
            if session.greeted_at is not None:
                self.learned[m.address].greeted[event.sender] = session.greeted_at

    def _wiped(self, proc: Process) -> None:
        """What a node lost with its disk it may have acknowledged: the Registry learns of it by the heartbeat."""
        self.wiped_at[proc.name] = self.world.t

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
                    self.learned[m.address].fresh.append(fact)

    def _stepped(self, m: Machine, event: Any) -> None:
        """The step that took a restriction in also sent it to every node that may hold it."""
        now = m.proc.clock.now(self.world.t)  # lower lanes wait by the Registry's clock, which may be set
        mine = self.learned[m.address]
        if not mine.booted:  # what was in the log before this life goes out when nodes are heard
            mine.booted = m.state.booted
            mine.fresh.clear()
        for fact in mine.fresh:
            for node in self.world.machines.values():
                if node.kind == "node" and self.ledger.may_hold(node.proc.region, fact.namespace):
                    if not self._superseded(fact) and not self._was_sent(mine, node.address, fact):
                        self.world.fail(
                            "I8",
                            f"{fact.namespace}:{fact.seq} {fact.kind} was not sent by {m.address} to {node.address} "
                            "at once",
                        )
            mine.known.append((now, fact))
        mine.fresh.clear()
        mine.known = [(at, fact) for at, fact in mine.known if now - at < _GATE_MS]

    def _was_sent(self, mine: Learned, node: Address, fact: Fact) -> bool:
        return mine.sent_at == self.world.t and any(
            a == node and ns == fact.namespace and seq >= fact.seq for a, ns, seq in mine.sent
        )

    def _superseded(self, fact: Fact) -> bool:
        later = self.ledger.facts[fact.namespace][fact.seq :]
        return any(f.args.get("scope") == fact.args["scope"] for f in later if f.kind in (*RESTRICTING, *LIFTING))

    def _sending(self, m: Machine, to: Address, task: Task) -> None:
        if m.kind != "registry":  # a region hands on what it has
            return
        t, mine = self.world.t, self.learned[m.address]
        if task.lane is Lane.RESTRICTION:
            if mine.sent_at != t:
                mine.sent.clear()
                mine.sent_at = t
            mine.sent.add((to, task.namespace, task.state.head.entry.seq))
            return
        node, now = self.world.machines[to], m.proc.clock.now(t)
        for at, fact in mine.known:
            if now - at < _GATE_MS and self._is_owed(node, fact):
                self._early(to, task, fact)
        since = mine.greeted.get(to)
        if since is not None and now - since < _GATE_MS:
            self.world.sometimes["told-on-return"] += 1
            for namespace, facts in self.ledger.facts.items():
                known = m.state.spaces.get(namespace)
                for fact in facts[: 0 if known is None else known.seq]:
                    if fact.kind in RESTRICTING and self._is_owed(node, fact) and not self._is_refused(m, to, fact):
                        self._early(to, task, fact)

    def _is_owed(self, node: Machine, fact: Fact) -> bool:
        """Whether that node may hold what is restricted, and has not recorded it."""
        if not self.ledger.may_hold(node.proc.region, fact.namespace) or self._superseded(fact):
            return False
        if self.wiped_at.get(node.proc.name, -1) >= fact.logged_at:
            return False
        held = lens.durable_restrictions(node, fact.namespace, self.ledger).get(fact.args["scope"], 0)
        return held < fact.seq

    def _is_refused(self, m: Machine, to: Address, fact: Fact) -> bool:
        """Refused again and again: it holds up nobody."""
        urgent = m.state.sessions[to].queue.urgent
        return any(u.refusals >= TASK_TRIES_MAX for (name, _), u in urgent.items() if name == fact.namespace)

    def _early(self, to: Address, task: Task, fact: Fact) -> None:
        where = f"{fact.namespace}:{fact.seq}"
        self.world.fail("I8", f"{to} is handed lane {int(task.lane)} before {where} in Lane 0")
