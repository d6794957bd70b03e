"""Tier 1: a region loses the Registry, and by ``hide_l1`` the customer's KMS too (DESIGN section 3).

1. Applications use three tenants in the region and elsewhere.  2. The link is cut; commands go on elsewhere, grants
and a restriction of each tenant.  3. The region is AUTONOMOUS until its leases end, then CLOSED; nothing is served
later than the ttl.  4. The link heals: restrictions of all tenants are taken first, then of each tenant its newest
state alone, and the entries between are recorded in seq order; the region serves again.  5. Nothing that was
acknowledged is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from keymesh.app.drill_mesh import TIMING, DrillMesh
from keymesh.app.drill_report import Report
from keymesh.app.drill_watch import Application, ModeWatch, watching
from keymesh.app.faults_record import Done
from keymesh.model.errors import Unavailable

REGIONS: Final = ("us-east", "us-west", "eu-central")
CUT_OFF: Final = "us-west"
TENANTS: Final = ("alder", "birch", "cedar")
KMS: Final = "customer-kms"
RECORD_WAIT_S: Final = 10.0
PATH: Final = ("synced", "autonomous", "closed", "synced")


def order_problems(
    rows: Sequence[Mapping[str, Any]], restrictions: Sequence[Done], newest: Mapping[str, int]
) -> list[str]:
    """What is wrong with the order in which ``rows`` (as ``/v1/applied`` shows them) were taken after a heal.

    Every one of ``restrictions`` comes before any lower-lane task of the tenants in ``newest`` (tenant -> seq of its
    newest state); beyond the states that carry a restriction only the newest one is applied.  A task that comes again,
    or of less than what is held, changes nothing and does not count.
    """
    found = []
    held = dict.fromkeys(newest, 0)
    beyond: dict[str, list[int]] = {tenant: [] for tenant in newest}
    waiting = {(done.namespace, done.seq) for done in restrictions}
    for row in rows:
        namespace, _, seq_text, _ = str(row["task"]).split(":")
        seq = int(seq_text)
        if namespace not in held or seq <= held[namespace]:
            continue
        held[namespace] = seq
        if row["lane"] == 0:
            waiting = {(name, at) for name, at in waiting if name != namespace or at > seq}
            continue
        beyond[namespace].append(seq)
        if waiting:
            found.append(f"{namespace}:{seq} was taken in lane {row['lane']} before {len(waiting)} restrictions")
    found += [f"the restriction at {name}:{seq} was never taken" for name, seq in sorted(waiting)]
    for tenant, seqs in beyond.items():
        if older := [seq for seq in seqs if seq < newest[tenant]]:
            found.append(f"{tenant} was taken through {older} on its way to {newest[tenant]}")
        if held[tenant] < newest[tenant]:
            found.append(f"{tenant} stands at {held[tenant]}, not at {newest[tenant]}")
    return found


def record_problems(rows: Sequence[Mapping[str, Any]], first: int, newest: int, tenant: str) -> list[str]:
    """What is wrong with ``rows`` (as ``/v1/history`` shows them): each seq from ``first`` to ``newest`` must be there,
    each recorded after the one before it."""
    found = []
    places = {int(row["seq"]): int(row["place"]) for row in rows}
    if lost := [seq for seq in range(first, newest + 1) if seq not in places]:
        found.append(f"{tenant} has no record of {lost}")
    in_order = [places[seq] for seq in sorted(places)]
    if in_order != sorted(in_order):
        found.append(f"{tenant} recorded its entries in another order than that of their seq")
    return found


async def _recorded(mesh: DrillMesh, restrictions: Sequence[Done], newest: Mapping[str, int]) -> list[str]:
    """Until the entries that the region passed over are recorded: they are fetched after the newest state."""
    first = {done.namespace: done.seq - 2 for done in restrictions}

    found: list[str] = []

    async def recorded() -> bool | None:
        found.clear()
        for tenant, seq in first.items():
            rows = await mesh.history(CUT_OFF, tenant, seq - 1)
            found.extend(record_problems(rows, seq, newest[tenant], tenant))
        return None if found else True

    with contextlib.suppress(Unavailable):
        await mesh.client.until(recorded, what="the record of what was missed", timeout_s=RECORD_WAIT_S)
    return found


async def run_tier1(mesh: DrillMesh, *, hide_l1: bool) -> Report:
    """The drill on a mesh with nothing in it."""
    for tenant in TENANTS:
        await mesh.create_tenant(tenant)
    await mesh.all_in_step()
    away = Application(mesh.door(CUT_OFF, TENANTS[0]), mesh.record)
    others = [Application(mesh.door(r, TENANTS[0]), mesh.record) for r in mesh.regions if r != CUT_OFF]
    modes = ModeWatch(mesh.client, CUT_OFF, TENANTS[0])
    async with watching([away, *others, modes]):
        await _until_served(mesh, [away, *others])
        if hide_l1:
            mesh.supervise("hold", KMS)
        await mesh.cut(CUT_OFF, "registry")
        report = Report("tier1", time.monotonic(), TIMING.ttl_ms)
        restrictions, newest = await _govern(mesh)
        await _until_closed(modes, report)
        healed, healed_ns = time.monotonic(), time.time_ns()
        await mesh.heal()
        if hide_l1:
            mesh.supervise("release", KMS)
        await _until_back(mesh, modes, away, healed)
        rows = await mesh.applied(CUT_OFF, healed_ns)
        unrecorded = await _recorded(mesh, restrictions, newest)
    _judge(report, modes, away, others, healed)
    report.problems += order_problems(rows, restrictions, newest) + unrecorded
    violations = await mesh.lost([app.door for app in (away, *others)])
    report.lost = len(violations)
    report.problems += violations
    report.mark("verified", time.monotonic())
    report.notes = {"region": CUT_OFF, "hide_l1": hide_l1, "missed": len(TENANTS) * 5, "taken": len(rows)}
    return report


async def _until_served(mesh: DrillMesh, apps: Sequence[Application]) -> None:
    await mesh.until(lambda: all(app.first(served=True, since=0.0) for app in apps), "every application served")


async def _govern(mesh: DrillMesh) -> tuple[list[Done], dict[str, int]]:
    """What the region misses: of each tenant two grants, a restriction, two more grants."""
    restrictions, newest = [], {}
    for tenant in TENANTS:
        await mesh.label(tenant, 1)
        await mesh.label(tenant, 2)
        restrictions.append(await mesh.suspend_spare(tenant))
        await mesh.label(tenant, 3)
        newest[tenant] = (await mesh.label(tenant, 4)).seq
    return restrictions, newest


async def _until_closed(modes: ModeWatch, report: Report) -> None:
    """Past the ttl, with a little more to see that it stays closed."""
    await asyncio.sleep(report.impact + TIMING.ttl_ms / 1_000 + 1.0 - time.monotonic())
    report.mark("detected", modes.since("autonomous", report.impact))
    report.mark("frozen", modes.since("closed", report.impact))


async def _until_back(mesh: DrillMesh, modes: ModeWatch, away: Application, healed: float) -> None:
    await mesh.until(lambda: modes.since("synced", healed), f"{CUT_OFF} synced again")
    await mesh.until(lambda: away.first(served=True, since=healed), f"{CUT_OFF} serving again")
    await mesh.in_step(CUT_OFF)


def _judge(report: Report, modes: ModeWatch, away: Application, others: Sequence[Application], healed: float) -> None:
    report.mode_path = modes.path
    refused = away.first(served=False, since=report.impact)
    last = away.last_served(since=report.impact, before=healed)
    again = away.first(served=True, since=healed)
    report.mark("resumed", None if again is None else again.ended)
    if again is not None:
        report.first_decrypt_ms = round((again.ended - healed) * 1_000)
    report.need(tuple(modes.path) == PATH, f"the modes were {', '.join(modes.path)}")
    if refused is None:
        report.problems.append("nothing was refused")
    else:
        report.first_refusal_ms = report.ms(refused.ended)
        report.closed_in_time(refused.began, None if last is None else last.began, TIMING.ttl_ms)
    for app in others:
        report.need(
            app.first(served=False, since=report.impact) is None, f"{app.door.region} refused though it was not cut off"
        )
