"""``keymesh up | down | status``: an embedded mesh from one command, what it is doing, and its end."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from typing import Any, Final

import msgspec
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from keymesh.app.bootstrap import DEFAULT_REGIONS, bootstrap, finish, make_plan, parse_regions, parse_shares
from keymesh.app.cli_common import add_common, duration_ms, emit, facts, show_ms, stderr, stdout, table
from keymesh.app.layout import Layout, MeshPlan, TimingPlan, load_plan, resolve_dir, save_plan
from keymesh.app.supervisor import take_lock
from keymesh.model.errors import ExitCode, Refused, Unavailable
from keymesh.model.limits import (
    EDGE_TTL_DEFAULT_MS,
    EDGE_TTL_MAX_MS,
    EDGE_TTL_MIN_MS,
    GOVERNANCE_TTL_DEFAULT_MS,
    GOVERNANCE_TTL_MAX_MS,
    GOVERNANCE_TTL_MIN_DEV_MS,
)

UP_TIMEOUT_S = 90.0
DOWN_TIMEOUT_S = 20.0
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


def register(commands: Any) -> None:
    """Add this module's commands to the parser."""
    up = commands.add_parser(
        "up",
        help="start a mesh (made on first use) and leave it running",
        epilog="example: keymesh up --regions us-east,us-west,eu-central,eu-west --ttl 1h",
    )
    up.add_argument("--regions", metavar="R,...", help="name or name=domain; the first holds the Registry")
    up.add_argument(
        "--shares", metavar="M/N", help="seal the regions of a mesh made now by N shares, any M of which open one"
    )
    up.add_argument("--links", action="store_true", help="relay cross-region links so that they can be cut")
    up.add_argument(
        "--allow-unlocked-memory",
        action="store_true",
        help="run even where key memory cannot be locked (mlock); this mesh remembers it",
    )
    timing = up.add_argument_group("timing", "of a mesh that is made now; one that exists keeps its own")
    for flag, default_ms, what in (
        ("--ttl", DEFAULT_TIMING.ttl_ms, "how long a cut-off region goes on, 2s to 1d (default 1h)"),
        (
            "--heartbeat",
            DEFAULT_TIMING.heartbeat_ms,
            "how often regions ask for their leases, 100ms to ttl/2 (default 2s)",
        ),
        (
            "--edge-ttl",
            DEFAULT_TIMING.edge_ttl_ms,
            "lease of an Edge where the service names none, 1s to 60m (default 5m)",
        ),
        ("--l1-probe", DEFAULT_TIMING.l1_probe_ms, "how often the customer's L1 is asked, 500ms to 1d (default 5m)"),
        ("--l1-ttl", None, "how long an unreachable L1 is tolerated, 500ms to 1d (default: the ttl)"),
        (
            "--snapshot",
            DEFAULT_TIMING.snapshot_ms,
            "how often a region re-reads what it holds, 500ms to 1d (default 5m)",
        ),
    ):
        timing.add_argument(flag, type=duration_ms, default=default_ms, metavar="TIME", help=what)
    add_common(up)
    up.set_defaults(run=run_up)
    down = commands.add_parser("down", help="stop the mesh; nothing is deleted", epilog="example: keymesh down")
    add_common(down)
    down.set_defaults(run=run_down)
    status = commands.add_parser(
        "status",
        help="regions, modes per tenant, lease ages, applied heads, drift",
        epilog="example: keymesh status --json",
    )
    add_common(status)
    status.set_defaults(run=run_status)


