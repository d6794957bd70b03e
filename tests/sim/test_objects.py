"""Sealed objects between regions: seeds with every fault, what they must reach, and planted bugs that must be found."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.sim.objects_world import (
    SERVICE,
    Violation,
    World,
    begun,
    ended,
    replace_regions,
    run_seed,
    run_virtually,
)

from keymesh.adapters import sqlite_objects
from keymesh.adapters.sqlite_objects import SqliteObjects
from keymesh.app import core_objects, object_door, object_replicas
from keymesh.app.core_objects import CoreObjects
from keymesh.model.errors import Integrity, Unavailable
from keymesh.orbital.object_sync import (
    CHANGES_PATH,
    COMMIT_PATH,
    HEADS_PATH,
    OFFER_PATH,
    OfferBody,
    forward_of,
    offer_of,
    readable,
    to_octets,
)
from keymesh.orbital.objects import SealedObject, Verdict, object_to_bytes

pytestmark = pytest.mark.slow

SEEDS, SOAK_SEEDS = 6, 300
REACHED = (
    "crash", "cut", "repeated", "purged", "create-done", "create-no-peer", "create-destroyed", "change-own-done",
    "change-far-done", "change-far-writer-away", "change-far-version-conflict",
)  # fmt: skip


def run(directory: Path, seed: int) -> Counter[str]:
    where = directory / str(seed)
    where.mkdir()
    return run_virtually(lambda: run_seed(where, seed)).sometimes


def test_seeds_hold_and_reach_what_replication_is_about(tmp_path: Path, soak: bool) -> None:
    seen: Counter[str] = Counter()
    for seed in range(SOAK_SEEDS if soak else SEEDS):
        seen += run(tmp_path, seed)
    assert [name for name in REACHED if not seen[name]] == []


def test_a_seed_is_the_same_again(tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    assert run(tmp_path, 1) == run(tmp_path / "again", 1)


# --- what seeds seldom come to ---------------------------------------------------------------------------------------

PAIR, TENANT = "pairbank", "wholebank"


async def made(world: World, region: str, tenant: str = TENANT) -> SealedObject:
    """A new object, at ``region`` alone so far."""
    one = world.a_new(tenant)
    assert await world.commit(world.regions[region], [(0, one)]) == "done"
    return world.regions[region].holds(tenant)[one.uid]


async def a_store_made_anew_is_read_from_its_start(directory: Path) -> World:
    """Its places begin again at 1, below those that others have read."""
    world = begun(directory)
    for _ in range(9):
        await made(world, "eu-2", PAIR)
    await asyncio.sleep(10)
    world.cut("eu-2")
    world.regions["eu-2"].lose_disk()
    world.regions["eu-2"].start()
    for _ in range(3):
        await made(world, "eu-2", PAIR)
    return await ended(world)


async def a_newer_version_is_elsewhere(directory: Path) -> World:
    """A home that lost its disk hears of version 1 from one region, while another has version 2."""
    world = begun(directory)
    home, behind = world.regions["eu-1"], world.regions["eu-2"]
    one = await made(world, "eu-1")
    await asyncio.sleep(10)
    world.cut("eu-2")
    assert await world.commit(home, [world.changed(one)]) == "done"
    await asyncio.sleep(10)
    world.cuts.clear()
    world.cut("eu-3")  # at the same moment: eu-2 hears of version 2 from nobody
    home.lose_disk()
    home.start()
    await asyncio.sleep(30)
    assert home.holds(TENANT)[one.uid].version == behind.holds(TENANT)[one.uid].version == 1
    said = await world.commit(home, [world.changed(one)])
    world.cuts.clear()
    await asyncio.sleep(60)
    newest = home.holds(TENANT)[one.uid]
    assert await world.commit(home, [world.changed(newest)]) == "done"
    await ended(world)
    assert said == "catching-up"
    return world


async def a_cut_off_region_makes_and_reads_and_the_same_name_stays_twice(directory: Path) -> World:
    world = begun(directory)
    near, far = world.regions["eu-1"], world.regions["eu-2"]
    one = await made(world, "eu-1")
    await asyncio.sleep(10)
    world.cut("eu-2")
    assert far.holds(TENANT)[one.uid] == one
    assert await world.commit(far, [world.changed(one)]) == "writer-away"
    twins = [world.a_new(TENANT, b"name") for _ in range(2)]
    assert await world.commit(near, [(0, twins[0])]) == "done"
    assert await world.commit(far, [(0, twins[1])]) == "done"
    world.cuts.clear()
    await asyncio.sleep(60)
    for region, order in ((near, twins), (far, twins[::-1]), (world.regions["eu-3"], None)):
        found = [held.uid for held in await region.objects.find(TENANT, SERVICE, b"name")]
        assert found == [twin.uid for twin in order] if order else set(found) == {twin.uid for twin in twins}
    assert await world.commit(near, [(0, world.a_new(TENANT, b"name"))]) == "name-taken"
    return await ended(world)


async def a_writer_that_serves_nobody_changes_nothing(directory: Path) -> World:
    """It may know of a suspension before the region that a client asks."""
    world = begun(directory)
    one = await made(world, "eu-2", PAIR)
    await asyncio.sleep(10)
    world.regions["eu-2"].serving = False
    assert await world.commit(world.regions["eu-3"], [world.changed(one)]) == "writer-away"
    assert world.regions["eu-2"].holds(PAIR)[one.uid] == one
    world.regions["eu-2"].serving = True
    assert await world.commit(world.regions["eu-3"], [world.changed(one)]) == "done"
    return await ended(world)


async def a_peer_copy_survives_its_home(directory: Path) -> World:
    world = begun(directory)
    home, far = world.regions["eu-2"], world.regions["eu-3"]
    one = world.a_new(PAIR)
    assert await world.commit(home, [(0, one)], "peer") == "done"
    assert one.uid in far.holds(PAIR)
    world.cut("eu-2")
    kept = world.a_new(PAIR)
    assert await world.commit(home, [(0, kept)], "peer") == "no-peer"
    assert kept.uid in home.holds(PAIR)  # stored, not confirmed: it stays, and arrives
    world.cuts.clear()
    await asyncio.sleep(60)
    assert kept.uid in far.holds(PAIR)
    home.lose_disk()
    return await ended(world)


async def what_names_a_tenant_is_refused_to_strangers_and_once_it_is_not_allowed(directory: Path) -> World:
    world = begun(directory)
    one = await made(world, "eu-2", PAIR)
    here, strange = world.regions["eu-2"], world.regions["eu-1"]
    offer = to_octets(offer_of([one]))
    asks = [
        ("GET", CHANGES_PATH.format(tenant=PAIR), b""),
        ("POST", OFFER_PATH.format(tenant=PAIR), offer),
        ("POST", COMMIT_PATH.format(tenant=PAIR, service=SERVICE), to_octets(forward_of("f", [world.changed(one)]))),
    ]
    for method, path, body in asks:
        answer = await here.serve(strange.name, method, path, {}, body)
        assert answer is not None and answer.status == 404 and b"no such tenant" in answer.body
    heads = await here.serve(strange.name, "GET", HEADS_PATH, {}, b"")
    assert heads is not None and PAIR.encode() not in heads.body
    here.policies[PAIR] = replace_regions(here.policies[PAIR], ("eu-2",))
    answer = await here.serve("eu-3", "GET", asks[0][1], {}, b"")
    assert answer is not None and answer.status == 404
    assert await world.commit(here, [(0, world.a_new(PAIR))], "peer") == "no-peer"
    world.regions["eu-3"].policies[PAIR] = here.policies[PAIR]
    return await ended(world)


async def a_peer_that_offers_another_tenants_objects_or_rubbish_stores_nothing(directory: Path) -> World:
    """eu-3 may speak of both tenants, but not of one in the other's name."""
    world = begun(directory)
    here = world.regions["eu-2"]
    foreign = replace(world.a_new(TENANT), home="eu-3")
    for objects in ((object_to_bytes(foreign),), (b"rubbish",), (object_to_bytes(foreign)[:-1],)):
        answer = await here.serve("eu-3", "POST", OFFER_PATH.format(tenant=PAIR), {}, to_octets(OfferBody(objects)))
        assert answer is not None and answer.status == 400
    for raw in (b"", b"\xc1", b"\x91", msgspec.msgpack.encode([["x"] * 3])):
        answer = await here.serve("eu-3", "POST", OFFER_PATH.format(tenant=PAIR), {}, raw)
        assert answer is not None and answer.status == 400
    assert not here.holds(PAIR) and not here.holds(TENANT)
    return await ended(world)


