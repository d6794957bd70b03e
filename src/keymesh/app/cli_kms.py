"""``keymesh customer-kms``: a stand-alone process that plays a customer's KMS, and the customer's hand on it."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from keymesh.adapters.customer_kms import KeyStatus, OwnerClient
from keymesh.app import customer_kms
from keymesh.app.cli_common import emit, facts, stdout


def register(commands: Any) -> None:
    """Add this module's commands to the parser."""
    parser = commands.add_parser("customer-kms", help="play the customer's KMS: an own process, directory and CA")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    run = actions.add_parser(
        "run",
        help="serve, in the foreground",
        epilog="example: keymesh customer-kms run --dir acme-kms --replicas us-east,us-west",
    )
    customer_kms.add_arguments(run)
    run.set_defaults(run=customer_kms.main)
    for name, what in (
        ("create", "make a key"),
        ("disable", "refuse every use of a key from now on"),
        ("enable", "end a disabling"),
        ("status", "show a key"),
    ):
        one = actions.add_parser(name, help=what, epilog=f"example: keymesh customer-kms {name} root --dir acme-kms")
        one.add_argument("key", metavar="KEY", help="its name")
        one.add_argument("--dir", required=True, metavar="D", help="the KMS's directory")
        if name in ("disable", "enable"):
            one.add_argument("--replica", metavar="R", help="at one replica only")
        one.add_argument("--json", action="store_true", help="print one JSON object for machines")
        one.set_defaults(run=_run_key, action=name)
    allow = actions.add_parser(
        "allow",
        help="let a mesh's Cores wrap and unwrap",
        epilog="example: keymesh customer-kms allow --dir acme-kms --mesh-ca .keymesh/pki/ca.pem",
    )
    allow.add_argument("--dir", required=True, metavar="D", help="the KMS's directory")
    allow.add_argument("--mesh-ca", required=True, metavar="FILE", help="the mesh's root certificate")
    allow.add_argument("--deny", action="store_true", help="tell them no from now on")
    allow.add_argument("--json", action="store_true", help="print one JSON object for machines")
    allow.set_defaults(run=_run_allow)


def _with_owner(directory: str, work: Callable[[OwnerClient], Awaitable[Any]]) -> Any:
    async def go() -> Any:
        async with OwnerClient.open(Path(directory)) as owner:
            return await work(owner)

    return asyncio.run(go())


def _run_key(args: argparse.Namespace) -> int:
    async def work(owner: OwnerClient) -> KeyStatus:
        match args.action:
            case "create":
                return await owner.create(args.key)
            case "disable":
                return await owner.disable(args.key, replica=args.replica)
            case "enable":
                return await owner.enable(args.key, replica=args.replica)
            case _:
                return await owner.status(args.key)

    status = _with_owner(args.dir, work)
    emit(
        args,
        status,
        lambda: facts(
            f"key {status.name}",
            {"enabled": status.enabled, "disabled at": ", ".join(status.disabled_replicas) or "no replica"},
        ),
    )
    return 0


def _run_allow(args: argparse.Namespace) -> int:
    ca_pem = Path(args.mesh_ca).read_text(encoding="ascii", errors="replace")  # the KMS refuses what is no PEM
    _with_owner(args.dir, lambda owner: owner.allow_ca(ca_pem, denied=args.deny))
    emit(args, {"ok": True, "denied": args.deny}, lambda: stdout.print("denied" if args.deny else "allowed"))
    return 0
