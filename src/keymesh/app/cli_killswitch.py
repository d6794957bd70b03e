"""``keymesh suspend | resume | revoke``: the kill switch, and the certificate that it worked."""

from __future__ import annotations

import argparse
import asyncio
import time
from pathlib import Path
from typing import Any, Final

import msgspec

from keymesh.adapters.files import PUBLIC_MODE, check_writable, write_file
from keymesh.app.admin_client import AdminClient, new_command_id, run_with_client
from keymesh.app.cli_common import check_output, emit, facts, show_utc, stderr, stdout
from keymesh.app.cli_errors import plain_error, report_error, usage
from keymesh.control.kinds import ScopeArgs
from keymesh.model import strict_json
from keymesh.model.errors import ExitCode, Refused, Unavailable
from keymesh.model.ids import check_token
from keymesh.model.scope import Scope, parse_scope

_RETRY_S: Final = 0.5
OVER: Final = {
    "superseded": "a later restriction of the same scope took over before it was certified",
    "lifted": "it was resumed before it was certified",
}


def _signers(client: AdminClient, scope: Scope, approve: list[str]) -> tuple[Path, ...]:
    """Two officers for wide scopes."""
    return officers(client, str(scope), approve) if scope.needs_four_eyes else ()


def officers(client: AdminClient, what: str, approve: list[str]) -> tuple[Path, ...]:
    """Key files of two officers for ``what``: the one given, and this operator's own; or those given.

    Raises Refused where there is none, or the approver is the initiator.
    """
    if not approve:
        raise Refused(
            "needs-approval",
            f"{what} needs a second signature: --approve-key FILE, an officer's key "
            f"(here: {client.layout.keys / 'officer-2.pem'})",
            field="approve-key",
        )
    own = client.layout.keys / "officer-1.pem"
    files = [Path(f) for f in approve]
    if len(files) == 1:
        if files[0].resolve() == own.resolve():
            raise Refused.bad_field("approve-key", "the approver is not the initiator; give another officer's key")
        files.insert(0, own)
    return tuple(files)


async def _commit(client: AdminClient, action: str, scope: Scope, args: argparse.Namespace) -> Any:
    """At the Registry; where it does not answer, as a local suspension at every region that does."""
    command_id = new_command_id()
    signers = _signers(client, scope, args.approve_key)
    body = msgspec.to_builtins(
        ScopeArgs(
            scope=str(scope),
            reason=args.reason,
            abandon_children=getattr(args, "abandon_children", False),
            upto_seq=await _suspended_at(client, scope) if action == "resume" and scope.needs_four_eyes else 0,
        )
    )
    try:
        return await client.command(scope.namespace, action, body, signers=signers, command_id=command_id)
    except Unavailable:
        if action == "resume":
            raise
        return await _locally(client, action, scope, body, command_id, signers)


async def _suspended_at(client: AdminClient, scope: Scope) -> int:
    """The entry that restricts ``scope`` now, which the officers' word names; 0 where nothing does."""
    shown = await client.call("GET", f"/v1/restrictions/{scope.namespace}")
    return next((r["seq"] for r in shown["restrictions"] if r["scope"] == str(scope)), 0)


async def _locally(
    client: AdminClient, action: str, scope: Scope, body: dict[str, Any], command_id: str, signers: tuple[Path, ...]
) -> Any:
    own = client.layout.keys / "tenant-admin.pem"
    if not signers and own.exists():  # on a Core's word alone a revocation would be recorded as a suspension
        signers = (own,)
    request = {
        "scope": str(scope),
        "action": action,
        "args": body,
        "authority": client.authority(scope.namespace, action, body, command_id, signers),
    }
    took: list[str] = []
    for region in sorted(client.plan.regions):
        try:
            await client.call("POST", "/v1/restrict", request, target=region, command_id=command_id, timeout_s=5.0)
            took.append(region)
        except (Unavailable, Refused):
            continue
    if not took:
        raise Unavailable("unavailable", "neither the Registry nor any region answers")
    return {"command_id": command_id, "local": took}


def run_kill(args: argparse.Namespace) -> int:
    """Suspend or revoke, wait for the certificate, write it.

    The file decides the exit code only where it was asked for: by its name, or by fetching it.
    """
    with usage():
        scope = parse_scope(args.scope)
    output = Path(args.output or f"{str(scope).replace(':', '-').replace('/', '-')}.cert.json")
    is_wanted = args.output is not None or args.command_id is not None
    if not args.no_wait:
        _check_place(output, is_wanted=is_wanted)

    async def work(client: AdminClient) -> Any:
        if scope.region is not None and scope.region not in client.plan.regions:
            raise Refused.bad_field("scope", f"the regions are {', '.join(client.plan.regions)}")
        done = (
            await _commit(client, args.action, scope, args)
            if args.command_id is None
            else {"command_id": check_token("command-id", args.command_id)}
        )
        shown: dict[str, Any] = {"scope": str(scope), "action": args.action, "command": done, "status": "pending"}
        if "local" in done:
            return {**shown, "status": "local", "regions": done["local"]}
        if await _is_unknown(client, scope):
            shown["warning"] = f"{scope} names nothing that exists yet: what is made under it will be restricted"
        if args.no_wait:
            return shown
        with stderr.status(f"{args.action} {scope}: waiting until every holder is accounted for"):
            found = await _certified(client, str(scope), args.action, done["command_id"], wait_s=args.wait / 1000)
        return {**shown, **found}

    shown = run_with_client(args.dir, work)
    lost = keep_certificate(shown, output) if "certificate" in shown else None
    if lost is not None:
        shown |= {"ok": not is_wanted, "file": None, "error": plain_error(lost)}
    elif "certificate" in shown:
        shown |= {"file": str(output)}
    emit(args, shown, lambda: _show_kill(shown))
    if lost is None:
        return int(ExitCode.DONE)
    if not is_wanted:
        _warn(lost.message)
    elif not args.json:
        report_error(args, lost)
    return int(lost.exit_code if is_wanted else ExitCode.DONE)


