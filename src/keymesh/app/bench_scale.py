"""``keymesh bench scale``: one Registry process and PostgreSQL under the heartbeats of thousands of regions.

Real are the Registry's process, its etcd and PostgreSQL, and every heartbeat: signed, over a connection of its own with
mutual TLS, answered after a linearizable read and a poll of the voters.  Regions are simulated (``bench_scale_nodes``).
Only the three of the founding entry are in the log; the others, and the key entries, are put where the log would put
them: into the Registry's memory (``bench_scale_registry``), the entries into PostgreSQL as well.  ``cpu_cores`` is the
Registry's process alone, over the time that was measured.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final

import psycopg

from keymesh.adapters.files import write_file
from keymesh.app.bench_control import REGIONS, servers_running
from keymesh.app.bench_killswitch_samples import quantile
from keymesh.app.bench_scale_nodes import Beaten, Fleet, make_identities, make_node
from keymesh.app.bench_scale_registry import KEYS_EACH, ScalePlan
from keymesh.app.cli_common import emit, facts, stderr
from keymesh.app.config_database import database_urls
from keymesh.app.layout import Layout, TimingPlan
from keymesh.app.lifeline import PARENT_ENV
from keymesh.app.own_mesh import own_directory, sigterm_as_interrupt
from keymesh.app.registry_app import pass_over_what_stays
from keymesh.app.servers.binaries import ETCD, POSTGRES, require_all
from keymesh.app.servers.ownership import switches_user
from keymesh.app.servers.postgres import USER
from keymesh.control.reduce import STATE_MAX_BYTES
from keymesh.model import strict_json
from keymesh.model.errors import ExitCode, Refused, Unavailable
from keymesh.model.ids import MeshName

REGIONS_MAX: Final = 4_000
ENTRIES_MAX: Final = 2_000_000
SECONDS_MAX: Final = 600.0
HEARTBEAT_S: Final = 10.0
TIMING: Final = TimingPlan(
    ttl_ms=3_600_000,
    heartbeat_ms=int(HEARTBEAT_S * 1_000),
    edge_ttl_ms=300_000,
    l1_probe_ms=300_000,
    l1_ttl_ms=3_600_000,
    snapshot_ms=300_000,
)
CONNECT_S: Final = 18.0
"""Over which every connection is made; then each is used once more before anything is measured."""
TOLD_S: Final = 120.0
CPU_MAX: Final = 1.0
P99_MAX_MS: Final = 100.0
WORDS: Final = (sys.executable, "-P", "-m", "keymesh.app.bench_scale_registry")
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_FILL: Final = """
INSERT INTO keys (tenant, key, version, kid, revision, state, digest, parent)
SELECT 'scale-' || lpad((g / %(each)s)::text, 6, '0'), 'l3/service-' || lpad((g %% %(each)s)::text, 3, '0'), 1,
       md5(g::text), 1, 'active', md5(g::text) || md5((g + 1)::text), 'scale-1'
FROM generate_series(0, %(count)s - 1) g
"""


def cpu_s(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def fill_database(url: str, entries: int) -> int:
    """Key entries into the projection's table; how many it has then."""
    with psycopg.connect(url) as db:
        db.execute(_FILL, {"each": KEYS_EACH, "count": entries})
        row = db.execute("SELECT count(*) FROM keys").fetchone()
    assert row is not None
    return int(row[0])


