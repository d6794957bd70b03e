"""Tier 2: a region is killed under load, Core and Edge at once (DESIGN section 3).

1. A tenant is used in its home region and elsewhere.  2. The home region is killed; its application's Edge starts again
and finds no Core there.  3. The Edge goes to the nearest region that the tenant allows, by the latency that it measures
itself; that region has proved L1 from its own place, and what was sealed before opens.  4. A restriction is committed
meanwhile, and reaches the Edge there.  5. The dead region comes back while the Registry is still out of its reach: it
is fenced, serves nobody, and nobody goes back to it.  6. It re-syncs, with the restriction in force, and its Edge
returns.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

from keymesh.app.admin_client import wait_for_key
from keymesh.app.bench_killswitch_mesh import SERVICE
from keymesh.app.drill_mesh import PATIENCE_S, SPARE, TIMING, DrillMesh
from keymesh.app.drill_report import Report
from keymesh.app.drill_watch import UNREACHED, Application, ModeWatch, watching
from keymesh.app.faults_load import Door
from keymesh.app.faults_record import Done
from keymesh.model.errors import KeymeshError

REGIONS: Final = ("us-east", "us-west", "eu-central", "eu-west")
ALLOWED: Final = ("us-west", "us-east", "eu-central")
KILLED: Final = ALLOWED[0]
NEAREST: Final = "eu-central"
TENANT: Final = "dogwood"
DELAYS_MS: Final = {"us-east": 60, "eu-central": 20, "eu-west": 0}
"""Each way from the killed region's place: the nearest of all is not allowed, the nearest allowed is not the first."""
FENCED_S: Final = 2.0
DECRYPT_LIMIT_MS: Final = 5_000
PUSH_LIMIT_MS: Final = 1_500
"""Push promises less than a second; the rest is for our own looking."""
PATH: Final = ("synced", UNREACHED, "closed", "synced")


async def run_tier2(mesh: DrillMesh) -> Report:
    """The drill on a mesh with nothing in it."""
    for region, delay_ms in DELAYS_MS.items():
        await mesh.delay(KILLED, region, delay_ms)
    await mesh.create_tenant(TENANT)
    for service in (SERVICE, SPARE):
        await wait_for_key(mesh.client, TENANT, f"l3/{service}")
        await mesh.enrol_elsewhere(KILLED, TENANT, service)
    await mesh.all_in_step()
    here = Application(mesh.door(KILLED, TENANT), mesh.record)
    others = [Application(mesh.door(r, TENANT), mesh.record) for r in ALLOWED[1:]]
    modes = ModeWatch(mesh.client, KILLED, TENANT)
    async with watching([here, *others, modes]):
        await mesh.until(
            lambda: all(app.first(served=True, since=0.0) for app in (here, *others)), "every application served"
        )
        mesh.supervise("hold", f"core-{KILLED}")
        mesh.supervise("kill", f"edge-{KILLED}")
        report = Report("tier2", time.monotonic(), TIMING.ttl_ms)
        await mesh.until(lambda: modes.since(UNREACHED, report.impact), f"{KILLED} seen dead")
        report.mark("detected", modes.since(UNREACHED, report.impact))
        taker = await _taken_over(mesh, here, report)
        await mesh.label(TENANT, 1)
        restriction = await _suspended(mesh, report)
        await mesh.cut(KILLED, "registry")
        mesh.supervise("release", f"core-{KILLED}")
        returned = await _fenced(mesh, report, modes)
        await mesh.heal()
        healed = time.monotonic()
        await _resynced(mesh, report, modes, healed)
        held = (await mesh.status(KILLED))["tenants"][TENANT]
    report.need(held["seq"] >= restriction.seq, "the region that came back lacks the restriction")
    report.need(f"service:{TENANT}/{SPARE}" in held["restricted"], "the restriction is not in force where it came back")
    refused = here.first(served=False, since=report.impact)
    report.first_refusal_ms = None if refused is None else report.ms(refused.ended)
    report.mode_path = modes.path
    report.need(tuple(modes.path) == PATH, f"the modes were {', '.join(modes.path)}")
    for app in others:
        report.need(app.first(served=False, since=report.impact) is None, f"{app.door.region} refused")
    violations = await mesh.lost([app.door for app in (here, *others)])
    report.lost = len(violations)
    report.problems += violations
    report.mark("verified", time.monotonic())
    report.notes = {
        "region": KILLED,
        "taken_by": taker,
        "fenced_ms": round((healed - returned) * 1_000),
    }
    return report


