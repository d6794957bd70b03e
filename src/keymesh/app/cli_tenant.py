"""``keymesh tenant``: who may be where, under which root key."""

from __future__ import annotations

import argparse
import base64
from pathlib import Path
from typing import Any

import msgspec

from keymesh.adapters.files import write_file
from keymesh.app.admin_client import AdminClient, named_conflict, new_command_id, run_with_client, wait_for_key
from keymesh.app.cli_budget import limits
from keymesh.app.cli_common import check_output, emit, facts, stderr, stdout, table
from keymesh.app.cli_destroy import destruction_facts
from keymesh.app.l1_url import resolve_l1
from keymesh.app.signing_keys import load_signer
from keymesh.control.kinds import SetTenant, SwitchL1, TenantCreate
from keymesh.control.rows import PolicyRow, SignersRow
from keymesh.model.errors import Refused, Unavailable
from keymesh.model.ids import check_tenant


async def create_tenant(
    client: AdminClient,
    tenant: str,
    *,
    home: str,
    regions: str | None,
    l1: str | None,
    ttl_ms: int | None = None,
    standby: str = "allow",
) -> Any:
    """Commit the tenant; ``regions`` is a comma list, by default all of the home's domain.  Raises Refused."""
    plan = client.plan
    if home not in plan.regions:
        raise Refused.bad_field("home", f"one of {', '.join(plan.regions)}")
    domain = plan.regions[home].domain
    allowed = (
        sorted(set(regions.split(","))) if regions else sorted(r for r, p in plan.regions.items() if p.domain == domain)
    )
    if home not in allowed:
        raise Refused.bad_field("regions", f"must contain the home region {home!r}")
    signer_file = client.layout.keys / "tenant-admin.pem"
    signer = load_signer(signer_file)
    binding = await resolve_l1(client, l1, default_key=tenant, regions=allowed)
    create = TenantCreate(
        policy=PolicyRow(
            version=1,
            home=home,
            domain=domain,
            regions=tuple(allowed),
            admins=("operator",),
            ttl_ms=ttl_ms,
            standby=standby,
        ),
        signers=SignersRow(keys={signer.key_id: signer.public_hex}, threshold=1),
        binding_id=binding.binding_id,
        provider=binding.provider,
        descriptor=binding.descriptor,
    )
    with named_conflict(f"tenant {tenant} exists already"):
        return await client.command(
            tenant, "tenant.create", msgspec.to_builtins(create), signers=(signer_file,), command_id=new_command_id()
        )


def run_create(args: argparse.Namespace) -> int:
    """Onboard, and wait until the tenant's first key is active."""
    tenant = check_tenant(args.tenant)

    async def work(client: AdminClient) -> Any:
        home = args.home or client.plan.registry_region
        done = await create_tenant(
            client, tenant, home=home, regions=args.regions, l1=args.l1, ttl_ms=args.ttl, standby=args.standby
        )
        if not args.no_wait:
            with stderr.status(f"minting {tenant}'s first key in {home}"):
                await wait_for_key(client, tenant, "l2")
        return {**await client.call("GET", f"/v1/tenants/{tenant}"), "command": done}

    shown = run_with_client(args.dir, work)
    emit(args, shown, lambda: _show_tenant(shown))
    return 0


def run_set(args: argparse.Namespace) -> int:
    """Signed by the tenant's own key; in force in a region once that has applied it."""
    tenant = check_tenant(args.tenant)
    body = msgspec.to_builtins(SetTenant(standby=args.standby))

    async def work(client: AdminClient) -> Any:
        signers = (client.layout.keys / "tenant-admin.pem",)
        done = await client.command(tenant, "tenant.set", body, signers=signers, command_id=new_command_id())
        shown = await client.call("GET", f"/v1/tenants/{tenant}?at_least={done['index']}")
        return {**shown, "command": done}

    shown = run_with_client(args.dir, work)
    emit(args, shown, lambda: _show_tenant(shown))
    return 0


def run_list(args: argparse.Namespace) -> int:
    shown = run_with_client(args.dir, lambda c: c.call("GET", "/v1/tenants"))
    emit(
        args,
        shown,
        lambda: table(
            "tenants",
            ("tenant", "home", "domain", "regions", "state"),
            ((t["tenant"], t["home"], t["domain"], " ".join(t["regions"]), t["state"]) for t in shown["tenants"]),
        ),
    )
    return 0


def run_show(args: argparse.Namespace) -> int:
    tenant = check_tenant(args.tenant)
    shown = run_with_client(args.dir, lambda c: c.call("GET", f"/v1/tenants/{tenant}"))
    emit(args, shown, lambda: _show_tenant(shown))
    return 0


def _show_tenant(shown: Any) -> None:
    facts(
        f"tenant {shown['tenant']}",
        {
            "state": shown["state"],
            **destruction_facts(shown),
            "home": shown["home"],
            "residency domain": shown["domain"],
            "standby": shown["standby"],
            "allowed regions": ", ".join(shown["regions"]),
            "root key": "; ".join(f"{b['id']} ({b['provider']}, {b['state']})" for b in shown["bindings"]),
            "budget": limits(shown["budget"]),
            "services": ", ".join(shown["services"]) or "none",
        },
    )


def run_switch(args: argparse.Namespace) -> int:
    """To another root key, and wait until the old binding has retired."""
    tenant = check_tenant(args.tenant)

    async def work(client: AdminClient) -> Any:
        current = await client.call("GET", f"/v1/tenants/{tenant}")
        binding = await resolve_l1(client, args.l1, default_key=tenant, regions=current["regions"])
        switch = SwitchL1(binding_id=binding.binding_id, provider=binding.provider, descriptor=binding.descriptor)
        done = await client.command(
            tenant,
            "l1.switch",
            msgspec.to_builtins(switch),
            signers=(client.layout.keys / "tenant-admin.pem",),
        )

        async def retired() -> Any:
            now = await client.call("GET", f"/v1/tenants/{tenant}")
            live = [b["id"] for b in now["bindings"] if b["state"] != "retired"]
            return now if live == [binding.binding_id] else None

        if args.no_wait:
            return {**await client.call("GET", f"/v1/tenants/{tenant}"), "command": done}
        with stderr.status("re-wrapping under the new root key; every allowed region opens it before the old retires"):
            return {**await client.until(retired, what="the old root key's retirement"), "command": done}

    shown = run_with_client(args.dir, work)
    emit(args, shown, lambda: _show_tenant(shown))
    return 0


def run_export(args: argparse.Namespace) -> int:
    """The wrapped chain from any allowed region that answers."""
    tenant = check_tenant(args.tenant)
    output = Path(args.output or f"{tenant}.chain")
    check_output(output, "the chain", otherwise="name another file with -o")
    if output.exists() and not args.force:
        raise Refused("exists", f"{output} exists; --force replaces it", field="output")

    async def work(client: AdminClient) -> Any:
        regions = (await client.call("GET", f"/v1/tenants/{tenant}"))["regions"]
        last: Exception | None = None
        for region in regions:
            try:
                return await client.call("GET", f"/v1/tenants/{tenant}/chain", target=region)
            except Unavailable as silent:
                last = silent
        raise Unavailable("no-region", f"none of {', '.join(regions)} answers") from last

    chain = run_with_client(args.dir, work)
    write_file(output, base64.b64decode(chain["chain"]))
    shown = {"ok": True, "tenant": tenant, "file": str(output), "bytes": output.stat().st_size}
    emit(args, shown, lambda: stdout.print(f"wrote {output} ({shown['bytes']} bytes)", markup=False))
    return 0
