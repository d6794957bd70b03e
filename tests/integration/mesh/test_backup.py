"""Backups of a running mesh: made under load and kills, opened and verified, and what must be in none of them."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.integration.mesh.live import EU, HOME, OTHER, US, LiveMesh, until
from tests.integration.mesh.test_crash import check_nothing_lost, commanding
from tests.integration.mesh.test_secrets import files_under, finds, internal_keys, keys_of, spellings

from keymesh.adapters.backup_directory import DirectoryStore
from keymesh.app.backup_files import load_recovery_key
from keymesh.app.backup_read import open_chunks, read_lines, read_marker
from keymesh.control.backup_manifest import LOG
from keymesh.crypto.chain import chain_from_json
from keymesh.crypto.dsse import envelope_from_json
from keymesh.model.errors import KeymeshError


def opened(mesh: LiveMesh, domain: str) -> Iterator[bytes]:
    """Every field of every item in a store, in the clear; of entries also the payload."""
    store = DirectoryStore(mesh.layout.backups(domain))
    private = load_recovery_key(mesh.layout.recovery_key)
    lines = read_lines(store, read_marker(store, mesh=mesh.plan.mesh), now_ms=2**50)
    for line in lines.values():
        for stored in line:
            for kind, items in open_chunks(store, stored.manifest, private):
                for item in items:
                    yield from item
                    if kind == LOG:
                        yield envelope_from_json(item[1]).payload


async def test_a_backup_is_made_and_verifies_and_says_how_old_it_is(mesh: LiveMesh) -> None:
    made = await mesh.cli("backup", "create")
    assert made["ok"]
    assert set(made["regions"]) == set(mesh.plan.regions)
    shown = await mesh.cli("backup", "verify")
    assert shown["ok"]
    assert (shown["epoch"], shown["index"] >= made["index"]) == (1, True)
    assert shown["entries"] >= shown["index"] > 0
    assert shown["blobs"] >= 6  # two L2, four L3, and whatever other tests rotated
    assert sorted(s["domain"] for s in shown["stores"]) == ["", "eu", "us"]
    listed = await mesh.cli("backup", "list")
    assert {b["origin"] for b in listed["backups"]} == {"registry", *(f"{r}.n1" for r in mesh.plan.regions)}
    status = await mesh.cli("status")
    for one in (status["registry"], *status["regions"].values()):
        assert one["backup"]["failing"] == ""
        assert one["backup"]["age_ms"] < 60_000
    for target in ("registry", "us-east"):
        _, raw = await mesh.client._client(target).request("GET", "/metrics")
        (age,) = [line for line in raw.decode().splitlines() if line.startswith("keymesh_backup_age_seconds ")]
        assert 0 < float(age.split()[1]) < 60


async def test_an_acknowledged_restriction_is_in_the_next_backup_without_anybody_asking(
    mesh: LiveMesh, tmp_path: Path
) -> None:
    door = await mesh.door(HOME[US], US)
    blob, _ = await door.mint()
    done = await mesh.cli("suspend", f"service:{US}/{door.service}", "-o", tmp_path / "certificate.json")
    index = (await mesh.client.call("GET", "/v1/status"))["index"]

    async def held() -> bool:
        return bool((await mesh.client.call("GET", "/v1/backups"))["index"] >= index)

    await until(held, "the next incremental backup")  # the schedule's own, every 10 s
    assert (await mesh.cli("backup", "verify", "--at-least", str(index)))["ok"]
    assert done["command_id"].encode() in b"".join(opened(mesh, ""))
    await mesh.cli("resume", f"service:{US}/{door.service}")

    async def serves() -> bool:
        return not await door.refusal(blob)

    await until(serves, "the resumed service serving")


async def test_writers_killed_at_any_moment_leave_stores_that_verify_and_go_on(mesh: LiveMesh) -> None:
    """I2: what was acknowledged is in the log, and in the backup made after."""
    async with commanding(mesh) as seen:
        for name in ("registry", "core-us-east", "registry"):
            target = "registry" if name == "registry" else name.removeprefix("core-")

            async def asking(target: str = target) -> None:
                try:
                    await mesh.client.call("POST", "/v1/backups", {"full": True}, target=target)
                except KeymeshError:
                    return  # killed under it

            asked = asyncio.create_task(asking())
            await asyncio.sleep(0.02)  # somewhere between reading the log and the manifest
            pid = mesh.pid(name)
            os.kill(pid, signal.SIGKILL)
            await asked

            async def back(name: str = name, pid: int = pid) -> bool:
                child = mesh.child(name)
                return bool(child["ready"] and child["pid"] != pid)

            await until(back, f"{name} coming back")
    await mesh.settled()
    await check_nothing_lost(mesh, seen)
    assert (await mesh.cli("backup", "create"))["ok"]
    shown = await mesh.cli("backup", "verify")
    assert shown["index"] >= max(done["index"] for done in seen.commands.values())
    in_backup = b"".join(opened(mesh, ""))
    assert all(command_id.encode() in in_backup for command_id in seen.commands)


async def test_no_key_is_in_a_backup_even_opened_and_no_european_in_an_american_one(
    mesh: LiveMesh, tmp_path: Path
) -> None:
    canaries: dict[str, bytes] = {}
    for tenant in (US, EU):
        await mesh.cli("tenant", "export", tenant, "-o", tmp_path / tenant)
        async with mesh.owner() as owner:
            canaries |= await keys_of(chain_from_json((tmp_path / tenant).read_bytes()), owner, tenant)
    for region in mesh.plan.regions:
        canaries |= await internal_keys(mesh.layout, region)
    await mesh.cli("backup", "create", "--full")
    plain: dict[str, bytes] = {d: b"\n".join(opened(mesh, d)) for d in ("", "us", "eu")}
    for domain, text in plain.items():
        assert len(text) > 10_000
        for name, secret in canaries.items():
            assert not any(needle in text for needle in spellings(secret)), (domain, name)
    assert (US.encode() in plain["us"], EU.encode() in plain["us"]) == (True, False)
    assert (EU.encode() in plain["eu"], US.encode() in plain["eu"]) == (True, False)
    stores = list(files_under(mesh.layout.root / "backups"))
    assert not finds([US.encode(), EU.encode(), OTHER[US].encode() + b"/"], stores)  # sealed, they name nobody
    recovery = mesh.layout.recovery_key.read_bytes()
    everything = [p for p in files_under(mesh.layout.root) if p != mesh.layout.recovery_key]
    assert not finds([recovery.splitlines()[1]], everything)


async def test_a_store_that_is_away_is_an_alarm_and_costs_nobody_anything(mesh: LiveMesh) -> None:
    await mesh.cli("backup", "create")
    store, kept = mesh.layout.backups(""), mesh.layout.root / "kept"
    store.rename(kept)
    try:
        made = await mesh.cli("backup", "create", code=3)
        assert made["registry"]["error"]["code"] == "store-away"
        assert all(one["ok"] for one in made["regions"].values())
        shown = await mesh.client.call("GET", "/v1/status")
        assert shown["backup"]["failing"] == "store-away"
        told: Any = await mesh.client.call("GET", "/readyz")
        assert told == {"ready": True, "reasons": [], "warnings": ["backups fail: store-away"]}
        done = await mesh.command(US, "suspend", {"scope": f"tenant:{US}"}, "while-the-store-was-away")
        assert done["index"] > 0
    finally:
        shutil.rmtree(store, ignore_errors=True)
        kept.rename(store)
    await mesh.resume(f"tenant:{US}", US)
    assert (await mesh.cli("backup", "create"))["ok"]
    assert (await mesh.cli("backup", "verify", "--at-least", str(done["index"])))["ok"]
