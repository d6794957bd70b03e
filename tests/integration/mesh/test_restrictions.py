"""The kill switch in every scope, from every side: final, four-eyed, narrow, and in force without the Registry."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from tests.integration.mesh.live import EU, FILES, HOME, MAIL, OTHER, TIMING, US, LiveMesh, until, using

from keymesh.app.admin_client import new_command_id
from keymesh.app.signing_keys import load_signer
from keymesh.control.trust import make_authority
from keymesh.crypto.dsse import envelope_to_json
from keymesh.model import strict_json
from keymesh.model.errors import Integrity, Refused


async def test_revocation_is_final(mesh: LiveMesh, tmp_path: Path) -> None:
    service = "doomedservice"
    await mesh.cli("service", "create", service, "--tenant", EU)
    here, away = await mesh.doors(EU, service)
    files = await mesh.door(HOME[EU], EU, FILES)
    blob, _ = await here.mint()
    scope = f"service:{EU}/{service}"
    done = await mesh.cli("revoke", scope, "-o", tmp_path / "c.json")
    assert done["status"] == "certified"
    assert (await mesh.cli("verify", tmp_path / "c.json"))["action"] == "revoke"
    for words in (("resume", scope), ("revoke", scope), ("suspend", scope)):
        refused = await mesh.cli(*words, code=1)
        assert refused["error"]["code"] in ("revoked", "already"), words
    for door in (here, away):
        assert await door.refusal(blob) != ""
        assert await door.refusal() != ""
    assert not await files.refusal()
    for name in ("core-eu-central", "edge-eu-central"):  # nor does a restart bring it back
        mesh.kill(name)
    await mesh.settled()
    assert await here.refusal(blob) != ""
    keys = (await mesh.client.call("GET", f"/v1/tenants/{EU}/keys"))["keys"]
    assert {k["state"] for k in keys if k["key"] == f"l3/{service}"} == {"revoked"}
    assert (await mesh.cli("key", "rotate", scope, code=1))["error"]["code"] == "revoked"


async def test_one_key_version_and_one_service_leave_the_others_working(mesh: LiveMesh) -> None:
    here, away = await mesh.doors(US, MAIL)
    files_here, files_away = await mesh.doors(US, FILES)
    old, old_key = await here.mint()
    rotated = await mesh.cli("key", "rotate", f"service:{US}/{MAIL}")
    await mesh.settled()

    def kid(blob: str) -> str:
        return blob[4:20]

    made: list[tuple[str, str]] = []

    async def newer() -> bool:
        made.append(await here.mint())
        return kid(made[-1][0]) != kid(old)

    await until(newer, "the new version minting")
    new, new_key = made[-1]
    scope = f"key:{US}/{MAIL}@{rotated['version'] - 1}"
    done = await mesh.command(US, "suspend", {"scope": scope})
    await mesh.certificate(done["command_id"])
    for door in (here, away):
        assert await door.refusal(old) != ""

        async def opens(door: Any = door) -> bool:
            return not await door.refusal(new) and not await door.refusal()

        await until(opens, "the other version opening", within_s=5)
        assert await door.open(new) == new_key
    assert not await files_here.refusal() and not await files_away.refusal()
    await mesh.resume(scope, US)

    async def lifted() -> bool:
        return not await here.refusal(old)

    await until(lifted, "the old version opening again")
    assert await here.open(old) == old_key

    done = await mesh.command(US, "suspend", {"scope": f"service:{US}/{MAIL}"})
    await mesh.certificate(done["command_id"])
    for door in (here, away):
        assert await door.refusal(new) != "" and await door.refusal(old) != ""
    assert not await files_here.refusal() and not await files_away.refusal()
    await mesh.resume(f"service:{US}/{MAIL}", US)


async def test_wide_scopes_want_two_different_officers(mesh: LiveMesh, tmp_path: Path) -> None:
    keys = mesh.layout.keys
    (tmp_path / "junk.pem").write_text("junk")
    scope = "region:eu-west"
    for approve in (
        (),
        ("--approve-key", keys / "officer-1.pem"),
        ("--approve-key", keys / "officer-2.pem", "--approve-key", keys / "officer-2.pem"),
        ("--approve-key", keys / "tenant-admin.pem"),
        ("--approve-key", keys / "root-1.pem", "--approve-key", keys / "root-2.pem"),
        ("--approve-key", tmp_path / "junk.pem"),
        ("--approve-key", tmp_path / "none.pem"),
    ):
        refused = await mesh.cli("suspend", scope, *approve, code=1)
        assert refused["error"]["message"], approve
    region = await mesh.client.call("GET", "/v1/regions/eu-west")
    assert region["state"] == "active"


async def test_approvals_are_for_one_command_and_expire(mesh: LiveMesh) -> None:
    officers = [load_signer(mesh.layout.keys / f"officer-{n}.pem").signer for n in (1, 2)]
    args = {"scope": "region:eu-west", "reason": "", "abandon_children": False}
    now = time.time_ns() // 1_000_000

    async def ask(**signed: Any) -> Any:
        command_id = new_command_id()
        said = {"mesh": mesh.plan.mesh, "namespace": "mesh", "command_id": command_id, "kind": "suspend", "args": args}
        envelope = make_authority(**{**said, "not_after": now + 60_000, "signers": officers, **signed})
        authority = [strict_json.loads(envelope_to_json(envelope), max_bytes=64 * 1024)]
        body = {"namespace": "mesh", "kind": "suspend", "args": args, "authority": authority}
        return await mesh.client.call("POST", "/v1/commands", body, command_id=command_id)

    wrongs: tuple[dict[str, Any], ...] = (
        {"not_after": now - 1},
        {"command_id": "another"},
        {"kind": "resume"},
        {"args": {**args, "scope": "region:eu-central"}},
        {"mesh": "other"},
        {"namespace": EU},
        {"signers": [officers[0], officers[0]]},
        {"signers": officers[:1]},
        {"signers": []},
    )
    for signed in wrongs:
        with pytest.raises((Refused, Integrity)):
            await ask(**signed)
    assert (await mesh.client.call("GET", "/v1/regions/eu-west"))["state"] == "active"


async def test_a_region_and_the_whole_mesh_are_suspended_and_resumed(mesh: LiveMesh) -> None:
    eu_home, eu_away = await mesh.doors(EU)
    us_home, _ = await mesh.doors(US)
    blob, key = await eu_home.mint()
    approve = ("--approve-key", mesh.layout.keys / "officer-2.pem")
    done = await mesh.cli("suspend", "region:eu-west", *approve, "-o", mesh.layout.root / "region.json")
    assert (done["status"], done["holders"]) == ("certified", 1)
    assert await eu_away.refusal(blob) != ""
    assert not await eu_home.refusal(blob)
    await mesh.cli("resume", "region:eu-west", code=1)
    await mesh.cli("resume", "region:eu-west", *approve)

    async def lifted() -> bool:
        return not await eu_away.refusal(blob)

    await until(lifted, "eu-west serving again")
    done = await mesh.cli("suspend", "mesh", *approve, "-o", mesh.layout.root / "mesh.cert")
    assert (done["status"], done["holders"]) == ("certified", 4)
    for door in (eu_home, eu_away, us_home):
        assert await door.refusal() != ""
    await mesh.cli("resume", "mesh", *approve)

    async def all_lifted() -> bool:
        return not [door for door in (eu_home, eu_away, us_home) if await door.refusal()]

    await until(all_lifted, "the mesh serving again")
    assert await eu_away.open(blob) == key


async def test_suspended_with_the_registry_dead(mesh: LiveMesh) -> None:
    """At once in the regions; an entry, certified, when the Registry is back."""
    here, away = await mesh.doors(US)
    blob, key = await here.mint()
    await mesh.hold("registry")
    async with using(here, away) as uses:
        await asyncio.sleep(0.3)
        said = await mesh.cli("suspend", f"tenant:{US}")
        told_at = time.time()
        assert (said["status"], said["regions"]) == ("local", [HOME[US], OTHER[US]])
        await asyncio.sleep(0.5)
        for use in uses:
            assert use.last_served <= told_at + 0.2
        for region in (HOME[US], OTHER[US]):
            assert f"tenant:{US} (local)" in (await mesh.status(region))["tenants"][US]["restricted"]
        before = mesh.pid("core-us-west")
        mesh.kill("core-us-west")  # durable where it was taken

        async def restarted() -> bool:
            child = mesh.child("core-us-west")
            return bool(child["ready"] and child["pid"] != before)

        await until(restarted, "core-us-west starting again")
        await mesh.cli("resume", f"tenant:{US}", code=3)  # a grant needs the Registry
        mesh.release("registry")
        await mesh.committed(US, said["command"]["command_id"])
        found = await mesh.certificate(said["command"]["command_id"])
        assert found["action"] == "suspend"

        async def recorded() -> bool:
            return not [r for r in (HOME[US], OTHER[US]) if (await mesh.status(r))["local_suspensions"]]

        await until(recorded, "the local suspensions becoming the entry")
        for use in uses:
            assert use.last_served <= told_at + 0.2
        assert mesh.log_entries(US)[said["command"]["command_id"]]
        await mesh.resume(f"tenant:{US}", US)
        since = time.time()

        async def again() -> bool:
            return all(use.last_served > since for use in uses)

        await until(again, "both doors serving again")
    assert await away.open(blob) == key
    assert not [blob for use in uses for blob in use.wrong]


async def test_a_suspension_reaches_every_edge_within_a_second(mesh: LiveMesh) -> None:
    """The push bound, on a quiet mesh; the limit here is generous because the machine is shared."""
    here, away = await mesh.doors(EU)
    async with using(here, away, pause_s=0.005) as uses:
        await asyncio.sleep(0.3)
        done = await mesh.command(EU, "suspend", {"scope": f"tenant:{EU}"})
        found = await mesh.certificate(done["command_id"])
        await asyncio.sleep(0.3)
        for use in uses:
            assert use.last_served * 1000 <= found["t"]
            assert use.last_served * 1e9 <= found["append_started_ns"] + 1e9
        assert found["t"] - found["committed_at"] < TIMING.edge_ttl_ms  # by acknowledgement, not by waiting
        await mesh.resume(f"tenant:{EU}", EU)


async def test_what_does_not_exist_can_be_restricted_and_the_command_says_so(mesh: LiveMesh) -> None:
    for scope in (f"service:{US}/nosuch", f"key:{US}/{FILES}@999"):
        done = await mesh.cli("suspend", scope, "-o", mesh.layout.root / "nosuch.json")
        assert done["status"] == "certified" and scope in done["warning"]
        await mesh.resume(scope, US)
    done = await mesh.cli("suspend", f"service:{US}/{MAIL}", "-o", mesh.layout.root / "known.json")
    assert "warning" not in done
    await mesh.resume(f"service:{US}/{MAIL}", US)


async def test_commands_that_cannot_be_are_refused_and_leave_nothing(mesh: LiveMesh) -> None:
    before = (await mesh.client.call("GET", "/v1/status"))["index"]
    for namespace, kind, args in (
        (US, "suspend", {"scope": f"tenant:{EU}"}),
        (US, "suspend", {"scope": "mesh"}),
        (US, "resume", {"scope": f"service:{US}/{FILES}"}),
        (US, "suspend", {"scope": f"tenant:{US}", "surprise": 1}),
        (US, "key.create", {"key": f"l3/{FILES}", "version": 9, "kid": "0" * 32, "digest": "0" * 64, "parent": "x"}),
        (US, "key.want", {"key": f"l3/{FILES}", "version": 77}),
        (US, "key.want", {"key": "l1", "version": 1}),
        (US, "unheard.of", {}),
        ("nobody", "suspend", {"scope": "tenant:nobody"}),
        ("mesh", "genesis", {}),
        ("mesh", "region.rotate-ivk", {"region": "eu-west", "generation": 99}),
    ):
        try:
            done = await mesh.command(namespace, kind, args)
        except (Refused, Integrity):
            continue
        raise AssertionError((namespace, kind, args, done))
    assert (await mesh.client.call("GET", "/v1/status"))["index"] == before
