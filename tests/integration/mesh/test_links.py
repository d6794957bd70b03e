"""Links cut one way and both ways: autonomous, closed at the ttl and never later, in step again; bounds certified."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.integration.mesh.live import EU, FILES, MAIL, TIMING, US, LiveMesh, until, using

from keymesh.app import cli
from keymesh.control.evidence import bound_end
from keymesh.model.errors import Refused

VERIFY_BUNDLE = Path(__file__).resolve().parents[3] / "docs" / "verify_bundle.py"
TTL_S = TIMING.ttl_ms / 1000
CLOCK_MS = 100  # a process's instants never go back and may be that much ahead of the wall clock
SLACK_S = 0.75  # of a machine with much else to do, where it is our looking that is late


async def test_a_region_cut_from_the_registry_serves_until_the_ttl_and_not_longer(mesh: LiveMesh) -> None:
    """One way: only its own calls to the Registry fail; peers still reach it."""
    home, away = await mesh.doors(EU)
    blob, key = await home.mint()
    async with using(home, away) as (at_home, cut_off):
        cut_at = await mesh.link("cut", "eu-west", "registry")
        await mesh.reaches("eu-west", EU, "autonomous", within_s=TTL_S)
        assert await away.open(blob) == key
        closed_at = await mesh.reaches("eu-west", EU, "closed", within_s=TTL_S + 2)
        assert closed_at <= cut_at + TTL_S + SLACK_S
        await asyncio.sleep(0.5)
        assert cut_off.last_served <= cut_at + TTL_S  # when the last request began that was served
        assert cut_off.last_served >= cut_at + TTL_S / 3  # and it was not closed all the time (I14)
        status = await mesh.status("eu-west")
        assert status["tenants"][EU]["loaded"] == 0
        assert status["keys_in_memory"] <= 1  # the region's own internal key
        assert not at_home.errors  # nobody else noticed
        await mesh.link("heal")
        healed_at = await mesh.reaches("eu-west", EU, "synced")

        async def again() -> bool:
            return cut_off.last_served > healed_at

        await until(again, "eu-west serving again by itself")
    assert not at_home.wrong + cut_off.wrong
    for blob, key in cut_off.minted[-3:]:
        assert await home.open(blob) == key


async def test_suspended_while_a_region_is_cut_off_the_certificate_waits_for_the_bound(
    mesh: LiveMesh, tmp_path: Path
) -> None:
    here, away = await mesh.doors(US, MAIL)
    blob, _ = await here.mint()
    scope = f"service:{US}/{MAIL}"
    async with using(here, away) as (at_home, cut_off):
        await mesh.isolate("us-west")
        done = await mesh.command(US, "suspend", {"scope": scope})
        try:
            await asyncio.sleep(1.0)
            record = await mesh.client.call("GET", f"/v1/certificates/{done['command_id']}")
            assert record["status"] == "revoking" and "certificate" not in record
            running = await mesh.cli("certificate", "show", done["command_id"], "--namespace", US)
            assert "node:us-west/n1" in [h["node"] for h in running["open"] if h["evidence"] == "bound"]
            early = await mesh.cli("certificate", "show", done["command_id"], "-o", tmp_path / "early.json", code=3)
            assert early["error"]["code"] == "not-certified" and not (tmp_path / "early.json").exists()
            assert await here.refusal(blob) != ""
            found = await mesh.certificate(done["command_id"], within_s=TTL_S + 8)
            seen_at_ms = time.time() * 1000
            assert found["t"] == bound_end(found["committed_at"], TIMING.ttl_ms)
            assert seen_at_ms >= found["t"] - CLOCK_MS
            await asyncio.sleep(0.5)
            for use in (at_home, cut_off):
                assert use.last_served * 1000 <= found["t"]
            assert cut_off.last_served > at_home.last_served  # cut off, it went on for a while: that is the bound
            await mesh.link("heal")
            await mesh.reaches("us-west", US, "synced")
            await asyncio.sleep(0.5)
            for use in (at_home, cut_off):
                assert use.last_served * 1000 <= found["t"]
            assert found["t"] <= running["closes_at"]
            file = tmp_path / "c.json"
            shown = await mesh.cli("certificate", "show", done["command_id"], "-o", file)
            assert (shown["status"], shown["certificate"]) == ("certified", json.loads(file.read_text()))
            line = [sys.executable, "-I", str(VERIFY_BUNDLE), "--root", str(mesh.layout.trust), str(file)]
            stranger = await asyncio.to_thread(lambda: subprocess.run(line, capture_output=True, timeout=60))
            assert stranger.returncode == 0 and json.loads(stranger.stdout)["t"] == found["t"], stranger.stderr
            verified = await mesh.cli("verify", file)
            assert verified["holders_by_bound"] == ["node:us-west/n1"]
            assert verified["holders_by_acknowledgement"] == ["node:us-east/n1"]
            assert (verified["t"], verified["scope"]) == (found["t"], scope)
            for broken in broken_certificates(file.read_bytes()):
                file.write_bytes(broken)
                words = ["verify", str(file), "--root", str(mesh.layout.trust)]
                assert await asyncio.to_thread(cli.main, words) in (1, 4)
        finally:
            await mesh.link("heal")
            await mesh.resume(scope, US)

        async def again() -> bool:
            return not await here.refusal(blob) and not await away.refusal(blob)

        await until(again, "the resumed service")
    assert not at_home.wrong + cut_off.wrong


def broken_certificates(raw: bytes) -> list[bytes]:
    """Cut short, flipped, another's word, a holder left out."""
    certificate = json.loads(raw)
    flipped = bytearray(raw)
    flipped[len(raw) // 2] ^= 1
    unsigned = {**certificate, "signatures": []}
    return [raw[: len(raw) // 2], bytes(flipped), b"", b"[]", json.dumps(unsigned).encode(), raw + b"x"]


async def test_no_region_reaches_anybody_and_all_close_at_the_ttl(mesh: LiveMesh) -> None:
    """Among themselves the regions would go on by their voters' word: see ``test_standby``."""
    doors = [*await mesh.doors(US), *await mesh.doors(EU)]
    async with using(*doors) as uses:
        cut_at = await mesh.link("cut", "*", "registry")
        for region in mesh.plan.regions:
            await mesh.isolate(region)
        for region, tenant in (("us-east", US), ("us-west", US), ("eu-central", EU), ("eu-west", EU)):
            closed_at = await mesh.reaches(region, tenant, "closed", within_s=TTL_S + 3)
            assert closed_at <= cut_at + TTL_S + SLACK_S
        await asyncio.sleep(0.3)
        assert all(use.last_served <= cut_at + TTL_S for use in uses)
        await mesh.link("heal")
        await mesh.settled()
        healed_at = time.time()

        async def again() -> bool:
            return all(use.last_served > healed_at for use in uses)

        await until(again, "all doors serving again")


async def test_grants_pause_in_a_region_that_is_cut_off(mesh: LiveMesh) -> None:
    """The home region minting is a grant: wanted while it is autonomous, done once it is in touch."""
    keys = (await mesh.client.call("GET", f"/v1/tenants/{EU}/keys"))["keys"]
    newest = max(k["version"] for k in keys if k["key"] == f"l3/{FILES}")
    await mesh.link("cut", "eu-central", "registry")
    await mesh.reaches("eu-central", EU, "autonomous", within_s=TTL_S)
    await mesh.command(EU, "key.want", {"key": f"l3/{FILES}", "version": newest + 1})
    await asyncio.sleep(1.0)
    keys = (await mesh.client.call("GET", f"/v1/tenants/{EU}/keys"))["keys"]
    assert max(k["version"] for k in keys if k["key"] == f"l3/{FILES}") == newest
    await mesh.link("heal")
    await wrapping(mesh, EU, FILES, newest + 1)


async def test_a_rotation_waits_for_the_second_region_and_goes_on_by_itself(mesh: LiveMesh) -> None:
    """The minter's blob must lie in two regions before the version exists: cut off from the other, none is made."""
    keys = (await mesh.client.call("GET", f"/v1/tenants/{US}/keys"))["keys"]
    newest = max(k["version"] for k in keys if k["key"] == f"l3/{MAIL}")
    here, away = await mesh.doors(US, MAIL)
    old_blob, old_key = await here.mint()
    await mesh.link("cut", "us-east", "us-west")
    await mesh.command(US, "key.want", {"key": f"l3/{MAIL}", "version": newest + 1})
    await asyncio.sleep(2.0)
    keys = (await mesh.client.call("GET", f"/v1/tenants/{US}/keys"))["keys"]
    assert max(k["version"] for k in keys if k["key"] == f"l3/{MAIL}") == newest
    assert await away.open(old_blob) == old_key
    await mesh.link("heal")
    await wrapping(mesh, US, MAIL, newest + 1)
    blob, key = await here.mint()
    await mesh.settled()
    assert await (await mesh.door("us-west", US, MAIL)).open(blob) == key


async def wrapping(mesh: LiveMesh, tenant: str, service: str, version: int) -> None:
    async def there() -> bool:
        keys = (await mesh.client.call("GET", f"/v1/tenants/{tenant}/keys"))["keys"]
        return any(k["key"] == f"l3/{service}" and k["version"] == version and k["wrapping"] for k in keys)

    await until(there, f"version {version} wrapping")


async def test_a_resume_ordered_before_a_local_suspension_does_not_lift_it(mesh: LiveMesh) -> None:
    here, away = await mesh.doors(US, MAIL)
    blob, key = await away.mint()
    scope = f"service:{US}/{MAIL}"
    await mesh.link("cut", "us-west", "registry")
    await mesh.command(US, "suspend", {"scope": scope})
    await mesh.resume(scope, US)  # ordered, and committed by the other voters
    local = {"scope": scope, "action": "suspend"}
    await mesh.client.call("POST", "/v1/restrict", local, target="us-west", command_id="local-before-heal")
    began = time.time()
    async with using(away) as (use,):
        await asyncio.sleep(0.3)
        assert await away.refusal(blob) != ""
        await mesh.link("heal")
        await mesh.committed(US, "local-before-heal")
        await mesh.settled()
        await asyncio.sleep(0.7)
        assert use.last_served < began
        assert (await mesh.status("us-west"))["local_suspensions"] == 0
        shown = await mesh.client.call("GET", f"/v1/tenants/{US}/services/{MAIL}")
        assert shown["state"] == "suspended"  # it became an entry
        assert await here.refusal(blob) != ""  # in force at the others too
        await mesh.certificate("local-before-heal")
        await mesh.resume(scope, US)

        async def again() -> bool:
            return not await away.refusal(blob) and not await here.refusal(blob)

        await until(again, "the later resume lifting it")
    assert await here.open(blob) == key


async def test_a_local_restriction_is_for_those_who_may(mesh: LiveMesh) -> None:
    for body, code in (
        ({"scope": f"tenant:{EU}", "action": "suspend"}, "not-found"),  # not held in us-west
        ({"scope": f"tenant:{US}", "action": "resume"}, "bad-field"),
        ({"scope": "region:us-west", "action": "suspend"}, "needs-registry"),
        ({"scope": "mesh", "action": "suspend"}, "needs-registry"),
        ({"scope": f"tenant:{US}x", "action": "suspend"}, "not-found"),
    ):
        with pytest.raises(Refused) as no:
            await mesh.client.call("POST", "/v1/restrict", body, target="us-west", command_id="local-refused")
        assert no.value.code == code, body
    assert (await mesh.status("us-west"))["local_suspensions"] == 0
