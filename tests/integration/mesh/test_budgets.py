"""Budgets on real processes: kept at every door, over a Core that is killed, in both custodies; alarms that suspend."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import pytest
from tests.integration.mesh.live import FILES, HOME, OTHER, US, Door, LiveMesh, until

from keymesh.model.errors import Integrity, KeymeshError, Refused, Unavailable

RATION, LOCKERS, GUARDED = "rationed", "lockers", "guarded"


async def service(mesh: LiveMesh, name: str, *words: str) -> None:
    await mesh.cli("service", "create", f"{US}/{name}", *words)


async def use_up(door: Door) -> int:
    """How many keys are made until the budget of the period is spent, for good."""
    made = 0
    final: list[Unavailable] = []

    async def spent() -> bool:
        nonlocal made
        while True:
            try:
                await door.mint()
            except Unavailable as why:
                if why.code == "budget-spent" and why.retry_after_ms > 10_000:
                    final.append(why)
                    return True
                return False
            made += 1

    await until(spent, f"the budget of {door.service} at {door.region} spent")
    return made


async def test_a_budget_is_kept_at_every_door_whatever_dies(mesh: LiveMesh) -> None:
    await service(mesh, RATION)
    shown = await mesh.cli("budget", "set", f"{US}/{RATION}", "--ops", "240", "--period", "month")
    assert (shown["budget"]["ops"], shown["budget"]["period"], shown["command"]["duplicate"]) == (240, "month", False)
    assert (await mesh.cli("service", "show", f"{US}/{RATION}"))["budget"]["ops"] == 240
    home, other = await mesh.doors(US, RATION)
    blob, _ = await home.minted()
    mesh.kill(f"core-{HOME[US]}")
    made = [await use_up(home), await use_up(other)]
    assert made[0] <= 119 + 1, "what was granted when the Core died is spent, and no more is granted"
    assert made[1] <= 120
    assert made[1] > 0
    with pytest.raises(Unavailable, match="budget") as caught:
        await home.open(blob)
    assert caught.value.code == "budget-spent", "opens count as well"
    with pytest.raises(Unavailable) as caught:
        await other.ask("create-keys", {"count": 2})
    assert caught.value.code == "budget-spent"
    assert (await home.sidecar.request("GET", "/healthz", None))[1], "the door itself is well"

    async def seen() -> bool:
        usage = await mesh.cli("budget", "show", f"{US}/{RATION}")
        return all(r["reachable"] and r["budgets"][0]["left_ops"] == 0 for r in usage["regions"].values())

    await until(seen, "the usage shown")
    await mesh.cli("budget", "set", f"{US}/{RATION}", "--ops", "300")
    await home.minted()  # once the next lease has brought its part
    more = 1 + await use_up(home)
    assert 1 < more <= 30, "a larger budget counts at once, of which half is here"
    await mesh.cli("budget", "set", f"{US}/{RATION}", "--ops", "none")
    assert (await home.minted())[0]


async def test_core_held_batches_are_whole_limited_and_budgeted(mesh: LiveMesh, tmp_path: Path) -> None:
    await service(mesh, LOCKERS, "--custody", "core-held")
    door = await mesh.door(HOME[US], US, LOCKERS)
    made = (await door.ask("create-keys", {"count": 100, "plaintext": True}))["keys"]
    blobs = [key["blob"] for key in made]
    opened = (await door.ask("decrypt-keys", {"blobs": blobs}))["plaintexts"]
    assert opened == [key["plaintext"] for key in made]
    thousand = (await door.ask("create-keys", {"count": 1_000}))["keys"]
    assert len({key["blob"] for key in thousand}) == 1_000
    assert len((await door.ask("decrypt-keys", {"blobs": [k["blob"] for k in thousand]}))["plaintexts"]) == 1_000
    for operation, body in (
        ("create-keys", {"count": 1_001}),
        ("decrypt-keys", {"blobs": [*(k["blob"] for k in thousand), blobs[0]]}),
    ):
        with pytest.raises(Refused) as refused:
            await door.ask(operation, body)
        assert refused.value.code == "bad-field"
        assert "1000" in refused.value.message
    figures = await mesh.cli("bench", "held", f"{US}/{LOCKERS}", "--seconds", "0.5")
    assert min(figures["create_keys_per_s"], figures["open_keys_per_s"]) > 0
    await mesh.cli("bench", "held", f"{US}/{FILES}", code=1)
    files = await mesh.door(HOME[US], US, FILES)
    foreign, _ = await files.minted()
    with pytest.raises(Integrity):
        await door.ask("decrypt-keys", {"blobs": [blobs[0], foreign]})
    with pytest.raises(Integrity):  # one that does not open: nothing of the batch is released
        await door.ask("decrypt-keys", {"blobs": blobs[:2], "context": {"another": "context"}})
    await mesh.cli("budget", "set", f"{US}/{LOCKERS}", "--ops", "500", "--period", "month")

    async def spent() -> bool:
        try:
            await door.ask("create-keys", {"count": 100})
        except Unavailable as why:
            return why.code == "budget-spent" and why.retry_after_ms > 10_000
        return False

    await until(spent, "half of 500 used")
    usage = await mesh.cli("budget", "show", f"{US}/{LOCKERS}")
    assert usage["regions"][HOME[US]]["budgets"][0]["spent_ops"] == 200, "all or none of a batch"
    await mesh.cli("budget", "set", f"{US}/{LOCKERS}", "--ops", "none")
    await _suspended_in_mid_batch(mesh, door, blobs, tmp_path / "proof.json")
    await mesh.hold(f"core-{HOME[US]}")
    try:
        with pytest.raises(Unavailable):
            await door.ask("create-keys", {"count": 10}, timeout_s=30)
    finally:
        mesh.release(f"core-{HOME[US]}")


async def _suspended_in_mid_batch(mesh: LiveMesh, door: Door, blobs: list[str], proof: Path) -> None:
    """Whole batches until the suspension is in force, none that begins after it."""
    outcomes: list[tuple[float, str]] = []
    clock = asyncio.get_running_loop().time
    going = True

    async def client() -> None:
        while going:
            began = clock()
            try:
                found = (await door.ask("decrypt-keys", {"blobs": blobs}))["plaintexts"]
                outcomes.append((began, "ok" if len(found) == len(blobs) else "part"))
            except KeymeshError as why:
                outcomes.append((began, why.code))
                await asyncio.sleep(0.02)

    clients = [asyncio.create_task(client()) for _ in range(3)]
    try:
        await until(_count(outcomes, "ok", 3), "batches being served")
        await mesh.cli("suspend", f"service:{US}/{LOCKERS}", "-o", proof)
        in_force = clock()
        await until(_count(outcomes, "restricted", 3), "batches being refused")
    finally:
        going = False
        await asyncio.gather(*clients)
    assert not [o for began, o in outcomes if began > in_force and o == "ok"]
    assert "part" not in {o for _, o in outcomes}
    await mesh.cli("resume", f"service:{US}/{LOCKERS}")
    await until(_serves(door), "served again after the resume")


def _count(outcomes: list[tuple[float, str]], what: str, least: int) -> Any:
    async def there() -> bool:
        return sum(said == what for _, said in outcomes) >= least

    return there


def _serves(door: Door) -> Any:
    async def serves() -> bool:
        return not await door.refusal()

    return serves


async def test_an_abnormal_open_rate_is_an_alarm_and_suspends(mesh: LiveMesh) -> None:
    await service(mesh, GUARDED)
    await mesh.cli("budget", "set", f"{US}/{GUARDED}", "--alarm-opens", "50", "--auto-suspend", "yes")
    door = await mesh.door(OTHER[US], US, GUARDED)
    blob, _ = await door.minted()

    async def refused() -> bool:
        for _ in range(20):
            if (code := await door.refusal(blob)) == "restricted":
                return True
            if code:
                return False
        return False

    await until(refused, "the automatic suspension")

    async def entered() -> bool:
        shown = await mesh.cli("service", "show", f"{US}/{GUARDED}")
        return bool(shown["state"] == "suspended")

    await until(entered, "the suspension becoming an entry")
    status = await mesh.cli("status")
    assert f"{US}/{GUARDED}: open rate" in status["regions"][OTHER[US]]["alarms"]
    receipts = (mesh.layout.core(OTHER[US]) / "receipts.jsonl").read_text()
    subjects = [base64.b64decode(json.loads(line)["payload"]).decode() for line in receipts.splitlines()]
    assert any("open-rate-alarm" in said and "alarm:open-rate" in said for said in subjects)
    assert (await mesh.door(HOME[US], US, FILES)).service == FILES, "other services go on"
    await mesh.cli("budget", "set", f"{US}/{GUARDED}", "--alarm-opens", "none", "--auto-suspend", "no")
    await mesh.cli("resume", f"service:{US}/{GUARDED}")
    await until(_serves(door), "served again after the resume")
