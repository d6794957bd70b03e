"""Root and officers of a running mesh are rotated: a region away through it, old keys refused, an older backup."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.test_restore import REGIONS, STRANGER, TIMING, Lost, until

from keymesh.app.admin_client import AdminClient
from keymesh.app.cli_mesh import start_mesh
from keymesh.app.layout import Layout, load_plan
from keymesh.app.supervisor_client import ask_supervisor, stop_mesh

pytestmark = pytest.mark.slow
AWAY = "eu-west"


@pytest.fixture
async def running(capsys: pytest.CaptureFixture[str]) -> AsyncIterator[Lost]:
    root = Path(tempfile.mkdtemp(prefix="kmc", dir="/tmp"))
    layout = Layout(root / "m")
    try:
        await asyncio.to_thread(
            start_mesh, layout, regions=REGIONS, timing=TIMING, links=False, allow_unlocked_memory=True
        )
        async with AdminClient(layout, load_plan(layout)) as client:
            yield Lost(root, client, capsys)
    finally:
        await asyncio.to_thread(stop_mesh, layout)
        shutil.rmtree(root, ignore_errors=True)


def approved(directory: Path, *names: str) -> list[str | Path]:
    return [word for name in names for word in ("--approve-key", directory / name)]


def offline(mesh: Lost, out: str, *words: str | Path) -> Any:
    """``ceremony rotate``, which knows of no mesh directory."""
    line = ["ceremony", "rotate", *map(str, words), "--trust", str(mesh.layout.trust), "--out", str(mesh.root / out)]
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from keymesh.app.cli import main; sys.exit(main())", *line, "--json"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def verified(mesh: Lost, certificate: Path) -> None:
    """By both verifiers, from the root that founded the mesh."""
    assert mesh.cli("verify", certificate, "--root", mesh.layout.trust)["ok"]
    done = subprocess.run(
        [sys.executable, "-I", str(STRANGER), "--root", str(mesh.layout.trust), str(certificate)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


async def trust_version(mesh: Lost, region: str) -> Any:
    return (await mesh.client.call("GET", "/v1/voter", target=region, timeout_s=5))["trust_version"]


async def test_old_keys_end_everywhere_and_what_they_signed_holds(running: Lost) -> None:
    mesh, run = running, asyncio.to_thread
    keys, second = mesh.layout.keys, mesh.root / "n2"
    old = approved(keys, "officer-1.pem", "officer-3.pem")
    await run(mesh.cli, "tenant", "create", "acme", "--home", "us-east", "--regions", "us-east,us-west")
    await run(mesh.cli, "backup", "create", "--full")
    backup = mesh.root / "backup"
    shutil.copytree(mesh.layout.backups(""), backup)
    before = mesh.root / "before.json"
    await run(mesh.cli, "suspend", "mesh", *old, "-o", before)
    await run(mesh.cli, "resume", "mesh", *old)

    made = await run(offline, mesh, "n2", keys)
    rival = await run(offline, mesh, "rival", keys, "--lost", "officer-2.pem")
    assert (made["version"], rival["version"], len(made["files"])) == (2, 2, 6)
    hold = {"do": "hold", "name": f"core-{AWAY}"}
    assert (ask_supervisor(mesh.layout, hold) or {}).get("ok")
    told = await run(mesh.cli, "ceremony", "submit", second / "rotation.json")
    assert (told["version"], told["applied"], told["behind"]) == (2, ["us-east", "us-west"], [AWAY])
    assert (await run(mesh.cli, "ceremony", "submit", mesh.root / "rival" / "rotation.json", code=1))["error"][
        "code"
    ] == "conflict"
    assert (ask_supervisor(mesh.layout, hold | {"do": "release"}) or {}).get("ok")

    async def heard() -> bool:
        try:
            return bool(await trust_version(mesh, AWAY) == 2)
        except Exception:
            return False

    await until(heard, "the region that was away hearing of it")
    assert (await run(mesh.cli, "ceremony", "submit", second / "rotation.json"))["behind"] == [], "repeated: it is done"

    refused = await run(mesh.cli, "suspend", "mesh", *old, code=1)
    assert refused["error"]["code"] == "below-threshold"
    mixed = [*approved(keys, "officer-1.pem"), *approved(second, "officer-v2-1.pem")]
    assert (await run(mesh.cli, "suspend", "mesh", *mixed, code=1))["error"]["code"] == "below-threshold"
    new = approved(second, "officer-v2-1.pem", "officer-v2-3.pem")
    after = mesh.root / "after.json"
    await run(mesh.cli, "suspend", "mesh", *new, "-o", after)
    assert (await run(mesh.cli, "resume", "mesh", *old, code=1))["error"]["code"] == "below-threshold"
    await run(mesh.cli, "resume", "mesh", *new)
    for certificate in (before, after):
        await run(verified, mesh, certificate)

    await mesh.settled(1)
    await mesh.end_registry()
    mesh.lose_log()
    lost = await run(mesh.cli, "registry", "restore", "--from", backup, *old, code=1)
    assert lost["error"]["code"] == "not-signed"
    shown = await run(mesh.cli, "registry", "restore", "--from", backup, *new)
    assert (shown["epoch"], shown["refused"]) == (2, [])
    await mesh.settled(2)
    assert (await run(mesh.cli, "suspend", "mesh", *old, code=1))["error"]["code"] == "below-threshold"
    again = mesh.root / "again.json"
    await run(mesh.cli, "suspend", "mesh", *new, "-o", again)
    for certificate in (before, after, again):
        await run(verified, mesh, certificate)
    third = await run(offline, mesh, "n3", second, "--lost", "root-v2-1.pem", "--officers", "2/4")
    assert (third["version"], third["gone"]) == (3, ["root-v2-1.pem"])
    assert (await run(mesh.cli, "ceremony", "submit", mesh.root / "n3" / "rotation.json"))["behind"] == []
    mixed = [*approved(second, "officer-v2-2.pem"), *approved(mesh.root / "n3", "officer-v3-1.pem")]
    await run(mesh.cli, "resume", "mesh", *mixed)
