"""What a region's OpenBao holds, opened by its owner: its own files are encrypted, so that no search could see in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from keymesh.adapters.files import write_file
from keymesh.app.full_plan import KV_MOUNT
from keymesh.app.full_servers import servers_of
from keymesh.app.layout import Layout, MeshPlan
from keymesh.app.servers.openbao import BaoAdmin

SECRETS_MAX: Final = 10_000


def opened_store(layout: Layout, plan: MeshPlan, region: str, into: Path) -> list[Path]:
    """Write every secret of the region's key store, with its path, into one file below ``into``; none where the mesh
    has no OpenBao.  Raises Unavailable."""
    if plan.full is None:
        return []
    admin = BaoAdmin(servers_of(layout, plan.full).openbao[region])
    found: dict[str, object] = {}
    waiting = [""]
    while waiting and len(found) < SECRETS_MAX:
        path = waiting.pop()
        status, listed = admin.ask("LIST", f"/v1/{KV_MOUNT}/metadata/{path}")
        for name in listed["data"]["keys"] if status == 200 else []:
            if name.endswith("/"):
                waiting.append(path + name)
            else:
                found[path + name] = admin.ask("GET", f"/v1/{KV_MOUNT}/data/{path}{name}")[1]
    into.mkdir(mode=0o700, parents=True, exist_ok=True)
    target = into / f"{region}.json"
    write_file(target, json.dumps(found).encode())
    return [target]
