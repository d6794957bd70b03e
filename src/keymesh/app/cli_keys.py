"""``keymesh key`` and ``keymesh region``: key versions and their wrapping, regions and their internal keys."""

from __future__ import annotations

import argparse
from typing import Any, Final

import msgspec

from keymesh.app.admin_client import AdminClient, run_with_client, wait_for_key
from keymesh.app.cli_common import emit, facts, stderr, table
from keymesh.app.cli_seals import in_words
from keymesh.control.kinds import RotateIvk, WantKey, WantRewrap
from keymesh.model.errors import KeymeshError, Refused, Unavailable
from keymesh.model.ids import check_region, check_tenant
from keymesh.model.scope import Scope, ScopeKind, parse_scope

SEALS_TIMEOUT_S = 5.0
OWN_WORDS: Final = ("sealed", "seals", "tenants", "objects")  # of a Core, beside what the Registry says


def _key_name(scope: Scope) -> str:
    match scope.kind:
        case ScopeKind.TENANT:
            return "l2"
        case ScopeKind.SERVICE | ScopeKind.KEY:
            return f"l3/{scope.service}"
        case _:
            raise Refused.bad_field("scope", "tenant:T, service:T/S or key:T/S@V")


def run_list(args: argparse.Namespace) -> int:
    async def work(client: AdminClient) -> Any:
        if wanted := args.tenant or args.tenant_option:
            tenants = [check_tenant(wanted.removeprefix("tenant:"))]
        else:
            tenants = [t["tenant"] for t in (await client.call("GET", "/v1/tenants"))["tenants"]]
        lists = [await client.call("GET", f"/v1/tenants/{t}/keys") for t in tenants]
        return {"keys": [k for one in lists for k in one["keys"]]}

    shown = run_with_client(args.dir, work)
    columns = ("tenant", "key", "version", "revision", "state", "wrapping", "kid")
    emit(args, shown, lambda: table("keys", columns, ([k[c] for c in columns] for k in shown["keys"])))
    return 0


def run_show(args: argparse.Namespace) -> int:
    scope = parse_scope(args.scope)
    name = _key_name(scope)

    async def work(client: AdminClient) -> Any:
        keys = (await client.call("GET", f"/v1/tenants/{scope.tenant}/keys"))["keys"]
        found = [k for k in keys if k["key"] == name and scope.version in (None, k["version"])]
        if not found:
            raise Refused("not-found", f"{scope} does not exist", field="scope")
        return {"keys": found}

    shown = run_with_client(args.dir, work)

    def human() -> None:
        for k in shown["keys"]:
            facts(f"{k['tenant']} {k['key']} version {k['version']}", k)

    emit(args, shown, human)
    return 0


async def want_next(client: AdminClient, scope: Scope) -> tuple[str, int, Any]:
    """Ask for the next version of the scope's key: (key, version, the command's answer).  Raises Refused."""
    tenant, name = check_tenant(str(scope.tenant)), _key_name(scope)
    keys = (await client.call("GET", f"/v1/tenants/{tenant}/keys"))["keys"]
    newest = max((k["version"] for k in keys if k["key"] == name), default=0)
    if newest == 0:
        raise Refused("not-found", f"{scope} has no key yet", field="scope")
    done = await client.command(tenant, "key.want", msgspec.to_builtins(WantKey(key=name, version=newest + 1)))
    return name, newest + 1, done


def run_rotate(args: argparse.Namespace) -> int:
    scope = parse_scope(args.scope)
    if scope.kind not in (ScopeKind.TENANT, ScopeKind.SERVICE):
        raise Refused.bad_field("scope", "tenant:T or service:T/S")
    tenant = check_tenant(str(scope.tenant))

    async def work(client: AdminClient) -> Any:
        name, version, done = await want_next(client, scope)
        if not args.no_wait:
            with stderr.status(f"minting version {version} and spreading it to the allowed regions"):
                await wait_for_key(client, tenant, name, version=version)
        return {"tenant": tenant, "key": name, "version": version, "command": done}

    shown = run_with_client(args.dir, work)
    emit(args, shown, lambda: facts(f"rotated {scope}", {"version": shown["version"]}))
    return 0


async def rewrap(client: AdminClient, scope: Scope, *, wait: bool) -> dict[str, Any]:
    """Ask that the scope's service keys be wrapped under the tenant's newest L2.  Raises Refused."""
    tenant = check_tenant(str(scope.tenant))

    async def keys() -> Any:
        return (await client.call("GET", f"/v1/tenants/{tenant}/keys"))["keys"]

    now = await keys()
    parent = next((k["kid"] for k in now if k["key"] == "l2" and k["wrapping"]), None)
    names = sorted({k["key"] for k in now if k["key"].startswith("l3/")})
    if scope.kind is ScopeKind.SERVICE:
        names = [n for n in names if n == _key_name(scope)]
    if parent is None or not names:
        raise Refused("not-found", f"{scope} has nothing to re-wrap", field="scope")
    for name in names:
        await client.command(tenant, "key.want-rewrap", msgspec.to_builtins(WantRewrap(key=name, parent=parent)))

    async def done() -> Any:
        mine = [k for k in await keys() if k["key"] in names and k["state"] in ("active", "deactivated")]
        return mine if all(k["parent"] == parent for k in mine) else None

    wrapped = await client.until(done, what="the re-wrapping") if wait else await keys()
    return {"tenant": tenant, "parent": parent, "keys": [k for k in wrapped if k["key"] in names]}


