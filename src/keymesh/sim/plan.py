"""A seed's plan: a flat list of timed items, random ones and directed scenarios, each deletable on its own.

Directed scenarios put faults where rules are decided: cuts just before restrictions, slow answers around leases,
deaths between record and send, pauses longer than the ttl (RELIABILITY: generators matter more than volume).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from keymesh.sim.options import FAULTS_FROM_MS, REGIONS, VOTERS, EdgeSpec, Options, TenantSpec
from keymesh.sim.plan_destruction import destruction
from keymesh.sim.plan_registry_gone import registry_gone

Arg = str | int


@dataclass(frozen=True, slots=True)
class Item:
    """``what`` at true time ``at_ms``; ``args`` say the rest.  Commands find their operands when they run."""

    at_ms: int
    what: str
    args: tuple[Arg, ...] = ()

    def __str__(self) -> str:
        return f"{self.at_ms} {self.what} {' '.join(map(str, self.args))}"


COMMANDS: Final = frozenset(
    ("suspend", "resume", "revoke", "want-key", "want-rewrap", "set-service", "labels", "rotate-ivk", "switch-l1",
     "local-suspend", "repeat", "destroy", "cancel-destroy")
)  # fmt: skip


NEWEST: Final = "newest"


class Planner:
    """Draws a plan from a seed's options."""

    def __init__(self, options: Options) -> None:
        self.o = options
        self.rng = random.Random(options.seed * 2)
        self.items: list[Item] = []
        self.scopes = _scopes(options)

    def plan(self) -> tuple[Item, ...]:
        for _ in range(self.o.faults // 2):
            if self.rng.randrange(100) < self.o.directed:
                self.rng.choice(_DIRECTED)(self)
            else:
                self._random_fault(self._when())
        while self._faults() < self.o.faults:
            self._random_fault(self._when())
        while len(self.items) - self._faults() < self.o.commands:
            self._random_command(self._when())
        self._revoke_late()
        self.rng = random.Random(f"{self.o.seed}/registry-gone")
        if self.rng.randrange(5) < 2:
            registry_gone(self)
        self.rng = random.Random(f"{self.o.seed}/destruction")
        if self.rng.randrange(4) == 0:
            destruction(self)
        return tuple(sorted(self.items, key=lambda i: i.at_ms))

    # --- pieces ----------------------------------------------------------------------------------------

    def add(self, at: int, what: str, *args: Arg) -> None:
        if FAULTS_FROM_MS <= at < self.o.heal_at_ms:
            self.items.append(Item(at, what, args))

    def fault(self, name: str, at: int, what: str, *args: Arg) -> None:
        """A fault of a class that this seed has on."""
        if self.o.on(name):
            self.add(at, what, *args)

    def _faults(self) -> int:
        return len([i for i in self.items if i.what not in COMMANDS])

    def _when(self) -> int:
        return self.rng.randrange(FAULTS_FROM_MS, self.o.heal_at_ms - 1_000)

    def _region(self) -> str:
        return self.rng.choice(REGIONS)

    def _tenant(self) -> TenantSpec:
        return self.rng.choice(self.o.tenants)

    def _scope(self, tenant: TenantSpec | None = None) -> str:
        """Mostly narrow scopes; region and mesh now and then."""
        if tenant is None and self.rng.randrange(40) == 0:
            return self.rng.choice(("mesh", *(f"region:{r}" for r in REGIONS)))
        own = [s for s in self.scopes if tenant is None or s.split(":")[1].split("/")[0] == tenant.name]
        return self.rng.choice(own)

    def _random_command(self, at: int) -> None:
        rng = self.rng
        t = self._tenant()
        what = rng.choices(
            ("suspend", "resume", "want-key", "want-rewrap", "set-service", "labels", "rotate-ivk", "switch-l1",
             "local-suspend", "repeat"),
            (30, 6, 10, 4, 8, 12, 3, 1, 6, 4),
        )[0]  # fmt: skip
        if what == "resume":
            self.add(at, what, self._scope())
        elif what == "suspend":
            self._suspend(at, self._scope())
        elif what == "local-suspend":
            self._suspend(at, self._scope(t), rng.choice(t.regions))
        elif what in ("want-key", "want-rewrap"):
            key = rng.choice(("l2", *(f"l3/{s}" for s in t.services)))
            self.add(at, what, t.name, key if what == "want-key" else f"l3/{rng.choice(t.services)}")
        elif what == "set-service":
            self.add(at, what, t.name, rng.choice(t.services))
        elif what == "rotate-ivk":
            self.add(at, what, self._region())
        elif what == "repeat":
            self.add(at, what)
        else:
            self.add(at, what, t.name)

    def _suspend(self, at: int, scope: str, region: str | None = None) -> None:
        """Mostly resumed after a while: where everything is suspended, no lease is there to outlive anything."""
        if region is None:
            self.add(at, "suspend", scope)
        else:
            self.add(at, "local-suspend", scope, region)
        if self.rng.randrange(8):
            self.add(at + self.rng.randrange(1_000, self.o.ttl_ms * 3 // 2), "resume", scope)

    def _random_fault(self, at: int) -> None:
        rng = self.rng
        ttl = self.o.ttl_ms
        a, b = self._ends()
        length = rng.choice((rng.randrange(500, 20_000), rng.randrange(ttl // 2, ttl * 2)))
        region = self._region()
        tenant = self._tenant()
        proc = rng.choice(("registry", *REGIONS, *map(edge_name, self.o.edges)))
        choices: list[tuple[str, tuple[Arg, ...]]] = [
            ("cut", (a, b, length)),
            ("cut", (a, b, length)),
            ("cut-one-way", (a, b, length)),
            ("slow-link", (a, b, rng.randrange(500, ttl * 3 // 4), length)),
            ("crash", (proc, rng.randrange(0, 12), rng.choice((300, 700, 5_000, ttl)))),
            ("crash", (rng.choice(("registry", *REGIONS)), rng.randrange(0, 12), rng.choice((300, 700, 5_000)))),
            ("retire", (edge_name(self._edge()), rng.choice((0, 1_000, ttl)))),
            ("pause", (proc, length)),
            ("clock-jump", (rng.choice((region, "registry")), rng.randrange(1_100, 60_000))),
            ("clock-back", (rng.choice((region, "registry")), rng.randrange(1_100, 60_000))),
            ("clock-in-write", (region, rng.choice((rng.randrange(1_100, ttl), -rng.randrange(1_100, 60_000))))),
            ("disk-full", (rng.choice(("registry", *REGIONS)), rng.randrange(2_000, ttl))),
            ("torn-write", (rng.choice(("registry", *REGIONS)),)),
            ("log-unavailable", (rng.choice((3_000, 20_000, ttl * 3 // 2)),)),
            ("log-conflict", (tenant.name,)),
            ("log-unknown", (rng.randrange(1, 4),)),
            ("l1-disabled", (tenant.name, rng.randrange(20_000, 200_000))),
            ("l1-unreachable", (tenant.name, rng.choice(tenant.regions), rng.randrange(5_000, 200_000))),
            ("wipe", (rng.choice(REGIONS),)),
            ("bit-rot", (rng.choice(tenant.regions), tenant.name)),
        ]
        allowed = [c for c in choices if self.o.on(c[0])]
        if not allowed:
            allowed = [("cut", (a, b, length)), ("crash", (region, rng.randrange(0, 12), 700))]
        what, args = rng.choice(allowed)
        self.add(at, what, *args)

    def _ends(self) -> tuple[str, str]:
        """Mostly the Registry and a region; two regions; a region and one of its Edges."""
        rng = self.rng
        draw = rng.randrange(10)
        if draw < 6:
            return "registry", self._region()
        if draw < 8 or not self.o.edges:
            a, b = rng.sample(REGIONS, 2)
            return a, b
        edge = rng.choice(self.o.edges)
        return edge.region, edge_name(edge)

    def _edge(self) -> EdgeSpec:
        return self.rng.choice(self.o.edges)

    def _tenant_of(self, edge: EdgeSpec) -> TenantSpec:
        return next(t for t in self.o.tenants if t.name == edge.tenant)

    def _revoke_late(self) -> None:
        """Revocations are for good, so they come last, and on few scopes."""
        for _ in range(3):
            tenant = self._tenant()
            at = self.rng.randrange(self.o.heal_at_ms * 3 // 4, self.o.heal_at_ms - 2 * self.o.ttl_ms)
            self.add(at, "revoke", f"key:{tenant.name}/{self.rng.choice(tenant.services)}@1")
        wants = [i for i in self.items if i.what == "want-key" and str(i.args[1]) != "l2"]
        if wants:  # the version that comes of it, perhaps before it is active
            last = max(wants, key=lambda i: i.at_ms)
            self.add(last.at_ms + 1_500, "revoke", f"key:{last.args[0]}/{str(last.args[1])[3:]}@{NEWEST}")


def edge_name(edge: EdgeSpec) -> str:
    return f"edge:{edge.region}/{edge.tenant}/{edge.service}/{edge.instance}"


def _scopes(options: Options) -> tuple[str, ...]:
    out: list[str] = []
    for t in options.tenants:
        out.append(f"tenant:{t.name}")
        for s in t.services:
            out += [f"service:{t.name}/{s}", f"service:{t.name}/{s}", f"key:{t.name}/{s}@1", f"key:{t.name}/{s}@2"]
    return tuple(out)


# --- directed scenarios ----------------------------------------------------------------------------------------


def cut_then_suspend(p: Planner) -> None:
    """A region is cut off just before a restriction, and stays cut past the bound."""
    at, edge = p._when(), p._edge()
    length = p.rng.choice((p.o.ttl_ms // 2, p.o.ttl_ms * 3 // 2))
    way = p.rng.choice(("cut", "cut-one-way", "cut-one-way"))
    ends = p.rng.choice((("registry", edge.region), (edge.region, "registry")))
    p.fault(way, at, way, *ends, length)
    scope = p._scope(p._tenant_of(edge))
    p.add(at + p.rng.randrange(1, 3_000), "suspend", scope)
    p.add(at + length + p.rng.randrange(0, p.o.ttl_ms), "resume", scope)


def slow_answers(p: Planner) -> None:
    """Answers crawl while restrictions are issued: counted from receipt they would outlive the bound."""
    at, edge = p._when(), p._edge()
    slow = p.rng.randrange(p.o.ttl_ms // 3, p.o.ttl_ms * 9 // 10)
    p.fault("slow-link", at, "slow-link", "registry", edge.region, slow, p.o.heartbeat_ms * 2)
    suspended = at + p.rng.randrange(p.o.heartbeat_ms, p.o.heartbeat_ms * 2)
    scope = p._scope(p._tenant_of(edge))
    p.add(suspended, "suspend", scope)
    p.fault("cut", suspended - 50, "cut-one-way", edge.region, "registry", p.o.ttl_ms * 2)
    p.add(suspended + p.o.ttl_ms * 5 // 2, "resume", scope)


def pause_past_ttl(p: Planner) -> None:
    """A process sleeps through a restriction and its own lease."""
    at, edge = p._when(), p._edge()
    who = p.rng.choice((edge.region, edge_name(edge)))
    scope = p._scope(p._tenant_of(edge))
    p.fault("pause", at, "pause", who, p.o.ttl_ms + p.rng.randrange(0, p.o.ttl_ms))
    p.add(at + p.rng.randrange(0, 500), "suspend", scope)
    p.add(at + p.o.ttl_ms * 5 // 2, "resume", scope)


def die_on_task(p: Planner) -> None:
    """A node dies some effects after a restriction reaches it, perhaps between record and acknowledgement."""
    at, edge = p._when(), p._edge()
    scope = p._scope(p._tenant_of(edge))
    p.add(at, "suspend", scope)
    p.fault("crash", at + p.rng.randrange(5, 150), "crash", edge.region, p.rng.randrange(0, 7), 700)
    if p.rng.randrange(2):
        p.fault("cut", at + 160, "cut", "registry", edge.region, p.o.ttl_ms)
    p.add(at + p.o.ttl_ms, "resume", scope)


def back_and_forth(p: Planner) -> None:
    """Suspend, resume, suspend on one scope, close together over uneven links."""
    at, edge = p._when(), p._edge()
    scope = p._scope(p._tenant_of(edge))
    p.fault("slow-link", at, "slow-link", "registry", edge.region, p.rng.randrange(200, 4_000), 1_500)
    for i, what in enumerate(("suspend", "resume", "suspend", "suspend")):
        p.add(at + i * p.rng.randrange(50, 2_500), what, scope)
    p.add(at + 20_000, "resume", scope)


def local_and_resume(p: Planner) -> None:
    """A cut-off region suspends on its own while the Registry suspends and resumes the same scope."""
    at, edge = p._when(), p._edge()
    scope = p._scope(p._tenant_of(edge))
    p.add(at, "suspend", scope)
    length = p.rng.randrange(5_000, p.o.ttl_ms)
    p.fault("cut", at + 2_000, "cut", "registry", edge.region, length)
    p.add(at + 3_000, "local-suspend", scope, edge.region)
    p.add(at + p.rng.randrange(2_000, length + 3_000), "resume", scope)
    p.fault("crash", at + length + p.rng.randrange(2_000, 6_000), "crash", edge.region, p.rng.randrange(0, 9), 700)
    p.add(at + length + 60_000, "resume", scope)


def mint_under_fire(p: Planner) -> None:
    """A rotation while the minter dies, sleeps or hears twice."""
    at, tenant = p._when(), p._tenant()
    key = p.rng.choice(("l2", f"l3/{p.rng.choice(tenant.services)}"))
    p.add(at, "want-key", tenant.name, key)
    if p.rng.randrange(2):  # what the first life submits arrives after what the second does
        p.fault("slow-link", at + 50, "slow-link", tenant.home, "registry", p.rng.randrange(2_000, 9_000), 900)
        p.fault("crash", at + 950, "crash", tenant.home, 0, 300)
        return
    p.fault("crash", at + p.rng.randrange(20, 900), "crash", tenant.home, p.rng.randrange(0, 6), 500)
    p.fault("cut", at + p.rng.randrange(200, 800), "cut-one-way", "registry", tenant.home, p.rng.randrange(500, 30_000))
    p.fault("wipe", at + 2_000, "wipe", p.rng.choice(tenant.regions))


def registry_dies(p: Planner) -> None:
    """The Registry dies around an append, a commit or a certificate."""
    at = p._when()
    scope = p._scope()
    p.add(at, "suspend", scope)
    p.fault("log-unknown", at - 1, "log-unknown", 1)
    p.fault(
        "crash", at + p.rng.randrange(0, 300), "crash", "registry", p.rng.randrange(0, 12), p.rng.choice((300, 5_000))
    )
    p.add(at + p.rng.randrange(1_000, p.o.ttl_ms), "resume", scope)
    p.fault("crash", at + p.o.ttl_ms, "crash", "registry", p.rng.randrange(0, 12), 400)


def deaf_edge(p: Planner) -> None:
    """An Edge does not hear its revocation, and holds a lease as long as it may."""
    at, edge = p._when(), p._edge()
    p.fault("cut", at, "cut", edge.region, edge_name(edge), p.o.edge_ttl_ms * 3 // 2)
    scope = p._scope(p._tenant_of(edge))
    p.add(at + p.rng.randrange(10, 2_000), "suspend", scope)
    p.fault("crash", at + 3_000 + p.rng.randrange(0, 2_000), "crash", edge.region, p.rng.randrange(0, 6), 500)
    p.fault("clock-jump", at + 2_500, "reboot", edge.region)
    p.add(at + p.o.ttl_ms * 2, "resume", scope)


def retire_then_suspend(p: Planner) -> None:
    """An Edge ends in order, and before its process is gone what it could use is suspended."""
    at, edge = p._when(), p._edge()
    p.fault("retire", at, "retire", edge_name(edge), p.o.ttl_ms)
    scope = p._scope(p._tenant_of(edge))
    p.add(at + p.rng.randrange(100, 3_000), "suspend", scope)
    p.add(at + p.o.ttl_ms * 3 // 2, "resume", scope)


def no_majority(p: Planner) -> None:
    """The Registry loses its voters around a restriction and a resume."""
    at = p._when()
    scope = p._scope()
    length = p.rng.randrange(3_000, p.o.ttl_ms * 3 // 2)
    for voter in p.rng.sample(VOTERS, 2):
        way = "cut" if p.rng.randrange(2) else "cut-one-way"
        p.fault(way, at, way, *(("registry", voter) if p.rng.randrange(2) else (voter, "registry")), length)
    p.add(at - 5_000, "suspend", scope)
    p.add(at + 200, "resume", scope)
    p.add(at + p.rng.randrange(300, length), "suspend", p._scope())
    p.add(at + p.rng.randrange(300, length), "suspend", scope)


def root_pulled(p: Planner) -> None:
    """The customer disables L1 and tells nobody; perhaps a region cannot ask."""
    at, tenant = p._when(), p._tenant()
    p.fault("l1-disabled", at, "l1-disabled", tenant.name, p.rng.randrange(60_000, 200_000))
    region = p.rng.choice(tenant.regions)
    if p.rng.randrange(2):
        p.fault("l1-unreachable", at - 10, "l1-unreachable", tenant.name, region, p.o.l1_ttl_ms * 3 // 2)


def clock_trouble(p: Planner) -> None:
    """A wall clock is set around a restriction while the region is cut off."""
    at, edge = p._when(), p._edge()
    p.fault("cut", at, "cut", "registry", edge.region, p.o.ttl_ms * 2)
    scope = p._scope(p._tenant_of(edge))
    p.add(at + 500, "suspend", scope)
    p.fault(
        "clock-back", at + p.rng.randrange(600, p.o.ttl_ms), "clock-back", edge.region, p.rng.randrange(5_000, 90_000)
    )
    p.fault("clock-jump", at + 300, "clock-jump", edge.region, p.rng.randrange(1_100, 30_000))
    p.add(at + p.o.ttl_ms * 5 // 2, "resume", scope)


def backlog(p: Planner) -> None:
    """Many lower-lane entries while a region is away, then a restriction."""
    at, edge = p._when(), p._edge()
    tenant = p._tenant_of(edge)
    p.fault("cut", at, "cut", "registry", edge.region, 8_000)
    for i in range(5):
        p.add(at + 500 + i * 300, "labels", tenant.name)
    p.add(at + p.rng.choice((1_500, 8_000, 8_150)), "suspend", p._scope(tenant))
    p.add(at + 8_100, "labels", tenant.name)


_DIRECTED: Final[tuple[Callable[[Planner], None], ...]] = (
    cut_then_suspend,
    slow_answers,
    pause_past_ttl,
    die_on_task,
    back_and_forth,
    local_and_resume,
    mint_under_fire,
    registry_dies,
    deaf_edge,
    retire_then_suspend,
    no_majority,
    root_pulled,
    clock_trouble,
    backlog,
)


def plan_of(options: Options) -> tuple[Item, ...]:
    """The plan of a seed; equal options give equal plans."""
    return Planner(options).plan()
