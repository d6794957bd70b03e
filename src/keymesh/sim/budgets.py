"""Budgets under faults: Edges use slices as fast as they like, and no period of any budget is ever overspent.

A run of its own, over the same machines, network, faults and checkers as every seed, with the seed's own plan.  Budgets
of a minute or an hour are set for services and tenants, raised and lowered while regions are cut off; Edges draw from
their slices while their leases live, ask for more, give back, die and come again; Cores die between record and answer,
their clocks jump, go back and drift.

Checked beside all else: what Edges really used, in each period by the clock of the Core that granted it, is within the
largest budget that was in force in it, over all regions together; for the tenant's budget over all services (B1).  And
budgets are of use: some of each is used (B2).
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Final

from keymesh.control.rows import budget_name
from keymesh.edge.purse import Purse, Unused
from keymesh.edge.snapshot import BudgetUsed, SlicesUnused, Trim
from keymesh.model.machine import Address
from keymesh.model.periods import Period, number_at
from keymesh.sim.checkers import lens
from keymesh.sim.ledger import Fact
from keymesh.sim.options import options_of
from keymesh.sim.plan import Item, plan_of
from keymesh.sim.process import Machine, Process
from keymesh.sim.run import Run
from keymesh.sim.world import Violation

USE_MS: Final = 700
FIRST_MS: Final = 12_000
APPETITE_MS: Final = 45_000
APPETITES: Final = ((0, 1), (60, 300), (7, 20), (300, 3_000))
Scope = tuple[str, str]
"""(tenant, service, or empty)."""


@dataclass(slots=True)
class Held:
    """One Edge's life: its purse, and which Core granted what is in it."""

    purse: Purse = field(default_factory=Purse)
    granted_by: Address | None = None
    left: int = 0


