"""``keymesh up``: an embedded mesh from one command, made where there is none."""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import msgspec
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from keymesh.app.args_common import show_ms
from keymesh.app.bootstrap import DEFAULT_REGIONS, bootstrap, finish, make_plan, parse_regions, parse_shares
from keymesh.app.cli_common import emit, facts, stderr, stdout
from keymesh.app.config_broker import BrokerPlan
from keymesh.app.full_plan import named_ports
from keymesh.app.full_servers import BINARIES, check_place, prepare_servers
from keymesh.app.layout import FIRST_REGISTRY, Layout, MeshPlan, TimingPlan, load_plan, resolve_dir, save_plan
from keymesh.app.servers.binaries import require_all
from keymesh.app.supervisor_client import ask_supervisor, stop_mesh, take_lock
from keymesh.model.errors import Refused, Unavailable
from keymesh.model.limits import (
    EDGE_TTL_DEFAULT_MS,
    EDGE_TTL_MAX_MS,
    EDGE_TTL_MIN_MS,
    GOVERNANCE_TTL_DEFAULT_MS,
    GOVERNANCE_TTL_MAX_MS,
    GOVERNANCE_TTL_MIN_DEV_MS,
)

UP_TIMEOUT_S = 90.0
UP_FULL_TIMEOUT_S = 240.0
_LOG_LINES: Final = 50
_ADVICE: Final = {"memory-lock": "; or, for a mesh without real data, --allow-unlocked-memory"}
DEFAULT_TIMING: Final = TimingPlan(
    ttl_ms=GOVERNANCE_TTL_DEFAULT_MS,
    heartbeat_ms=2_000,
    edge_ttl_ms=EDGE_TTL_DEFAULT_MS,
    l1_probe_ms=300_000,
    l1_ttl_ms=GOVERNANCE_TTL_DEFAULT_MS,
    snapshot_ms=300_000,
)


def timing_of(args: argparse.Namespace) -> TimingPlan:
    """The timing that the flags ask for.  Raises Refused naming the flag and its limits."""

    def given(name: str, default_ms: int) -> int:
        value = getattr(args, name)
        return default_ms if value is None else int(value)

    ttl_ms = given("ttl", DEFAULT_TIMING.ttl_ms)
    timing = TimingPlan(
        ttl_ms=ttl_ms,
        heartbeat_ms=given("heartbeat", DEFAULT_TIMING.heartbeat_ms),
        edge_ttl_ms=given("edge_ttl", DEFAULT_TIMING.edge_ttl_ms),
        l1_probe_ms=given("l1_probe", DEFAULT_TIMING.l1_probe_ms),
        l1_ttl_ms=given("l1_ttl", ttl_ms),
        snapshot_ms=given("snapshot", DEFAULT_TIMING.snapshot_ms),
    )
    if not GOVERNANCE_TTL_MIN_DEV_MS <= ttl_ms <= GOVERNANCE_TTL_MAX_MS:
        raise Refused.bad_field("ttl", f"2s to {show_ms(GOVERNANCE_TTL_MAX_MS)} in a development mesh")
    if not EDGE_TTL_MIN_MS <= timing.edge_ttl_ms <= EDGE_TTL_MAX_MS:
        raise Refused.bad_field("edge-ttl", "1s to 60m")
    if not 100 <= timing.heartbeat_ms <= ttl_ms // 2:
        raise Refused.bad_field("heartbeat", "100ms to half of the ttl")
    for flag, value in (
        ("l1-probe", timing.l1_probe_ms),
        ("l1-ttl", timing.l1_ttl_ms),
        ("snapshot", timing.snapshot_ms),
    ):
        if not 500 <= value <= 86_400_000:
            raise Refused.bad_field(flag, "500ms to 1d")
    return timing


def run_up(args: argparse.Namespace) -> int:
    layout = Layout(resolve_dir(args.dir))
    shown = start_mesh(
        layout,
        regions=parse_regions(args.regions) if args.regions else None,
        timing=timing_of(args),
        links=args.links,
        allow_unlocked_memory=args.allow_unlocked_memory,
        shares=parse_shares(args.shares) if args.shares else None,
        full=args.full,
        elsewhere=args.elsewhere,
        keys_from=Path(args.ceremony) if args.ceremony else None,
    )
    emit(args, shown, lambda: _show_up(layout, shown))
    return 0


