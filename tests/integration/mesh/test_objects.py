"""Sealed objects on real processes: they reach the other region, outlive their home, and end with their tenant.

The test speaks as a Core of the tenant's other region does, with that Core's own certificate.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from tests.integration.mesh.live import EU, FILES, HOME, OTHER, PATIENCE_S, US, LiveMesh, keymesh, until
from tests.integration.mesh.test_secrets import files_under, finds, spellings

from keymesh.access.identity import CoreIdentity
from keymesh.adapters.http_client import PeerClient
from keymesh.adapters.http_messages import OCTETS
from keymesh.adapters.tls import Credentials, MeshTls
from keymesh.app.config_objects import ObjectsConfig
from keymesh.app.core_objects import FILE, CoreObjects
from keymesh.app.object_writers import forward_to_writer
from keymesh.app.peer_link import PeerLink
from keymesh.control.rows import PolicyRow
from keymesh.model.errors import KeymeshError, Refused, Unavailable
from keymesh.model.ids import MeshName
from keymesh.orbital.object_sync import CHANGES_PATH, OFFER_PATH, PageAnswer, from_octets, offer_of, to_octets
from keymesh.orbital.objects import Conflict, SealedObject, object_from_bytes

RPO_S = 60.0


def link(mesh: LiveMesh, me: str, to: str) -> PeerLink:
    """From region ``me``'s Core to ``to``'s, as it is, past the links that tests cut."""
    tls = MeshTls(Credentials(mesh.layout.core(me) / "tls.pem"), MeshName(mesh.plan.mesh), mesh.layout.ca.read_bytes())
    context = tls.client(lambda i: isinstance(i, CoreIdentity) and i.region == to)
    return PeerLink([PeerClient(f"https://127.0.0.1:{mesh.plan.regions[to].port}", context)])


@asynccontextmanager
async def linked(mesh: LiveMesh, me: str, to: str) -> AsyncIterator[PeerLink]:
    made = link(mesh, me, to)
    try:
        yield made
    finally:
        await made.close()


def new(tenant: str, sealed: bytes, *names: bytes, service: str = FILES) -> SealedObject:
    return SealedObject(tenant, service, os.urandom(8).hex(), HOME[US], 1, names, False, sealed)


async def commit(mesh: LiveMesh, me: str, to: str, *changes: tuple[int, SealedObject]) -> list[SealedObject]:
    """Have ``to``'s Core do it."""
    tenant, service = changes[0][1].namespace, changes[0][1].service
    async with linked(mesh, me, to) as there:
        return await forward_to_writer(there, to, tenant, service, changes, os.urandom(8).hex())


async def held(mesh: LiveMesh, me: str, to: str, tenant: str) -> dict[str, SealedObject]:
    """All objects of ``tenant`` that ``to``'s Core shows to ``me``'s."""
    found: dict[str, SealedObject] = {}
    async with linked(mesh, me, to) as there:
        after, origin, more = 0, "", True
        while more:
            query = {"after": str(after), "origin": origin}
            _, raw = await there.request("GET", CHANGES_PATH.format(tenant=tenant), query=query)
            page = from_octets(raw, PageAnswer)
            objects = [object_from_bytes(one) for one in page.objects]
            found |= {one.uid: one for one in objects}
            after, origin, more = page.upto, page.origin, page.more
    return found


async def arrives(mesh: LiveMesh, one: SealedObject, me: str, to: str) -> None:
    async def there() -> bool:
        try:
            return (await held(mesh, me, to, one.namespace)).get(one.uid) == one
        except KeymeshError:
            return False

    await until(there, f"{one.uid} in {to}", within_s=RPO_S + PATIENCE_S)


async def code_of(work: object) -> str:
    with pytest.raises(KeymeshError) as refused:
        await work  # type: ignore[misc]
    return refused.value.code


async def test_an_object_reaches_the_other_region_and_has_one_writer(mesh: LiveMesh) -> None:
    home, far = HOME[US], OTHER[US]
    (one,) = await commit(mesh, far, home, (0, new(US, b"sealed-1", b"name-1")))
    assert (one.home, one.version) == (home, 1)
    await arrives(mesh, one, home, far)
    changed = replace(one, version=2, sealed=b"sealed-2")
    assert await code_of(commit(mesh, home, far, (1, changed))) == "writer-away"  # the other is its writer
    assert await commit(mesh, far, home, (1, changed)) == [changed]
    with pytest.raises(Conflict):
        await commit(mesh, far, home, (1, replace(changed, sealed=b"sealed-3")))
    with pytest.raises(Conflict) as taken:
        await commit(mesh, home, far, (0, new(US, b"sealed-4", b"name-1")))
    assert taken.value.name_taken
    await arrives(mesh, changed, home, far)
    shown = (await mesh.status(far))["objects"]
    assert shown["code"] == "ok" and shown["tenants"][US]["objects"] >= 1
    assert 0 <= shown["tenants"][US]["behind_ms"][home] < RPO_S * 1_000
    assert shown["forks"] == shown["damaged"] == shown["unreadable"] == 0
    assert (await mesh.cli("region", "show", far))["objects"]["tenants"][US]["objects"] >= 1
    table = await asyncio.to_thread(keymesh, "region", "show", far, "--dir", mesh.layout.root)
    assert "KMIP objects" in table.stdout and "may be behind" in table.stdout, table
    async with linked(mesh, home, far) as there:
        _, metrics = await there.request("GET", "/metrics")
    held = [line for line in metrics.decode().splitlines() if line.startswith("keymesh_core_objects")]
    assert any(line.startswith(f'keymesh_core_objects_lag_seconds{{region="{home}",tenant="{US}"}}') for line in held)
    assert 'keymesh_core_objects_faults{what="forks"} 0.0' in held


