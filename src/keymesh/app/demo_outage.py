"""The demo's outages: a region cut off and healed, and processes killed while files are being sealed."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from keymesh.app.admin_client import wait_for_key
from keymesh.app.cli_keys import want_next
from keymesh.app.demo_files import edge_keys, open_file, seal_file
from keymesh.app.demo_reader import reading
from keymesh.app.demo_world import ACME, GLOBEX, TIMING, Customer, Figures, World, ms_since, need
from keymesh.app.layout import Layout
from keymesh.app.seal_files import SUFFIX
from keymesh.app.seal_keys import KeySource
from keymesh.model.errors import Unavailable
from keymesh.model.scope import parse_scope
from keymesh.model.states import Mode

CRASH_FILE_BYTES: Final = 16 * 1024
TRAFFIC_S: Final = 0.7
"""Of sealing before the crash, and again after recovery."""
RECOVERY_S: Final = 30.0


# --- a region cut off ------------------------------------------------------------------------------------------------


async def cut_off(world: World) -> Figures:
    """GLOBEX's home without any link: use goes on, its minter grants nothing, at the ttl it closes."""
    region = GLOBEX.home
    async with reading(world, GLOBEX, GLOBEX.regions) as readers:
        for reader in readers.values():
            reader.mark()
        cut_ns = await world.cut(region)
        key, version, _ = await want_next(world.client, parse_scope(GLOBEX.scope))
        world.wanted = key, version
        await readers[region].wait_refused(TIMING.ttl_ms / 1_000 + 15)
        await asyncio.sleep(0.3)
        seen, other = readers[region].seen, readers[GLOBEX.other].seen
        mode = await world.mode(region, GLOBEX)
    need(seen.successes > 0 and seen.lost == 0, f"{region} did not go on while it was cut off")
    need(seen.successes_after_refusal == 0, f"{region} served again though it was still cut off")
    last_use_ms = ms_since(cut_ns, seen.last_success_started_ns)
    need(last_use_ms <= TIMING.ttl_ms, f"{region} was used {last_use_ms} ms after it was cut off")
    need(other.refusals == other.lost == 0, f"{GLOBEX.other} was harmed: {other.code}")
    minted = [k for k in await world.keys(GLOBEX) if (k["key"], k["version"]) == world.wanted]
    need(not minted, f"{region} granted though it was cut off")
    return {
        "decrypts_while_cut": seen.successes,
        "closed_after_ms": ms_since(cut_ns, seen.first_refusal_ns),
        "ttl_ms": TIMING.ttl_ms,
        "mode": f"{mode} ({seen.code})",
        "rotation": f"{key} version {version} waits",
        f"decrypts_{GLOBEX.other}": other.successes,
    }


async def heal(world: World) -> Figures:
    """The links again, and nothing else."""
    region = GLOBEX.home
    async with reading(world, GLOBEX, [region], served=False) as readers:
        healed_ns = await world.cut(region, heal=True)
        first_ns = await readers[region].wait_served()
    need(world.wanted is not None, "no rotation waits")
    assert world.wanted is not None
    key, version = world.wanted
    await wait_for_key(world.client, GLOBEX.tenant, key, version=version, timeout_s=20)
    rotated_ms = ms_since(healed_ns)

    async def in_sync() -> bool | None:
        shown = await world.client.call("GET", f"/v1/regions/{region}")
        return True if shown["in_sync"] and not shown["drift"] else None

    await world.until(in_sync, what=f"{region} in sync", timeout_s=20)
    return {
        "served_after_ms": ms_since(healed_ns, first_ns),
        "rotation_completed_ms": rotated_ms,
        "in_sync_ms": ms_since(healed_ns),
    }


# --- processes killed ------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Sealer:
    """Seals small files through one region's Edge until told to stop; ``acknowledged``: (instant ns, file, SHA-256)."""

    layout: Layout
    region: str
    customer: Customer
    into: Path
    acknowledged: list[tuple[int, Path, str]] = field(default_factory=list)
    retried: int = 0
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """What is sealed counts once its file is complete and durable; an Edge that is away is asked again."""
        self.into.mkdir(parents=True)
        with edge_keys(self.layout, self.region) as keys:
            while not self.stop.is_set():
                self._seal_one(keys, f"{self.region}-{len(self.acknowledged):06}")

    def _seal_one(self, keys: KeySource, name: str) -> None:
        plain, target = self.into / name, self.into / f"{name}{SUFFIX}"
        data = os.urandom(CRASH_FILE_BYTES)
        plain.write_bytes(data)
        try:
            seal_file(keys, self.customer.tenant, self.customer.service, plain, target, name=name)
        except Unavailable:
            self.retried += 1
            time.sleep(0.02)
        else:
            self.acknowledged.append((time.time_ns(), target, hashlib.sha256(data).hexdigest()))
        finally:
            plain.unlink()


