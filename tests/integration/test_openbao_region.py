"""Two regions whose key stores are OpenBao's: made, rotated, restarted, damaged, killed, stopped and sealed."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.mesh.live import FILES, TIMING, Door, LiveMesh, until, using

from keymesh.app import cli
from keymesh.app.bootstrap import parse_regions
from keymesh.app.cli_keys import want_next
from keymesh.app.cli_mesh import start_mesh
from keymesh.app.full_plan import CORE_ROLE, KV_MOUNT
from keymesh.app.full_servers import servers_of
from keymesh.app.layout import Layout, load_plan
from keymesh.app.servers.openbao import BaoAdmin
from keymesh.app.supervisor_client import ask_supervisor, stop_mesh
from keymesh.model.errors import KeymeshError, Unavailable
from keymesh.model.scope import parse_scope

HERE, THERE = "us-east", "us-west"
TENANT = "acmeholding"
PREFIX = "core"


def do(layout: Layout, *words: str) -> Any:
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert cli.main([*words, "--dir", str(layout.root), "--json"]) == 0, (words, said.getvalue())
    return json.loads(said.getvalue())


@pytest.fixture(scope="module")
def layout() -> Iterator[Layout]:
    root = Path(tempfile.mkdtemp(prefix="km", dir="/tmp"))
    root.chmod(0o711)  # PostgreSQL runs as another user
    made = Layout(root / "m")
    try:
        start_mesh(
            made,
            regions=parse_regions(f"{HERE},{THERE}"),
            timing=TIMING,
            links=False,
            allow_unlocked_memory=True,
            full=True,
        )
        do(made, "tenant", "create", TENANT, "--home", HERE)
        do(made, "service", "create", FILES, "--tenant", TENANT)
        yield made
    finally:
        with contextlib.suppress(Exception):
            stop_mesh(made)
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
async def mesh(layout: Layout) -> AsyncIterator[LiveMesh]:
    async with LiveMesh(layout) as live:
        await synced(live)
        yield live
        with contextlib.suppress(OSError):
            if hand(layout, HERE).ask("GET", "/v1/sys/health")[0] == 503:
                await given_back(live, "sealed")
        for pid in list(live._stopped):
            live.unpause(pid)
        answer = ask_supervisor(layout, {"do": "status"}) or {"children": {}}
        for name, child in answer["children"].items():
            if child["held"]:
                live.release(name)
        await synced(live)


async def synced(live: LiveMesh) -> None:
    """Both regions serve their tenants from stores that are open."""

    async def done() -> bool:
        try:
            seen = [await live.status(region) for region in (HERE, THERE)]
        except KeymeshError:
            return False
        return all(s["keystore"]["code"] == "ok" and s["tenants"].get(TENANT, {}).get("mode") == "synced" for s in seen)

    await until(done, "both regions synced on open stores", within_s=60)


def hand(layout: Layout, region: str) -> BaoAdmin:
    """What the region's operators may do in their OpenBao."""
    full = load_plan(layout).full
    assert full is not None
    return BaoAdmin(servers_of(layout, full).openbao[region])


def stored(layout: Layout, region: str, tenant: str = TENANT) -> dict[str, dict[str, Any]]:
    """kid -> key version, as OpenBao holds it."""
    admin, found = hand(layout, region), {}
    for kid in admin.must("LIST", f"/v1/{KV_MOUNT}/metadata/{PREFIX}/namespaces/{tenant}")["data"]["keys"]:
        status, answer = admin.ask("GET", f"/v1/{KV_MOUNT}/data/{PREFIX}/namespaces/{tenant}/{kid}")
        if status == 200:
            found[kid] = answer["data"]["data"]
    return found


async def code_of(live: LiveMesh, region: str) -> str:
    return str((await live.status(region))["keystore"]["code"])


async def shows(live: LiveMesh, region: str, code: str) -> None:
    async def there() -> bool:
        try:
            return await code_of(live, region) == code
        except KeymeshError:
            return False

    await until(there, f"the store of {region} being {code}")


async def doors(live: LiveMesh) -> tuple[Door, Door]:
    return await live.door(HERE, TENANT), await live.door(THERE, TENANT)


# --- life ------------------------------------------------------------------------------------------------------------


async def test_keys_lie_in_openbao_and_outlive_rotation_and_restart(mesh: LiveMesh) -> None:
    layout = mesh.layout
    here, there = await doors(mesh)
    blob, key = await here.mint()
    assert await there.open(blob) == key
    assert [path for region in (HERE, THERE) for path in layout.core(region).glob("keystore.db*")] == []
    for region in (HERE, THERE):
        assert sorted(row["key"] for row in stored(layout, region).values()) == ["l2", f"l3/{FILES}"]
    before = {region: stored(layout, region) for region in (HERE, THERE)}

    await mesh.cli("key", "rotate", f"service:{TENANT}/{FILES}")
    for region in (HERE, THERE):
        await mesh.cli("region", "rotate-ivk", region)
    newer, newer_key = await there.mint()
    assert await here.open(newer) == newer_key
    for region in (HERE, THERE):
        now = stored(layout, region)
        assert len(now) == 3
        for kid, row in before[region].items():
            is_l2 = row["key"] == "l2"
            assert (now[kid]["ivk_kid"] != row["ivk_kid"], now[kid]["blob"] != row["blob"]) == (is_l2, is_l2)
            assert now[kid]["digest"] == row["digest"]

    for region in (HERE, THERE):
        mesh.kill(f"core-{region}")
    await synced(mesh)
    here, there = await doors(mesh)
    assert [await there.open(blob), await here.open(newer)] == [key, newer_key]


