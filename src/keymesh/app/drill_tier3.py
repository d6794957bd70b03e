"""Tier 3: the Registry dies (DESIGN section 3, Standby).

1. Applications use a tenant in all regions, and one that denies Standby.  2. The Registry is killed, and stays dead for
longer than any lease that it gave.  3. The regions are AUTONOMOUS, then STANDBY by their voters' word: existing keys
are served, no command is acknowledged; the tenant that denies Standby is CLOSED within the ttl.  4. An administrator
restricts at a region, where it is in force at once.  5. The Registry comes back: everybody is SYNCED, and what was
decided without it is in its log.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Final

from keymesh.app.drill_mesh import SPARE, TIMING, DrillMesh
from keymesh.app.drill_report import Report
from keymesh.app.drill_watch import Application, ModeWatch, watching
from keymesh.app.faults_record import Record
from keymesh.model.errors import KeymeshError

REGIONS: Final = ("us-east", "us-west", "eu-central")
WATCHED: Final = "us-west"
TENANT: Final = "elder"
DENIES: Final = "fir"
PATH: Final = ("synced", "autonomous", "standby", "synced")
DEAD_TTLS: Final = 1.7
"""For how many ttls the Registry is dead: no lease of its own is alive by then."""


async def run_tier3(mesh: DrillMesh) -> Report:
    """The drill on a mesh with nothing in it."""
    await mesh.create_tenant(TENANT)
    await mesh.create_tenant(DENIES, standby="deny")
    await mesh.label(TENANT, 1)
    await mesh.all_in_step()
    apps = [Application(mesh.door(region, TENANT), mesh.record) for region in REGIONS]
    denied = Application(mesh.door(WATCHED, DENIES), Record())
    modes, denied_modes = (ModeWatch(mesh.client, WATCHED, tenant) for tenant in (TENANT, DENIES))
    async with watching([*apps, denied, modes, denied_modes]):
        await mesh.until(
            lambda: all(app.first(served=True, since=0.0) for app in (*apps, denied)), "every application served"
        )
        mesh.supervise("hold", "registry")
        report = Report("tier3", time.monotonic(), TIMING.ttl_ms)
        command_id = await _without_registry(mesh, report, modes)
        last_alive = time.monotonic()
        mesh.supervise("release", "registry")
        await mesh.until(lambda: modes.since("synced", last_alive), f"{WATCHED} synced again")
        await mesh.all_in_step()
        back = time.monotonic()
        await mesh.until(lambda: denied.first(served=True, since=last_alive), f"{DENIES} served again")
        is_recorded = await mesh.recorded(TENANT, command_id)
    _judge(report, modes, denied_modes, apps, denied, last_alive)
    report.mark("committed", back)
    violations = await mesh.lost([app.door for app in apps])
    violations += [] if is_recorded else [f"{command_id}, in force at {WATCHED}, is not in the log"]
    report.lost = len(violations)
    report.problems += violations
    report.mark("verified", time.monotonic())
    report.notes = {"region": WATCHED, "dead_ms": round((last_alive - report.impact) * 1_000)}
    return report


async def _without_registry(mesh: DrillMesh, report: Report, modes: ModeWatch) -> str:
    """What can be done while it is dead: no command, one restriction; the id of that."""
    await mesh.until(lambda: modes.since("standby", report.impact), f"{WATCHED} in Standby")
    with contextlib.suppress(KeymeshError):
        await mesh.client.command(TENANT, "tenant.labels", {"labels": {"turn": "2"}})
        report.problems.append("a command was acknowledged without a Registry")
    command_id = await mesh.suspend_here(WATCHED, TENANT)
    restricted = (await mesh.status(WATCHED))["tenants"][TENANT]["restricted"]
    in_force = any(scope.startswith(f"service:{TENANT}/{SPARE}") for scope in restricted)
    report.need(in_force, "the restriction is not in force where it was issued")
    await asyncio.sleep(max(0.0, report.impact + DEAD_TTLS * TIMING.ttl_ms / 1_000 - time.monotonic()))
    return command_id


def _judge(
    report: Report,
    modes: ModeWatch,
    denied_modes: ModeWatch,
    apps: list[Application],
    denied: Application,
    last_alive: float,
) -> None:
    report.mode_path = modes.path
    report.need(tuple(modes.path) == PATH, f"the modes were {', '.join(modes.path)}")
    report.mark("detected", modes.since("autonomous", report.impact))
    report.mark("promoted", (standby := modes.since("standby", report.impact)))
    report.mark("frozen", denied_modes.since("closed", report.impact))
    first = apps[REGIONS.index(WATCHED)].first(served=True, since=report.impact if standby is None else standby)
    report.mark("resumed", None if first is None else first.ended)
    report.first_decrypt_ms = None if first is None else report.ms(first.ended)
    for app in apps:
        refused = app.first(served=False, since=report.impact)
        report.need(refused is None, f"{app.door.region} refused what Standby serves")
        late = app.last_served(since=report.impact + TIMING.ttl_ms / 1_000, before=last_alive)
        report.need(late is not None, f"{app.door.region} served nothing once the Registry's leases were over")
    refused = denied.first(served=False, since=report.impact)
    if refused is None:
        report.problems.append("a tenant that denies Standby was not refused")
    else:
        report.first_refusal_ms = report.ms(refused.ended)
        served = denied.last_served(since=report.impact, before=last_alive)
        report.closed_in_time(refused.began, None if served is None else served.began, TIMING.ttl_ms)
