"""``keymesh faults run``: kill each component of a mesh of its own with -9 under a running load, and check the record.

In each round every component is killed once, a random member of it at a random moment: 1. commands and key use run;
2. the kill; 3. commands pause, and the clock runs until every process serves, every region is in step and every Edge
mints and opens; 4. what the client was told is looked up in the mesh.  Nothing that was acknowledged may be missing,
in another place, or open to another key.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Final

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from keymesh.app.admin_client import AdminClient
from keymesh.app.bench_killswitch_mesh import SERVICE, BenchMesh, bench_mesh
from keymesh.app.bootstrap import DEFAULT_REGIONS
from keymesh.app.cli_common import emit, facts, stderr
from keymesh.app.cli_mesh import start_mesh
from keymesh.app.faults_check import check_record
from keymesh.app.faults_load import Door, Load
from keymesh.app.faults_record import Record, twice
from keymesh.app.full_servers import servers_of
from keymesh.app.layout import Layout, TimingPlan, load_plan
from keymesh.app.own_mesh import own_directory, sigterm_as_interrupt
from keymesh.app.servers import etcd
from keymesh.app.supervisor_client import ask_supervisor, stop_mesh
from keymesh.model.errors import ExitCode, KeymeshError, Refused, Unavailable
from keymesh.model.limits import GOVERNANCE_TTL_MIN_MS

ROUNDS_MAX: Final = 1_000
TENANT: Final = "faulty"
TURNS: Final = "turns"
ETCD_LEADER: Final = "etcd-leader"
"""Stands for the member that leads when its turn comes."""
RECOVERY_LIMIT_S: Final = 15.0
RECOVERY_TIMEOUT_S: Final = 60.0
LOAD_S: Final = (0.3, 1.5)
"""Seconds of load before a kill."""
TAIL_S: Final = 0.5
"""Commands go on so long after it."""
TIMING: Final = TimingPlan(
    ttl_ms=GOVERNANCE_TTL_MIN_MS,
    heartbeat_ms=1_000,
    edge_ttl_ms=5_000,
    l1_probe_ms=5_000,
    l1_ttl_ms=GOVERNANCE_TTL_MIN_MS,
    snapshot_ms=2_000,
)


def component_of(child: str) -> str:
    """What a supervised process is one of: ``core-us-east`` is a ``core``."""
    return child if child in ("customer-kms", ETCD_LEADER) else child.partition("-")[0]


def victims(children: list[str], draw: random.Random) -> list[str]:
    """One of each component, in a random order; where there is an etcd cluster, its leader as well."""
    of: dict[str, list[str]] = {}
    for name in sorted(children):
        of.setdefault(component_of(name), []).append(name)
    if "etcd" in of:
        of[ETCD_LEADER] = [ETCD_LEADER]
    chosen = [draw.choice(names) for _, names in sorted(of.items())]
    draw.shuffle(chosen)
    return chosen


@dataclass(frozen=True, slots=True)
class Plan:
    """``full``: on real servers, as ``keymesh up --full`` has them."""

    rounds: int
    seed: int
    full: bool = True


class Faults:
    """One run on one mesh."""

    def __init__(self, mesh: BenchMesh, plan: Plan, show: Callable[[str], None]) -> None:
        self._mesh, self._plan, self._show = mesh, plan, show
        self._random = random.Random(plan.seed)
        self.record = Record()
        self.kills: Counter[str] = Counter()
        self.recoveries_s: list[tuple[float, str]] = []
        doors = [Door(region, TENANT, SERVICE, sidecar) for region, sidecar in mesh.sidecars.items()]
        self._load = Load(mesh.client, self.record, doors, seed=plan.seed)

    async def run(self) -> None:
        self._show("a tenant, its services, an Edge in every region")
        await self._mesh.create_served_tenant(TENANT)
        row = {"version": 1, "custody": "leased", "edge_ttl_ms": TIMING.edge_ttl_ms}
        await self._load.persistently(TENANT, "service.set", {"service": TURNS, "row": row})
        async with self._load.running([(TENANT, TURNS)]):
            await self._recovered(time.monotonic(), "the start")
            for number in range(self._plan.rounds):
                for victim in victims(self._children(), self._random):
                    self._show(f"round {number + 1}: kill -9 of {victim}")
                    await self._round(victim)

    def _children(self) -> list[str]:
        answer = ask_supervisor(self._mesh.client.layout, {"do": "status"})
        if answer is None:
            raise Unavailable("not-running", "the mesh's supervisor is gone")
        return [name for name, child in answer["children"].items() if child["pid"] is not None]

    async def _round(self, victim: str) -> None:
        self._load.gate.set()
        await asyncio.sleep(self._random.uniform(*LOAD_S))
        name = await asyncio.to_thread(self._leader) if victim == ETCD_LEADER else victim
        began = time.monotonic()
        ask_supervisor(self._mesh.client.layout, {"do": "kill", "name": name})
        self.kills[component_of(victim)] += 1
        await asyncio.sleep(TAIL_S)
        self._load.gate.clear()
        took_s = await self._recovered(began, victim)
        self.recoveries_s.append((took_s, victim))
        await check_record(self._mesh.client, self.record, self._load.doors)

    def _leader(self) -> str:
        """The etcd member that leads.  Raises Unavailable where none says that it does."""
        layout, full = self._mesh.client.layout, self._mesh.client.plan.full
        members = servers_of(layout, full).etcd if full is not None else ()
        for member in members:
            with contextlib.suppress(OSError, ValueError):
                if etcd.leads(member):
                    return member.name
        raise Unavailable("no-leader", "no etcd member says that it leads")

    # --- recovery --------------------------------------------------------------------------------------------------

    async def _recovered(self, began: float, what: str) -> float:
        """Seconds until all serves again.  Raises Unavailable where it does not within ``RECOVERY_TIMEOUT_S``."""
        try:
            async with asyncio.timeout(RECOVERY_TIMEOUT_S):
                await self._load.quiet()
                await self._mesh.client.until(
                    lambda: self._well(began), what="recovery", timeout_s=2 * RECOVERY_TIMEOUT_S
                )
        except TimeoutError as late:
            left = await self._unwell(began) or "commands are not answered"
            raise Unavailable("not-recovered", f"{RECOVERY_TIMEOUT_S:.0f} s after {what}: {left}") from late
        return time.monotonic() - began

    async def _well(self, since: float) -> bool | None:
        return True if not await self._unwell(since) else None

    async def _unwell(self, since: float) -> str:
        """What is not in order yet; "" where all is."""
        answer = ask_supervisor(self._mesh.client.layout, {"do": "status"}) or {"children": {}}
        down = [name for name, child in answer["children"].items() if not child["ready"]]
        if down or not answer["children"]:
            return f"{', '.join(down) or 'everything'} is down"
        try:
            seen = await self._mesh.client.call("GET", "/v1/status", timeout_s=3)
            for name, region in seen["regions"].items():
                if not region["in_sync"] or region["pending"]:
                    return f"{name} is not in step"
            for region in self._mesh.regions:
                here = await self._mesh.client.call("GET", "/v1/status", target=region, timeout_s=3)
                if (mode := here["tenants"][TENANT]["mode"]) != "synced":
                    return f"{region} is {mode}"
        except KeymeshError as lost:
            return f"a process does not answer: {lost.code}"
        late = [door.region for door in self._load.doors if self._load.served_at.get(door, 0.0) <= since]
        return f"the Edge of {late[0]} does not serve" if late else ""


def figures(faults: Faults, plan: Plan, took_s: float) -> dict[str, Any]:
    """As ``keymesh faults run --json`` prints them."""
    record = faults.record
    violations = [*record.violations, *twice(record.commands)]
    worst = max(faults.recoveries_s, default=(0.0, ""))
    return {
        "ok": not violations and worst[0] < RECOVERY_LIMIT_S,
        "rounds": plan.rounds,
        "seed": plan.seed,
        "kills": dict(sorted(faults.kills.items())),
        "acknowledged": record.acknowledged,
        "commands": len(record.commands),
        "keys": record.keys,
        "lost": len(violations),
        "violations": violations[:20],
        "recovery_s_max": round(worst[0], 2),
        "recovery_slowest": worst[1],
        "recovery_limit_s": RECOVERY_LIMIT_S,
        "uses": dict(sorted(record.uses.items())),
        "took_s": round(took_s, 1),
    }


def inject(plan: Plan, directory: str | None = None) -> dict[str, Any]:
    """The figures, from a mesh that lives as long as this call."""
    began = time.monotonic()
    with sigterm_as_interrupt(), own_directory(directory, what="a faults run", full=plan.full) as layout:
        regions = dict.fromkeys(DEFAULT_REGIONS, "faults")
        try:
            start_mesh(layout, regions=regions, timing=TIMING, links=False, allow_unlocked_memory=True, full=plan.full)
            faults = asyncio.run(_run(layout, plan))
        finally:
            stop_mesh(layout)
    return figures(faults, plan, time.monotonic() - began)


async def _run(layout: Layout, plan: Plan) -> Faults:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    async with AsyncExitStack() as stack:
        progress = stack.enter_context(Progress(*columns, console=stderr, transient=True))
        bar = progress.add_task("starting", total=None)
        client = await stack.enter_async_context(AdminClient(layout, load_plan(layout)))
        mesh = await stack.enter_async_context(bench_mesh(client))
        faults = Faults(mesh, plan, lambda what: progress.update(bar, description=what))
        await faults.run()
        return faults


def run_faults(args: argparse.Namespace) -> int:
    """``--rounds``, ``--seed``, ``--dir`` and ``--json``; exit code 1 where something was lost or slow."""
    if not 1 <= args.rounds <= ROUNDS_MAX:
        raise Refused.bad_field("rounds", f"1..{ROUNDS_MAX}")
    shown = inject(Plan(rounds=args.rounds, seed=args.seed, full=not args.embedded), args.dir)
    emit(args, shown, lambda: facts("kill -9 of every component under load", shown))
    return int(ExitCode.DONE if shown["ok"] else ExitCode.REFUSED)
