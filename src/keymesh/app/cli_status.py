"""``keymesh status | down``: what a mesh on this machine is doing, and its end."""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

from keymesh.app.admin_client import AdminClient
from keymesh.app.cli_common import emit, facts, stdout, table
from keymesh.app.layout import Layout, load_plan, resolve_dir
from keymesh.app.supervisor_client import NOT_RUNNING, ask_supervisor, stop_mesh
from keymesh.model.errors import ExitCode, Refused, Unavailable


def run_down(args: argparse.Namespace) -> int:
    layout = Layout(resolve_dir(args.dir))
    load_plan(layout)
    stopped = stop_mesh(layout)
    emit(args, {"ok": True, "stopped": stopped}, lambda: stdout.print("stopped" if stopped else "was not running"))
    return 0


def run_status(args: argparse.Namespace) -> int:
    layout = Layout(resolve_dir(args.dir))
    is_embedded = load_plan(layout).hosts is None
    processes = ask_supervisor(layout, {"do": "status"}) if is_embedded else {}
    shown: dict[str, Any] = {"running": processes is not None, "processes": (processes or {}).get("children", {})}
    if processes is None:
        emit(args, shown, lambda: stdout.print(NOT_RUNNING))
        return int(ExitCode.UNAVAILABLE)
    shown |= asyncio.run(_collect(layout))
    emit(args, shown, lambda: _show_status(shown))
    return int(ExitCode.DONE if shown["registry"]["reachable"] else ExitCode.UNAVAILABLE)


async def _collect(layout: Layout) -> dict[str, Any]:
    """What the Registry says, and what each Core says of itself."""
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
    if alarms := [(name, text) for name, region in shown["regions"].items() for text in region.get("alarms", [])]:
        table("alarms", ("region", "alarm"), alarms)
    table(
        "tenants",
        ("tenant", "region", "mode", "why", "ends with", "restricted", "lease", "L1 lease", "applied"),
        (
            (
                tenant,
                name,
                at["mode"],
                at["why"],
                at["ends"],
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
