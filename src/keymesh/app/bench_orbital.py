"""``keymesh bench orbital``: tasks generated, dispatched through RabbitMQ, applied and reported; Lane 0 beside them.

Everything is real: a RabbitMQ and a mesh of its own, three regions, two that receive by AMQP and one by MQTT.  A task
is one entry for one region; it counts when the region has durably applied it and the Registry has its acknowledgement.
The throughput is measured on a second mesh as well, more briefly, whose Cores keep their keys in OpenBao (and whose log
and projection are in etcd and PostgreSQL).  Lane 0 is measured as ``bench killswitch`` does, to the last Edge
that refuses: first with nothing else to do, then while a backlog of Lane 2 tasks is there, before and after each
sample.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from keymesh.app.admin_client import AdminClient
from keymesh.app.bench_killswitch import TIMING, Bench, Show
from keymesh.app.bench_killswitch_figures import BenchPlan
from keymesh.app.bench_killswitch_mesh import BenchMesh, bench_mesh
from keymesh.app.bench_orbital_figures import NOT_ASKED, Throughput, figures
from keymesh.app.bootstrap import DEV_MESH
from keymesh.app.broker_plan import plan_of, users_of
from keymesh.app.cli_common import emit, facts, stderr
from keymesh.app.cli_mesh import start_mesh
from keymesh.app.config_broker import BrokerPlan
from keymesh.app.layout import Layout, load_plan
from keymesh.app.own_mesh import sigterm_as_interrupt
from keymesh.app.servers import rabbitmq
from keymesh.app.servers.child import ServerProcess
from keymesh.app.servers.infra_ca import InfraCa
from keymesh.app.servers.ports import free_ports
from keymesh.app.supervisor_client import stop_mesh
from keymesh.model.errors import ExitCode, Refused, Unavailable
from keymesh.model.states import Lane
from keymesh.orbital.broker import Protocol

REGIONS: Final = {"us-east": Protocol.AMQP, "us-west": Protocol.AMQP, "eu-west": Protocol.MQTT}
SECONDS_MAX: Final = 600.0
COMMANDS: Final = 2_000
"""Of the throughput phase; each is one task for each region."""
COMMANDS_OPENBAO: Final = 300
"""As many on the second mesh, which is slower."""
LINK_TIMEOUT_S: Final = 30.0
REPORT_TIMEOUT_S: Final = 120.0
LOOK_S: Final = 0.05


class OrbitalBench(Bench):
    """As the kill-switch bench, with the throughput measured between the idle and the loaded samples."""

    def __init__(self, mesh: BenchMesh, plan: BenchPlan, began: float, show: Show) -> None:
        super().__init__(mesh, plan, began, show)
        self.throughput = Throughput()

    async def measure(self) -> None:
        await self._linked()
        await self._set_up()
        await self._idle()
        await self._count_tasks(COMMANDS)
        await self._fill()
        await self._loaded()
        await asyncio.gather(*self._resuming)

    async def measure_tasks(self) -> None:
        """The throughput alone."""
        await self._linked()
        crowd = [f"crowd-{n}" for n in range(self._plan.crowd)]
        await asyncio.gather(*(self._mesh.create_tenant(tenant) for tenant in crowd))
        self._mesh.labelled = dict.fromkeys(crowd, 0)
        await self._mesh.client.until(self._settled, what="the mesh coming to rest")
        await self._count_tasks(COMMANDS_OPENBAO)

    async def _linked(self) -> None:
        """Every lane of every role has its link."""

        async def up() -> bool | None:
            seen = [await self._mesh.client.call("GET", "/v1/status")]
            seen += [await self._mesh.client.call("GET", "/v1/status", target=r) for r in self._mesh.regions]
            attended = all(lane["attended"] == len(seen) - 1 for lane in seen[0]["broker"].values())
            return (attended and all(lane["up"] for status in seen for lane in status["broker"].values())) or None

        await self._mesh.client.until(up, what="the links to RabbitMQ", timeout_s=LINK_TIMEOUT_S)

    async def _count_tasks(self, commands: int) -> None:
        """From the first command to the last region's acknowledgement."""
        self._show(f"{commands} commands for {len(self._mesh.regions)} regions")
        since_ns, began = time.time_ns(), time.monotonic()
        await self._mesh.add_labels(commands)
        generated_s = time.monotonic() - began
        while any((await self._mesh.queued()).values()):
            if time.monotonic() - began > REPORT_TIMEOUT_S:
                raise Unavailable("bench", f"the tasks were not all reported within {REPORT_TIMEOUT_S:.0f} s")
            await asyncio.sleep(LOOK_S)
        took_s = time.monotonic() - began
        rows = [await self._mesh.applied(region, since_ns) for region in self._mesh.regions]
        lower = [[row for row in found if row["lane"] == Lane.ROUTINE] for found in rows]
        self.throughput = Throughput(
            tasks=commands * len(rows),
            taken=sum(len({row["task"] for row in found}) for found in lower),
            by_broker=sum(len({row["task"] for row in found if row["via"] == "broker"}) for found in lower),
            generated_s=generated_s,
            took_s=took_s,
        )


