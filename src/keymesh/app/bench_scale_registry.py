"""The Registry under ``bench scale``: the production process, told in memory of more regions and keys than its log has.

``--plan``: a JSON file, ``ScalePlan``; once all of it is there, ``told`` is written: each region's heads root, by which
a simulated node says that it is in step.  What is put in is what a log of that size would leave in memory: sessions,
heads trees, and for each tenant its rows.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import sys
from pathlib import Path
from typing import Final

import msgspec

from keymesh.adapters.files import write_file
from keymesh.app.config_of_plan import registry_config_of
from keymesh.app.layout import Layout, load_plan
from keymesh.app.lifeline import die_with_parent
from keymesh.app.logs import setup_logging
from keymesh.app.registry_app import RegistryProcess, pass_over_what_stays
from keymesh.control.entry import Leaf, leaf_of
from keymesh.control.rows import KeyRow, PolicyRow, encode
from keymesh.crypto.dsse import key_id
from keymesh.model import strict_json
from keymesh.model.ids import MESH_NAMESPACE, Digest, Namespace
from keymesh.model.machine import node_address
from keymesh.model.states import KeyState
from keymesh.registry import spaces
from keymesh.registry.state import RegionHeads, RegistryState, Session, Space

PLAN_MAX_BYTES: Final = 4 * 1024 * 1024
KEYS_EACH: Final = 100
"""Key versions of one tenant."""
NODE: Final = "n1"
_AT_ONCE: Final = 50
_KID: Final = "0" * 32


class ScalePlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``nodes``: simulated region -> its node's signing key, hex.  ``entries``: key versions over all tenants."""

    nodes: dict[str, str]
    entries: int
    told: str


def add_region(state: RegistryState, region: str, signing_key: str) -> None:
    """As a ``region.join`` would leave it: offered the mesh's head, one node enrolled."""
    heads = state.regions[region] = RegionHeads()
    heads.put(MESH_NAMESPACE, leaf_of(state.spaces[MESH_NAMESPACE].entries[-1]))
    address = node_address(region, NODE)
    keys = {key_id(bytes.fromhex(signing_key)): signing_key}
    spaces.add_session(state, Session(address=address, region=region, node=NODE, keys=keys))


def add_tenant(state: RegistryState, n: int, regions: tuple[str, ...], count: int) -> None:
    """A tenant of these regions with ``count`` key versions, each its own."""
    name = Namespace(f"scale-{n:06}")
    digest = Digest(hashlib.sha256(name.encode()).hexdigest())
    row = encode(KeyRow(kid=_KID, revision=1, state=KeyState.ACTIVE.value, digest=digest, parent="scale-1"))
    rows = {f"key/l3/service-{k:03}/1": row.replace(_KID.encode(), b"%024x%08x" % (n, k)) for k in range(count)}
    policy = PolicyRow(version=1, home=regions[0], domain="scale", regions=tuple(sorted(regions)), admins=("operator",))
    entries = [state.spaces[MESH_NAMESPACE].entries[0]]
    state.spaces[name] = Space(name, entries, rows, offered=1, shown=1, policy=policy)
    for region in regions:
        state.regions[region].put(name, Leaf(epoch=1, seq=1, entry_hash=digest, state=digest))


async def tell(process: RegistryProcess, plan: ScalePlan) -> None:
    """Put everything in, a little at a time; then write the roots."""
    await process.booted()
    state = process.shell.state
    for region, signing_key in plan.nodes.items():
        add_region(state, region, signing_key)
    names = sorted(state.regions)
    for n in range(-(-plan.entries // KEYS_EACH)):
        two = (names[n % len(names)], names[(n * 7 + 1) % len(names)])
        add_tenant(state, n, tuple(dict.fromkeys(two)), min(KEYS_EACH, plan.entries - n * KEYS_EACH))
        if n % _AT_ONCE == 0:
            await asyncio.sleep(0)
    pass_over_what_stays()  # as after a boot from such a log
    write_file(Path(plan.told), strict_json.dumps({name: heads.root for name, heads in state.regions.items()}))


async def _run(layout: Layout, plan: ScalePlan) -> None:
    config = registry_config_of(layout, load_plan(layout))
    process = RegistryProcess(msgspec.structs.replace(config, broker=None))  # which is not running
    telling = asyncio.create_task(tell(process, plan))
    await process.run()
    await telling


def main(argv: list[str]) -> int:
    """The process; returns the exit code."""
    die_with_parent()
    parser = argparse.ArgumentParser(prog="bench_scale_registry", description="A Registry with many regions and keys.")
    parser.add_argument("--dir", required=True, type=Path, help="directory of the mesh")
    parser.add_argument("--plan", required=True, type=Path, help="JSON file: what it is told")
    args = parser.parse_args(argv)
    setup_logging("registry")
    plan = strict_json.decode(args.plan.read_bytes(), ScalePlan, max_bytes=PLAN_MAX_BYTES)
    asyncio.run(_run(Layout(args.dir), plan))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
