"""The customer's own hand on L1, through their own KMS: disabled, denied, unreachable, switched; the exported chain."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.integration.mesh.live import EU, FILES, TIMING, US, Door, LiveMesh, until, using

from keymesh.adapters.customer_kms import OwnerClient
from keymesh.app import customer_kms
from keymesh.crypto.blob import blob_kid, open_l4
from keymesh.crypto.chain import chain_from_json, open_path, path_to
from keymesh.crypto.pages import KeyPages
from keymesh.crypto.xaes import XaesKey
from keymesh.model.errors import Integrity, Refused

PULL_BOUND_S = TIMING.l1_probe_ms / 1000 + 10


@pytest.fixture
async def owner(mesh: LiveMesh) -> AsyncIterator[OwnerClient]:
    """The owner, who in the end lets everybody in again."""
    async with mesh.owner() as owner:
        yield owner
        await owner.allow_ca(mesh.layout.ca.read_text(encoding="ascii"), kinds=("core",))
        for key in (US, EU):
            await owner.enable(key)


async def serve_again(*doors: Door) -> None:
    async def all_of_them() -> bool:
        return not [door for door in doors if await door.refusal()]

    await until(all_of_them, "serving again")


async def test_disabled_at_the_customer_and_nobody_told_us(mesh: LiveMesh, owner: OwnerClient) -> None:
    here, away = await mesh.doors(EU)
    other, _ = await mesh.doors(US)
    async with using(here, away, other) as uses:
        await owner.disable(EU)
        pulled = time.time()
        for region in ("eu-central", "eu-west"):
            await mesh.reaches(region, EU, "closed", within_s=PULL_BOUND_S)
        await asyncio.sleep(0.5)
        for use in uses[:2]:
            assert use.last_served <= pulled + PULL_BOUND_S
            assert await use.door.refusal() != ""
        for region in ("eu-central", "eu-west"):
            assert (await mesh.status(region))["tenants"][EU]["loaded"] == 0
        assert not uses[2].errors  # the other tenant never noticed
        await owner.enable(EU)
        await serve_again(here, away)
    assert not [blob for use in uses for blob in use.wrong]
    blob, key = uses[0].minted[0]
    assert await away.open(blob) == key


async def test_disabled_at_one_replica_closes_everywhere(mesh: LiveMesh, owner: OwnerClient) -> None:
    """Its own region hears the no; the others ask every replica, and one of them says no."""
    here, away = await mesh.doors(EU)
    await owner.disable(EU, replica="eu-west")
    for region in ("eu-west", "eu-central"):
        await mesh.reaches(region, EU, "closed", within_s=PULL_BOUND_S)
    assert await here.refusal() != "" and await away.refusal() != ""
    await owner.enable(EU)
    await serve_again(here, away)


async def test_one_regions_broken_credential_does_not_kill_the_tenant_elsewhere(
    mesh: LiveMesh, owner: OwnerClient
) -> None:
    here, away = await mesh.doors(EU)
    ca_pem = mesh.layout.ca.read_text(encoding="ascii")
    prefixes = tuple(f"spiffe://{region}.{mesh.plan.mesh}/" for region in ("eu-central", "us-east", "us-west"))
    async with using(here) as (use,):
        await owner.allow_ca(ca_pem, kinds=("core",), uri_prefixes=prefixes)
        await mesh.reaches("eu-west", EU, "closed", within_s=PULL_BOUND_S)
        assert await away.refusal() != ""
        await asyncio.sleep(3 * TIMING.l1_probe_ms / 1000)
        assert (await mesh.modes("eu-central"))[EU] == "synced"
        assert use.last_served > time.time() - 1.0
        await owner.allow_ca(ca_pem, kinds=("core",))
        await serve_again(away)


async def test_unreachable_is_tolerated_until_the_l1_ttl(mesh: LiveMesh) -> None:
    here, _ = await mesh.doors(US)
    async with using(here) as (use,):
        await mesh.hold("customer-kms")
        gone = time.time()
        await asyncio.sleep(TIMING.l1_ttl_ms / 2000)
        assert use.last_served > gone + TIMING.l1_ttl_ms / 2000 - 1.0  # not a denial
        for region, tenant in (("us-east", US), ("eu-west", EU)):
            await mesh.reaches(region, tenant, "closed", within_s=TIMING.l1_ttl_ms / 1000 + 2)
        await asyncio.sleep(0.3)
        assert use.last_served <= gone + TIMING.l1_ttl_ms / 1000
        mesh.release("customer-kms")
        back = time.time()

        async def again() -> bool:
            return use.last_served > back

        await until(again, "serving again once the KMS answers")


async def test_switched_to_another_customer_kms_and_opened_offline_without_the_mesh(
    mesh: LiveMesh, tmp_path: Path
) -> None:
    """Data stays as it is; the old root key is no longer needed; the export opens with the new one alone."""
    tenant = "movingtenant"
    await mesh.cli("tenant", "create", tenant, "--home", "us-west", "--regions", "us-east,us-west")
    await mesh.cli("service", "create", FILES, "--tenant", tenant)
    here, away = await mesh.door("us-west", tenant), await mesh.door("us-east", tenant)
    blob, key = await here.mint()
    before = await mesh.cli("tenant", "export", tenant, "-o", tmp_path / "before.chain")
    assert before["bytes"] > 0
    assert (await mesh.cli("tenant", "export", tenant, "-o", tmp_path / "before.chain", code=1))["error"]["code"] == (
        "exists"
    )
    theirs = customer_kms.running(
        tmp_path / "kms", {"us-east": 0, "us-west": 0}, allow_ca=(mesh.layout.ca.read_text(encoding="ascii"),)
    )
    async with theirs, OwnerClient.open(tmp_path / "kms") as new_owner, mesh.owner() as old_owner:
        await new_owner.create("newroot")
        shown = await mesh.cli("tenant", "switch-l1", tenant, "--l1", f"kms:{tmp_path / 'kms'}#newroot")
        assert [b["state"] for b in shown["bindings"] if b["state"] != "retired"] == ["active"]
        await old_owner.disable(tenant)
        await asyncio.sleep(2 * TIMING.l1_probe_ms / 1000)
        assert await here.open(blob) == key and await away.open(blob) == key
        await mesh.cli("tenant", "export", tenant, "-o", tmp_path / "after.chain")
        chain = chain_from_json((tmp_path / "after.chain").read_bytes())
        assert [binding.id for binding in chain.bindings] == [l2.binding_id for l2 in chain.l2][-1:]
        raw = base64.b64decode(blob)
        path = path_to(chain, blob_kid(raw).hex())
        pages = KeyPages(allow_unlocked=True)
        with open_path(chain, path, await new_owner.unwrap("newroot", path.wrapped_e), pages) as l3:
            assert open_l4(XaesKey(l3.reveal()), blob_kid(raw), tenant, {}, raw) == base64.b64decode(key)
        old = chain_from_json((tmp_path / "before.chain").read_bytes())
        old_path = path_to(old, blob_kid(raw).hex())
        with pytest.raises((Integrity, Refused)):
            await new_owner.unwrap("newroot", old_path.wrapped_e)
        with pytest.raises(Refused):
            await old_owner.unwrap(tenant, old_path.wrapped_e)  # disabled: the exported chain is dead with it
        with pytest.raises(Integrity):
            open_path(chain, path, bytes(32), pages)
        await mesh.cli("suspend", f"tenant:{tenant}", "--no-wait")
        await mesh.cli("revoke", f"tenant:{tenant}", "--no-wait")