async def test_what_is_damaged_in_openbao_shows_as_drift_and_is_mended(mesh: LiveMesh) -> None:
    admin = hand(mesh.layout, HERE)
    good = stored(mesh.layout, HERE)
    for kid, row in good.items():
        rotten = bytearray(base64.b64decode(row["blob"]))
        rotten[-1] ^= 1
        damaged = {**row, "blob": base64.b64encode(rotten).decode()}
        path = f"/v1/{KV_MOUNT}/data/{PREFIX}/namespaces/{TENANT}/{kid}"
        admin.must("POST", path, {"data": damaged})

        async def mended(kid: str = kid, damaged: dict[str, Any] = damaged) -> bool:
            now = (await asyncio.to_thread(stored, mesh.layout, HERE)).get(kid)
            return now is not None and now != damaged and now["digest"] == damaged["digest"]

        await until(mended, f"{row['key']} being mended")
    here, _ = await doors(mesh)
    blob, key = await here.mint()
    assert await here.open(blob) == key


# --- away ------------------------------------------------------------------------------------------------------------


async def taken_away(live: LiveMesh, how: str) -> None:
    """Take the store of ``HERE`` away."""
    if how == "killed":
        await live.hold(f"openbao-{HERE}")
    elif how == "stopped":
        live.pause(f"openbao-{HERE}")
    else:
        hand(live.layout, HERE).must("PUT", "/v1/sys/seal")


async def given_back(live: LiveMesh, how: str) -> None:
    if how == "killed":
        live.release(f"openbao-{HERE}")
    elif how == "stopped":
        live.unpause(live.pid(f"openbao-{HERE}"))
    else:
        os.kill(live.pid(f"openbao-{HERE}"), signal.SIGKILL)  # its supervisor starts and unseals it


@pytest.mark.parametrize(("how", "code"), [("killed", "unreachable"), ("stopped", "timeout"), ("sealed", "sealed")])
async def test_a_store_that_is_away_takes_nothing_from_what_is_loaded(mesh: LiveMesh, how: str, code: str) -> None:
    """Stopped, for longer than any lease: use, leases, probes and restrictions go on; what needs the store says so."""
    here, there = await doors(mesh)
    old, key = await here.mint()
    async with using(here, there) as uses:
        await taken_away(mesh, how)
        await shows(mesh, HERE, code)
        began = time.monotonic()
        blocked_ms = 0.0
        lasts_s = TIMING.ttl_ms / 1000 + 2 if how == "stopped" else 1
        while time.monotonic() - began < lasts_s:
            asked = time.monotonic()
            status = await mesh.status(HERE)
            blocked_ms = max(blocked_ms, (time.monotonic() - asked) * 1000)
            assert status["tenants"][TENANT]["mode"] == "synced"
            await asyncio.sleep(0.1)
        assert blocked_ms < 5_000
        for use in uses:
            assert not use.wrong
            assert time.time() - use.last_served < 10, use.errors
        if how == "sealed":  # as the others, from here on
            await given_back(mesh, how)
            return
        with pytest.raises(Unavailable):
            await mesh.client.call("GET", f"/v1/tenants/{TENANT}/chain", target=HERE, timeout_s=5)

        sent = time.monotonic()
        suspended = await mesh.command(TENANT, "suspend", {"scope": f"service:{TENANT}/{FILES}"})

        async def refused() -> bool:
            return await here.refusal(old) != ""

        await until(refused, "the suspension acting where the store is away", within_s=3)
        assert time.monotonic() - sent < 3
        await mesh.committed(TENANT, suspended["command_id"])
        await mesh.resume(f"service:{TENANT}/{FILES}", TENANT)

        _, wanted, _ = await want_next(mesh.client, parse_scope(f"service:{TENANT}/{FILES}"))
        await given_back(mesh, how)
        await synced(mesh)
        await made(mesh, wanted)
    assert await here.open(old) == key


async def made(live: LiveMesh, version: int) -> None:
    """The version that was wanted while the store was away exists, and wraps."""

    async def active() -> bool:
        shown = await live.client.call("GET", f"/v1/tenants/{TENANT}/keys")
        return any(k["version"] == version and k["wrapping"] for k in shown["keys"] if k["key"] == f"l3/{FILES}")

    await until(active, "the wanted version being made")