def _check_place(output: Path, *, is_wanted: bool) -> None:
    """Before anything is asked.  A place that nobody named stops nothing: what counts is the restriction."""
    if is_wanted:
        check_output(output, "the certificate", otherwise="name another file with -o, or take none with --no-wait")
        return
    try:
        check_writable(output)
    except OSError as bad:
        _warn(f"the certificate cannot be written to {output} ({bad.strerror}); going on: it can be fetched later")


def _warn(text: str) -> None:
    stderr.print(f"warning: {text}", markup=False, style="yellow")


def keep_certificate(shown: Any, output: Path) -> Refused | None:
    """Write the certificate in ``shown``; where that fails, the error that says what stands and how to go on."""
    try:
        write_file(output, strict_json.dumps(shown["certificate"]), mode=PUBLIC_MODE)
    except OSError as bad:
        scope, action = shown["scope"], shown["action"]
        return Refused(
            "not-written",
            f"{scope} is {'suspended' if action == 'suspend' else 'revoked'}, and that is certified; only the file "
            f"{output} could not be written ({bad.strerror}): "
            f"`keymesh {action} {scope} --command-id {shown['command_id']} -o FILE` fetches it again",
            field="output",
        )
    return None


async def _certified(client: AdminClient, scope: str, action: str, command_id: str, *, wait_s: float) -> Any:
    """The kill-switch record with its certificate; a Registry that is away meanwhile is waited for.

    Raises Unavailable, saying what it waits for and how to go on, or Refused where there will be no certificate.
    """
    deadline = time.monotonic() + wait_s
    while True:
        left_ms = max(0, min(10_000, round((deadline - time.monotonic()) * 1000)))
        try:
            now = await client.call("GET", f"/v1/certificates/{command_id}?wait_ms={left_ms}", timeout_s=20)
        except Unavailable as away:
            waits_for = f"the Registry ({away.message})"
            await asyncio.sleep(min(_RETRY_S, left_ms / 1000))
        else:
            if (now["scope"], now["action"]) != (scope, action):
                raise Refused.bad_field("command-id", f"that was {now['action']} {now['scope']}")
            if now["status"] == "certified":
                return now
            if now["status"] in OVER:
                raise Refused(now["status"], f"{action} {scope} has no certificate: {OVER[now['status']]}")
            at_most = f"; over by {show_utc(now['closes_at'])} at the latest" if "closes_at" in now else ""
            waits_for = (
                f"leases that have not ended ({now['accounted']} of {now['holders']} nodes have answered{at_most})"
            )
        if time.monotonic() >= deadline:
            raise Unavailable(
                "not-certified",
                f"{action} {scope} is recorded; its certificate waits for {waits_for}: "
                f"`keymesh {action} {scope} --command-id {command_id}` fetches it later",
            )


async def _is_unknown(client: AdminClient, scope: Scope) -> bool:
    """Whether nothing of that name exists, as after a slip of the pen; a restriction is recorded all the same."""
    if scope.service is None and scope.client is None:
        return False
    try:
        if scope.client is not None:
            named = (await client.call("GET", f"/v1/tenants/{scope.tenant}/clients"))["clients"]
            return not any(each["client"] == scope.client for each in named)
        keys = (await client.call("GET", f"/v1/tenants/{scope.tenant}/keys"))["keys"]
        services = (await client.call("GET", f"/v1/tenants/{scope.tenant}/services"))["services"]
    except (Unavailable, Refused):
        return False
    if scope.version is not None:
        return not any((k["key"], k["version"]) == (f"l3/{scope.service}", scope.version) for k in keys)
    return not any(s["service"] == scope.service for s in services)


def _show_kill(shown: Any) -> None:
    if "warning" in shown:
        _warn(shown["warning"])
    values = {"status": shown["status"]}
    if shown["status"] == "local":
        stdout.print("The Registry does not answer.  In force in these regions now, to be recorded on contact:")
        values["regions"] = ", ".join(shown["regions"])
    if shown.get("t") is not None:
        values["no use after"] = show_utc(shown["t"])
    for key in ("command_id", "holders", "elapsed_ms", "file"):
        if key in shown:
            values[key.removesuffix("_ms").replace("_", " ")] = (
                f"{shown[key]} ms" if key == "elapsed_ms" else shown[key]
            )
    facts(f"{shown['action']} {shown['scope']}", values)


def run_resume(args: argparse.Namespace) -> int:
    with usage():
        scope = parse_scope(args.scope)

    async def work(client: AdminClient) -> Any:
        done = await _commit(client, "resume", scope, args)

        async def committed() -> Any:
            now = await client.call("GET", f"/v1/commands/{scope.namespace}/{done['command_id']}")
            return now if now["committed"] else None

        with stderr.status(f"resume {scope}: waiting for the voters"):
            now = await client.until(committed, what="the commit by a majority of voters")
        return {"scope": str(scope), "action": "resume", "command": done, "status": "committed", **now}

    shown = run_with_client(args.dir, work)
    emit(args, shown, lambda: facts(f"resume {scope}", {"status": shown["status"]}))
    return 0
