"""A seat is given to another region while the old voter is an island: kill switches before, during and after it."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from tests.integration.mesh.live import US, LiveMesh, until

from keymesh.model.errors import KeymeshError


async def service(mesh: LiveMesh, n: int) -> str:
    name = f"seats-{n}-{time.time_ns() % 10**9}"
    await mesh.cli("service", "create", f"{US}/{name}")
    return f"service:{US}/{name}"


async def is_committed(mesh: LiveMesh, command_id: str) -> bool:
    shown = await mesh.client.call("GET", f"/v1/commands/{US}/{command_id}")
    return bool(shown["committed"])


async def verified(mesh: LiveMesh, path: Path) -> Any:
    said = await mesh.cli("verify", path, "--root", mesh.layout.trust)
    assert said["ok"]
    return said


async def test_a_seat_is_replaced_in_two_steps_and_every_kill_switch_is_proved(mesh: LiveMesh, tmp_path: Path) -> None:
    shown = await mesh.cli("voters", "show")
    old, set_id = [seat["region"] for seat in shown["seats"]], shown["set_id"]
    assert (len(old), shown["in_force"], shown["sealed"]) == (3, True, 0)
    joining = next(region for region in sorted(mesh.plan.regions) if region not in old)
    gone = next(region for region in old if region.startswith("eu-"))
    new = sorted({*old, joining} - {gone})
    change = ("voters", "change", "--seats", ",".join(new))
    approved = (*change, "--approve-key", mesh.layout.keys / "officer-2.pem")
    scopes = [await service(mesh, n) for n in range(3)]
    files = [tmp_path / f"{when}.json" for when in ("before", "during", "after")]
    await mesh.cli("suspend", scopes[0], "-o", files[0])

    refused = await mesh.cli(*change, code=1)
    assert refused["error"]["code"] == "needs-approval"
    refused = await mesh.cli("voters", "change", "--seats", "us-east,us-west", *approved[4:], code=1)
    assert refused["error"]["field"] == "seats"

    await mesh.isolate(gone)
    await mesh.hold(f"core-{gone}")
    await mesh.hold("registry")
    await mesh.cli(*approved, code=3)  # the old set is sealed, the new one is not in the log
    shown = await mesh.cli("voters", "show", code=3)
    assert (shown["set_id"], shown["sealed"], shown["in_force"], shown["commits"]) == (set_id, 2, False, False)
    mesh.release("registry")
    await until(lambda: answers(mesh), "the Registry")
    during = (await mesh.cli("suspend", scopes[1], "--no-wait"))["command"]["command_id"]
    await asyncio.sleep(2.5)
    assert not await is_committed(mesh, during), "nothing is claimed"
    assert (await mesh.cli("certificate", "show", during, code=0))["status"] == "pending"

    done = await mesh.cli(*approved)
    assert (done["set_id"], done["regions"], done["replaces"]) == (set_id + 1, new, old)
    assert len(done["sealed"]) == 2 and gone not in done["sealed"]
    await mesh.certificate(during)
    await mesh.cli("certificate", "show", during, "-o", files[1])
    await mesh.cli("suspend", scopes[2], "-o", files[2])
    voters = [set((await verified(mesh, path))["voters"]) for path in files]
    assert all(len(found) >= 2 for found in voters)
    assert voters[0] <= set(old) and voters[1] <= set(new) and voters[2] <= set(new)

    mesh.release(f"core-{gone}")
    await until(lambda: is_an_island(mesh, gone, set_id), f"{gone} sitting on an island")
    await mesh.link("heal")
    shown = await mesh.cli("voters", "show")
    assert ([seat["region"] for seat in shown["seats"]], shown["in_force"]) == (new, True)
    assert (shown["earlier"][0]["set_id"], shown["earlier"][0]["regions"]) == (set_id, old)
    await until(lambda: has_left(mesh, gone), f"{gone} leaving its seat")
    assert (await mesh.cli(*approved))["set_id"] == set_id + 1, "repeated: it is done"
    back = await mesh.cli("voters", "change", "--seats", ",".join(sorted(old)), *approved[4:])
    assert (back["set_id"], back["in_force"]) == (set_id + 2, True)


async def answers(mesh: LiveMesh) -> bool:
    try:
        await mesh.client.call("GET", "/v1/status")
    except KeymeshError:
        return False
    return True


async def is_an_island(mesh: LiveMesh, region: str, set_id: int) -> bool:
    """It is back, and has not heard: it has its old seat, unsealed, and nobody to make a majority with."""
    try:
        word = await mesh.client.call("GET", "/v1/voter", target=region)
    except KeymeshError:
        return False
    return bool(word["seated"]) and (word["set_id"], word["sealed"]) == (set_id, 0)


async def has_left(mesh: LiveMesh, region: str) -> bool:
    word = await mesh.client.call("GET", "/v1/voter", target=region)
    return not word["seated"]