def timing_of(args: argparse.Namespace) -> TimingPlan:
    """The timing that the flags ask for.  Raises Refused naming the flag and its limits."""
    if not GOVERNANCE_TTL_MIN_DEV_MS <= args.ttl <= GOVERNANCE_TTL_MAX_MS:
        raise Refused.bad_field("ttl", f"2s to {show_ms(GOVERNANCE_TTL_MAX_MS)} in a development mesh")
    if not EDGE_TTL_MIN_MS <= args.edge_ttl <= EDGE_TTL_MAX_MS:
        raise Refused.bad_field("edge-ttl", "1s to 60m")
    if not 100 <= args.heartbeat <= args.ttl // 2:
        raise Refused.bad_field("heartbeat", "100ms to half of the ttl")
    l1_ttl_ms = args.ttl if args.l1_ttl is None else args.l1_ttl
    for flag, value in (("l1-probe", args.l1_probe), ("l1-ttl", l1_ttl_ms), ("snapshot", args.snapshot)):
        if not 500 <= value <= 86_400_000:
            raise Refused.bad_field(flag, "500ms to 1d")
    return TimingPlan(
        ttl_ms=args.ttl,
        heartbeat_ms=args.heartbeat,
        edge_ttl_ms=args.edge_ttl,
        l1_probe_ms=args.l1_probe,
        l1_ttl_ms=l1_ttl_ms,
        snapshot_ms=args.snapshot,
    )


def run_up(args: argparse.Namespace) -> int:
    layout = Layout(resolve_dir(args.dir))
    shown = start_mesh(
        layout,
        regions=parse_regions(args.regions) if args.regions else None,
        timing=timing_of(args),
        links=args.links,
        allow_unlocked_memory=args.allow_unlocked_memory,
        shares=parse_shares(args.shares) if args.shares else None,
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
) -> dict[str, Any]:
    """Make the mesh where there is none, start it, wait until every process serves.

    Raises Refused where one is running there, or the flags do not fit the mesh that the directory already has.
    """
    layout.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    with take_lock(layout):
        made = not layout.plan.exists()
        if made:
            wanted = regions or parse_regions(",".join(DEFAULT_REGIONS))
            plan = make_plan(wanted, timing, links=links, allow_unlocked_memory=allow_unlocked_memory)
            with stderr.status("making keys, certificates and the genesis entry"):
                finish(layout, plan, bootstrap(layout, plan, shares=shares))
        else:
            plan = load_plan(layout)
            if regions is not None and set(regions) != set(plan.regions):
                raise Refused.bad_field("regions", f"this mesh has {', '.join(plan.regions)}; use another --dir")
            _warn_of_what_stays(plan, timing, links=links)
            if allow_unlocked_memory and not plan.allow_unlocked_memory:  # says how to start, not what the mesh is
                plan = msgspec.structs.replace(plan, allow_unlocked_memory=True)
                save_plan(layout, plan)
        _check_ports(plan)
    began = time.monotonic()
    with (layout.logs / "supervisor.log").open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "keymesh.app.supervisor", str(layout.root)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    children = _await_ready(layout, process)
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
    ports = {"registry": plan.registry_port, **{f"core of {r}": p.port for r, p in plan.regions.items()}}
    ports |= {f"link {name}": port for name, port in (plan.links or {}).items()}
    ports |= {f"customer KMS replica {name}": port for name, port in (plan.kms_ports or {}).items()}
    for what, port in ports.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as taken:
                raise Unavailable("port-taken", f"port {port} ({what}) is taken by another process") from taken


def _await_ready(layout: Layout, process: subprocess.Popen[bytes]) -> dict[str, Any]:
    deadline = time.monotonic() + UP_TIMEOUT_S
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
    raise Unavailable("start", f"not ready within {UP_TIMEOUT_S:.0f} s; see {layout.logs}")


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


