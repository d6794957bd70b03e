"""``keymesh service``: the services of a tenant and their policies."""

from __future__ import annotations

import argparse
from typing import Any

import msgspec

from keymesh.app.admin_client import AdminClient, named_conflict, run_with_client, wait_for_key
from keymesh.app.args_common import show_ms
from keymesh.app.cli_common import emit, facts, stderr, table
from keymesh.control.kinds import SetService
from keymesh.control.rows import ServiceRow
from keymesh.model.errors import Refused
from keymesh.model.ids import check_service, check_tenant
from keymesh.model.limits import EDGE_TTL_DEFAULT_MS, EDGE_TTL_MAX_MS, EDGE_TTL_MIN_MS


def _service_name(args: argparse.Namespace) -> tuple[str, str]:
    """(tenant, service) of ``T/S``, or of ``S --tenant T``.  Raises Refused naming the field."""
    head, slash, tail = args.service.partition("/")
    tenant, service = (head, tail) if slash else (args.tenant, head)
    if tenant is None or (args.tenant is not None and args.tenant != tenant):
        raise Refused.bad_field("tenant", "name the service as T/S, or as S with --tenant T")
    return check_tenant(tenant), check_service(service)


def run_create(args: argparse.Namespace) -> int:
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
        with named_conflict(f"service {tenant}/{service} exists already"):
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


def run_list(args: argparse.Namespace) -> int:
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


def run_show(args: argparse.Namespace) -> int:
    tenant, service = _service_name(args)
    shown = run_with_client(args.dir, lambda c: c.call("GET", f"/v1/tenants/{tenant}/services/{service}"))
    emit(args, shown, lambda: facts(f"service {tenant}/{service}", _service_facts(shown)))
    return 0
