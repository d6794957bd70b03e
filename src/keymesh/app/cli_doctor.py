"""``keymesh doctor``: what this host lacks, and how the dependencies of a mesh or of one role are."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from typing import Any

from keymesh.adapters.tls import MeshTls
from keymesh.app.admin_client import AdminClient, operator_credentials
from keymesh.app.cli_common import emit, stdout
from keymesh.app.config_file import load_config, require_role, role_in_file
from keymesh.app.config_of_plan import core_config_of, edge_config_of, registry_config_of
from keymesh.app.doctor import Subject, examine, seal_checks, subject_of
from keymesh.app.doctor_rules import Check
from keymesh.app.full_servers import BINARIES
from keymesh.app.layout import Layout, MeshPlan, load_plan, resolve_dir
from keymesh.app.servers.binaries import FULL, Binary
from keymesh.app.supervisor_client import ask_supervisor
from keymesh.model.errors import ExitCode
from keymesh.model.ids import MeshName


def run_doctor(args: argparse.Namespace) -> int:
    """0 where all is well, 1 where anything is not.  Raises Refused for a mesh or a file that is none."""
    checks = asyncio.run(_diagnose(args))
    ok = all(check.ok for check in checks)
    shown = {"ok": ok, "checks": [_as_json(check) for check in checks]}
    emit(args, shown, lambda: _show(checks, ok=ok))
    return int(ExitCode.DONE if ok else ExitCode.REFUSED)


async def _diagnose(args: argparse.Namespace) -> list[Check]:
    if args.config is not None:
        path = Path(args.config)
        role = require_role(args.role) if args.role else role_in_file(path)
        return await examine([subject_of(load_config(path, role).config)], needed=(), extras=False)
    layout = Layout(resolve_dir(args.dir))
    if args.dir is None and not layout.plan.exists():
        return await examine([], needed=FULL, extras=True)
    plan = load_plan(layout)
    operator = MeshTls(operator_credentials(layout, plan.mesh), MeshName(plan.mesh), layout.ca.read_bytes())
    needed: tuple[Binary, ...] = () if plan.full is None else BINARIES
    found = await examine(_subjects(layout, plan), needed=needed, extras=plan.full is not None, operator=operator)
    async with AdminClient(layout, plan) as client:
        for seals in await asyncio.gather(*(seal_checks(client, region) for region in plan.regions)):
            found += seals
    return found + await asyncio.to_thread(_processes, layout)


def _subjects(layout: Layout, plan: MeshPlan) -> list[Subject]:
    found = [subject_of(registry_config_of(layout, plan, node)) for node in plan.registry_nodes]
    found += [subject_of(core_config_of(layout, plan, region)) for region in plan.regions]
    return found + [subject_of(edge_config_of(layout, plan, region)) for region in plan.regions]


def _processes(layout: Layout) -> list[Check]:
    """What the mesh's supervisor says of its children."""
    status = ask_supervisor(layout, {"do": "status"})
    if status is None:
        return [Check("supervisor", False, "the mesh is not running", f"keymesh up --dir {layout.root}")]
    checks = []
    for name, child in sorted(status["children"].items()):
        detail = "serves" if child["pid"] else "done"
        if not child["ready"]:
            detail = "is held" if child["held"] else f"does not serve (last exit {child['last_exit']})"
        if child["restarts"]:
            detail += f", restarted {child['restarts']} times"
        checks.append(Check(f"process {name}", child["ready"], detail, "" if child["ready"] else "look at its log"))
    return checks


def _as_json(check: Check) -> dict[str, Any]:
    return {"name": check.name, "ok": check.ok, "detail": check.detail, "fix": check.fix}


def _show(checks: list[Check], *, ok: bool) -> None:
    width = max(len(check.name) for check in checks)
    for check in checks:
        word = "[green]ok[/green]  " if check.ok else "[red]FAIL[/red]"
        stdout.print(f"{word} {check.name:<{width}}  ", end="")
        stdout.print(check.detail, markup=False)
        if check.fix:
            stdout.print(f"     {'':<{width}}  {'fix' if not check.ok else 'to have it'}: {check.fix}", markup=False)
    stdout.print("all is well" if ok else "[red]not all is well[/red]")
