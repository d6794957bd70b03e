"""Edges of a running mesh: told when they may ask again, and leases given back at an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path

import pytest
from tests.integration.mesh.live import EU, OTHER, TIMING, Door, LiveMesh, until

from keymesh.edge import Edge
from keymesh.model.errors import Refused

AGAIN_S = 3.0
"""Until an Edge serves again.  By then it would have waited much longer by itself: it asked 1, 2 and 4 s apart."""


async def _serves_again(door: Door) -> None:
    async def serves() -> bool:
        return not await door.refusal()

    await until(serves, f"{door.service} served again at {door.region}", within_s=AGAIN_S)


async def test_after_a_long_suspension_a_resume_is_served_at_once(mesh: LiveMesh) -> None:
    here, away = await mesh.doors(EU)
    blob, key = await here.mint()
    await mesh.command(EU, "suspend", {"scope": f"tenant:{EU}"})
    await asyncio.sleep(8.0)
    assert await here.refusal() == await away.refusal() == "restricted"
    await mesh.resume(f"tenant:{EU}", EU)
    resumed = time.monotonic()
    for door in (here, away):
        await _serves_again(door)
    assert time.monotonic() < resumed + AGAIN_S
    assert await away.open(blob) == key


async def test_a_region_that_opens_again_tells_its_edges(mesh: LiveMesh) -> None:
    region = OTHER[EU]
    away = await mesh.door(region, EU)
    await mesh.link("cut", region, "registry")
    await mesh.reaches(region, EU, "closed")
    await asyncio.sleep(8.0)
    assert await away.refusal()
    await mesh.link("heal")
    await mesh.reaches(region, EU, "synced")
    await _serves_again(away)


async def test_no_certificate_waits_for_an_edge_that_ended_in_order(mesh: LiveMesh, tmp_path: Path) -> None:
    """Its leases live as long as the governance lease lets them, which is seconds here; it gave them back."""
    service = "longleases"
    await mesh.cli("service", "create", service, "--tenant", EU, "--edge-ttl", "60s")
    files = await mesh.cli("pki", "enrol", f"{EU}/{service}", "-o", tmp_path / "edge")
    where = {name: files[name] for name in ("identity", "ca", "trust", "cores")}
    async with await Edge.connect(**where, allow_unlocked_memory=True) as edge:
        await edge.create_key()
        assert edge.status()["lease_ms_left"] > TIMING.edge_ttl_ms
    done = await mesh.command(EU, "suspend", {"scope": f"service:{EU}/{service}"})
    found = await mesh.certificate(done["command_id"])
    assert found["t"] - found["committed_at"] < TIMING.edge_ttl_ms


async def test_every_life_of_one_identity_hears_of_a_restriction(mesh: LiveMesh, tmp_path: Path) -> None:
    """Workers of one host share a certificate, and each has leases of its own: none may be told for the others."""
    service = "manyworkers"
    await mesh.cli("service", "create", service, "--tenant", EU, "--edge-ttl", "60s")
    files = await mesh.cli("pki", "enrol", f"{EU}/{service}", "-o", tmp_path / "edge")
    where = {name: files[name] for name in ("identity", "ca", "trust", "cores")}
    async with contextlib.AsyncExitStack() as stack:
        lives = [
            await stack.enter_async_context(await Edge.connect(**where, allow_unlocked_memory=True)) for _ in range(3)
        ]
        for edge in lives:
            await edge.create_key()
        done = await mesh.command(EU, "suspend", {"scope": f"service:{EU}/{service}"})
        found = await mesh.certificate(done["command_id"])
        assert found["t"] - found["committed_at"] < 5_000, "all three said that they dropped it"
        for edge in lives:
            with pytest.raises(Refused):
                await edge.create_key()
