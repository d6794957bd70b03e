"""Processes killed at any moment: nothing acknowledged is lost or done twice, the mesh serves again by itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from tests.integration.mesh.live import EU, FILES, MAIL, PROCESSES, US, LiveMesh, Use, until, using

from keymesh.app.admin_client import new_command_id
from keymesh.app.supervisor_client import ask_supervisor
from keymesh.model.errors import Refused, Unavailable


@dataclass(slots=True)
class Acknowledged:
    """A client's own record of what it was told is done."""

    commands: dict[str, dict[str, Any]] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    unavailable: int = 0


@asynccontextmanager
async def commanding(mesh: LiveMesh) -> AsyncIterator[Acknowledged]:
    """An administrator who suspends and resumes one service for ever, repeating each command until it is answered."""
    seen = Acknowledged()
    stop = asyncio.Event()

    async def admin() -> None:
        scope = {"scope": f"service:{US}/{MAIL}"}
        while True:
            for kind in ("suspend", "resume"):
                if kind == "suspend" and stop.is_set():
                    return
                command_id = new_command_id()
                while True:
                    try:
                        seen.commands[command_id] = await mesh.command(US, kind, scope, command_id)
                        break
                    except Unavailable:
                        seen.unavailable += 1
                        await asyncio.sleep(0.05)
                    except Refused as no:
                        seen.refused.append(f"{kind} {no.code}")
                        break

    task = asyncio.create_task(admin())
    try:
        yield seen
    finally:
        stop.set()
        async with asyncio.timeout(40):
            await task


async def check_nothing_lost(mesh: LiveMesh, seen: Acknowledged) -> None:
    log = mesh.log_entries(US)
    for command_id, done in seen.commands.items():
        assert log.get(command_id) == [done["seq"]], command_id
    positions = [done["seq"] for done in seen.commands.values()]
    assert positions == sorted(set(positions))
    for command_id in [*list(seen.commands)[:5], *list(seen.commands)[-5:]]:

        async def countersigned(command_id: str = command_id) -> bool:
            found = await mesh.client.call("GET", f"/v1/commands/{US}/{command_id}")
            assert found["seq"] == seen.commands[command_id]["seq"]
            return bool(found["committed"])

        await until(countersigned, f"the voters' majority for {command_id}")  # asked again each second
    assert not seen.refused


async def check_every_blob_opens(uses: list[Use]) -> None:
    """What any door gave out opens at every door of that tenant, to the same key."""

    async def every_door() -> bool:
        return not [use for use in uses if await use.door.refusal()]

    await until(every_door, "every door serving")
    for use in uses:
        assert not use.wrong
        assert {word.split()[0] for word in use.errors} <= {"Unavailable"}, use.errors
        for other in uses:
            if (other.door.tenant, other.door.service) == (use.door.tenant, use.door.service):
                for blob, key in use.minted[:: max(1, len(use.minted) // 20)]:
                    assert await other.door.opened(blob) == key


async def served_again(uses: list[Use], since: float) -> None:
    async def every_door() -> bool:
        return all(use.last_served > since for use in uses)

    await until(every_door, "every door serving again")


@pytest.mark.parametrize("victim", PROCESSES)
async def test_kill_9_loses_nothing_acknowledged(mesh: LiveMesh, victim: str) -> None:
    doors = [*await mesh.doors(US), *await mesh.doors(EU)]
    async with using(*doors) as uses, commanding(mesh) as seen:
        await asyncio.sleep(0.6)
        before = mesh.pid(victim)
        mesh.kill(victim)

        async def another() -> bool:
            child = mesh.child(victim)
            return bool(child["ready"] and child["pid"] != before)

        await until(another, f"{victim} starting again")
        assert mesh.child(victim)["last_exit"] == -signal.SIGKILL
        await served_again(uses, time.time())
        await asyncio.sleep(0.4)
    assert len(seen.commands) >= 4
    await mesh.settled()
    await check_nothing_lost(mesh, seen)
    await check_every_blob_opens(uses)


async def test_kill_9_of_all_processes_at_once(mesh: LiveMesh) -> None:
    doors = [*await mesh.doors(US), *await mesh.doors(EU)]
    async with using(*doors) as uses, commanding(mesh) as seen:
        await asyncio.sleep(0.5)
        status = ask_supervisor(mesh.layout, {"do": "status"})
        assert status is not None
        pids = [child["pid"] for child in status["children"].values()]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await served_again(uses, time.time())
    await mesh.settled()
    await check_nothing_lost(mesh, seen)
    await check_every_blob_opens(uses)


async def test_kill_9_while_a_key_is_rotated_makes_no_second_version(mesh: LiveMesh) -> None:
    """The home Core dies between minting and the log's word: the next life goes on, and one kid is one key."""
    before = await mesh.client.call("GET", f"/v1/tenants/{US}/keys")
    newest = max(k["version"] for k in before["keys"] if k["key"] == f"l3/{MAIL}")
    for n in range(2):
        await mesh.persistently(US, "key.want", {"key": f"l3/{MAIL}", "version": newest + 1 + n})
        await asyncio.sleep(0.02 * n)
        mesh.kill("core-us-east")

        async def active(version: int = newest + 1 + n) -> bool:
            try:
                keys = (await mesh.client.call("GET", f"/v1/tenants/{US}/keys", timeout_s=5))["keys"]
            except Unavailable:
                return False
            return any(k["key"] == f"l3/{MAIL}" and k["version"] == version and k["wrapping"] for k in keys)

        await until(active, "the new version becoming active")
    keys = (await mesh.client.call("GET", f"/v1/tenants/{US}/keys"))["keys"]
    assert len({k["kid"] for k in keys}) == len(keys)
    versions = sorted(k["version"] for k in keys if k["key"] == f"l3/{MAIL}")
    assert versions == list(range(1, newest + 3))
    await mesh.settled()
    first, second = await mesh.doors(US, MAIL)
    blob, key = await first.mint()
    assert await second.opened(blob) == key


async def test_sigterm_ends_every_process_with_0(mesh: LiveMesh) -> None:
    names = ("wan", "customer-kms", "registry", "core-us-east", "core-eu-central", "edge-us-east", "edge-eu-west")
    door = await mesh.door("us-west", US)
    blob, key = await door.mint()
    before = {name: mesh.child(name)["restarts"] for name in names}
    for name in names:
        mesh.kill(name, signal.SIGTERM)

    async def again() -> bool:
        return all(mesh.child(n)["restarts"] > before[n] and mesh.child(n)["ready"] for n in names)

    await until(again, "all of them starting again")
    assert {name: mesh.child(name)["last_exit"] for name in names} == dict.fromkeys(names, 0)
    assert await (await mesh.door("us-east", US, FILES)).open(blob) == key