def start_mesh(
    layout: Layout,
    *,
    regions: dict[str, str] | None,
    timing: TimingPlan,
    links: bool,
    allow_unlocked_memory: bool,
    shares: tuple[int, int] | None = None,
    full: bool = False,
    broker: BrokerPlan | None = None,
    elsewhere: bool = False,
    keys_from: Path | None = None,
) -> dict[str, Any]:
    """Make the mesh where there is none, start it, wait until every process serves.

    ``full``: a mesh that is made now stands on real servers; ``broker``: and is told of this one;
    ``elsewhere``: its Edges may go to other regions' Cores.  Raises Refused
    where one is running there, the flags do not fit the mesh that the directory already has, or a program is missing.
    """
    if full:
        require_all(BINARIES)
        check_place(layout.root)
    layout.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    with take_lock(layout):
        made = not layout.plan.exists()
        if made:
            wanted = regions or parse_regions(",".join(DEFAULT_REGIONS))
            plan = make_plan(wanted, timing, links=links, allow_unlocked_memory=allow_unlocked_memory, full=full)
            plan = msgspec.structs.replace(plan, broker=broker, elsewhere=elsewhere)
            with stderr.status("making keys, certificates and the genesis entry"):
                finish(layout, plan, bootstrap(layout, plan, shares=shares, keys_from=keys_from))
        else:
            plan = load_plan(layout)
            if plan.hosts is not None:
                raise Refused(
                    "not-embedded", "this mesh's roles run on hosts of their own: docs/deploy.md", field="dir"
                )
            if regions is not None and set(regions) != set(plan.regions):
                raise Refused.bad_field("regions", f"this mesh has {', '.join(plan.regions)}; use another --dir")
            if full and plan.full is None:
                raise Refused.bad_field("full", "this mesh was made without real servers; use another --dir")
            _warn_of_what_stays(plan, timing, links=links)
            if allow_unlocked_memory and not plan.allow_unlocked_memory:  # says how to start, not what the mesh is
                plan = msgspec.structs.replace(plan, allow_unlocked_memory=True)
                save_plan(layout, plan)
        _check_ports(plan)
        if plan.full is not None:
            require_all(BINARIES)
            with stderr.status("making the servers' directories"):
                prepare_servers(layout, plan.full, [layout.registry_of(n) for n in plan.registry_nodes], mesh=plan.mesh)
    began = time.monotonic()
    with (layout.logs / "supervisor.log").open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "keymesh.app.supervisor", str(layout.root)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    children = _await_ready(layout, process, UP_TIMEOUT_S if plan.full is None else UP_FULL_TIMEOUT_S)
    return {
        "ok": True,
        "dir": str(layout.root),
        "made": made,
        "pid": process.pid,
        "regions": list(plan.regions),
        "registry_region": plan.registry_region,
        "processes": len(children),
        "ms": round((time.monotonic() - began) * 1000),
    }


def _warn_of_what_stays(plan: MeshPlan, timing: TimingPlan, *, links: bool) -> None:
    """Flags that count only when a mesh is made, where they ask for something else now."""
    idle = ["--links"] if links and plan.links is None else []
    if timing not in (plan.timing, DEFAULT_TIMING):
        idle.append("that timing")
    if idle:
        stderr.print(
            f"warning: this mesh was made without {', '.join(idle)} and stays so; another --dir makes another mesh",
            markup=False,
            style="yellow",
        )


def _check_ports(plan: MeshPlan) -> None:
    ports = {"registry" if n == FIRST_REGISTRY else f"registry {n}": p for n, p in plan.registry_nodes.items()}
    ports |= {f"core of {r}": p.port for r, p in plan.regions.items()}
    ports |= {f"link {name}": port for name, port in (plan.links or {}).items()}
    ports |= {f"customer KMS replica {name}": port for name, port in (plan.kms_ports or {}).items()}
    ports |= {} if plan.full is None else named_ports(plan.full)
    for what, port in ports.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as taken:
                raise Unavailable("port-taken", f"port {port} ({what}) is taken by another process") from taken


def _await_ready(layout: Layout, process: subprocess.Popen[bytes], timeout_s: float) -> dict[str, Any]:
    deadline = time.monotonic() + timeout_s
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
    )
    with Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as progress:
        bar = progress.add_task("starting", total=None)
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise Unavailable("start", f"the supervisor ended; see {layout.logs / 'supervisor.log'}")
            children = (ask_supervisor(layout, {"do": "status"}) or {}).get("children", {})
            ready = [name for name, child in children.items() if child["ready"]]
            progress.update(bar, total=len(children) or None, completed=len(ready))
            if children and len(ready) == len(children):
                return dict(children)
            failing = [n for n, c in children.items() if c["restarts"] >= 3 and not c["ready"]]
            if failing:
                stop_mesh(layout)
                raise Unavailable("start", f"{failing[0]} does not start: {_last_words(layout, failing[0])}")
            time.sleep(0.05)
    stop_mesh(layout)
    raise Unavailable("start", f"not ready within {timeout_s:.0f} s; see {layout.logs}")


def _last_words(layout: Layout, role: str) -> str:
    """Why ``role`` ended, by the last line of its log that says so; else where to look."""
    path = layout.logs / f"{role}.log"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        for line in reversed(path.read_text(errors="replace").splitlines()[-_LOG_LINES:]):
            said = json.loads(line)
            if said["level"] == "critical":
                fields = said["fields"]
                return f"{fields['reason']} [{fields['code']}]" + _ADVICE.get(fields["code"], "")
    return f"see {path}"


def _show_up(layout: Layout, shown: dict[str, Any]) -> None:
    facts(
        "the mesh is up", {"regions": ", ".join(shown["regions"]), "processes": shown["processes"], "in": layout.root}
    )
    stdout.print(
        "[yellow]Development keys: root, officer, tenant-admin and seal keys lie unencrypted in that directory "
        "(keys/DEVELOPMENT-KEYS.txt).[/yellow]"
    )
    if shown["made"]:
        stdout.print(f"next: keymesh tenant create acme --home {shown['registry_region']}", markup=False)
