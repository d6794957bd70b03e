"""``keymesh drill run``: a disaster, live, on a mesh that lives as long as the command; and what came of it.

A script for now: the recovery engine is to run the same tiers and print the same.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from contextlib import AsyncExitStack
from typing import Any, Final

from keymesh.app import drill_tier1, drill_tier2, drill_tier3
from keymesh.app.admin_client import AdminClient
from keymesh.app.cli_common import emit, facts, stderr
from keymesh.app.cli_errors import BadUsage
from keymesh.app.cli_mesh import start_mesh
from keymesh.app.drill_mesh import DOMAIN, TIMING, drill_mesh
from keymesh.app.drill_report import Report
from keymesh.app.layout import Layout, load_plan
from keymesh.app.own_mesh import own_directory, sigterm_as_interrupt
from keymesh.app.supervisor_client import stop_mesh
from keymesh.model.errors import ExitCode

REGIONS: Final = {"tier1": drill_tier1.REGIONS, "tier2": drill_tier2.REGIONS, "tier3": drill_tier3.REGIONS}
ALLOWED: Final = {"tier1": drill_tier1.REGIONS, "tier2": drill_tier2.ALLOWED, "tier3": drill_tier3.REGIONS}


async def _run(layout: Layout, tier: str, *, hide_l1: bool) -> Report:
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(AdminClient(layout, load_plan(layout)))
        mesh = await drill_mesh(stack, client, ALLOWED[tier])
        if tier == "tier1":
            return await drill_tier1.run_tier1(mesh, hide_l1=hide_l1)
        if tier == "tier2":
            return await drill_tier2.run_tier2(mesh)
        return await drill_tier3.run_tier3(mesh)


def rehearse(tier: str, *, hide_l1: bool = False, directory: str | None = None) -> dict[str, Any]:
    """The report of one drill, from a mesh that lives as long as this call."""
    began = time.monotonic()
    regions = dict.fromkeys(REGIONS[tier], DOMAIN)
    with sigterm_as_interrupt(), own_directory(directory, what="a drill") as layout:
        try:
            with stderr.status(f"{tier}: a mesh, the disaster, the way back"):
                start_mesh(
                    layout,
                    regions=regions,
                    timing=TIMING,
                    links=True,
                    allow_unlocked_memory=True,
                    elsewhere=tier == "tier2",
                )
                report = asyncio.run(_run(layout, tier, hide_l1=hide_l1))
        finally:
            stop_mesh(layout)
    return {**report.plain(), "took_s": round(time.monotonic() - began, 1)}


def run_drill(args: argparse.Namespace) -> int:
    """Exit code 1 where something was lost, late, or not as the tier promises."""
    if args.hide_l1 and args.tier != "tier1":
        raise BadUsage("bad-field", "--hide-l1 goes with tier1", field="hide-l1")
    shown = rehearse(args.tier, hide_l1=args.hide_l1, directory=args.dir)
    emit(args, shown, lambda: facts(f"drill of {args.tier}", shown))
    return int(ExitCode.DONE if shown["ok"] else ExitCode.REFUSED)
