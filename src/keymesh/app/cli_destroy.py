"""``keymesh tenant destroy | cancel-destroy``: a tenant's keys shredded, after a waiting period that can be ended."""

from __future__ import annotations

import argparse
from typing import Any

import msgspec

from keymesh.app.admin_client import AdminClient, new_command_id, run_with_client
from keymesh.app.cli_common import emit, facts, show_utc, stderr
from keymesh.control.destruction import DESTROY_KIND
from keymesh.control.kinds import Destroy, ScopeArgs
from keymesh.control.state import CANCEL_DESTROY
from keymesh.model.errors import ExitCode, Refused
from keymesh.model.ids import check_tenant, check_token
from keymesh.model.scope import destruction_of


def run_destroy(args: argparse.Namespace) -> int:
    """Begin to wait.  What follows needs nobody: ``tenant show`` and ``certificate show`` tell of it."""
    tenant = check_tenant(args.tenant)
    if args.confirm != tenant:
        raise Refused.bad_field("confirm", f"the tenant's name again, {tenant}")
    body = Destroy(scope=str(destruction_of(tenant)), wait_ms=args.wait, reason=args.reason)
    command_id = new_command_id() if args.command_id is None else check_token("command-id", args.command_id)

    async def work(client: AdminClient) -> Any:
        done = await client.command(tenant, DESTROY_KIND, msgspec.to_builtins(body), command_id=command_id)
        await _until_committed(client, tenant, done["command_id"], f"destroy {tenant}")
        return {**await _shown(client, tenant), "command": done}

    shown = run_with_client(args.dir, work)
    emit(args, shown, lambda: _show(shown))
    return int(ExitCode.DONE)


def run_cancel(args: argparse.Namespace) -> int:
    tenant = check_tenant(args.tenant)
    body = ScopeArgs(scope=str(destruction_of(tenant)), reason=args.reason)

    async def work(client: AdminClient) -> Any:
        done = await client.command(tenant, CANCEL_DESTROY, msgspec.to_builtins(body), command_id=new_command_id())
        await _until_committed(client, tenant, done["command_id"], f"cancel the destruction of {tenant}")
        return {**await _shown(client, tenant), "command": done}

    shown = run_with_client(args.dir, work)
    emit(args, shown, lambda: _show(shown))
    return int(ExitCode.DONE)


async def _until_committed(client: AdminClient, tenant: str, command_id: str, what: str) -> None:
    async def committed() -> Any:
        now = await client.call("GET", f"/v1/commands/{tenant}/{command_id}")
        return now if now["committed"] else None

    with stderr.status(f"{what}: waiting for the voters"):
        await client.until(committed, what="the commit by a majority of voters")


async def _shown(client: AdminClient, tenant: str) -> dict[str, Any]:
    found = await client.call("GET", f"/v1/tenants/{tenant}")
    return {"tenant": tenant, "state": found["state"], "destruction": found["destruction"]}


def _show(shown: Any) -> None:
    facts(f"tenant {shown['tenant']}", {"state": shown["state"], **destruction_facts(shown)})


def destruction_facts(shown: Any) -> dict[str, str]:
    """A destruction for people, of what the Registry shows of a tenant; empty where there is none."""
    found = shown.get("destruction")
    if found is None:
        return {}
    values = {"destruction": found["state"]}
    if found["due_at"] is not None:
        values["waits until"] = show_utc(found["due_at"])
    if found["certificate_id"]:
        values["certificate"] = f"keymesh certificate show {found['certificate_id']}"
    return values