class BudgetsRun:
    """One seed: a mesh whose tenants have budgets."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(f"{seed}/budgets")
        options = options_of(seed)
        twins = tuple(replace(edge, instance="e2") for edge in options.edges[:2])
        self.options = options = replace(
            options, edges=(*options.edges, *twins), edge_ttl_ms=rng.choice((30_000, 60_000, 120_000))
        )
        self.run = run = Run(options, self._plan())
        self.mesh, self.world = run.mesh, run.world
        self.limits: dict[Scope, list[tuple[str, int]]] = {}  # (period, operations), as they came to be
        self.used: Counter[tuple[Scope, str, int]] = Counter()  # by scope, kind of period and number
        self.seen: dict[tuple[Address, str], int] = {}
        self.held: dict[Address, Held] = {}
        self.edges = [m for m in self.world.machines.values() if m.kind == "edge"]
        self.world.handlers[Trim] = self._trim
        self.world.on_publish.append(self._published)
        self.world.on_logged.append(self._logged)
        self.world.on_crash.append(self._crashed)

    def _plan(self) -> tuple[Item, ...]:
        """The seed's own; no tenant is destroyed: that has its own plan."""
        return tuple(i for i in plan_of(self.options) if i.what not in ("destroy", "cancel-destroy"))

    def execute(self) -> None:
        """All of it.  Raises Violation."""
        for tenant in self.options.tenants:
            for service in (*tenant.services, ""):
                period = self.rng.choice(("minute", "minute", "hour"))
                for n in range(self.rng.choice((1, 3))):
                    at = FIRST_MS + n * self.rng.randrange(60_000, 400_000)
                    ops = self.rng.choice((0, 90, 400, 5_000, 5_000, 60_000, 60_000, 400_000))
                    self.world.at(at, self._set, (tenant.name, service), (period, ops))
        for edge in self.edges:
            self.world.at(FIRST_MS + self.rng.randrange(USE_MS), self._use, edge)
        self.run.execute()
        if not any(self.used.values()) and any(ops for given in self.limits.values() for _, ops in given):
            self.world.sometimes["nothing-used"] += 1

    # --- people ------------------------------------------------------------------------------------------------------

    def _set(self, scope: Any, limit: Any) -> None:
        tenant, service = scope
        facts = self.world.ledger.facts.get(tenant, ())
        version = 1 + sum(f.kind == "budget.set" and f.args["service"] == service for f in facts)
        row = {"version": version, "period": limit[0], "ops": limit[1]}
        self.mesh.clients.ask("budget.set", tenant, {"service": service, "row": row})

    def _logged(self, fact: Fact) -> None:
        if fact.kind == "budget.set":
            row = fact.args["row"]
            self.limits.setdefault((fact.namespace, fact.args["service"]), []).append((row["period"], row["ops"]))
            self.world.say(
                f"BUDGET {fact.namespace} {budget_name(fact.args['service'])} {row['ops']} a {row['period']}"
            )

    # --- Edges' shells -----------------------------------------------------------------------------------------------

    def _crashed(self, proc: Process) -> None:
        for m in proc.machines:
            if self.held.pop(m.address, None) is not None:
                self.world.sometimes["edge-died-with-a-slice"] += 1

    def _published(self, m: Machine) -> None:
        """As the shell's: what is held of another window comes back, then the slice that came with the lease."""
        lease = m.published
        if lease is None:
            return
        held = self.held.setdefault(m.address, Held())
        terms = lease.terms
        unused: Unused = ()
        if (window := 0 if terms is None else terms.window) != held.purse.window:
            unused = held.purse.turn(window)
        if terms is not None:
            held.purse.add(lease.lease_id, terms.ops)
            held.granted_by = lease.granted_by
            self.world.sometimes["slice-empty" if not terms.ops else "slice-taken"] += 1
        held.left = held.purse.left
        self._tell(m, unused)

    def _trim(self, m: Machine, effect: Trim) -> None:
        held = self.held.setdefault(m.address, Held())
        self._tell(m, held.purse.trim(effect.keep))
        held.left = held.purse.left

    def _tell(self, m: Machine, unused: Unused) -> None:
        if unused:
            self.world.sometimes["slice-given-back"] += 1
            self.world.schedule(0, self.world.reply, (m, m.proc.life), SlicesUnused(unused))

    def _use(self, m: Machine, _: Any) -> None:
        """An application, in fits and starts; the hot path looks at the lease alone."""
        self.world.schedule(1 + self.rng.randrange(USE_MS), self._use, m)
        lease, held = m.published, self.held.get(m.address)
        if lease is None or held is None or not m.proc.alive or m.proc.paused:
            return
        if lens.edge_remaining_ms(m, self.world.t) <= 0 or not held.purse.window:
            return
        wanted = self.rng.choice(APPETITES[self.appetite(m)])
        got = len(tuple(islice(held.purse.stream(), wanted)))
        self._count(m, held, got)
        left = held.purse.left
        used, held.left = held.left - left, left
        if used or got < wanted:
            event = BudgetUsed(left, max(used, wanted - got), held.purse.low or got < wanted)
            self.world.reply((m, m.proc.life), event)

    def appetite(self, m: Machine) -> int:
        """Another every so often, so that what one has lies idle while others want it."""
        return (m.number + self.world.t // APPETITE_MS) % len(APPETITES)

    # --- what is true ------------------------------------------------------------------------------------------------

    def _count(self, m: Machine, held: Held, ops: int) -> None:
        """By the clock of the Core that granted it; one that goes back opens no earlier period."""
        config, core = m.state.config, held.granted_by
        if not ops or core is None:
            return
        now = self.world.machines[core].proc.clock.now(self.world.t)
        for scope in ((config.tenant, config.service), (config.tenant, "")):
            for period in sorted({period for period, _ in self.limits.get(scope, ())}):
                number = max(self.seen.get((core, period), 0), number_at(Period(period), now))
                self.seen[core, period] = number
                self.used[scope, period, number] += ops
                self._judge(scope, period, number)

    def _judge(self, scope: Scope, period: str, number: int) -> None:
        limits = [ops for kind, ops in self.limits[scope] if kind == period]
        if self.used[scope, period, number] > max(limits):
            used = self.used[scope, period, number]
            self.world.fail("B1", f"{'/'.join(scope)} used {used} of {max(limits)} in {period} {number}")


def run_budgets(seed: int) -> tuple[Violation | None, Counter[str]]:
    """One seed: what does not hold, and what happened how often."""
    run = BudgetsRun(seed)
    try:
        run.execute()
    except Violation as bad:
        return bad, run.world.sometimes
    run.world.sometimes["used"] += sum(run.used.values())
    return None, run.world.sometimes
