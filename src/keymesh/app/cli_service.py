"""``keymesh service``: the services of a tenant and their policies."""

from __future__ import annotations

import argparse
from typing import Any

import msgspec

from keymesh.app.admin_client import AdminClient, named_conflict, run_with_client, wait_for_key
from keymesh.app.args_common import show_ms
from keymesh.app.args_tenant import NO_BUDGET
from keymesh.app.cli_budget import alarm, limits
from keymesh.app.cli_common import emit, facts, stderr, table
from keymesh.app.cli_errors import usage
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


def _edge_ttl(args: argparse.Namespace) -> int | None:
    edge_ttl: int | None = args.edge_ttl
    if edge_ttl is not None and not EDGE_TTL_MIN_MS <= edge_ttl <= EDGE_TTL_MAX_MS:
        raise Refused.bad_field("edge-ttl", "1s to 60m")
    return edge_ttl


def run_create(args: argparse.Namespace) -> int:
    """A service, and wait until its first key is active."""
    with usage():
        tenant, service = _service_name(args)
        edge_ttl = _edge_ttl(args)

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


def _changes(args: argparse.Namespace) -> dict[str, Any]:
    """Fields of the policy that the flags name.  Raises Refused where they name none."""
    given = {"custody": args.custody, "edge_ttl_ms": _edge_ttl(args)}
    given |= {"mint_budget": args.mint_budget, "open_budget": args.open_budget}
    changes = {name: None if value == NO_BUDGET else value for name, value in given.items() if value is not None}
    for name, flag in (("mint_budget", "mint-budget"), ("open_budget", "open-budget")):
        if (changes.get(name) or 0) < 0:
            raise Refused.bad_field(flag, "not below 0")
    if not changes:
        raise Refused.bad_field("policy", "name what to change: --custody, --edge-ttl, --mint-budget or --open-budget")
    return changes


def _policy_of(shown: Any) -> ServiceRow:
    """The whole policy, as it was read.  Raises Refused where a field is missing: nothing is reset unseen."""
    fields = ServiceRow.__struct_fields__
    if missing := [name for name in fields if name not in shown]:
        raise Refused.bad_field("policy", f"the Registry does not show {', '.join(missing)}; is it of another version?")
    return msgspec.convert({name: shown[name] for name in fields}, ServiceRow)


async def change_policy(client: AdminClient, shown: Any, changes: dict[str, Any]) -> Any:
    """Put ``changes`` in place of what ``shown`` (the service as it was read) has; None where it has them already.

    Raises Refused where the policy has changed since it was read: nobody's change is lost unseen.
    """
    row = _policy_of(shown)
    changed = msgspec.structs.replace(row, **changes)
    if changed == row:
        return None
    changed = msgspec.structs.replace(changed, version=row.version + 1)
    name = f"{shown['tenant']}/{shown['service']}"
    with named_conflict(
        f"the policy of {name} was changed by another (it was version {row.version}): look, and repeat"
    ):
        body = msgspec.to_builtins(SetService(service=shown["service"], row=changed))
        return await client.command(shown["tenant"], "service.set", body)


def run_set(args: argparse.Namespace) -> int:
    """Change a service's policy."""
    tenant, service = _service_name(args)
    changes = _changes(args)
    path = f"/v1/tenants/{tenant}/services/{service}"

    async def work(client: AdminClient) -> Any:
        before = await client.call("GET", path)
        done = await change_policy(client, before, changes)
        after = before if done is None else await client.call("GET", f"{path}?at_least={done['index']}")
        return {**after, "command": done}

    shown = run_with_client(args.dir, work)
    title = f"service {tenant}/{service}" + (" (as it was)" if shown["command"] is None else "")
    emit(args, shown, lambda: facts(title, _service_facts(shown)))
    return 0


def _service_facts(shown: Any) -> dict[str, Any]:
    return {
        "custody": shown["custody"],
        "edge lease": show_ms(shown["edge_ttl_ms"]),
        "mint budget": _budget(shown["mint_budget"]),
        "open budget": _budget(shown["open_budget"]),
        "budget": limits(shown["budget"]),
        "open-rate alarm": alarm(shown["budget"]),
        "policy version": shown["version"],
        "wrapping version": shown["wrapping"],
        "state": shown["state"],
    }


def _budget(limit: int | None) -> str:
    return "no limit" if limit is None else f"{limit} a lease"


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