@contextmanager
def registry_process(layout: Layout, plan: ScalePlan) -> Iterator[subprocess.Popen[bytes]]:
    """Started, and ended with this context."""
    plan_file = layout.root / "scale.json"
    write_file(plan_file, strict_json.dumps(plan))
    with (layout.logs / "registry.log").open("ab") as output:
        process = subprocess.Popen(
            [*WORDS, "--dir", str(layout.root), "--plan", str(plan_file)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, PARENT_ENV: str(os.getpid())},
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def roots_of(process: subprocess.Popen[bytes], told: Path) -> dict[str, Any]:
    """Region -> heads root, once the Registry has everything.  Raises Unavailable."""
    deadline = time.monotonic() + TOLD_S
    while not told.exists():  # noqa: ASYNC240  nothing tells us
        if process.poll() is not None or time.monotonic() > deadline:
            raise Unavailable("bench", "the Registry did not take it all; see logs/registry.log")
        await asyncio.sleep(0.1)
    found: dict[str, Any] = strict_json.loads(told.read_bytes(), max_bytes=4 * 1024 * 1024)  # noqa: ASYNC240
    return found


@asynccontextmanager
async def fleet_of(layout: Layout, config: Any, regions: list[str], roots: dict[str, Any]) -> AsyncIterator[Fleet]:
    """Every region's node; the voters attend the Registry's polls."""
    url = f"https://127.0.0.1:{config.listen.port}"
    mesh, home = MeshName(config.mesh), layout.root / "scale"
    nodes = []
    for region in (*REGIONS, *regions):
        core = layout.core(region)
        voter = region in REGIONS
        files = (
            (core / "tls.pem", core / "signing.pem")
            if voter
            else (home / f"{region}.tls.pem", home / f"{region}.signing.pem")
        )
        node = make_node(layout, mesh, region, files, url, roots[region], voter=voter)
        nodes.append(node)
    fleet = Fleet(tuple(nodes))
    attending = [asyncio.create_task(node.attend()) for node in nodes if node.is_voter]
    try:
        yield fleet
    finally:
        for task in attending:
            task.cancel()
        await asyncio.gather(*attending, return_exceptions=True)
        await fleet.close()


async def _measure(
    layout: Layout, config: Any, regions: list[str], process: Any, told: Path, seconds: float
) -> dict[str, Any]:
    with stderr.status("the Registry takes regions and entries"):
        roots = await roots_of(process, told)
    async with fleet_of(layout, config, regions, roots) as fleet:
        with stderr.status(f"{len(fleet.nodes)} regions: connections"):
            await fleet.beat_for(CONNECT_S, CONNECT_S, warm := Beaten())
            await fleet.beat_for(HEARTBEAT_S, HEARTBEAT_S, warm)
        pass_over_what_stays()  # in this process, whose pauses would count as the Registry's
        with stderr.status(f"{len(fleet.nodes)} regions: measuring for {seconds:.0f} s"):
            began, before, seen = time.monotonic(), cpu_s(process.pid), Beaten()
            client_before = time.process_time()
            await fleet.beat_for(seconds, HEARTBEAT_S, seen)
            took = time.monotonic() - began
            cores, client_cores = (cpu_s(process.pid) - before) / took, (time.process_time() - client_before) / took
    return {
        "regions": len(fleet.nodes),
        "heartbeats": len(seen.ms),
        "heartbeats_per_s": round(len(seen.ms) / took, 1),
        "heartbeats_lost": seen.lost,
        "lost_because": seen.errors,
        "heartbeats_lost_at_first": warm.lost,
        "heartbeat_p50_ms": quantile(seen.ms, 0.50),
        "heartbeat_p99_ms": quantile(seen.ms, 0.99),
        "cpu_cores": round(cores, 3),
        "client_cpu_cores": round(client_cores, 3),
    }


def measure(regions: int, entries: int, seconds: float, directory: str | None = None) -> dict[str, Any]:
    """The figures, from servers that live as long as this call.  Raises Refused where one is missing."""
    require_all((ETCD, POSTGRES))
    began = time.monotonic()
    names = [f"region-{n:04}" for n in range(regions - len(REGIONS))]
    with sigterm_as_interrupt(), own_directory(directory, what="the bench") as layout:
        if directory is None and switches_user(USER):
            layout.root.parent.chmod(0o711)  # PostgreSQL's user passes through
        with contextlib.ExitStack() as stack:
            with stderr.status("etcd and PostgreSQL"):
                config = stack.enter_context(servers_running(layout, TIMING))
            home = layout.root / "scale"
            home.mkdir(mode=0o700)
            with stderr.status(f"certificates of {regions} regions"):
                nodes = make_identities(layout, MeshName(config.mesh), names, home)
            told = home / "told.json"
            plan = ScalePlan(nodes=nodes, entries=entries, told=str(told))
            process = stack.enter_context(registry_process(layout, plan))
            with stderr.status(f"{entries} key entries"):
                rows = fill_database(database_urls(config.database, layout.registry)[0], entries)
            shown = asyncio.run(_measure(layout, config, names, process, told, seconds))
    held = shown["cpu_cores"] < CPU_MAX and (shown["heartbeat_p99_ms"] or P99_MAX_MS) < P99_MAX_MS
    more = {
        "entries": rows,
        "regions_in_log": len(REGIONS),
        "mesh_state_max_bytes": STATE_MAX_BYTES,
        "seconds": round(time.monotonic() - began, 1),
    }
    return {"ok": held and not shown["heartbeats_lost"], **shown, **more}


def run_bench(args: argparse.Namespace) -> int:
    """``--regions``, ``--entries``, ``--seconds``, ``--dir`` and ``--json``; exit code 1 where a figure is missed."""
    if not len(REGIONS) < args.regions <= REGIONS_MAX:
        raise Refused.bad_field("regions", f"{len(REGIONS) + 1} to {REGIONS_MAX}")
    if not 1 <= args.entries <= ENTRIES_MAX:
        raise Refused.bad_field("entries", f"1 to {ENTRIES_MAX}")
    shown = measure(args.regions, args.entries, min(max(args.seconds, 1.0), SECONDS_MAX), args.dir)
    emit(args, shown, lambda: facts("one Registry under the heartbeats of many regions", shown))
    return int(ExitCode.DONE if shown["ok"] else ExitCode.REFUSED)
