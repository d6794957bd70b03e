"""``keymesh bench killswitch``: from the start of the log append to the last Edge refusing, idle and under a backlog,
and how much of each of the four bounds is left when it is put to the test (``bench_bounds``).

Everything is real: a mesh of its own (four regions, an Edge process in each), tenants allowed in every region, their
Edges used in a loop while the tenant is suspended.  Several tenants take turns, so that one is measured while others
are being resumed.  Loaded samples count only while the backlog of Lane 2 tasks is there, before and after.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import time
from collections.abc import Iterator, Sized
from contextlib import AsyncExitStack
from typing import Any, Final

from msgspec.structs import replace
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from keymesh.app.admin_client import AdminClient
from keymesh.app.bench_bounds import Bounds, bounds_of
from keymesh.app.bench_bounds_edges import edge_hosts
from keymesh.app.bench_killswitch_figures import BenchPlan, Seen, figures
from keymesh.app.bench_killswitch_mesh import BenchMesh, bare_commits_ms, bench_mesh
from keymesh.app.bench_killswitch_samples import Sample
from keymesh.app.bootstrap import DEFAULT_REGIONS
from keymesh.app.cli_common import emit, facts, stderr
from keymesh.app.cli_mesh import start_mesh
from keymesh.app.layout import Layout, TimingPlan, load_plan
from keymesh.app.own_mesh import own_directory, sigterm_as_interrupt
from keymesh.app.supervisor_client import stop_mesh
from keymesh.model.errors import ExitCode, Unavailable
from keymesh.model.limits import EDGE_TTL_DEFAULT_MS, GOVERNANCE_TTL_DEFAULT_MS
from keymesh.model.states import Lane

SECONDS_MAX: Final = 600.0
HEADROOM: Final = 1_000
"""Tasks beyond the backlog that is asked for, so that it lasts for some samples."""
IDLE_SHARE: Final = 0.3
"""Of the time that is left after the set-up."""
BESIDE_BOUNDS_SHARE, PUSH_SHARE, BOUNDS_SHARE = 0.15, 0.2, 0.4
"""Of the time that is left when its turn comes: idle, push, the other bounds."""
SAMPLES_MIN: Final = 5
"""Taken of each kind even where the time is over, for as long as OVERTIME_S."""
OVERTIME_S: Final = 30.0
STOP_S: Final = 3.0
TURN_TIMEOUT_S: Final = 90.0
TIMING: Final = TimingPlan(
    ttl_ms=GOVERNANCE_TTL_DEFAULT_MS,
    heartbeat_ms=2_000,
    edge_ttl_ms=EDGE_TTL_DEFAULT_MS,
    l1_probe_ms=300_000,
    l1_ttl_ms=GOVERNANCE_TTL_DEFAULT_MS,
    snapshot_ms=300_000,
)
BOUNDS_TIMING: Final = replace(TIMING, l1_probe_ms=3_000, l1_ttl_ms=9_000)
"""So short that the root bound can be waited for."""


class Bench:
    """One run on one mesh: its parts."""

    def __init__(self, mesh: BenchMesh, plan: BenchPlan, began: float, show: Show) -> None:
        self._mesh = mesh
        self._plan = plan
        self._began = began
        self._show = show
        self.seen = Seen()
        self._ready: asyncio.Queue[str] = asyncio.Queue()
        self._resuming: set[asyncio.Task[None]] = set()

    def _left_s(self) -> float:
        """Seconds until it is time to stop."""
        return self._began + self._plan.seconds - STOP_S - time.monotonic()

    async def _set_up(self) -> None:
        self._show("tenants and Edges")
        turns = [f"turn-{n}" for n in range(self._plan.turns)]
        crowd = [f"crowd-{n}" for n in range(self._plan.crowd)]
        await asyncio.gather(
            *(self._mesh.create_served_tenant(tenant) for tenant in turns),
            *(self._mesh.create_tenant(tenant) for tenant in crowd),
        )
        for tenant in turns:
            self._ready.put_nowait(tenant)
        self._mesh.labelled = dict.fromkeys(crowd, 0)
        await self._mesh.client.until(self._settled, what="the mesh coming to rest")
        for _ in range(20):
            self.seen.round_trips_ms.append(await self._mesh.round_trip_ms())

    async def _settled(self) -> bool | None:
        queued = await self._mesh.queued()
        return True if not any(queued.values()) else None

    async def _idle(self, share: float = IDLE_SHARE) -> None:
        self._show("suspending, idle")
        bare = self._mesh.client.layout.root / "bare.db"
        for _ in rounds(self.seen.idle, time.monotonic() + share * self._left_s()):
            self.seen.idle.append(await self._once())
            self.seen.commits_ms.extend(bare_commits_ms(bare, bytes(2_048), 2))
            self._show.count("suspending, idle", self.seen.idle)

    async def _once(self) -> Sample:
        tenant = await self._next()
        sample = await self._mesh.suspend(tenant)
        task = asyncio.create_task(self._resume(tenant))
        self._resuming.add(task)
        task.add_done_callback(self._resumed)
        return sample

    async def _next(self) -> str:
        """The tenant that has waited longest for its turn.  Raises what a resume failed with."""
        try:
            async with asyncio.timeout(TURN_TIMEOUT_S):
                tenant = await self._ready.get()
        except TimeoutError as late:
            raise Unavailable("bench", "no tenant was resumed in time") from late
        finally:
            for failed in [t for t in self._resuming if t.done()]:
                failed.result()
        return tenant

    async def _resume(self, tenant: str) -> None:
        await self._mesh.resume(tenant)
        self._ready.put_nowait(tenant)

    def _resumed(self, task: asyncio.Task[None]) -> None:
        """A failed one is kept for the end, and its tenant takes no more turns."""
        if not task.cancelled() and task.exception() is None:
            self._resuming.discard(task)

    async def _queued(self) -> int:
        return (await self._mesh.queued())[Lane.ROUTINE]

    async def _fill(self) -> None:
        self._show(f"queueing {self._plan.backlog} Lane 2 tasks")
        began = time.monotonic()
        added = await self._top_up()
        self.seen.filled_per_s = added / (time.monotonic() - began)

    async def _top_up(self) -> int:
        """Bring the backlog to its headroom, or near it, since it drains meanwhile; how many commands that took."""
        added = 0
        while (queued := await self._queued()) < self._low_water:
            count = math.ceil((self._plan.backlog + HEADROOM - queued) / len(self._mesh.regions))
            await self._mesh.add_labels(count)
            added += count
        return added

    @property
    def _low_water(self) -> int:
        """Half of the headroom: below it the backlog is topped up."""
        return self._plan.backlog + HEADROOM // 2

    async def _loaded(self) -> None:
        """Samples until the time is over; one that outlasted the backlog does not count."""
        self.seen.backlog = self.seen.backlog_min = before = await self._queued()
        began, drained = time.monotonic(), 0
        for _ in rounds(self.seen.loaded, time.monotonic() + self._left_s()):
            sample = await self._once()
            after = await self._queued()
            drained += before - after
            if after >= self._plan.backlog:
                self.seen.loaded.append(sample)
                self.seen.backlog_min = min(self.seen.backlog_min, after)
            else:
                self.seen.discarded += 1
            self.seen.round_trips_loaded_ms.append(await self._mesh.round_trip_ms())
            self._show.count(f"suspending, {after} tasks queued", self.seen.loaded)
            before = after
            if after < self._low_water:
                began -= time.monotonic()
                await self._top_up()
                before = await self._queued()
                began += time.monotonic()
        self.seen.drained_per_s = drained / max(0.001, time.monotonic() - began)


class KillBench(Bench):
    """All of them, and the bounds between the idle and the loaded samples."""

    def __init__(self, mesh: BenchMesh, bounds: Bounds, plan: BenchPlan, began: float, show: Show) -> None:
        super().__init__(mesh, plan, began, show)
        self._bounds = bounds
        self.seen.bounds = bounds.seen

    async def run(self) -> Seen:
        await asyncio.gather(self._set_up(), self._bounds.prepare())
        await self._idle(BESIDE_BOUNDS_SHARE)
        await self._try_bounds()
        await self._fill()
        await self._loaded()
        await asyncio.gather(*self._resuming)
        return self.seen

    async def _try_bounds(self) -> None:
        """Then the many Edges end, so that what follows is measured without them."""
        self._show("many Edges")
        async with edge_hosts(self._mesh.client, self._bounds.wanted()) as hosts:
            for _ in rounds(self.seen.bounds.push_ms, time.monotonic() + PUSH_SHARE * self._left_s()):
                await self._bounds.push_once(hosts)
                self._show(f"suspending, {self.seen.bounds.edges} Edges: {len(self.seen.bounds.push_ms)} samples")
            self._show("cut off: the bounds that need no word")
            await self._bounds.silent_bounds(hosts, time.monotonic() + BOUNDS_SHARE * self._left_s())
        await self._mesh.client.until(self._settled, what="the mesh coming to rest")


def rounds(samples: Sized, until: float) -> Iterator[None]:
    """One turn each until then, and some more where there are too few samples by then."""
    give_up = time.monotonic() + OVERTIME_S
    while (now := time.monotonic()) < until or (len(samples) < SAMPLES_MIN and now < give_up):
        yield


class Show:
    """Progress on standard error: what is being done, against the time there is."""

    def __init__(self, progress: Progress, task: TaskID, began: float) -> None:
        self._progress, self._task, self._began = progress, task, began

    def __call__(self, what: str) -> None:
        self._progress.update(self._task, description=what, completed=time.monotonic() - self._began)

    def count(self, what: str, samples: list[Sample]) -> None:
        last = f", last {samples[-1].ms:.0f} ms" if samples else ""
        self(f"{what}: {len(samples)} samples{last}")


def measure(plan: BenchPlan, directory: str | None = None) -> dict[str, Any]:
    """The figures, from a mesh that lives as long as this call."""
    began = time.monotonic()
    with sigterm_as_interrupt(), own_directory(directory, what="the bench") as layout:
        regions = dict.fromkeys(DEFAULT_REGIONS, "bench")
        try:
            start_mesh(layout, regions=regions, timing=BOUNDS_TIMING, links=True, allow_unlocked_memory=True)
            seen = asyncio.run(_run(layout, plan, began))
        finally:
            stop_mesh(layout)
    return figures(seen, plan, time.monotonic() - began)


async def _run(layout: Layout, plan: BenchPlan, began: float) -> Seen:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=stderr, transient=True) as progress:
        show = Show(progress, progress.add_task("", total=plan.seconds), began)
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(AdminClient(layout, load_plan(layout)))
            mesh = await stack.enter_async_context(bench_mesh(client))
            return await KillBench(mesh, await bounds_of(stack, client, mesh), plan, began, show).run()


def run_bench(args: argparse.Namespace) -> int:
    """``--seconds``, ``--dir`` and ``--json``; exit code 1 where a figure is missed."""
    shown = measure(BenchPlan(seconds=min(max(args.seconds, 1.0), SECONDS_MAX)), args.dir)
    emit(args, shown, lambda: facts("kill switch, from the log append to the last Edge refusing", shown))
    return int(ExitCode.DONE if shown["ok"] else ExitCode.REFUSED)