async def test_a_core_that_starts_without_its_store_waits_for_it(mesh: LiveMesh) -> None:
    await mesh.hold(f"openbao-{HERE}")
    mesh.kill(f"core-{HERE}")
    await shows(mesh, HERE, "unreachable")
    status = await mesh.status(HERE)
    assert status["sealed"]
    mesh.release(f"openbao-{HERE}")
    await synced(mesh)
    here, _ = await doors(mesh)
    blob, key = await here.mint()
    assert await here.open(blob) == key


async def test_a_store_that_lost_its_data_is_refused_and_never_filled_anew(mesh: LiveMesh) -> None:
    """The whole mount is gone and made anew, empty, behind the Core's back."""
    layout, admin = mesh.layout, hand(mesh.layout, HERE)
    backup = stored(layout, HERE)
    await mesh.hold(f"core-{HERE}")
    identity = admin.must("GET", f"/v1/{KV_MOUNT}/data/{PREFIX}/store")["data"]["data"]
    ivks = {
        name: admin.must("GET", f"/v1/{KV_MOUNT}/data/{PREFIX}/ivks/{name}")["data"]["data"]
        for name in admin.must("LIST", f"/v1/{KV_MOUNT}/metadata/{PREFIX}/ivks")["data"]["keys"]
    }
    admin.must("DELETE", f"/v1/sys/mounts/{KV_MOUNT}")
    admin.mount(KV_MOUNT, "kv", {"version": "2"})
    mesh.release(f"core-{HERE}")
    await shows(mesh, HERE, "store-lost")
    assert (await mesh.status(HERE))["sealed"]
    assert admin.ask("LIST", f"/v1/{KV_MOUNT}/metadata/{PREFIX}/ivks")[0] == 404

    def put(path: str, row: Any) -> None:
        admin.must("POST", f"/v1/{KV_MOUNT}/data/{PREFIX}/{path}", {"data": row})

    put("store", {**identity, "store_id": "0" * 32})  # another's
    await shows(mesh, HERE, "store-of-another")
    put("store", identity)  # an older one
    await shows(mesh, HERE, "store-rolled-back")
    for name, row in ivks.items():
        put(f"ivks/{name}", row)
    await synced(mesh)  # keys that are missing are fetched as blobs from the other region

    async def refilled() -> bool:
        return (await asyncio.to_thread(stored, layout, HERE)).keys() == backup.keys()

    await until(refilled, "the keys being fetched anew")


async def laid_out_as_by_release_0_1(live: LiveMesh) -> None:
    """Bring the store of ``HERE`` back to schema 1 by hand, and have the Core forget that it ever was another."""
    layout, admin = live.layout, hand(live.layout, HERE)
    await live.hold(f"core-{HERE}")
    data, metadata = f"/v1/{KV_MOUNT}/data/{PREFIX}", f"/v1/{KV_MOUNT}/metadata/{PREFIX}"
    for kid, row in stored(layout, HERE).items():
        admin.must("POST", f"{data}/index/{TENANT}/{kid}", {"data": {}})
        admin.must("POST", f"{data}/keys/{kid}", {"data": row})
        admin.must("DELETE", f"{metadata}/namespaces/{TENANT}/{kid}")
    admin.must("DELETE", f"{metadata}/store")
    (layout.core(HERE) / "keystore.json").unlink()
    live.release(f"core-{HERE}")
    await synced(live)
    assert (await live.status(HERE))["keystore"] == {"code": "ok", "schema": 1}


async def test_a_store_of_release_0_1_works_and_is_migrated_by_a_task_under_use(mesh: LiveMesh) -> None:
    keys = stored(mesh.layout, HERE)
    await laid_out_as_by_release_0_1(mesh)
    here, there = await doors(mesh)
    async with using(here, there) as uses:
        done = await mesh.cli("region", "migrate-keystore", HERE)
        assert done["keystore_schema"] == 2
        shown = await mesh.cli("region", "show", HERE)
        assert (shown["keystore_schema"], shown["keystore_wanted"], shown["keystore_newest"]) == (2, 2, 2)
        assert stored(mesh.layout, HERE).keys() >= keys.keys()
        mesh.kill(f"core-{HERE}")
        await synced(mesh)
    assert [use.wrong for use in uses] == [[], []]
    assert (await mesh.status(HERE))["keystore"] == {"code": "ok", "schema": 2}
    again = await mesh.cli("region", "migrate-keystore", HERE)
    assert again["command"] is None
    await mesh.cli("region", "migrate-keystore", HERE, "--to", "1", code=1)
    await mesh.cli("region", "migrate-keystore", HERE, "--to", "3", code=1)


async def test_a_withdrawn_policy_is_told_from_silence(mesh: LiveMesh) -> None:
    admin = hand(mesh.layout, HERE)
    rules = admin.must("GET", f"/v1/sys/policies/acl/{CORE_ROLE}")["data"]["policy"]
    admin.policy(CORE_ROLE, {})
    await shows(mesh, HERE, "store-denied")
    admin.must("PUT", f"/v1/sys/policies/acl/{CORE_ROLE}", {"policy": rules})
    await synced(mesh)
    answer = ask_supervisor(mesh.layout, {"do": "status"})
    assert answer is not None
    assert answer["children"][f"core-{HERE}"]["ready"]