async def an_object_that_is_none_stops_no_other(directory: Path) -> World:
    world = begun(directory)
    here, far = world.regions["eu-2"], world.regions["eu-3"]
    damaged = await made(world, "eu-2", PAIR)
    whole, other = await made(world, "eu-2", PAIR), await made(world, "eu-2")
    store = here.objects.store
    good = store._query("SELECT raw FROM objects WHERE uid = ?", damaged.uid)[0][0]
    store._query("UPDATE objects SET raw = CAST('x' AS BLOB) WHERE uid = ?", damaged.uid)
    await asyncio.sleep(30)
    assert far.holds(PAIR).keys() == {whole.uid}
    assert other.uid in far.holds(TENANT)
    assert here.objects.counts["damaged"] and here.objects.describe()["damaged"]
    store._query("UPDATE objects SET raw = ? WHERE uid = ?", good, damaged.uid)
    # mended, and changed: others hear of it
    assert await world.commit(here, [world.changed(damaged)]) == "done"
    return await ended(world)


async def a_damaged_object_is_fetched_again(directory: Path) -> World:
    world = begun(directory)
    one = await made(world, "eu-2", PAIR)
    await asyncio.sleep(10)
    far = world.regions["eu-3"]
    far.objects.store._query("UPDATE objects SET raw = CAST('x' AS BLOB)")
    with pytest.raises(Integrity):
        await far.objects.get(PAIR, SERVICE, one.uid)
    await asyncio.sleep(100)
    assert await far.objects.get(PAIR, SERVICE, one.uid) == one
    return await ended(world)


