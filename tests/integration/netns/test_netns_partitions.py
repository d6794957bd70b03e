"""A mesh in network namespaces under cuts that lose frames silently: two-way, one-way, flapping; bad weather; SIGSTOP
and a reboot behind a cut.  Nothing is reset and nobody is told: what closes, closes by its own clock."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable

import pytest
from tests.integration.mesh.live import Door, until, using
from tests.integration.netns.lab import (
    FILES,
    MAIL,
    REGIONS,
    TENANT,
    TIMING,
    VAULT,
    Hands,
    Lab,
    new_boot_id,
)
from tests.integration.netns.switch import Rule

from keymesh.app.config_init import KMS
from keymesh.control.evidence import bound_end
from keymesh.model.errors import KeymeshError

pytestmark = pytest.mark.serial

CUT_OFF = "us-west"  # no voter
TTL_S = TIMING.ttl_ms / 1_000


async def test_a_region_cut_off_on_both_ways_closes_within_its_ttl_and_hears_the_restriction_first(
    hands: Hands,
) -> None:
    door, there = await hands.door(CUT_OFF, TENANT, FILES), await hands.door("us-east", TENANT, FILES)
    mail = await hands.door(CUT_OFF, TENANT, MAIL)
    scope = f"service:{TENANT}/{MAIL}"
    async with using(door, there, mail) as (cut_off, other, suspended):
        await asyncio.sleep(0.2)
        hands.switch.cut(CUT_OFF)
        cut_at = time.time()
        done = await hands.suspend(scope, TENANT)
        await hands.reaches(CUT_OFF, TENANT, "closed", within_s=TTL_S + 2)
        await asyncio.sleep(0.5)
        record = await hands.client.call("GET", f"/v1/certificates/{done['command_id']}")
        assert suspended.last_served < bound_end(record["appended_ns"] // 1_000_000, TIMING.ttl_ms) / 1_000
        assert cut_off.last_served < cut_at + TTL_S
        assert await door.refusal() != ""
        assert other.last_served > time.time() - 1.0, "the others do not notice"
        assert not other.errors
        hands.switch.heal()
        await hands.reaches(CUT_OFF, TENANT, "synced")
        await until(_serves(door), f"{CUT_OFF} serving again")
        assert await mail.refusal() != "", "a lease came before the restriction"
        assert not cut_off.wrong + other.wrong + suspended.wrong
    await hands.resume(scope, TENANT)
    await until(_serves(mail), "the end of the suspension")


async def test_a_cut_of_one_way_is_a_cut_whichever_way_it_is(hands: Hands) -> None:
    """us-west is not heard by the Registry; eu-west hears nothing from it.  Neither may outlive its ttl by that."""
    doors = [await hands.door(region, TENANT, FILES) for region in (CUT_OFF, "eu-west", "us-east")]
    async with using(*doors) as (unheard, deaf, other):
        await asyncio.sleep(0.2)
        hands.switch.rule(CUT_OFF, "registry", Rule(cut=True))
        hands.switch.rule("registry", "eu-west", Rule(cut=True))
        cut_at = time.time()
        both = [hands.reaches(region, TENANT, "closed", within_s=TTL_S + 2) for region in (CUT_OFF, "eu-west")]
        await asyncio.gather(*both)
        await asyncio.sleep(0.5)
        assert max(unheard.last_served, deaf.last_served) < cut_at + TTL_S
        assert other.last_served > time.time() - 1.0
        assert not other.errors
        assert await hands.mode("us-east", TENANT) == "synced", "two voters of three are enough"


async def test_links_that_flap_in_bad_weather_lose_and_undo_nothing(hands: Hands) -> None:
    """Loss, delay and re-ordering on every link, one region's flapping: a suspension and its end arrive, in order."""
    doors = [await hands.door(region, TENANT, FILES) for region in (CUT_OFF, "us-east")]
    mails = [await hands.door(region, TENANT, MAIL) for region in (CUT_OFF, "us-east")]
    scope = f"service:{TENANT}/{MAIL}"
    weather = Rule(loss=0.02, delay_ms=10, reorder=0.1)
    before = (hands.switch.counts.lost, hands.switch.counts.reordered)
    hands.switch.rule("*", "*", weather)
    async with using(*doors) as uses:
        flapping = asyncio.create_task(_flap(hands, CUT_OFF, weather))
        try:
            await hands.suspend(scope, TENANT)
            bound_s = bound_end(0, TIMING.ttl_ms) / 1_000
            for mail in mails:
                await until(_refuses(mail), f"{mail.region} refusing", within_s=bound_s)
            for _ in range(20):
                assert all([await mail.refusal() != "" for mail in mails]), "an old lease came back"
                await asyncio.sleep(0.05)
        finally:
            flapping.cancel()
            await asyncio.gather(flapping, return_exceptions=True)
        hands.switch.rule("*", "*", weather)
        await hands.resume(scope, TENANT)
        for door in (*doors, *mails):
            await until(_serves(door), f"{door.region} serving {door.service} in that weather")
        assert not [blob for use in uses for blob in use.wrong]
    assert hands.switch.counts.lost > before[0]
    assert hands.switch.counts.reordered > before[1]


