"""A running mesh whose tenants' root keys are elsewhere than in its own KMS, and what a test asks of it."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tests.integration.mesh.live import TIMING, keymesh, until

from keymesh.app import cli
from keymesh.app.admin_client import AdminClient
from keymesh.app.bootstrap import parse_regions
from keymesh.app.cli_mesh import start_mesh
from keymesh.app.layout import Layout, load_plan
from keymesh.app.supervisor_client import stop_mesh
from keymesh.model.errors import KeymeshError

HOLDERS: Final = ("us-east", "us-west")
"""The regions of the tenants' domain."""
_CONTENT: Final = b"the report"


@contextmanager
def mesh_of(*regions: str) -> Iterator[Layout]:
    """Started, and stopped at the end."""
    root = Path(tempfile.mkdtemp(prefix="km", dir="/tmp"))
    made = Layout(root / "m")
    try:
        planned = parse_regions(",".join(regions))
        start_mesh(made, regions=planned, timing=TIMING, links=False, allow_unlocked_memory=True)
        yield made
    finally:
        with contextlib.suppress(Exception):
            stop_mesh(made)
        shutil.rmtree(root, ignore_errors=True)


def do(layout: Layout, *words: str) -> Any:
    """The parsed ``--json`` output of a command that must succeed."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert cli.main([*words, "--dir", str(layout.root), "--json"]) == 0, (words, said.getvalue())
    return json.loads(said.getvalue())


async def modes(layout: Layout, tenant: str) -> set[str]:
    """What the tenant's Cores say, each for itself."""
    seen = set()
    async with AdminClient(layout, load_plan(layout)) as client:
        for region in HOLDERS:
            try:
                status = await client.call("GET", "/v1/status", target=region, timeout_s=5)
                seen.add(status["tenants"].get(tenant, {}).get("mode", "absent"))
            except KeymeshError as away:
                seen.add(away.code)
    return seen


async def becomes(layout: Layout, tenant: str, mode: str) -> None:
    async def done() -> bool:
        return await modes(layout, tenant) == {mode}

    await until(done, f"{tenant} being {mode}")


async def seal_report(layout: Layout, tenant: str, directory: Path) -> Callable[[], bool]:
    """A new service of ``tenant`` seals a file; whether it opens just now."""
    await asyncio.to_thread(do, layout, "service", "create", "files", "--tenant", tenant)
    await becomes(layout, tenant, "synced")
    plain, sealed, again = (directory / name for name in ("report", "report.sealed", "again"))
    plain.write_bytes(_CONTENT)
    words = ("seal", plain, "-o", sealed, "--tenant", tenant, "--service", "files", "--dir", layout.root)
    done = await asyncio.to_thread(keymesh, *words)
    assert done.returncode == 0, done.stderr

    def opens() -> bool:
        again.unlink(missing_ok=True)
        opened = keymesh("open", sealed, "-o", again, "--dir", layout.root)
        return opened.returncode == 0 and again.read_bytes() == _CONTENT

    return opens
