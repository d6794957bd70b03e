"""A mesh whose processes are of two adjacent releases: it works, and the older one refuses only what it cannot know."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.mesh.live import FILES, TIMING, LiveMesh, until
from tests.integration.next_release import VERSION, Processes, make_next_release, processes

import keymesh
from keymesh.app import cli
from keymesh.app.bootstrap import parse_regions
from keymesh.app.cli_mesh import start_mesh
from keymesh.app.layout import Layout
from keymesh.app.supervisor_client import stop_mesh
from keymesh.model.errors import KeymeshError, Refused

OLD, NEW = "us-east", "us-west"
TENANTS = ("acme", "globex", "initech")


@pytest.fixture(scope="module")
def next_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_next_release(tmp_path_factory.mktemp("next"))


@pytest.fixture(scope="module")
def layout() -> Iterator[Layout]:
    root = Path(tempfile.mkdtemp(prefix="km", dir="/tmp"))
    made = Layout(root / "m")
    try:
        regions = parse_regions(f"{OLD},{NEW}")
        start_mesh(made, regions=regions, timing=TIMING, links=False, allow_unlocked_memory=True)
        for n, tenant in enumerate(TENANTS):
            do(made, "tenant", "create", tenant, "--home", (OLD, NEW)[n % 2])
        do(made, "service", "create", FILES, "--tenant", "globex")
        yield made
    finally:
        with contextlib.suppress(Exception):
            stop_mesh(made)
        shutil.rmtree(root, ignore_errors=True)


def do(layout: Layout, *words: str) -> None:
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert cli.main([*words, "--dir", str(layout.root), "--json"]) == 0, (words, said.getvalue())


async def replaced(live: LiveMesh, made: Processes, *names: str) -> None:
    """End processes of this release, and run the next one's in their place."""
    for name in names:
        await live.hold(name)
        made.start(name)


async def shows(live: LiveMesh, expected: dict[str, dict[str, str]], made: Processes) -> None:
    """Region -> tenant -> mode."""
    seen: dict[str, Any] = {}

    async def there() -> bool:
        made.check()
        try:
            for region in expected:
                seen[region] = {t: m for t, m in (await live.modes(region)).items() if t in expected[region]}
        except KeymeshError:
            return False
        return seen == expected

    try:
        await until(there, "the modes")
    except AssertionError:
        raise AssertionError(f"expected {expected}, got {seen}") from None


def all_synced(**but: str) -> dict[str, str]:
    return {tenant: but.get(tenant, "synced") for tenant in TENANTS}


async def answers(live: LiveMesh) -> bool:
    try:
        await live.client.call("GET", "/v1/status", timeout_s=3)
    except KeymeshError:
        return False
    return True


async def works(live: LiveMesh, made: Processes) -> None:
    """Keys are made in both releases' regions and used in both; a suspension acts and is lifted."""
    await shows(live, {OLD: all_synced(), NEW: all_synced()}, made)
    here, there = await live.door(OLD, "globex"), await live.door(NEW, "globex")
    blob, key = await here.mint()
    assert await there.open(blob) == key
    await live.cli("key", "rotate", "tenant:acme")
    await live.cli("key", "rotate", f"service:globex/{FILES}")
    newer, newer_key = await there.mint()
    assert [await here.open(blob), await here.open(newer)] == [key, newer_key]
    suspended = await live.command("globex", "suspend", {"scope": "tenant:globex"})
    await shows(live, {region: {"globex": "closed"} for region in (OLD, NEW)}, made)
    assert await here.refusal(blob) and await there.refusal(blob)
    await live.committed("globex", suspended["command_id"])
    await live.resume("tenant:globex", "globex")
    await shows(live, {OLD: all_synced(), NEW: all_synced()}, made)


def test_the_copy_is_another_release(next_release: Path) -> None:
    def said(path: Path | None) -> str:
        program = "import keymesh; print(keymesh.__version__, keymesh.__file__)"
        environment = {} if path is None else {"PYTHONPATH": str(path)}
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
        return done.stdout.split()[0]

    assert (said(next_release), said(None)) == (VERSION, keymesh.__version__)
    assert keymesh.__version__ != VERSION


async def test_an_older_registry_and_a_newer_core(layout: Layout, next_release: Path) -> None:
    """The newer one says nothing that the older cannot bear: what it adds is refused by itself, and harms nothing."""
    async with LiveMesh(layout) as live:
        with processes(next_release, layout.root, layout.logs) as made:
            await replaced(live, made, f"core-{NEW}")
            await works(live, made)
            with pytest.raises(Refused) as unknown:
                await live.command("acme", "note", {"text": "too early"})
            assert unknown.value.code == "denied"  # of a kind that it does not know: nobody may
            log = (layout.logs / "registry.log").read_text(encoding="utf-8")
            refused = [line for line in log.splitlines() if '"/v1/messages"' in line and '"status":4' in line]
            assert refused  # the message that it does not know
            assert all(json.loads(line)["fields"]["peer"].endswith("/core/n1") for line in refused)
            await live.hold("registry")
            live.release("registry")
            await until(lambda: answers(live), "the Registry being back")
            await works(live, made)
            made.stop(f"core-{NEW}")
            live.release(f"core-{NEW}")
            await shows(live, {OLD: all_synced(), NEW: all_synced()}, made)


async def test_a_newer_registry_and_an_older_core(layout: Layout, next_release: Path) -> None:
    """What the older one cannot know closes only its tenant there; in ``mesh`` it takes no new lease; upgraded, it goes
    on."""
    async with LiveMesh(layout) as live:
        with processes(next_release, layout.root, layout.logs) as made:
            await replaced(live, made, "registry", f"core-{NEW}")
            await works(live, made)

            await live.command("acme", "note", {"text": "what is this?"})
            await shows(live, {OLD: all_synced(acme="closed"), NEW: all_synced()}, made)
            status = await live.status(OLD)
            assert status["tenants"]["acme"]["reason"] == "unknown-kind"
            await live.command("initech", "tenant.labels", {"labels": {"a": "b"}})
            await shows(live, {OLD: all_synced(acme="closed"), NEW: all_synced()}, made)  # a field that is left out
            await live.command("initech", "tenant.labels", {"labels": {"a": "b"}, "colour": "red"})
            closed = all_synced(acme="closed", initech="closed")
            await shows(live, {OLD: closed, NEW: all_synced()}, made)
            here, there = await live.door(OLD, "globex"), await live.door(NEW, "globex")
            blob, key = await here.mint()
            assert await there.open(blob) == key  # the others' keys are made and used as before

            live.kill(f"core-{OLD}")
            await shows(live, {OLD: closed, NEW: all_synced()}, made)  # it is remembered

            await live.command("mesh", "note", {"text": "to all"})
            await shows(live, {OLD: dict.fromkeys(TENANTS, "closed"), NEW: all_synced()}, made)
            await replaced(live, made, f"core-{OLD}")
            await shows(live, {OLD: all_synced(), NEW: all_synced()}, made)
            assert await (await live.door(OLD, "globex")).open(blob) == key
