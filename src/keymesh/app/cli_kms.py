"""``keymesh customer-kms``: a stand-alone process that plays a customer's KMS, and the customer's hand on it."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from keymesh.adapters.customer_kms import KeyStatus, OwnerClient
from keymesh.app.cli_common import emit, facts, stdout


def _with_owner(directory: str, work: Callable[[OwnerClient], Awaitable[Any]]) -> Any:
    async def go() -> Any:
        async with OwnerClient.open(Path(directory)) as owner:
            return await work(owner)

    return asyncio.run(go())


def run_key(args: argparse.Namespace) -> int:
    """Make, disable, enable or show one key, as the owner."""

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


def run_allow(args: argparse.Namespace) -> int:
    ca_pem = Path(args.mesh_ca).read_text(encoding="ascii", errors="replace")  # the KMS refuses what is no PEM
    _with_owner(args.dir, lambda owner: owner.allow_ca(ca_pem, denied=args.deny))
    emit(args, {"ok": True, "denied": args.deny}, lambda: stdout.print("denied" if args.deny else "allowed"))
    return 0