def ask_supervisor(layout: Layout, request: dict[str, Any]) -> dict[str, Any] | None:
    """The supervisor's answer, or None where none is listening."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        try:
            connection.connect(str(layout.control_socket))
            connection.sendall(json.dumps(request).encode() + b"\n")
            line = connection.makefile("rb").readline()
        except (FileNotFoundError, ConnectionError, TimeoutError):
            return None
    answer = json.loads(line) if line else None
    return answer if isinstance(answer, dict) else None


def _show_up(layout: Layout, shown: dict[str, Any]) -> None:
    facts(
        "the mesh is up", {"regions": ", ".join(shown["regions"]), "processes": shown["processes"], "in": layout.root}
    )
    stdout.print(
        "[yellow]Development keys: root, officer, tenant-admin and seal keys lie unencrypted in that directory "
        "(keys/DEVELOPMENT-KEYS.txt).[/yellow]"
    )
    stdout.print(f"next: keymesh tenant create acme --home {shown['registry_region']}", markup=False)


def run_down(args: argparse.Namespace) -> int:
    layout = Layout(resolve_dir(args.dir))
    load_plan(layout)
    stopped = stop_mesh(layout)
    emit(args, {"ok": True, "stopped": stopped}, lambda: stdout.print("stopped" if stopped else "was not running"))
    return 0


def stop_mesh(layout: Layout) -> bool:
    """Ask the supervisor to end everything and wait until it has; False where none was running."""
    answer = ask_supervisor(layout, {"do": "status"})
    if answer is None:
        return False
    ask_supervisor(layout, {"do": "stop"})
    deadline = time.monotonic() + DOWN_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            take_lock(layout).close()
        except Refused:
            time.sleep(0.05)
            continue
        return True
    raise Unavailable("stop", f"the supervisor (pid {answer['pid']}) did not end within {DOWN_TIMEOUT_S:.0f} s")


def run_status(args: argparse.Namespace) -> int:
    layout = Layout(resolve_dir(args.dir))
    load_plan(layout)
    processes = ask_supervisor(layout, {"do": "status"})
    shown: dict[str, Any] = {"running": processes is not None, "processes": (processes or {}).get("children", {})}
    if processes is None:
        emit(args, shown, lambda: stdout.print("the mesh is not running; `keymesh up` starts it"))
        return int(ExitCode.UNAVAILABLE)
    shown |= asyncio.run(_collect(layout))
    emit(args, shown, lambda: _show_status(shown))
    return int(ExitCode.DONE if shown["registry"]["reachable"] else ExitCode.UNAVAILABLE)


async def _collect(layout: Layout) -> dict[str, Any]:
    """What the Registry says, and what each Core says of itself."""
    from keymesh.app.admin_client import AdminClient

    plan = load_plan(layout)
    async with AdminClient(layout, plan) as client:

        async def ask(target: str) -> Any:
            try:
                answer = await client.call("GET", "/v1/status", target=target, timeout_s=5.0)
                return {"reachable": True, **answer}
            except (Unavailable, Refused) as silent:
                return {"reachable": False, "reason": silent.message}

        answers = await asyncio.gather(*(ask(t) for t in ("registry", *plan.regions)))
    return {"registry": answers[0], "regions": dict(zip(plan.regions, answers[1:], strict=True))}


def _show_status(shown: dict[str, Any]) -> None:
    registry = shown["registry"]
    facts("registry", {k: v for k, v in registry.items() if not isinstance(v, dict | list)})
    seen = registry.get("regions", {})
    table(
        "regions",
        ("region", "process", "heartbeat", "in sync", "IVK", "drift", "tenants"),
        (
            (
                name,
                "up" if region["reachable"] else "down",
                _age(seen.get(name, {}).get("heartbeat_age_ms")),
                seen.get(name, {}).get("in_sync"),
                region.get("ivk_generation"),
                ", ".join(seen.get(name, {}).get("drift", [])) or "none",
                len(region.get("tenants", {})),
            )
            for name, region in shown["regions"].items()
        ),
    )
    table(
        "tenants",
        ("tenant", "region", "mode", "why", "restricted", "lease", "L1 lease", "applied"),
        (
            (
                tenant,
                name,
                at["mode"],
                at["reason"],
                ", ".join(at["restricted"]),
                _age(at["lease_left_ms"]),
                _age(at["l1_left_ms"]),
                f"{at['epoch']}:{at['seq']}",
            )
            for name, region in shown["regions"].items()
            for tenant, at in sorted(region.get("tenants", {}).items())
        ),
    )


def _age(ms: int | None) -> str:
    return "-" if ms is None else f"{ms / 1000:.1f} s"


def running_pid(layout: Layout, name: str) -> int:
    """Process id of the role ``name``.  Raises Unavailable where it is not running."""
    answer = ask_supervisor(layout, {"do": "status"}) or {}
    pid = answer.get("children", {}).get(name, {}).get("pid")
    if not isinstance(pid, int):
        raise Unavailable("not-running", f"{name} is not running")
    os.kill(pid, 0)
    return pid
