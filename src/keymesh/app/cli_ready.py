"""``keymesh ready``: every tenant in every region that might have to take it, by the word of each region's Core."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from keymesh.app.admin_client import AdminClient, run_with_client
from keymesh.app.cli_common import emit, facts, show_utc, table
from keymesh.app.ready_rules import RegionFound, Wanted, judge
from keymesh.model.errors import ExitCode, KeymeshError, Refused
from keymesh.model.ids import check_tenant

LOOK_TIMEOUT_S: Final = 120.0
NEVER_TAKEN: Final = ("revoked", "destroying", "destroyed")


async def found_in(client: AdminClient, region: str, *, fresh: bool) -> RegionFound | None:
    """What that region's Core finds; None where it does not answer."""
    path = "/v1/ready?fresh=yes" if fresh else "/v1/ready"
    try:
        answer = await client.call("GET", path, target=region, timeout_s=LOOK_TIMEOUT_S)
        return msgspec.convert(answer, RegionFound)
    except (KeymeshError, msgspec.ValidationError):
        return None


async def wanted_tenants(client: AdminClient, tenant: str | None) -> list[Wanted]:
    """Those that regions might have to take: all but those that are revoked or to be destroyed.

    Raises Refused where ``tenant`` is none of them.
    """
    answer = await client.call("GET", "/v1/tenants")
    shown = [one for one in answer["tenants"] if one["state"] not in NEVER_TAKEN and tenant in (None, one["tenant"])]
    if tenant is not None and not shown:
        raise Refused("not-found", "no such tenant, or it is revoked or destroyed", field="tenant")
    return [Wanted(tenant=one["tenant"], regions=tuple(one["regions"])) for one in shown]


async def ready(client: AdminClient, *, tenant: str | None, fresh: bool) -> dict[str, Any]:
    """The judgement, as it is printed.  Raises Unavailable where the Registry does not say which tenants there are."""
    wanted = await wanted_tenants(client, tenant)
    regions = sorted(client.plan.regions if tenant is None else wanted[0].regions)
    found = await asyncio.gather(*(found_in(client, region, fresh=fresh) for region in regions))
    return judge(wanted, dict(zip(regions, found, strict=True)))


async def kept(client: AdminClient) -> dict[str, Any]:
    """What each Core has kept, oldest first."""

    async def of(region: str) -> Any:
        try:
            return (await client.call("GET", "/v1/ready/kept", target=region))["kept"]
        except KeymeshError:
            return None

    regions = sorted(client.plan.regions)
    answers = await asyncio.gather(*(of(region) for region in regions))
    return {"ok": None not in answers, "regions": dict(zip(regions, answers, strict=True))}


def run_ready(args: argparse.Namespace) -> int:
    """Exit code 1 where something is not ready."""
    if args.tenant is not None:
        check_tenant(args.tenant)
    if args.kept:
        shown = run_with_client(args.dir, kept)
        emit(args, shown, lambda: _show_kept(shown["regions"]))
    else:
        shown = run_with_client(args.dir, lambda client: ready(client, tenant=args.tenant, fresh=not args.newest))
        emit(args, shown, lambda: _show(shown))
    return int(ExitCode.DONE if shown["ok"] else ExitCode.REFUSED)


def _show(shown: dict[str, Any]) -> None:
    table(
        "tenants",
        ("tenant", "region", "ready", "L1", "why"),
        (
            (name, region, place["ok"], _l1(place["l1"]), "; ".join([*place["why"], *place["notes"]]))
            for name, tenant in shown["tenants"].items()
            for region, place in tenant["regions"].items()
        ),
    )
    table(
        "regions",
        ("region", "ready", "tenants", "room", "why"),
        ((name, r["ok"], r["tenants"], r.get("room"), "; ".join(r["why"])) for name, r in shown["regions"].items()),
    )
    facts("ready" if shown["ok"] else "not ready", {str(n + 1): why for n, why in enumerate(shown["why"])})


def _l1(said: dict[str, str]) -> str:
    return ", ".join(f"{replica} {word}" for replica, word in said.items())


def _show_kept(regions: dict[str, Sequence[Any] | None]) -> None:
    table(
        "kept",
        ("region", "when", "ready", "tenants", "why"),
        (
            (region, show_utc(one["at"]), one["ok"], one["tenants"], "; ".join(one["why"]))
            for region, results in regions.items()
            for one in results or ()
        ),
    )
