"""The Registry is gone for longer than the ttl: the regions go on by their voters' word, and only those who may."""

from __future__ import annotations

import asyncio
import contextlib
import time

from tests.integration.mesh.live import EU, MAIL, TIMING, US, LiveMesh, until, using

from keymesh.model.errors import Refused

TTL_S = TIMING.ttl_ms / 1000
DENIES = "cautiousbank"


async def test_the_registry_dies_and_the_regions_go_on_by_their_voters_word(mesh: LiveMesh) -> None:
    """A suspension decided before is in force, a region cut off from all others closes, a tenant that denies Standby
    closes everywhere, and with the Registry back everybody is in step again."""
    await _cautious(mesh)
    home, away = await mesh.doors(EU)
    mail = await mesh.door("us-east", US, MAIL)
    secret, _ = await mail.mint()
    blob, key = await home.mint()
    await mesh.command(US, "suspend", {"scope": f"service:{US}/{MAIL}"})
    await mesh.reaches("us-east", DENIES, "synced")
    async with using(home, away) as uses:
        await mesh.hold("registry")
        gone_at = time.time()
        try:
            for region in ("eu-central", "eu-west"):
                await mesh.reaches(region, EU, "standby", within_s=TTL_S + 3)
            await mesh.reaches("us-east", US, "standby")
            await mesh.reaches("us-east", DENIES, "closed", within_s=TTL_S + 3)
            await asyncio.sleep(max(0.0, gone_at + 1.5 * TTL_S - time.time()))
            assert (await mesh.modes("eu-west"))[EU] == "standby", (
                "renewed, though every lease of the Registry's is over"
            )
            assert await home.opened(blob) == key
            assert await away.opened(blob) == key
            made, made_key = await away.mint()
            assert await home.opened(made) == made_key, "existing keys mint as well"
            assert await mail.refusal(secret) != "", "what was suspended stays so"
            assert all(use.last_served > gone_at + 1.2 * TTL_S for use in uses)
            seen = await mesh.cli("voters", "show")
            assert (seen["majority"], seen["serving"], seen["standby"]) == (2, 3, True)
            assert all(seat["registry_silent"] and seat["stored"] >= 1 and not seat["behind"] for seat in seen["seats"])
            told = (await mesh.cli("region", "show", "us-east"))["tenants"]
            assert (told[US]["mode"], told[US]["granted_by"], told[US]["then"]) == ("standby", "voters", "closed")
            assert 0 < told[US]["ends_in_ms"] <= TIMING.ttl_ms
            assert "the tenant denies Standby" in told[DENIES]["why"]
            cut_at = await mesh.isolate("eu-west")
            closed_at = await mesh.reaches("eu-west", EU, "closed", within_s=TTL_S + 3)
            assert closed_at <= cut_at + TTL_S + 1
            assert (await mesh.modes("eu-central"))[EU] == "standby"
            await mesh.link("heal")
            await mesh.reaches("eu-west", EU, "standby")
        finally:
            mesh.release("registry")
            await mesh.link("heal")
        for region, tenant in (("eu-central", EU), ("eu-west", EU), ("us-east", US), ("us-east", DENIES)):
            await mesh.reaches(region, tenant, "synced")
    assert not [bad for use in uses for bad in use.wrong]
    await mesh.resume(f"service:{US}/{MAIL}", US)


async def test_while_one_voter_hears_the_registry_a_region_that_does_not_gets_no_lease(mesh: LiveMesh) -> None:
    """The asymmetric case: two of three voters hear it, so an island of one voter closes."""
    await mesh.doors(EU)
    await mesh.link("cut", "eu-central", "registry")
    try:
        await mesh.reaches("eu-central", EU, "closed", within_s=TTL_S + 3)
        await asyncio.sleep(1.0)
        assert (await mesh.modes("eu-central"))[EU] == "closed"
        assert (await mesh.modes("eu-west"))[EU] == "synced"
    finally:
        await mesh.link("heal")


async def test_where_the_registry_has_lost_most_voters_those_that_see_it_stand_by_too(mesh: LiveMesh) -> None:
    """It still answers two regions, but by no majority of its voters: its leases end everywhere."""
    home, away = await mesh.doors(EU)
    blob, key = await home.mint()
    voters = [seat["region"] for seat in (await mesh.cli("voters", "show"))["seats"]]
    assert "us-east" in voters
    for region in voters:
        if region != "us-east":
            await mesh.link("cut", region, "registry")
    try:
        for region, tenant in (("eu-central", EU), ("eu-west", EU), ("us-east", US), ("us-west", US)):
            await mesh.reaches(region, tenant, "standby", within_s=2 * TTL_S)
        assert await home.opened(blob) == key
        assert await away.opened(blob) == key
    finally:
        await mesh.link("heal")
    for region, tenant in (("eu-central", EU), ("eu-west", EU), ("us-east", US), ("us-west", US)):
        await mesh.reaches(region, tenant, "synced")


async def _cautious(mesh: LiveMesh) -> None:
    await mesh.cli("tenant", "create", DENIES, "--home", "us-east", "--regions", "us-east,us-west")
    assert (await mesh.cli("tenant", "set", DENIES, "--standby", "deny"))["standby"] == "deny"

    async def loaded() -> bool:
        with contextlib.suppress(Refused):
            return (await mesh.modes("us-east")).get(DENIES) == "synced"
        return False

    await until(loaded, f"{DENIES} ready")