@contextmanager
def broker(root: Path) -> Iterator[BrokerPlan]:
    """A RabbitMQ under ``root`` while the block runs.  Raises Refused where it is not installed."""
    amqp, mqtt, management, distribution, epmd = free_ports(5)
    settings = rabbitmq.RabbitSettings(
        directory=root / "rabbitmq",
        amqp_port=amqp,
        mqtt_port=mqtt,
        management_port=management,
        distribution_port=distribution,
        epmd_port=epmd,
    )
    ca = InfraCa.make("bench broker root")
    server = ServerProcess(rabbitmq.prepare(settings, ca, users_of(DEV_MESH, REGIONS)))
    try:
        server.start()
        yield plan_of(settings, ca, root / "broker-clients", REGIONS)
    finally:
        server.kill()


@contextmanager
def _running(*, full: bool) -> Iterator[Layout]:
    """A mesh beside a RabbitMQ, both for as long as the block runs; ``full``: on etcd, PostgreSQL and OpenBao."""
    root = Path(tempfile.mkdtemp(prefix="kmo"))
    root.chmod(0o755)  # servers run as their packages' own users
    layout = Layout(root / "m")
    try:
        with sigterm_as_interrupt(), broker(root) as told:
            try:
                start_mesh(
                    layout,
                    regions=dict.fromkeys(REGIONS, "bench"),
                    timing=TIMING,
                    links=False,
                    allow_unlocked_memory=True,
                    broker=told,
                    full=full,
                )
                yield layout
            finally:
                stop_mesh(layout)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def measure(plan: BenchPlan, *, openbao: bool = True) -> dict[str, Any]:
    """The figures, from servers and a mesh that live as long as this call; ``openbao``: and of a second one."""
    began = time.monotonic()
    with _running(full=False) as layout:
        bench = asyncio.run(_run(layout, plan, began, OrbitalBench.measure))
    took_s = time.monotonic() - began
    on_openbao: Throughput | str = NOT_ASKED
    if openbao:
        try:
            on_openbao = _on_openbao(plan)
        except Refused as missing:  # a program that is not installed
            on_openbao = missing.message
    return figures(bench.seen, bench.throughput, plan, took_s, on_openbao)


def _on_openbao(plan: BenchPlan) -> Throughput:
    with _running(full=True) as layout:
        return asyncio.run(_run(layout, plan, time.monotonic(), OrbitalBench.measure_tasks)).throughput


async def _run(
    layout: Layout, plan: BenchPlan, began: float, work: Callable[[OrbitalBench], Awaitable[None]]
) -> OrbitalBench:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=stderr, transient=True) as progress:
        show = Show(progress, progress.add_task("", total=plan.seconds), began)
        async with AdminClient(layout, load_plan(layout)) as client, bench_mesh(client) as mesh:
            bench = OrbitalBench(mesh, plan, began, show)
            await work(bench)
            return bench


def run_bench(args: argparse.Namespace) -> int:
    """``--seconds``, ``--no-openbao`` and ``--json``; exit code 1 where a figure is missed."""
    shown = measure(BenchPlan(seconds=min(max(args.seconds, 1.0), SECONDS_MAX)), openbao=args.openbao)
    emit(args, shown, lambda: facts("Orbital, through RabbitMQ to three regions", shown))
    return int(ExitCode.DONE if shown["ok"] else ExitCode.REFUSED)
