"""One mesh of four regions for all tests here, short leases, links that can be cut; each test leaves it whole."""

from __future__ import annotations

import contextlib
import io
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.integration.mesh.live import EU, FILES, HOME, MAIL, OTHER, TIMING, US, VAULT, LiveMesh

from keymesh.app import cli
from keymesh.app.cli_mesh import start_mesh
from keymesh.app.layout import Layout
from keymesh.app.supervisor_client import stop_mesh

SMALL_DISK_BYTES = 24 * 1024 * 1024


@pytest.fixture(scope="package")
def mesh_layout() -> Iterator[Layout]:
    """The running mesh.  us-west's Core has a file system of its own where this machine lets us mount one."""
    root = Path(tempfile.mkdtemp(prefix="km", dir="/tmp"))
    layout = Layout(root / "m")
    disk = layout.core("us-west")
    disk.mkdir(parents=True)
    mounted = _mount(disk)
    try:
        start_mesh(layout, regions=None, timing=TIMING, links=True, allow_unlocked_memory=True)
        for tenant in (US, EU):
            regions = f"{HOME[tenant]},{OTHER[tenant]}"
            _do(layout, "tenant", "create", tenant, "--home", HOME[tenant], "--regions", regions)
        for tenant, service in ((US, FILES), (US, MAIL), (EU, FILES)):
            _do(layout, "service", "create", service, "--tenant", tenant)
        _do(layout, "service", "create", VAULT, "--tenant", US, "--custody", "core-held")
        yield layout
    finally:
        with contextlib.suppress(Exception):
            stop_mesh(layout)
        if mounted:
            subprocess.run(["umount", "-l", disk], check=False)
        shutil.rmtree(root, ignore_errors=True)


def _mount(where: Path) -> bool:
    words = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK_BYTES},mode=0700", "tmpfs", str(where)]
    return shutil.which("mount") is not None and subprocess.run(words, capture_output=True).returncode == 0


def _do(layout: Layout, *words: str) -> None:
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert cli.main([*words, "--dir", str(layout.root), "--json"]) == 0, (words, said.getvalue())


@pytest.fixture
async def mesh(mesh_layout: Layout) -> AsyncIterator[LiveMesh]:
    """The mesh at rest; after the test every fault is undone, and it must come to rest again by itself."""
    async with LiveMesh(mesh_layout) as live:
        await live.settled()
        yield live
        await live.restore()
