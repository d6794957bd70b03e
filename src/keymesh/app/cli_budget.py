"""``keymesh budget set|show``: the limits of services and tenants, and what each region has spent of its share."""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

import msgspec

from keymesh.app.admin_client import AdminClient, named_conflict, run_with_client
from keymesh.app.args_budget import MICRO, NONE
from keymesh.app.args_common import show_ms
from keymesh.app.cli_common import emit, table
from keymesh.control import checks
from keymesh.control.kinds import SetBudget
from keymesh.control.rows import BudgetRow
from keymesh.model.errors import KeymeshError, Refused
from keymesh.model.ids import check_service, check_tenant
from keymesh.model.periods import Period

CORE_TIMEOUT_S = 5.0


def scope_of(text: str) -> tuple[str, str]:
    """(tenant, service), the service empty for the tenant as a whole."""
    tenant, slash, service = text.partition("/")
    return check_tenant(tenant), check_service(service) if slash else ""


def _changes(args: argparse.Namespace) -> dict[str, Any]:
    """Fields that the flags name.  Raises Refused where they name none."""
    given = {"ops": args.ops, "money": args.money, "price": args.price, "alarm_opens": args.alarm_opens}
    changes = {name: None if value == NONE else value for name, value in given.items() if value is not None}
    if changes.get("price", 0) is None:
        changes["price"] = 0
    if args.period is not None:
        changes["period"] = args.period
    if args.auto_suspend is not None:
        changes["auto_suspend"] = args.auto_suspend == "yes"
    if not changes:
        raise Refused.bad_field("budget", "name what to set: --ops, --money, --price, --period or --alarm-opens")
    return changes


def run_set(args: argparse.Namespace) -> int:
    """One entry of the control log, or none where it is so already."""
    tenant, service = scope_of(args.scope)
    changes = _changes(args)
    path = f"/v1/tenants/{tenant}/services/{service}" if service else f"/v1/tenants/{tenant}"

    async def work(client: AdminClient) -> Any:
        held = (await client.call("GET", path))["budget"]
        old = BudgetRow(version=0, period=Period.DAY.value) if held is None else msgspec.convert(held, BudgetRow)
        row = msgspec.structs.replace(old, **changes)
        checks.budget(row)
        if row == old:
            return {**(await _usage(client, tenant, service)), "command": None}
        row = msgspec.structs.replace(row, version=old.version + 1)
        with named_conflict(f"the budget of {args.scope} was changed by another: look, and repeat"):
            body = msgspec.to_builtins(SetBudget(service=service, row=row))
            done = await client.command(tenant, "budget.set", body)
        return {"tenant": tenant, "service": service or None, "budget": msgspec.to_builtins(row), "command": done}

    shown = run_with_client(args.dir, work)
    emit(args, shown, lambda: _show_limits(args.scope, shown["budget"]))
    return 0


def run_show(args: argparse.Namespace) -> int:
    """What is wanted, from the Registry; what is spent, from each allowed region that answers."""
    tenant, service = scope_of(args.scope)
    shown = run_with_client(args.dir, lambda client: _usage(client, tenant, service))
    emit(args, shown, lambda: _show_usage(args.scope, shown))
    return 0


async def _usage(client: AdminClient, tenant: str, service: str) -> dict[str, Any]:
    held = await client.call("GET", f"/v1/tenants/{tenant}")
    regions = held["regions"]
    if service:
        held = await client.call("GET", f"/v1/tenants/{tenant}/services/{service}")

    async def ask(region: str) -> Any:
        try:
            path = f"/v1/tenants/{tenant}/budgets"
            said = await client.call("GET", path, target=region, timeout_s=CORE_TIMEOUT_S)
        except KeymeshError as silent:
            return {"reachable": False, "reason": silent.message, "budgets": []}
        mine = [b for b in said["budgets"] if not service or b["service"] == service]
        return {"reachable": True, "budgets": mine}

    answers = await asyncio.gather(*map(ask, regions))
    seen = dict(zip(regions, answers, strict=True))
    return {"tenant": tenant, "service": service or None, "budget": held["budget"], "regions": seen}


def limits(row: Any) -> str:
    """A budget in words."""
    if row is None or (row["ops"] is None and row["money"] is None):
        return "no limit"
    words = [] if row["ops"] is None else [f"{row['ops']} operations"]
    if row["money"] is not None:
        words.append(f"{row['money'] / MICRO:.2f} at {row['price'] / MICRO:g} for 1 000")
    return f"{' and '.join(words)} a {row['period']}"


def alarm(row: Any) -> str:
    """When an open rate is abnormal, in words."""
    if row is None or row["alarm_opens"] is None:
        return "none"
    return f"above {row['alarm_opens']} opens a minute" + (", suspends" if row["auto_suspend"] else "")


def _show_limits(scope: str, row: Any) -> None:
    table(f"budget of {scope}", ("limit", "alarm"), ((limits(row), alarm(row)),))


def _show_usage(scope: str, shown: Any) -> None:
    _show_limits(scope, shown["budget"])
    rows = []
    for region, said in shown["regions"].items():
        if not said["reachable"]:
            rows.append((region, said["reason"], "", "", "", ""))
        for one in said["budgets"]:
            left = f"{one['left_ops']} left" if "left_ops" in one else "not limited"
            spent = f"{one.get('spent_ops', '-')} of {one.get('share_ops') or '-'}"
            ends = show_ms(one["ends_in_ms"]) if "ends_in_ms" in one else "-"
            rate = f"{one['opens_per_minute']}{' ALARM' if one['alarm'] else ''}" if "alarm" in one else "-"
            rows.append((region, one["service"] or "(tenant)", spent, left, ends, rate))
    table("spent, by region", ("region", "service", "operations", "left", "period ends in", "opens a minute"), rows)