async def test_no_region_outside_is_told_anything(mesh: LiveMesh) -> None:
    """American Cores ask for the European tenant, and the other way round."""
    (one,) = await commit(mesh, OTHER[EU], HOME[EU], (0, new(EU, b"CANARY-of-a-european-object")))
    await arrives(mesh, one, HOME[EU], OTHER[EU])
    for me, to in ((HOME[US], HOME[EU]), (HOME[EU], HOME[US])):
        tenant = EU if to == HOME[EU] else US
        assert await code_of(held(mesh, me, to, tenant)) == "not-found"
        async with linked(mesh, me, to) as there:
            _, heads = await there.request("GET", "/v1/objects/heads", query={"after": "0"})
            assert tenant.encode() not in heads
            body = to_octets(offer_of([new(tenant, b"foisted")]))
            offer = there.request("POST", OFFER_PATH.format(tenant=tenant), body, content_type=OCTETS)
            assert await code_of(offer) == "not-found"
        assert await code_of(commit(mesh, me, to, (0, new(tenant, b"foisted")))) == "writer-away"
    american = [mesh.layout.core(region) for region in (HOME[US], OTHER[US])]
    assert finds(spellings(b"CANARY-of-a-european-object"), files_under(*american)) == []
    # neither may an Edge or an administrator
    with pytest.raises(Refused) as refused:
        await mesh.client.call("GET", CHANGES_PATH.format(tenant=US), target=HOME[US])
    assert refused.value.code == "denied"


async def test_two_regions_that_do_not_reach_each_other_go_on_and_join_again(mesh: LiveMesh) -> None:
    home, far = HOME[US], OTHER[US]
    (one,) = await commit(mesh, far, home, (0, new(US, b"before")))
    await arrives(mesh, one, home, far)
    await mesh.link("cut", far, home)
    await mesh.link("cut", home, far)
    (made,) = await commit(mesh, home, far, (0, new(US, b"made while cut off")))
    assert made.home == far
    (at_home,) = await commit(mesh, far, home, (1, replace(one, version=2, sealed=b"changed meanwhile")))
    there = await held(mesh, home, far, US)
    assert there[one.uid] == one and made.uid in there
    await mesh.link("heal")
    await arrives(mesh, made, far, home)
    await arrives(mesh, at_home, home, far)


async def test_objects_outlive_their_home_and_fill_a_new_disk(mesh: LiveMesh) -> None:
    """Tier 2: the home is dead; the other region has the same bytes and makes new ones.  Then its disk is replaced."""
    home, far = HOME[US], OTHER[US]
    (one,) = await commit(mesh, far, home, (0, new(US, b"survives")))
    await arrives(mesh, one, home, far)
    await mesh.hold(f"core-{home}")
    assert (await held(mesh, home, far, US))[one.uid] == one
    (made,) = await commit(mesh, home, far, (0, new(US, b"made after")))
    for file in mesh.layout.core(home).glob(f"{FILE}*"):
        file.unlink()
    mesh.release(f"core-{home}")
    await arrives(mesh, one, far, home)
    await arrives(mesh, made, far, home)

    async def changed() -> bool:  # once it could ask the other region for a newer version
        try:
            await commit(mesh, far, home, (1, replace(one, version=2, sealed=b"again")))
        except Unavailable:
            return False
        except Conflict:  # done by a try that nobody answered for
            return True
        return True

    await until(changed, "the home changing what it got back")
    assert (await held(mesh, far, home, US))[one.uid].sealed == b"again"


async def test_with_durability_peer_a_commit_waits_for_the_other_region(mesh: LiveMesh, tmp_path: Path) -> None:
    """This process stands in for the far Core, which is stopped: its store here, the home's Core as it is."""
    home, far = HOME[US], OTHER[US]
    await mesh.hold(f"core-{far}")
    policy = PolicyRow(version=1, home=home, domain="us", regions=tuple(sorted((home, far))), admins=("a",))
    to_home = link(mesh, far, home)
    objects = CoreObjects(
        region=far,
        directory=tmp_path,
        policy_of=lambda _: policy,
        tenants=lambda: (US,),
        link=lambda _: to_home,
        peers=(home,),
        token=os.urandom,
        may_change=lambda *_: True,
        config=ObjectsConfig(durability="peer"),
    )
    try:
        durability = objects.durability_of(US, FILES)
        one = new(US, b"in two regions at once")
        await objects.commit(US, FILES, [(0, one)], durability=durability)
        assert (await held(mesh, far, home, US))[one.uid] == replace(one, home=far)
        (theirs,) = await commit(mesh, far, home, (0, new(US, b"of the home")))
        await objects.replicas[home].round()
        assert await objects.get(US, FILES, theirs.uid) == theirs
        changed = replace(theirs, version=2, sealed=b"by way of its writer")
        await objects.commit(US, FILES, [(1, changed)], durability=durability)
        assert await objects.get(US, FILES, theirs.uid) == changed
        await mesh.hold(f"core-{home}")
        alone = new(US, b"kept, not confirmed")
        assert await code_of(objects.commit(US, FILES, [(0, alone)], durability=durability)) == "no-peer"
        assert await objects.get(US, FILES, alone.uid) == replace(alone, home=far)
        far_change = objects.commit(US, FILES, [(2, replace(changed, version=3))], durability=durability)
        with pytest.raises(Unavailable, match=home) as away:
            await far_change
        assert away.value.code == "writer-away"
    finally:
        objects.close()
        await to_home.close()
