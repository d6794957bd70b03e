"""``keymesh certificate show``: how far a kill switch is, who is still open until when, and its certificate."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any
from urllib.parse import quote

from keymesh.app.admin_client import AdminClient, run_with_client
from keymesh.app.cli_common import check_output, emit, facts, show_utc
from keymesh.app.cli_killswitch import OVER, keep_certificate
from keymesh.model.errors import ExitCode, Refused, Unavailable
from keymesh.model.ids import check_token


def run_show(args: argparse.Namespace) -> int:
    """Show the record; with ``-o`` write the certificate, which must be there."""
    if Path(args.command_id).is_file():
        raise Refused.bad_field("command-id", f"that is a file; it is read by `keymesh verify {args.command_id}`")
    command_id = check_token("command-id", args.command_id)
    output = None if args.output is None else Path(args.output)
    if output is not None:
        check_output(output, "the certificate", otherwise="name another file with -o")
    which = "" if args.namespace is None else f"?namespace={quote(args.namespace, safe='')}"

    async def work(client: AdminClient) -> Any:
        return await client.call("GET", f"/v1/certificates/{command_id}{which}")

    shown = run_with_client(args.dir, work)
    if output is not None:
        _keep(shown, output)
    emit(args, shown, lambda: _show(shown))
    return int(ExitCode.DONE)


def _keep(shown: Any, output: Path) -> None:
    """Raises Refused where there will be no certificate or no file, Unavailable where it is not there yet."""
    if "certificate" not in shown:
        what = f"{shown['action']} {shown['scope']}"
        if shown["status"] == "lifted":
            raise Refused("lifted", f"{what} has no certificate: {OVER['lifted']}")
        until = f": it closes by {show_utc(shown['closes_at'])}" if shown.get("closes_at") is not None else ""
        raise Unavailable("not-certified", f"{what} is {shown['status']}, not certified yet{until}")
    lost = keep_certificate(shown, output)
    if lost is not None:
        raise lost
    shown["file"] = str(output)


def _show(shown: Any) -> None:
    values: dict[str, Any] = {"status": shown["status"]}
    if "t" in shown:
        values["no use after"] = show_utc(shown["t"])
    if shown.get("closes_at") is not None:
        values["closes by"] = show_utc(shown["closes_at"])
    values["answered"] = f"{shown['accounted']} of {shown['holders']} nodes"
    for holder in shown.get("open", ()):
        until = "" if holder["closes_at"] is None else f", until {show_utc(holder['closes_at'])}"
        values[f"open: {holder['node'].removeprefix('node:')}"] = _waits_for(holder) + until
    if "file" in shown:
        values["file"] = shown["file"]
    facts(f"{shown['action']} {shown['scope']}", values)


def _waits_for(holder: Any) -> str:
    if holder["closes_at"] is None:
        return "has not shown that nothing is left there"
    return "its own lease" if holder["evidence"] == "bound" else "its Edge leases"