async def test_a_region_that_does_not_reach_the_customers_kms_closes_at_the_l1_ttl(hands: Hands) -> None:
    door, there = await hands.door("eu-west", TENANT, FILES), await hands.door("us-east", TENANT, FILES)
    async with using(door, there) as (away, other):
        await asyncio.sleep(0.2)
        hands.switch.rule(KMS, "eu-west", Rule(cut=True))
        cut_at = time.time()
        await hands.reaches("eu-west", TENANT, "closed", within_s=TIMING.l1_ttl_ms / 1_000 + 2)
        await asyncio.sleep(0.3)
        assert away.last_served < cut_at + TIMING.l1_ttl_ms / 1_000
        assert not other.errors


async def test_stopped_beyond_the_ttl_and_woken_behind_a_cut_the_first_word_is_no(hands: Hands, lab: Lab) -> None:
    """Core and Edge are stopped; nobody can correct them when they wake."""
    held, leased = await hands.door(CUT_OFF, TENANT, VAULT), await hands.door(CUT_OFF, TENANT, FILES)
    (blob, _), (old, _) = await held.mint(), await leased.mint()
    lab.signal(f"core-{CUT_OFF}", signal.SIGSTOP)
    lab.signal(f"edge-{CUT_OFF}", signal.SIGSTOP)
    try:
        waiting = [
            asyncio.create_task(door.ask("decrypt-key", {"blob": sealed}, timeout_s=20))
            for door, sealed in ((held, blob), (leased, old))
        ]
        hands.switch.cut(CUT_OFF)
        await asyncio.sleep(TTL_S + 0.5)
    finally:
        lab.signal(f"core-{CUT_OFF}", signal.SIGCONT)
        lab.signal(f"edge-{CUT_OFF}", signal.SIGCONT)
    for answer in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(answer, KeymeshError), answer
    assert await hands.mode(CUT_OFF, TENANT) == "closed"
    assert await leased.refusal(old) != ""


async def test_a_machine_that_boots_again_behind_a_cut_holds_no_lease(hands: Hands, lab: Lab) -> None:
    """By a new boot id, while all that it had is still on its disk and its old lease would have lasted."""
    held = await hands.door(CUT_OFF, TENANT, VAULT)
    leased = await hands.door(CUT_OFF, TENANT, FILES)
    blob, key = await held.mint()
    hands.switch.cut(CUT_OFF)
    cut_at = time.monotonic()
    boot_id = new_boot_id()
    for role in ("edge", "core"):
        lab.kill(f"{role}-{CUT_OFF}")
        lab.start(f"{role}-{CUT_OFF}", boot_id=boot_id)
    try:
        await hands.reaches(CUT_OFF, TENANT, "closed", within_s=TTL_S)
        assert time.monotonic() < cut_at + TTL_S, "too late to show anything: the old lease would be over"
        assert lab.boot_id(f"core-{CUT_OFF}") == boot_id != lab.boot_id("core-us-east")
        assert await held.refusal(blob) != ""
        assert await leased.refusal() != ""
        hands.switch.heal()
        await hands.reaches(CUT_OFF, TENANT, "synced")
        await until(_serves(held), "serving again")
        assert await held.open(blob) == key
    finally:
        hands.switch.heal()


def test_the_switch_carries_what_its_rules_let_through(lab: Lab) -> None:
    """Every role has a namespace of its own, and nothing but the switch between them."""
    assert len({port.namespace for port in lab.switch.ports.values()}) == len(REGIONS) + 3
    assert lab.switch.counts.carried > 1_000


def _serves(door: Door) -> Callable[[], Awaitable[bool]]:
    async def serves() -> bool:
        return await door.refusal() == ""

    return serves


def _refuses(door: Door) -> Callable[[], Awaitable[bool]]:
    async def refuses() -> bool:
        return await door.refusal() != ""

    return refuses


async def _flap(hands: Hands, region: str, between: Rule) -> None:
    while True:
        hands.switch.cut(region)
        await asyncio.sleep(0.7)
        hands.switch.rule(region, "*", between)
        hands.switch.rule("*", region, between)
        await asyncio.sleep(0.5)