async def a_tenant_that_is_full_stops_no_other(directory: Path) -> World:
    world = begun(directory)
    for _ in range(4):
        await made(world, "eu-2", PAIR)
    far = world.regions["eu-3"]
    far.objects.store.receive = _full(far.objects.store.receive)  # type: ignore[method-assign]
    other = await made(world, "eu-2")
    await asyncio.sleep(30)
    assert other.uid in far.holds(TENANT) and not far.holds(PAIR)
    assert far.objects.lags_s(PAIR)["eu-2"] > 20 > far.objects.lags_s(TENANT)["eu-2"]
    del far.objects.store.receive
    await asyncio.sleep(60)
    assert far.objects.lags_s(PAIR)["eu-2"] < 20
    return await ended(world)


async def a_tenant_that_nobody_answers_for_stops_no_other(directory: Path) -> World:
    world = begun(directory)
    world.stuck = {"leavingbank"}
    await made(world, "eu-2", "leavingbank")
    other, far = await made(world, "eu-2", PAIR), world.regions["eu-3"]
    await asyncio.sleep(60)
    assert other.uid in far.holds(PAIR) and not far.holds("leavingbank")
    world.stuck.clear()
    return await ended(world)


def _full(receive: Any) -> Any:
    def refuse(tenant: str, *words: Any, **more: Any) -> Any:
        if tenant == PAIR:
            raise Unavailable("too-many-objects", "full")
        return receive(tenant, *words, **more)

    return refuse


