"""``keymesh tenant`` and ``keymesh service``: who may be where, under which root key, with which services."""

from __future__ import annotations

import argparse
import base64
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from keymesh.adapters.key_files import write_file
from keymesh.app.admin_client import AdminClient, new_command_id, run_with_client
from keymesh.app.bootstrap import load_signer
from keymesh.app.cli_common import add_common, duration_ms, emit, facts, show_ms, stderr, stdout, table
from keymesh.app.l1_url import resolve_l1
from keymesh.control.kinds import SetService, SwitchL1, TenantCreate
from keymesh.control.rows import PolicyRow, ServiceRow, SignersRow
from keymesh.model.errors import Refused, Unavailable
from keymesh.model.ids import check_service, check_tenant
from keymesh.model.limits import EDGE_TTL_DEFAULT_MS, EDGE_TTL_MAX_MS, EDGE_TTL_MIN_MS
from keymesh.model.states import Custody


def register(commands: Any) -> None:
    _register_tenant(commands.add_parser("tenant", help="create and inspect tenants, switch their root key"))
    _register_service(commands.add_parser("service", help="create and inspect a tenant's services"))


def _register_tenant(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    create = actions.add_parser(
        "create",
        help="onboard a tenant",
        epilog="example: keymesh tenant create acme --home eu-central --regions eu-central,eu-west",
    )
    create.add_argument("tenant", metavar="T", help="its name: lower-case letters, digits, inner hyphens")
    create.add_argument("--home", metavar="R", help="home region, which mints its keys (default: the mesh's first)")
    create.add_argument("--regions", metavar="R,...", help="allowed regions (default: all of the home's domain)")
    create.add_argument(
        "--l1", metavar="URL", help="the customer's root key, kms:DIR#KEY (default: a key in the mesh's own dev KMS)"
    )
    create.add_argument("--ttl", type=duration_ms, metavar="TIME", help="governance ttl (default: the mesh's)")
    create.add_argument("--no-wait", action="store_true", help="return once committed, before the keys exist")
    add_common(create)
    create.set_defaults(run=run_create)

    listing = actions.add_parser("list", help="all tenants", epilog="example: keymesh tenant list --json")
    add_common(listing)
    listing.set_defaults(run=run_list)

    show = actions.add_parser("show", help="one tenant", epilog="example: keymesh tenant show acme")
    show.add_argument("tenant", metavar="T", help="its name: lower-case letters, digits, inner hyphens")
    add_common(show)
    show.set_defaults(run=run_show)

    switch = actions.add_parser(
        "switch-l1",
        help="move the tenant to another root key; data stays as it is",
        epilog="example: keymesh tenant switch-l1 acme --l1 kms:/path/to/acme-kms#new-root",
    )
    switch.add_argument("tenant", metavar="T", help="its name: lower-case letters, digits, inner hyphens")
    switch.add_argument("--l1", required=True, metavar="URL", help="the new root key, kms:DIR#KEY")
    switch.add_argument("--no-wait", action="store_true", help="return once committed, before the old key retires")
    add_common(switch)
    switch.set_defaults(run=run_switch)

    export = actions.add_parser(
        "export",
        help="write the wrapped key chain: with the customer's own L1 it opens the data without keymesh",
        epilog="example: keymesh tenant export acme -o acme.chain",
    )
    export.add_argument("tenant", metavar="T", help="its name: lower-case letters, digits, inner hyphens")
    export.add_argument("-o", "--output", metavar="FILE", help="default: T.chain")
    export.add_argument("--force", action="store_true", help="replace an existing file")
    add_common(export)
    export.set_defaults(run=run_export)


def _register_service(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    create = actions.add_parser(
        "create", help="a service with a key of its own", epilog="example: keymesh service create acme/files"
    )
    _add_service_name(create)
    create.add_argument(
        "--custody",
        choices=[c.value for c in Custody],
        default=Custody.LEASED.value,
        help="where its key is used: leased to the Edges (default), or at the Core only",
    )
    create.add_argument("--edge-ttl", type=duration_ms, metavar="TIME", help="lease of its Edges (1s to 60m)")
    create.add_argument("--mint-budget", type=int, metavar="N", help="data keys that one lease may mint")
    create.add_argument("--open-budget", type=int, metavar="N", help="data keys that one lease may open")
    create.add_argument("--no-wait", action="store_true", help="return once committed, before the key exists")
    add_common(create)
    create.set_defaults(run=run_service_create)
    listing = actions.add_parser("list", help="services", epilog="example: keymesh service list acme")
    listing.add_argument("tenant", nargs="?", metavar="T", help="default: of all tenants")
    listing.add_argument("--tenant", dest="tenant_option", metavar="T", help="the same, as an option")
    add_common(listing)
    listing.set_defaults(run=run_service_list)
    show = actions.add_parser("show", help="one service", epilog="example: keymesh service show acme/files")
    _add_service_name(show)
    add_common(show)
    show.set_defaults(run=run_service_show)


def _add_service_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("service", metavar="T/S", help="or S, with --tenant T")
    parser.add_argument("--tenant", metavar="T", help="the service's tenant, where the name is S alone")


def _service_name(args: argparse.Namespace) -> tuple[str, str]:
    """(tenant, service) of ``T/S``, or of ``S --tenant T``.  Raises Refused naming the field."""
    head, slash, tail = args.service.partition("/")
    tenant, service = (head, tail) if slash else (args.tenant, head)
    if tenant is None or (args.tenant is not None and args.tenant != tenant):
        raise Refused.bad_field("tenant", "name the service as T/S, or as S with --tenant T")
    return check_tenant(tenant), check_service(service)


@contextlib.contextmanager
def _named_conflict(message: str) -> Iterator[None]:
    """A conflict over what is being made means that it is there: say it in the user's words."""
    try:
        yield
    except Refused as bad:
        if bad.code != "conflict":
            raise
        raise Refused("conflict", message, field=bad.field) from bad


async def create_tenant(
    client: AdminClient, tenant: str, *, home: str, regions: str | None, l1: str | None, ttl_ms: int | None = None
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
            version=1, home=home, domain=domain, regions=tuple(allowed), admins=("operator",), ttl_ms=ttl_ms
        ),
        signers=SignersRow(keys={signer.key_id: signer.public_hex}, threshold=1),
        binding_id=binding.binding_id,
        provider=binding.provider,
        descriptor=binding.descriptor,
    )
    with _named_conflict(f"tenant {tenant} exists already"):
        return await client.command(
            tenant, "tenant.create", msgspec.to_builtins(create), signers=(signer_file,), command_id=new_command_id()
        )


def run_create(args: argparse.Namespace) -> int:
    """Onboard, and wait until the tenant's first key is active."""
    tenant = check_tenant(args.tenant)

    async def work(client: AdminClient) -> Any:
        home = args.home or client.plan.registry_region
        done = await create_tenant(client, tenant, home=home, regions=args.regions, l1=args.l1, ttl_ms=args.ttl)
        if not args.no_wait:
            with stderr.status(f"minting {tenant}'s first key in {home}"):
                await wait_for_key(client, tenant, "l2")
        return {**await client.call("GET", f"/v1/tenants/{tenant}"), "command": done}

    shown = run_with_client(args.dir, work)
    emit(args, shown, lambda: _show_tenant(shown))
    return 0


async def wait_for_key(client: AdminClient, tenant: str, key: str, *, version: int = 1, timeout_s: float = 60) -> None:
    """Until ``version`` (or a later one) of ``key`` is the wrapping version."""

    async def active() -> bool | None:
        keys = await client.call("GET", f"/v1/tenants/{tenant}/keys")
        return (
            True if any(k["key"] == key and k["wrapping"] and k["version"] >= version for k in keys["keys"]) else None
        )

    await client.until(active, what=f"{key} version {version} of {tenant} becoming active", timeout_s=timeout_s)


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
            "home": shown["home"],
            "residency domain": shown["domain"],
            "allowed regions": ", ".join(shown["regions"]),
            "root key": "; ".join(f"{b['id']} ({b['provider']}, {b['state']})" for b in shown["bindings"]),
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


def run_service_create(args: argparse.Namespace) -> int:
    """A service, and wait until its first key is active."""
    tenant, service = _service_name(args)
    edge_ttl = args.edge_ttl
    if edge_ttl is not None and not EDGE_TTL_MIN_MS <= edge_ttl <= EDGE_TTL_MAX_MS:
        raise Refused.bad_field("edge-ttl", "1s to 60m")

    async def work(client: AdminClient) -> Any:
        row = ServiceRow(
            version=1,
            custody=args.custody,
            edge_ttl_ms=edge_ttl or client.plan.timing.edge_ttl_ms or EDGE_TTL_DEFAULT_MS,
            mint_budget=args.mint_budget,
            open_budget=args.open_budget,
        )
        with _named_conflict(f"service {tenant}/{service} exists already"):
            done = await client.command(
                tenant, "service.set", msgspec.to_builtins(SetService(service=service, row=row))
            )
        if not args.no_wait:
            with stderr.status(f"minting the key of {tenant}/{service}"):
                await wait_for_key(client, tenant, f"l3/{service}")
        return {**await client.call("GET", f"/v1/tenants/{tenant}/services/{service}"), "command": done}

    shown = run_with_client(args.dir, work)
    emit(args, shown, lambda: facts(f"service {tenant}/{service}", _service_facts(shown)))
    return 0


def _service_facts(shown: Any) -> dict[str, Any]:
    return {
        "custody": shown["custody"],
        "edge lease": show_ms(shown["edge_ttl_ms"]),
        "policy version": shown["version"],
        "wrapping version": shown["wrapping"],
        "state": shown["state"],
    }


def run_service_list(args: argparse.Namespace) -> int:
    """Of one tenant, or of all."""

    async def work(client: AdminClient) -> Any:
        if wanted := args.tenant or args.tenant_option:
            tenants = [check_tenant(wanted)]
        else:
            tenants = [t["tenant"] for t in (await client.call("GET", "/v1/tenants"))["tenants"]]
        lists = [await client.call("GET", f"/v1/tenants/{t}/services") for t in tenants]
        return {"services": [s for one in lists for s in one["services"]]}

    shown = run_with_client(args.dir, work)
    emit(
        args,
        shown,
        lambda: table(
            "services",
            ("tenant", "service", "custody", "edge lease ms", "wrapping", "state"),
            (
                (s["tenant"], s["service"], s["custody"], s["edge_ttl_ms"], s["wrapping"], s["state"])
                for s in shown["services"]
            ),
        ),
    )
    return 0


def run_service_show(args: argparse.Namespace) -> int:
    tenant, service = _service_name(args)
    shown = run_with_client(args.dir, lambda c: c.call("GET", f"/v1/tenants/{tenant}/services/{service}"))
    emit(args, shown, lambda: facts(f"service {tenant}/{service}", _service_facts(shown)))
    return 0