async def crash(world: World) -> Figures:
    """SIGKILL the home region's Core and the other region's Edge while both regions seal; then open everything."""
    core, edge = f"core-{ACME.home}", f"edge-{ACME.other}"
    folder = world.root / "crash"
    sealers = [Sealer(world.layout, region, ACME, folder / region) for region in ACME.regions]
    before = world.restarts()
    sealing = [asyncio.create_task(asyncio.to_thread(sealer.run)) for sealer in sealers]
    try:
        await asyncio.sleep(TRAFFIC_S)
        killed_ns = await world.crash(core)
        await world.crash(edge)
        figures = await _recovery(world, core, edge, before, killed_ns)
        await asyncio.sleep(TRAFFIC_S)
    finally:
        for sealer in sealers:
            sealer.stop.set()
        ended = await asyncio.gather(*sealing, return_exceptions=True)
    for sealer, failed in zip(sealers, ended, strict=True):
        need(failed is None, f"sealing in {sealer.region} failed: {failed!r}")
    done = [one for sealer in sealers for one in sealer.acknowledged]
    for sealer in sealers:
        need(any(at < killed_ns for at, _, _ in sealer.acknowledged), f"nothing was sealed in {sealer.region} before")
        need(any(at > killed_ns for at, _, _ in sealer.acknowledged), f"nothing was sealed in {sealer.region} after")
    lost = await asyncio.to_thread(_lost, world, done)
    need(not lost, f"{len(lost)} acknowledged files do not open: {lost[:3]}")
    return {
        "killed": f"{core}, {edge}",
        "sealed_before": sum(at < killed_ns for at, _, _ in done),
        "sealed_after": sum(at >= killed_ns for at, _, _ in done),
        "retried": sum(sealer.retried for sealer in sealers),
        "lost": len(lost),
        **figures,
    }


async def _recovery(world: World, core: str, edge: str, before: dict[str, int], killed_ns: int) -> Figures:
    """Milliseconds from the kill until the restarted Core has the tenant in sync, and until each Edge mints again."""

    async def core_back() -> bool | None:
        fresh = world.restarts()[core] > before[core]
        return True if fresh and await world.mode(ACME.home, ACME) == Mode.SYNCED.value else None

    async def mints(region: str) -> bool | None:
        try:
            await world.edge(region, ACME, "create-key", {})
        except Unavailable:
            return None
        return True

    async def edge_back() -> bool | None:
        return await mints(ACME.other) if world.restarts()[edge] > before[edge] else None

    async def timed(check: Any, what: str) -> int:
        await world.until(check, what=f"recovery of {what}", timeout_s=RECOVERY_S)
        return ms_since(killed_ns)

    core_ms, edge_ms = await asyncio.gather(timed(core_back, core), timed(edge_back, edge))
    home_ms = await timed(lambda: mints(ACME.home), f"edge-{ACME.home}")
    return {
        "core_recovered_ms": core_ms,
        "edge_recovered_ms": edge_ms,
        f"{ACME.home}_serves_ms": home_ms,
    }


def _lost(world: World, done: list[tuple[int, Path, str]]) -> list[str]:
    """Of the acknowledged files, those that do not open to what was sealed, each asked of the region it is not from."""
    lost = []
    for region in ACME.regions:
        with edge_keys(world.layout, region) as keys:
            for _, path, digest in done:
                if path.parent.name != region and _digest_of(keys, path) != digest:
                    lost.append(path.name)
    return lost


def _digest_of(keys: KeySource, path: Path) -> str:
    """Asking again while the Edge has no lease: late is not lost.  Raises what stands against it after a while."""
    deadline = time.monotonic() + RECOVERY_S
    while True:
        try:
            return open_file(keys, path)[0]
        except Unavailable:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.05)