async def many_objects_arrive_page_by_page(directory: Path) -> World:
    world = begun(directory)
    world.cut("eu-3")
    here, far = world.regions["eu-2"], world.regions["eu-3"]
    for _ in range(45):
        changes = [(0, world.a_new(PAIR)) for _ in range(60)]
        await here.objects.commit(PAIR, SERVICE, changes, durability="async")
    assert far.objects.lags_s(PAIR)["eu-2"] >= 0
    world.cuts.clear()
    await asyncio.sleep(60)  # what DESIGN promises after a cut
    assert len(far.holds(PAIR)) == 45 * 60
    return await ended(world)


SCENARIOS = (
    a_store_made_anew_is_read_from_its_start,
    a_newer_version_is_elsewhere,
    a_cut_off_region_makes_and_reads_and_the_same_name_stays_twice,
    a_writer_that_serves_nobody_changes_nothing,
    a_peer_copy_survives_its_home,
    what_names_a_tenant_is_refused_to_strangers_and_once_it_is_not_allowed,
    a_peer_that_offers_another_tenants_objects_or_rubbish_stores_nothing,
    an_object_that_is_none_stops_no_other,
    a_damaged_object_is_fetched_again,
    a_tenant_that_is_full_stops_no_other,
    a_tenant_that_nobody_answers_for_stops_no_other,
    many_objects_arrive_page_by_page,
)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_it_holds_that(scenario: Callable[[Path], Coroutine[Any, Any, World]], tmp_path: Path) -> None:
    run_virtually(lambda: scenario(tmp_path))


def test_a_tenant_that_cannot_be_read_takes_no_others_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However few turns a round has."""
    monkeypatch.setattr(object_replicas, "TURNS_A_ROUND", 1)
    run_virtually(lambda: a_tenant_that_is_full_stops_no_other(tmp_path))


# --- planted bugs --------------------------------------------------------------------------------------------------

Plant = Callable[[pytest.MonkeyPatch], None]


def takes_anything(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sqlite_objects, "judge", lambda held, offered: Verdict.STORE)


def knows_no_policy(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(CoreObjects, "may_exchange", lambda self, tenant, region: True)


def reads_on_in_another_store(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(object_door, "read_from", lambda asked, origin, head: asked.position)


def passes_over_an_object(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(object_replicas, "readable", lambda raws, tenant: readable(raws[1:], tenant))


def confirms_without_asking(patch: pytest.MonkeyPatch) -> None:
    async def said(*_: Any) -> None:
        pass

    patch.setattr(core_objects, "confirm_elsewhere", said)


def does_a_forward_again(patch: pytest.MonkeyPatch) -> None:
    honest = SqliteObjects.commit

    def forgetful(self: SqliteObjects, *words: Any, forward: str = "") -> Any:
        return honest(self, *words)

    patch.setattr(SqliteObjects, "commit", forgetful)


def changes_what_it_took_over_unread(patch: pytest.MonkeyPatch) -> None:
    async def unread(*_: Any) -> None:
        pass

    patch.setattr(CoreObjects, "_read_first", unread)


def forgets_the_purge(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SqliteObjects, "forbid", lambda self, tenant: None)


def every_region_is_a_writer(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(core_objects, "plan_writer", lambda changes, held, policy, here: here)


BUGS: dict[Plant, Callable[[Path], Coroutine[Any, Any, World]] | None] = {
    takes_anything: None,
    knows_no_policy: None,
    reads_on_in_another_store: a_store_made_anew_is_read_from_its_start,
    passes_over_an_object: None,
    confirms_without_asking: None,
    does_a_forward_again: None,
    changes_what_it_took_over_unread: a_newer_version_is_elsewhere,
    forgets_the_purge: None,
    every_region_is_a_writer: None,
}
"""And what finds it: seeds, or a scenario that they seldom come to."""


@pytest.mark.parametrize("plant", BUGS, ids=lambda plant: plant.__name__)
def test_every_planted_bug_is_found(plant: Plant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    scenario = BUGS[plant]
    with pytest.raises(Violation):
        if scenario is not None:
            run_virtually(lambda: scenario(tmp_path))
        else:
            for seed in range(SEEDS):
                run(tmp_path, seed)