async def _taken_over(mesh: DrillMesh, here: Application, report: Report) -> str:
    """The first decrypt of what was sealed before, by the Edge whose region is dead; by whose lease."""
    kept = mesh.record.minted[TENANT, here.door.service][0]
    opened = await _opened(here.door, kept[0])
    now = time.monotonic()
    taker = await mesh.served_by(KILLED, TENANT)
    report.need(taker == NEAREST, f"the Edge went to {taker or 'nobody'}, not to {NEAREST}")
    report.need(opened == kept[1], f"{taker} opened a blob to another key")
    report.mark("promoted", now)
    report.mark("resumed", now)
    report.first_decrypt_ms = report.ms(now)
    report.need(report.first_decrypt_ms < DECRYPT_LIMIT_MS, "the first decrypt elsewhere came too late")
    status: Any = (await mesh.status(NEAREST))["tenants"][TENANT]
    report.need(bool(status["l1_left_ms"]), f"{NEAREST} has not proved L1")
    return taker


async def _suspended(mesh: DrillMesh, report: Report) -> Done:
    """The kill switch reaches an Edge that is served elsewhere: its other service refuses at once."""
    spare = mesh.door(KILLED, TENANT, SPARE)
    await mesh.client.until(lambda: _serves(spare, wanted=True), what=f"{SPARE} served elsewhere")
    done = await mesh.suspend_spare(TENANT)
    began = time.monotonic()
    await mesh.client.until(lambda: _serves(spare, wanted=False), what=f"{SPARE} refused elsewhere")
    took_ms = (time.monotonic() - began) * 1_000
    report.need(took_ms < PUSH_LIMIT_MS, f"an Edge served elsewhere heard of the restriction after {took_ms:.0f} ms")
    return done


async def _serves(door: Door, *, wanted: bool) -> bool | None:
    try:
        await door.mint()
    except KeymeshError:
        return None if wanted else True
    return True if wanted else None


async def _opened(door: Door, blob: str) -> str:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                return await door.open(blob)
            except KeymeshError:
                await asyncio.sleep(0.02)


async def _fenced(mesh: DrillMesh, report: Report, modes: ModeWatch) -> float:
    """The region is back and has heard nothing: for ``FENCED_S`` it serves nobody.  When it was first seen back."""
    back = await mesh.until(lambda: modes.since("closed", report.impact), f"{KILLED} back")
    assert back is not None
    report.mark("frozen", back)
    until = time.monotonic() + FENCED_S
    while time.monotonic() < until:
        at = await mesh.served_by(KILLED, TENANT)
        report.need(at != KILLED, "the region that came back gave a lease before it re-synced")
        await asyncio.sleep(0.2)
    status = (await mesh.status(KILLED))["tenants"][TENANT]
    report.need(status["loaded"] == 0, "the region that came back has loaded keys before it re-synced")
    return back


async def _resynced(mesh: DrillMesh, report: Report, modes: ModeWatch, healed: float) -> None:
    """In step again, and its own Edge returns: it is the nearest."""
    await mesh.until(lambda: modes.since("synced", healed), f"{KILLED} synced again")
    await mesh.in_step(KILLED)
    report.mark("committed", time.monotonic())

    async def returned() -> bool | None:
        return True if await mesh.served_by(KILLED, TENANT) == KILLED else None

    await mesh.client.until(returned, what=f"the Edge of {KILLED} back at its own Core", timeout_s=PATIENCE_S)
