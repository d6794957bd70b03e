"""A Registry is lost with its log, and restored from a backup that knows neither the newest suspension nor a key."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from keymesh.app import cli
from keymesh.app.admin_client import AdminClient
from keymesh.app.cli_mesh import start_mesh
from keymesh.app.layout import Layout, TimingPlan, load_plan
from keymesh.app.supervisor_client import ask_supervisor, stop_mesh
from keymesh.model.errors import Integrity, KeymeshError

pytestmark = pytest.mark.slow

TIMING = TimingPlan(
    ttl_ms=20_000, heartbeat_ms=500, edge_ttl_ms=2_000, l1_probe_ms=1_000, l1_ttl_ms=20_000, snapshot_ms=2_000
)
REGIONS = {"us-east": "us", "us-west": "us", "eu-west": "eu"}
SCOPE = "service:acme/files"
PATIENCE_S = 60.0
STRANGER = Path(__file__).parents[2] / "docs" / "verify_bundle.py"


class Lost:
    """One mesh, whose Registry comes and goes."""

    def __init__(self, root: Path, client: AdminClient, capsys: pytest.CaptureFixture[str]) -> None:
        self.root, self.client, self.layout, self._capsys = root, client, client.layout, capsys

    def cli(self, *words: str | Path, code: int = 0) -> Any:
        self._capsys.readouterr()
        assert cli.main([*map(str, words), "--dir", str(self.layout.root), "--json"]) == code, self._capsys.readouterr()
        return json.loads(self._capsys.readouterr().out or "null")

    def ask(self, do: str) -> None:
        assert (ask_supervisor(self.layout, {"do": do, "name": "registry"}) or {}).get("ok")

    async def end_registry(self) -> None:
        self.ask("hold")

        async def gone() -> bool:
            status = ask_supervisor(self.layout, {"do": "status"}) or {}
            return status["children"]["registry"]["pid"] is None

        await until(gone, "the Registry ending")

    def lose_log(self) -> None:
        for path in self.layout.registry.glob("log.db*"):
            path.unlink()

    def restore(self, backup: Path, *, officers: tuple[int, ...] = (1, 3), code: int = 0) -> Any:
        keys = [word for n in officers for word in ("--approve-key", self.layout.keys / f"officer-{n}.pem")]
        return self.cli("registry", "restore", "--from", backup, *keys, code=code)

    async def status(self, target: str) -> Any:
        return await self.client.call("GET", "/v1/status", target=target, timeout_s=5)

    async def settled(self, epoch: int) -> None:
        """Every region in step in that epoch, without drift; the tenant synced where it may be."""

        async def done() -> bool:
            try:
                regions = (await self.status("registry"))["regions"]
                tenants = [(await self.status(region))["tenants"]["acme"] for region in ("us-east", "us-west")]
            except (KeymeshError, KeyError):
                return False
            return all(r["in_sync"] and not r["pending"] for r in regions.values()) and all(
                (t["mode"], t["epoch"]) == ("synced", epoch) for t in tenants
            )

        await until(done, f"the mesh at rest in epoch {epoch}")

    async def restricted(self) -> list[list[str]]:
        return [(await self.status(region))["tenants"]["acme"]["restricted"] for region in ("us-east", "us-west")]


async def until(check: Callable[[], Awaitable[bool]], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not await check():
        assert time.monotonic() < deadline, f"{what} did not happen"
        await asyncio.sleep(0.1)


@pytest.fixture
async def lost(capsys: pytest.CaptureFixture[str]) -> AsyncIterator[Lost]:
    root = Path(tempfile.mkdtemp(prefix="kmr", dir="/tmp"))
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


async def test_what_was_restricted_holds_and_the_old_registry_is_refused_everywhere(lost: Lost) -> None:
    await asyncio.to_thread(lost.cli, "tenant", "create", "acme", "--home", "us-east", "--regions", "us-east,us-west")
    await asyncio.to_thread(lost.cli, "service", "create", "acme/files")
    await asyncio.to_thread(lost.cli, "backup", "create", "--full")
    backup = lost.root / "backup"
    shutil.copytree(lost.layout.backups(""), backup)
    await asyncio.to_thread(lost.cli, "key", "rotate", "service:acme/files")
    await asyncio.to_thread(lost.cli, "suspend", SCOPE, "-o", lost.root / "certificate.json")
    await lost.settled(1)
    kept = (await lost.status("registry"))["index"]
    assert (await asyncio.to_thread(lost.restore, backup, code=1))["error"]["code"] == "log-exists"

    await lost.end_registry()
    old = lost.root / "old"
    shutil.copytree(lost.layout.registry, old)
    lost.lose_log()
    few = await asyncio.to_thread(lost.restore, backup, officers=(2,), code=1)
    assert few["error"]["code"] == "below-threshold"
    cut = lost.root / "cut"
    shutil.copytree(backup, cut)
    chunk = next(path for path in (cut / "chunks").rglob("*") if path.is_file())
    os.chmod(chunk, 0o600)
    chunk.write_bytes(chunk.read_bytes()[:-1])
    assert (await asyncio.to_thread(lost.restore, cut, code=4))["error"]["code"]

    done = await asyncio.to_thread(lost.restore, backup)
    assert (done["epoch"], done["voters"], done["serving"]) == (2, 3, True), done
    assert done["from_backup"]["index"] < kept
    assert sum(got["entries"] for got in done["from_regions"].values()) == kept - done["from_backup"]["index"]
    assert done["refused"] == []
    assert done["set_aside"] == {"r1": "records.db.before-epoch-2"}
    assert (lost.layout.registry / done["set_aside"]["r1"]).exists()
    await lost.settled(2)
    assert await lost.restricted() == [[SCOPE], [SCOPE]]
    keys = (await lost.client.call("GET", "/v1/tenants/acme/keys"))["keys"]
    assert [k["version"] for k in keys if k["key"] == "l3/files" and k["wrapping"]] == [2]
    held = (await asyncio.to_thread(lost.cli, "status"))["registry"]
    assert held["halted"] in ("", None)

    # the old Registry, where the new one was
    await lost.end_registry()
    lost.layout.registry.rename(lost.root / "new")
    old.rename(lost.layout.registry)
    lost.ask("release")

    async def superseded() -> bool:
        try:
            return str((await lost.status("registry"))["halted"]).startswith("superseded")
        except KeymeshError:
            return False

    await until(superseded, "the old Registry seeing that it is superseded")
    with pytest.raises(Integrity):
        await lost.client.command("acme", "resume", {"scope": SCOPE})
    assert await lost.restricted() == [[SCOPE], [SCOPE]]
    for region in ("us-east", "us-west"):
        assert (await lost.status(region))["tenants"]["acme"]["epoch"] == 2
    await lost.end_registry()
    lost.layout.registry.rename(old)
    (lost.root / "new").rename(lost.layout.registry)
    lost.ask("release")
    await lost.settled(2)

    # and once more, from the same backup
    await lost.end_registry()
    lost.lose_log()
    again = await asyncio.to_thread(lost.restore, backup)
    assert (again["epoch"], again["refused"]) == (3, []), again
    assert again["set_aside"] == {"r1": "records.db.before-epoch-3"}
    await lost.settled(3)
    assert await lost.restricted() == [[SCOPE], [SCOPE]]
    await asyncio.to_thread(lost.cli, "resume", SCOPE)

    async def resumed() -> bool:
        return await lost.restricted() == [[], []]

    await until(resumed, "the resume")
    bundle = lost.root / "epoch-3.json"
    await asyncio.to_thread(lost.cli, "suspend", "tenant:acme", "-o", bundle)
    shown = await asyncio.to_thread(lost.cli, "verify", bundle)
    assert shown["ok"]
    words = [sys.executable, str(STRANGER), "--root", str(lost.layout.trust), str(bundle)]
    stranger = await asyncio.to_thread(subprocess.run, words, capture_output=True, text=True)
    assert stranger.returncode == 0, stranger.stdout + stranger.stderr
