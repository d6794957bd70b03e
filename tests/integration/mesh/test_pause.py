"""Processes stopped for longer than their leases (SIGSTOP, as a suspended virtual machine): the first word is no."""

from __future__ import annotations

import asyncio
import time

from tests.integration.mesh.live import FILES, MAIL, TIMING, US, VAULT, LiveMesh, until

from keymesh.model.errors import KeymeshError, Unavailable


async def test_a_core_stopped_beyond_the_ttl_refuses_before_anything_else(mesh: LiveMesh) -> None:
    """Questions that waited in its sockets are answered by a Core that knows its lease is over."""
    held = await mesh.door("us-west", US, VAULT)  # core-held: each use asks the Core
    leased = await mesh.door("us-west", US, FILES)
    blob, key = await held.mint()
    await mesh.status("us-west")  # a connection is open, so that the question below waits in it
    pid = mesh.pause("core-us-west")
    await asyncio.sleep(TIMING.ttl_ms / 1000 + 0.5)
    assert await leased.refusal() != ""  # the Edge's lease never outlives its Core's
    status = asyncio.create_task(mesh.client.call("GET", "/v1/status", target="us-west", timeout_s=20))
    opening = asyncio.create_task(held.ask("decrypt-key", {"blob": blob}, timeout_s=20))
    await asyncio.sleep(0.3)
    mesh.unpause(pid)
    seen = await status
    tenant = seen["tenants"][US]
    assert tenant["mode"] == "closed", tenant
    assert tenant["lease_left_ms"] in (None, 0)
    try:
        await opening
    except KeymeshError as no:
        assert isinstance(no, Unavailable), no.code
    else:
        raise AssertionError("opened with a lease that was over")
    await mesh.reaches("us-west", US, "synced")

    async def serves() -> bool:
        return not await held.refusal(blob) and not await leased.refusal()

    await until(serves, "us-west serving again")
    assert await held.open(blob) == key


async def test_an_edge_stopped_beyond_its_lease_never_serves_what_was_suspended_meanwhile(mesh: LiveMesh) -> None:
    """The push cannot reach it; the certificate waits for its lease; on waking its first answer is a refusal."""
    here, there = await mesh.doors(US, MAIL)
    files = await mesh.door("us-east", US, FILES)
    blob, key = await here.mint()
    pid = mesh.pause("edge-us-east")
    waiting = [asyncio.create_task(here.ask("decrypt-key", {"blob": blob}, timeout_s=30)) for _ in range(3)]
    began = time.time()
    done = await mesh.command(US, "suspend", {"scope": f"service:{US}/{MAIL}"})
    try:

        async def refused_there() -> bool:
            return await there.refusal(blob) != ""

        await until(refused_there, "the connected Edge refusing", within_s=5)
        record = await mesh.client.call("GET", f"/v1/certificates/{done['command_id']}")
        if time.time() < began + 0.5:
            assert record["status"] in ("revoking", "pending")  # a lease is still out there
        found = await mesh.certificate(done["command_id"])
        assert time.time() - began <= (TIMING.edge_ttl_ms + 4_000) / 1000
        await asyncio.sleep(max(0.0, began + TIMING.edge_ttl_ms / 1000 + 0.3 - time.time()))
        mesh.unpause(pid)
        for task in waiting:
            try:
                await task
            except KeymeshError:
                continue
            raise AssertionError("served under a suspension after its lease was over")
        assert time.time() * 1000 >= found["t"] - 100

        async def serves() -> bool:
            return not await files.refusal()

        await until(serves, "the other service at the same Edge")
        assert await here.refusal(blob) != ""
    finally:
        await mesh.resume(f"service:{US}/{MAIL}", US)
    assert await (await mesh.door("us-east", US, MAIL)).open(blob) == key


async def test_a_registry_stopped_and_woken_changes_nothing(mesh: LiveMesh) -> None:
    """Its stale answers are void; regions go autonomous, keep serving, and are in step again."""
    door = await mesh.door("us-west", US)
    blob, key = await door.mint()
    pid = mesh.pause("registry")
    await mesh.reaches("us-west", US, "autonomous", within_s=TIMING.ttl_ms / 1000)
    assert await door.open(blob) == key
    mesh.unpause(pid)
    await mesh.reaches("us-west", US, "synced")
    assert await door.open(blob) == key
