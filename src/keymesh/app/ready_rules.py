"""Whether every region that might have to take a tenant could do so now: judged from what each Core found of itself.

Pure.  A region answers for itself (``RegionFound``): nobody else can say whether it reaches a customer's L1.  What no
region answered for is not ready.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from msgspec import Struct

from keymesh.core.events import L1Outcome

OBJECTS_BEHIND_MAX_S: Final = 60
COPIES: Final = 2
"""Regions that must hold a tenant's wrapped blobs, where the tenant allows so many."""


class TenantFound(Struct, frozen=True, kw_only=True):
    """A tenant as one region finds it.  ``l1``: replica to what it said to this region just now; ``binding``: which was
    asked for, empty where there is none.  ``keys``: live key versions; ``stored``: of these in this region's key store
    as they are in force; ``blobs``: of these with their sovereign form in its blob store.  ``objects_behind_s``: how
    old what it has of other regions' KMIP objects may be."""

    allowed: bool
    seq: int
    binding: str
    l1: dict[str, str]
    keys: int
    stored: int
    blobs: int
    objects_behind_s: int = 0


class RegionFound(Struct, frozen=True, kw_only=True):
    """One region, as its Core found it at ``at`` (Unix ms).  ``why``: what keeps it from serving at all.

    ``room``: key versions that its memory can still take; ``missing``: live ones that are not in memory yet.
    """

    region: str
    at: int
    why: tuple[str, ...]
    room: int
    missing: int
    tenants: dict[str, TenantFound]


class Wanted(Struct, frozen=True, kw_only=True):
    """A tenant as the Registry knows it."""

    tenant: str
    regions: tuple[str, ...]


def region_faults(found: RegionFound | None) -> list[str]:
    """Why that region could take nobody."""
    if found is None:
        return ["its Core does not answer"]
    faults = list(found.why)
    if found.missing > found.room:
        faults.append(f"room for {found.room} more key versions, {found.missing} are not loaded")
    return faults


def tenant_faults(found: TenantFound | None) -> list[str]:
    """Why a region that can take others could not take this tenant."""
    if found is None:
        return ["the tenant has not arrived"]
    if not found.allowed:
        return ["the region is not allowed by the tenant's policy as held there"]
    faults = []
    denied = sorted(r for r, said in found.l1.items() if said == L1Outcome.DENIED.value)
    silent = sorted(r for r, said in found.l1.items() if said == L1Outcome.UNREACHABLE.value)
    if not found.binding:
        faults.append("no key of it is there that L1 could open")
    elif denied:
        faults.append(f"L1 denies it ({', '.join(denied)})")
    elif not found.l1:
        faults.append("L1 could not be asked from there")
    elif len(silent) == len(found.l1):
        faults.append("no replica of L1 is reached from there")
    if found.stored < found.keys:
        faults.append(f"{found.keys - found.stored} of {found.keys} wrapped keys are not in its key store")
    return faults


def tenant_notes(found: TenantFound) -> list[str]:
    """What an operator should know though the region could take the tenant."""
    silent = sorted(r for r, said in found.l1.items() if said == L1Outcome.UNREACHABLE.value)
    notes = [f"L1 replica {replica} is not reached from there" for replica in silent]
    if found.objects_behind_s > OBJECTS_BEHIND_MAX_S:
        notes.append(f"KMIP objects of other regions may be {found.objects_behind_s} s old there")
    return notes


def judge(wanted: Sequence[Wanted], found: Mapping[str, RegionFound | None]) -> dict[str, Any]:
    """As ``keymesh ready --json`` prints it: every tenant in every region that it allows."""
    regions: dict[str, Any] = {}
    for region, seen in sorted(found.items()):
        faults = region_faults(seen)
        shown: dict[str, Any] = {"ok": not faults, "why": faults, "tenants": 0 if seen is None else len(seen.tenants)}
        regions[region] = shown | ({} if seen is None else {"room": seen.room, "missing": seen.missing, "at": seen.at})
    tenants = {one.tenant: _judge_tenant(one, found) for one in sorted(wanted, key=lambda w: w.tenant)}
    why = [f"{region}: {fault}" for region, shown in regions.items() for fault in shown["why"]]
    why += [f"{name}: {fault}" for name, shown in tenants.items() for fault in shown["why"]]
    return {"ok": not why, "tenants": tenants, "regions": regions, "why": why}


def _judge_tenant(wanted: Wanted, found: Mapping[str, RegionFound | None]) -> dict[str, Any]:
    """``why`` names the region; what keeps a whole region is said there, and only marked here."""
    places: dict[str, Any] = {}
    why: list[str] = []
    holders = 0
    for region in wanted.regions:
        seen = found.get(region)
        held = None if seen is None else seen.tenants.get(wanted.tenant)
        faults = [] if seen is None else tenant_faults(held)
        why += [f"{region}: {fault}" for fault in faults]
        holders += held is not None and held.blobs >= held.keys
        places[region] = {
            "ok": not faults and not region_faults(seen),
            "why": faults,
            "notes": [] if held is None else tenant_notes(held),
            "l1": {} if held is None else held.l1,
        }
    needed = min(COPIES, len(wanted.regions))
    if holders < needed:
        why.append(f"wrapped blobs are whole in {holders} of its regions, {needed} are needed")
    notes = ["no second region is allowed: nobody can take it"] if len(wanted.regions) == 1 else []
    ok = not why and all(place["ok"] for place in places.values())
    return {"ok": ok, "why": why, "notes": notes, "copies": holders, "regions": places}
