"""``keymesh region migrate-keystore``: a region's key store brought to another schema, by a task in Lane 2."""

from __future__ import annotations

import argparse
from typing import Any

import msgspec

from keymesh.app.admin_client import AdminClient, run_with_client
from keymesh.app.cli_common import emit, facts, stderr
from keymesh.control.kinds import MigrateKeystore
from keymesh.model.errors import Unavailable
from keymesh.model.ids import check_region


async def migrate(client: AdminClient, region: str, *, to: int | None, wait: bool) -> dict[str, Any]:
    """Ask for the migration, unless the store is there already.  Raises Unavailable where nothing was reported yet."""
    shown = await client.call("GET", f"/v1/regions/{region}")
    schema = shown["keystore_newest"] if to is None else to
    if not shown["keystore_newest"]:
        raise Unavailable("older-release", f"{region} has not said what its key store is")
    done = None
    if schema > max(shown["keystore_wanted"], shown["keystore_schema"]) or to is not None:
        done = await client.command(
            "mesh", "region.migrate-keystore", msgspec.to_builtins(MigrateKeystore(region=region, schema=schema))
        )

    async def migrated() -> Any:
        now = await client.call("GET", f"/v1/regions/{region}")
        return now if now["keystore_schema"] >= schema else None

    if wait:
        await client.until(migrated, what=f"the migration in {region}")
    return {"region": region, "keystore_schema": schema, "command": done}


def run_migrate(args: argparse.Namespace) -> int:
    region = check_region(args.region)
    with stderr.status(f"{region} lays its key store out anew"):
        shown = run_with_client(args.dir, lambda client: migrate(client, region, to=args.to, wait=not args.no_wait))
    emit(args, shown, lambda: facts(f"key store of {region}", {"schema": shown["keystore_schema"]}))
    return 0
