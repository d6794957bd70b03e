"""A disk that is full: grants are refused, restrictions act at once, who cannot record closes; then all by itself."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.integration.mesh.conftest import SMALL_DISK_BYTES
from tests.integration.mesh.live import FILES, HOME, MAIL, OTHER, TIMING, US, VAULT, LiveMesh, until, using

from keymesh.model.errors import Refused, Unavailable


@contextlib.contextmanager
def full(directory: Path) -> Iterator[None]:
    """No byte left on the file system of ``directory``, a small one of its own."""
    filler = directory / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 10, 1):
            with contextlib.suppress(OSError):
                for _ in range(SMALL_DISK_BYTES // size):
                    file.write(bytes(size))
    try:
        yield
    finally:
        filler.unlink()


@contextlib.contextmanager
def unwritable(pid: int) -> Iterator[None]:
    """Every write of that process to a file fails, also into room that a file has already."""
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


async def test_a_core_with_a_full_disk_obeys_restrictions_and_gives_nothing(mesh: LiveMesh) -> None:
    """us-west cannot write: the suspension acts there at once, the rest of the tenant closes, no lease is given."""
    here, away = await mesh.doors(US, MAIL)
    vault = await mesh.door("us-west", US, VAULT)
    _, away_files = await mesh.doors(US, FILES)
    blob, key = await away.mint()
    scope = f"service:{US}/{MAIL}"
    restarts = mesh.child("core-us-west")["restarts"]
    async with using(here, away, away_files, vault) as uses:
        with unwritable(mesh.pid("core-us-west")):
            done = await mesh.command(US, "suspend", {"scope": scope})

            async def refused() -> bool:
                return await away.refusal(blob) != "" and await here.refusal(blob) != ""

            await until(refused, "the suspension acting", within_s=3)
            await mesh.reaches("us-west", US, "closed", within_s=5)

            async def files_end() -> bool:
                return await away_files.refusal() != ""

            await until(files_end, "the tenant closing where it cannot be recorded", within_s=TIMING.edge_ttl_ms / 1000)
            record = await mesh.client.call("GET", f"/v1/certificates/{done['command_id']}")
            assert record["status"] in ("revoking", "pending")  # its word is missing
            with contextlib.suppress(Unavailable, Refused):
                body = {"scope": f"service:{US}/{FILES}", "action": "suspend"}
                await mesh.client.call("POST", "/v1/restrict", body, target="us-west", command_id="local-full-disk")
                raise AssertionError("acknowledged what it cannot keep")
        found = await mesh.certificate(done["command_id"])
        for use in uses[:2]:
            assert use.last_served * 1000 <= found["t"]
        await mesh.resume(scope, US)
        for path in ("local-full-disk",):  # in force though not durable: it became an entry when it could
            await mesh.committed(US, path)
        await mesh.resume(f"service:{US}/{FILES}", US)
        since = time.time()

        async def again() -> bool:
            return all(use.last_served > since for use in uses)

        await until(again, "all doors serving again")
    assert await here.open(blob) == key
    assert mesh.child("core-us-west")["restarts"] == restarts  # it recovered without one


async def test_a_core_on_a_full_file_system_records_or_closes(mesh: LiveMesh) -> None:
    """What fits into room that is there already may be kept; either way the suspension acts and nothing is lost."""
    here, away = await mesh.doors(US, MAIL)
    blob, key = await away.mint()
    directory = mesh.layout.core("us-west")
    kept, last = list[str](), ""
    fault = full(directory) if directory.is_mount() else unwritable(mesh.pid("core-us-west"))
    scope = f"service:{US}/{MAIL}"
    async with using(here, away) as uses:
        with fault:
            kept = []
            done: dict[str, Any] = {}
            for n in range(3):
                done = await mesh.command(US, "suspend", {"scope": scope})

                async def refused() -> bool:
                    return await away.refusal(blob) != "" and await here.refusal(blob) != ""

                await until(refused, "the suspension acting", within_s=3)
                last = done["command_id"]
                try:
                    body = {"scope": scope, "action": "suspend"}
                    await mesh.client.call("POST", "/v1/restrict", body, target="us-west", command_id=f"full-{n}")
                    kept.append(f"full-{n}")
                except (Unavailable, Refused):
                    assert (await mesh.modes("us-west"))[US] in ("closed", "synced", "autonomous")
        found = await mesh.certificate(last)
        assert all(use.last_served * 1000 <= found["t"] for use in uses)
        for command_id in kept:
            await mesh.committed(US, command_id)
        await mesh.settled()
        await mesh.resume(scope, US)

        async def again() -> bool:
            return not await here.refusal(blob) and not await away.refusal(blob)

        await until(again, "serving again")
    assert await here.open(blob) == key


async def test_a_registry_with_a_full_disk_acknowledges_nothing_and_regions_still_obey(mesh: LiveMesh) -> None:
    here, away = await mesh.doors(US, MAIL)
    blob, key = await here.mint()
    scope = f"service:{US}/{MAIL}"
    before = mesh.log_entries(US)
    with unwritable(mesh.pid("registry")):
        try:
            await mesh.client.call(
                "POST",
                "/v1/commands",
                {"namespace": US, "kind": "suspend", "args": {"scope": f"service:{US}/{FILES}"}},
                command_id="full-registry",
                timeout_s=4,
            )
        except Unavailable:
            pass
        else:
            raise AssertionError("acknowledged what it cannot keep")
        assert mesh.log_entries(US) == before
        assert await here.open(blob) == key and await away.open(blob) == key
        for region in (HOME[US], OTHER[US]):  # as the command line does where the Registry is silent
            body = {"scope": scope, "action": "suspend"}
            await mesh.client.call("POST", "/v1/restrict", body, target=region, command_id="local-full-registry")

        async def refused() -> bool:
            return await here.refusal(blob) != "" and await away.refusal(blob) != ""

        await until(refused, "the local suspension acting", within_s=2)
    await mesh.committed(US, "local-full-registry")
    await mesh.resume(scope, US)
    await asyncio.sleep(0.5)
    if "full-registry" in mesh.log_entries(US):  # never acknowledged, and may have been done all the same
        with contextlib.suppress(Refused):
            await mesh.resume(f"service:{US}/{FILES}", US)

    async def again() -> bool:
        return not await here.refusal(blob) and not await away.refusal(blob)

    await until(again, "serving again")