def run_rewrap(args: argparse.Namespace) -> int:
    scope = parse_scope(args.scope)
    if scope.kind not in (ScopeKind.TENANT, ScopeKind.SERVICE):
        raise Refused.bad_field("scope", "tenant:T or service:T/S")
    shown = run_with_client(args.dir, lambda client: rewrap(client, scope, wait=not args.no_wait))
    emit(args, shown, lambda: facts(f"re-wrapped {scope}", {"under": shown["parent"], "versions": len(shown["keys"])}))
    return 0


def run_region_list(args: argparse.Namespace) -> int:
    shown = run_with_client(args.dir, lambda c: c.call("GET", "/v1/regions"))
    fields = ("region", "domain", "reachable", "heartbeat_age_ms", "ivk_generation", "in_sync", "voter")
    columns = ("region", "domain", "reachable", "heartbeat ms", "IVK", "in sync", "voter")
    emit(args, shown, lambda: table("regions", columns, ([r[f] for f in fields] for r in shown["regions"])))
    return 0


def run_region_show(args: argparse.Namespace) -> int:
    """What the Registry knows of a region, and its own Core's word on the seals and on each tenant's mode there: why,
    what ends it, and when (null where the Core does not answer).  Without the Registry, the Core's word alone."""
    region = check_region(args.region)

    async def work(client: AdminClient) -> Any:
        own = await _own_word(client, region)
        try:
            shown = await client.call("GET", f"/v1/regions/{region}")
        except Unavailable:
            if own["tenants"] is None:
                raise
            shown = {"region": region, "registry_reachable": False}
        return {"registry_reachable": True, **shown, **own}

    shown = run_with_client(args.dir, work)
    emit(args, shown, lambda: _print_region(region, shown))
    return 0


async def _own_word(client: AdminClient, region: str) -> dict[str, Any]:
    if region not in client.plan.regions:
        return dict.fromkeys(OWN_WORDS)
    try:
        own = await client.call("GET", "/v1/status", target=region, timeout_s=SEALS_TIMEOUT_S)
        seals = await client.call("GET", "/v1/seals", target=region, timeout_s=SEALS_TIMEOUT_S)
    except KeymeshError:
        return dict.fromkeys(OWN_WORDS)
    objects = own.get("objects")  # unknown to a Core of release 0.1
    return {"sealed": seals["sealed"], "seals": seals["seals"], "tenants": own["tenants"], "objects": objects}


def _print_region(region: str, shown: dict[str, Any]) -> None:
    rest = {name: value for name, value in shown.items() if name not in ("tenants", "objects")}
    facts(f"region {region}", rest | {"seals": in_words(shown["seals"])})
    columns = ("tenant", "mode", "why", "ends with", "then", "in ms")
    fields = ("mode", "why", "ends", "then", "ends_in_ms")
    table("tenants", columns, ((name, *(at[f] for f in fields)) for name, at in (shown["tenants"] or {}).items()))
    held = (shown["objects"] or {}).get("tenants", {})
    rows = ((name, at["objects"], in_lags(at["behind_ms"])) for name, at in held.items())
    table("KMIP objects", ("tenant", "objects", "may be behind"), rows)


def in_lags(behind_ms: dict[str, int]) -> str:
    """Region to how old what is held of its objects may be."""
    return ", ".join(f"{region} {ms / 1_000:.1f} s" for region, ms in sorted(behind_ms.items())) or "none to follow"


async def rotate_ivk(client: AdminClient, region: str, *, wait: bool) -> dict[str, Any]:
    """Ask ``region`` to seal everything anew under its next internal key."""
    wanted = (await client.call("GET", f"/v1/regions/{region}"))["ivk_wanted"] + 1
    done = await client.command(
        "mesh", "region.rotate-ivk", msgspec.to_builtins(RotateIvk(region=region, generation=wanted))
    )

    async def rotated() -> Any:
        now = await client.call("GET", f"/v1/regions/{region}")
        return now if now["ivk_generation"] >= wanted else None

    if wait:
        await client.until(rotated, what=f"the rotation in {region}")
    return {"region": region, "ivk_generation": wanted, "command": done}


def run_rotate_ivk(args: argparse.Namespace) -> int:
    region = check_region(args.region)
    with stderr.status(f"{region} seals everything anew under its next internal key"):
        shown = run_with_client(args.dir, lambda client: rotate_ivk(client, region, wait=not args.no_wait))
    emit(args, shown, lambda: facts(f"rotated the internal key of {region}", {"generation": shown["ivk_generation"]}))
    return 0
