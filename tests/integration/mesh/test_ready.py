"""``keymesh ready`` on a running mesh: what is missing where, before somebody needs it."""

from __future__ import annotations

from pathlib import Path

from tests.integration.mesh.live import EU, US, LiveMesh

from keymesh.app.core_ready import FILE


async def test_every_region_says_what_it_could_take_and_keeps_what_it_said(mesh: LiveMesh) -> None:
    shown = await mesh.cli("ready")
    assert shown["ok"] is True and shown["why"] == []
    assert set(shown["regions"]) == set(mesh.plan.regions)
    assert set(shown["tenants"][EU]["regions"]) == {"eu-central", "eu-west"}, "where it might have to go, no further"
    assert shown["tenants"][US]["copies"] == 2
    assert set(shown["tenants"][US]["regions"]["us-west"]["l1"].values()) == {"ok"}
    one = await mesh.cli("ready", "--tenant", EU)
    assert set(one["tenants"]) == {EU} and set(one["regions"]) == {"eu-central", "eu-west"}
    newest = await mesh.cli("ready", "--newest")
    assert newest["regions"]["us-east"]["at"] == shown["regions"]["us-east"]["at"]
    file: Path = mesh.layout.core("us-west") / FILE
    with file.open("ab") as damaged:
        damaged.write(b"{torn\n")
    kept = await mesh.cli("ready", "--kept")
    assert kept["regions"]["us-west"][-1]["ok"] is True
    assert (await mesh.cli("ready", "--tenant", "nobody", code=1))["error"]["field"] == "tenant"


async def test_a_root_key_that_one_replica_refuses_and_a_dead_core_are_found(mesh: LiveMesh) -> None:
    async with mesh.owner() as owner:
        await owner.disable(EU, replica="eu-west")
        shown = await mesh.cli("ready", "--tenant", EU, code=1)
        await owner.enable(EU)
    assert [f"{EU}: {region}: L1 denies it (eu-west)" for region in ("eu-central", "eu-west")] == shown["why"]
    await mesh.hold("core-eu-west")
    shown = await mesh.cli("ready", code=1)
    mesh.release("core-eu-west")
    assert "eu-west: its Core does not answer" in shown["why"]
    assert shown["tenants"][EU]["ok"] is False and shown["tenants"][US]["ok"] is True
