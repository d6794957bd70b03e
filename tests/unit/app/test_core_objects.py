"""Sealed objects in one Core: what the KMIP side is given, and what it is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from keymesh.adapters.system import SystemEntropy
from keymesh.app import core_objects
from keymesh.app.config_objects import ObjectsConfig
from keymesh.app.core_objects import CoreObjects
from keymesh.app.peer_link import PeerLink
from keymesh.control.rows import PolicyRow
from keymesh.model.errors import Integrity, Refused
from keymesh.orbital.objects import Conflict, SealedObject

POLICY = PolicyRow(version=1, home="eu-1", domain="eu", regions=("eu-1", "eu-2"), admins=("a",))
ONE = SealedObject("acme", "pay", "u1", "anywhere", 1, (b"name",), False, b"sealed")


def policy_of(tenant: str) -> PolicyRow:
    if tenant == "acme":
        return POLICY
    if tenant == "away":
        return PolicyRow(version=1, home="us-1", domain="us", regions=("us-1",), admins=("a",))
    raise Refused("not-found", "no such tenant here", field="tenant")


def opened(directory: Path) -> CoreObjects:
    return alone("eu-1", directory, policy_of)


def alone(region: str, directory: Path, policy: Callable[[str], PolicyRow]) -> CoreObjects:
    """A region that has no link to any other."""

    def no_link(there: str) -> PeerLink:
        raise Refused("unknown-region", there)

    return CoreObjects(
        region=region,
        directory=directory,
        policy_of=policy,
        tenants=lambda: ("acme",),
        link=no_link,
        peers=(),
        token=SystemEntropy().token,
        may_change=lambda *_: True,
    )


async def test_what_is_committed_is_read_and_found_and_is_at_home_here(tmp_path: Path) -> None:
    objects = opened(tmp_path)
    await objects.commit("acme", "pay", [(0, ONE)], durability="async")
    here = replace(ONE, home="eu-1")
    assert await objects.get("acme", "pay", "u1") == here
    assert await objects.get("acme", "mail", "u1") is None
    assert await objects.find("acme", "pay", b"name") == [here]
    assert await objects.find("acme", "pay", b"other") == []
    with pytest.raises(Conflict):
        await objects.commit("acme", "pay", [(0, ONE)], durability="async")
    objects.close()


async def test_what_is_found_is_all_of_it_in_order_up_to_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core_objects, "FIND_STEP", 3)
    objects = opened(tmp_path)
    for n in range(8):
        made = replace(ONE, uid=f"u{8 - n}", names=())
        await objects.commit("acme", "pay", [(0, made)], durability="async")
    assert [one.uid for one in await objects.find("acme", "pay", None)] == [f"u{8 - n}" for n in range(8)]
    monkeypatch.setattr(core_objects, "OBJECTS_FOUND_MAX", 7)
    with pytest.raises(Refused) as refused:
        await objects.find("acme", "pay", None)
    assert refused.value.code == "too-many"
    objects.close()


@pytest.mark.parametrize("tenant", ["away", "unknown"])
async def test_a_tenant_that_is_not_allowed_here_is_as_one_that_is_not(tmp_path: Path, tenant: str) -> None:
    objects = opened(tmp_path)
    for call in (
        objects.get(tenant, "pay", "u1"),
        objects.find(tenant, "pay", None),
        objects.commit(tenant, "pay", [(0, replace(ONE, namespace=tenant))], durability="async"),
    ):
        with pytest.raises(Refused) as refused:
            await call
        assert refused.value.code == "not-found"
    objects.close()


async def test_a_damaged_file_takes_objects_away_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / core_objects.FILE).write_bytes(b"no database " * 400)
    objects = opened(tmp_path)
    assert objects.fault is not None
    for call in (objects.get("acme", "pay", "u1"), objects.purge("acme")):
        with pytest.raises(Integrity):
            await call
    objects.forbid("acme")
    objects.close()


async def test_a_purged_tenants_objects_are_gone_and_stay_so(tmp_path: Path) -> None:
    objects = opened(tmp_path)
    await objects.commit("acme", "pay", [(0, ONE)], durability="async")
    objects.forbid("acme")
    await objects.purge("acme")
    await objects.purge("acme")
    assert await objects.get("acme", "pay", "u1") is None
    with pytest.raises(Refused) as refused:
        await objects.commit("acme", "pay", [(0, ONE)], durability="async")
    assert refused.value.code == "destroyed"
    objects.close()


async def test_operators_see_what_is_held_and_what_is_wrong(tmp_path: Path) -> None:
    objects = opened(tmp_path)
    await objects.commit("acme", "pay", [(0, ONE)], durability="async")
    assert objects.describe() == {
        "code": "ok",
        "tenants": {"acme": {"objects": 1, "behind_ms": {}}},
        "forks": 0,
        "damaged": 0,
        "unreadable": 0,
    }
    assert objects.behind_s("acme") == objects.behind_s("unknown") == 0
    objects.store._query("UPDATE objects SET raw = CAST('x' AS BLOB)")
    with pytest.raises(Integrity):
        await objects.get("acme", "pay", "u1")
    assert await objects.find("acme", "pay", None) == []
    assert objects.describe()["damaged"] == 2
    objects.close()


async def test_a_tenant_of_one_region_can_have_no_peer_and_nothing_is_stored(tmp_path: Path) -> None:
    single = PolicyRow(version=1, home="eu-1", domain="eu", regions=("eu-1",), admins=("a",))
    objects = alone("eu-1", tmp_path, lambda _: single)
    with pytest.raises(Refused) as refused:
        await objects.commit("acme", "pay", [(0, ONE)], durability="peer")
    assert refused.value.code == "no-peer"
    assert await objects.get("acme", "pay", "u1") is None
    objects.close()


def test_durability_is_the_regions_or_the_services() -> None:
    config = ObjectsConfig(peer_services=("acme/pay",))
    config.check()
    assert config.durability_of("acme", "pay") == "peer"
    assert config.durability_of("acme", "mail") == config.durability_of("other", "pay") == "async"
    for bad, field in (
        (ObjectsConfig(durability="both"), "durability"),
        (ObjectsConfig(peer_services=("acme",)), "peer_services[0]"),
        (ObjectsConfig(peer_services=("acme/pay", "acme/pay")), "peer_services[1]"),
    ):
        with pytest.raises(Refused) as refused:
            bad.check()
        assert refused.value.field == field
