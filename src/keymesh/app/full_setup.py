"""What the servers of a full mesh must hold before its roles start: run once at every start, safe to repeat.

Decides rights: a region's Core may use its own key store and seal, and nothing else of its OpenBao.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from pathlib import Path
from typing import Final

from keymesh.adapters.pkcs11_descriptor import Tokens
from keymesh.adapters.sql_migrate import migrate
from keymesh.app.config_database import database_urls
from keymesh.app.control_logs import found, make_log
from keymesh.app.full_plan import CORE_ROLE, KV_MOUNT, MASTER_KEY, TRANSIT_MOUNT, FullPlan
from keymesh.app.full_region import HSM_KEY
from keymesh.app.full_registry import database_of, log_of
from keymesh.app.full_servers import servers_of
from keymesh.app.genesis_file import load_genesis
from keymesh.app.l1_pkcs11 import parse_pkcs11
from keymesh.app.layout import Layout, load_plan
from keymesh.app.lifeline import die_with_parent
from keymesh.app.logs import setup_logging
from keymesh.app.servers.openbao import BaoAdmin
from keymesh.core.l1 import L1Denied
from keymesh.model.errors import KeymeshError

log = logging.getLogger("keymesh.setup")

CORE_RULES: Final = {
    f"{TRANSIT_MOUNT}/encrypt/{MASTER_KEY}": ["update"],
    f"{TRANSIT_MOUNT}/decrypt/{MASTER_KEY}": ["update"],
    f"{TRANSIT_MOUNT}/keys/{MASTER_KEY}": ["read"],
    f"{KV_MOUNT}/data/*": ["create", "read", "update"],
    f"{KV_MOUNT}/destroy/*": ["update"],
    f"{KV_MOUNT}/metadata/*": ["list", "delete"],
}


def set_up(layout: Layout, full: FullPlan) -> None:
    """Raises Unavailable where a server does not do as it is told."""
    servers = servers_of(layout, full)
    for region, settings in servers.openbao.items():
        admin = BaoAdmin(settings)
        admin.mount(KV_MOUNT, "kv", {"version": "2"})
        admin.mount(TRANSIT_MOUNT, "transit")
        admin.transit_key(TRANSIT_MOUNT, MASTER_KEY)
        admin.policy(CORE_ROLE, CORE_RULES)
        ca_pem = (servers.infra / "ca.pem").read_text()
        admin.cert_role(CORE_ROLE, ca_pem, CORE_ROLE, allowed_common_names=[f"core-{region}"])
        asyncio.run(_make_hsm_key(layout, region))


async def _make_hsm_key(layout: Layout, region: str) -> None:
    """The key that seals the region's MasterKey, where its token has none yet."""
    tokens = Tokens(layout.core(region))
    key = tokens.open_seals(parse_pkcs11(HSM_KEY))
    try:
        await key.wrap(bytes(32))
    except L1Denied:
        await key.make_key()
    finally:
        await tokens.close()


def set_up_registry(layout: Layout, full: FullPlan, mesh: str) -> None:
    """The database's schema, and the log's beginning: the first entry, which the ceremony has left in its file.

    Raises Integrity for another mesh's log, Refused for a newer schema, Unavailable.
    """
    directory = layout.registry
    migrate(database_urls(database_of(layout, full, directory), directory))

    async def begin() -> None:
        log = make_log(log_of(layout, full, directory), mesh=mesh, directory=directory, may_found=True)
        try:
            await found(log, load_genesis(layout.genesis))
        finally:
            await log.close()

    asyncio.run(begin())


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="keymesh setup")
    parser.add_argument("--dir", required=True)
    args = parser.parse_args(argv)
    die_with_parent()
    setup_logging("setup")
    layout = Layout(Path(args.dir))
    try:
        plan = load_plan(layout)
        if plan.full is not None:
            set_up_registry(layout, plan.full, plan.mesh)
            set_up(layout, plan.full)
    except KeymeshError as failed:
        log.critical("setup failed", extra={"fields": {"code": failed.code, "reason": failed.message}})
        return int(failed.exit_code)
    return 0


if __name__ == "__main__":
    sys.exit(main())
