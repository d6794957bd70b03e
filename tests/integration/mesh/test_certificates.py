"""The file that a kill switch leaves behind: its place is looked at first, and losing it loses nothing."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from tests.integration.mesh.live import US, LiveMesh, until


async def held_service(mesh: LiveMesh) -> str:
    """A service whose lease an Edge holds, so long that no certificate comes about while that Edge is stopped."""
    name = f"cert-{time.time_ns() % 10**9}"
    await mesh.cli("service", "create", f"{US}/{name}", "--edge-ttl", "5m")
    door = await mesh.door("us-east", US, name)
    await door.mint()
    return f"service:{US}/{name}"


async def restricted(mesh: LiveMesh, scope: str) -> bool:
    shown = await mesh.client.call("GET", f"/v1/restrictions/{US}")
    return any(r["scope"] == scope and r["state"] == "suspended" for r in shown["restrictions"])


async def test_a_certificate_without_a_place_is_refused_before_anything_is_asked(
    mesh: LiveMesh, tmp_path: Path
) -> None:
    scope = await held_service(mesh)
    (tmp_path / "file").write_bytes(b"")
    for output in (tmp_path / "absent" / "c.json", tmp_path / "file" / "c.json", tmp_path):
        for action in ("suspend", "revoke"):
            refused = await mesh.cli(action, scope, "-o", output, code=2)
            assert (refused["error"]["code"], refused["error"]["field"]) == ("not-writable", "output")
            assert str(output) in refused["error"]["message"]
    assert not await restricted(mesh, scope)
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]
    done = await mesh.cli("suspend", scope, "-o", tmp_path / "absent" / "c.json", "--no-wait")  # takes no file
    assert done["status"] == "pending" and await restricted(mesh, scope)
    await mesh.resume(scope, US)


async def test_a_certificate_that_could_not_be_kept_is_fetched_again(mesh: LiveMesh, tmp_path: Path) -> None:
    scope = await held_service(mesh)
    place = tmp_path / "usb-stick"
    place.mkdir()
    pid = mesh.pause("edge-us-east")
    try:
        asked = asyncio.create_task(mesh.cli("suspend", scope, "-o", place / "c.json", code=1))
        await until(lambda: restricted(mesh, scope), "the suspension")
        place.rmdir()
    finally:
        mesh.unpause(pid)
    done = await asked
    assert (done["ok"], done["status"], done["file"]) == (False, "certified", None)
    assert done["error"]["code"] == "not-written"
    assert f"{scope} is suspended" in done["error"]["message"]
    assert done["command_id"] in done["error"]["message"]
    assert await restricted(mesh, scope)
    kept = tmp_path / "c.json"
    again = await mesh.cli("suspend", scope, "--command-id", done["command_id"], "-o", kept)
    assert (again["status"], again["file"]) == ("certified", str(kept))
    assert (await mesh.cli("verify", kept))["command_id"] == done["command_id"]
    await mesh.resume(scope, US)


async def test_a_place_that_nobody_named_does_not_keep_a_restriction_back(
    mesh: LiveMesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scope = await held_service(mesh)
    monkeypatch.chdir(tmp_path)
    taken = tmp_path / f"{scope.replace(':', '-').replace('/', '-')}.cert.json"
    taken.mkdir()
    done = await mesh.cli("suspend", scope)
    assert (done["ok"], done["status"], done["file"]) == (True, "certified", None)
    assert done["error"]["code"] == "not-written" and done["command_id"] in done["error"]["message"]
    warned = capsys.readouterr().err
    assert "going on" in warned and f"--command-id {done['command_id']} -o FILE" in warned
    assert await restricted(mesh, scope)
    refused = await mesh.cli("suspend", scope, "--command-id", done["command_id"], code=2)  # only for the file
    assert refused["error"]["code"] == "not-writable"
    taken.rmdir()
    again = await mesh.cli("suspend", scope, "--command-id", done["command_id"])
    assert again["file"] == taken.name
    assert (await mesh.cli("verify", taken))["command_id"] == done["command_id"]
    await mesh.resume(scope, US)


async def test_what_was_resumed_before_it_was_certified_is_not_waited_for(mesh: LiveMesh, tmp_path: Path) -> None:
    scope = await held_service(mesh)
    pid = mesh.pause("edge-us-east")
    try:
        done = await mesh.cli("suspend", scope, "--no-wait")
        await mesh.resume(scope, US)
        command_id = done["command"]["command_id"]
        gone = await mesh.cli("suspend", scope, "--command-id", command_id, "-o", tmp_path / "c.json", code=1)
        assert gone["error"]["code"] == "lifted"
    finally:
        mesh.unpause(pid)
    assert not (tmp_path / "c.json").exists()
