"""One mesh in network namespaces for all tests here; each test leaves it whole."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.integration.mesh.live import until
from tests.integration.netns.lab import FILES, MAIL, TENANT, VAULT, Hands, Lab, make_lab

from keymesh.app import cli
from keymesh.app.admin_client import wait_for_key
from keymesh.app.config_init import KMS


@pytest.fixture(scope="package")
def lab() -> Iterator[Lab]:
    root = Path(tempfile.mkdtemp(prefix="kmn", dir="/tmp"))
    made = make_lab(root / "hosts")
    try:
        made.start_all()
        asyncio.run(_furnish(made))
        yield made
    finally:
        made.stop()
        made.switch.close()
        shutil.rmtree(root, ignore_errors=True)


async def _furnish(made: Lab) -> None:
    """A tenant of all regions with three services, one of them core-held, under the lab's customer's key."""
    hands = Hands(made)
    admin, kms = made.home / "admin", made.home / KMS
    regions = ",".join(made.plan.regions)

    async def do(*words: str) -> bool:
        with contextlib.redirect_stdout(None):
            return await asyncio.to_thread(cli.main, [*words, "--json"]) == 0

    async def made_tenant() -> bool:
        home = ("--home", "us-east", "--regions", regions, "--l1", f"kms:{kms}#{TENANT}")
        return await do("tenant", "create", TENANT, *home, "--dir", str(admin))

    try:
        assert await do("customer-kms", "create", TENANT, "--dir", str(kms))
        await until(made_tenant, "the tenant")
        for service, custody in ((FILES, "leased"), (MAIL, "leased"), (VAULT, "core-held")):
            words = ("service", "create", f"{TENANT}/{service}", "--custody", custody, "--dir", str(admin))
            assert await do(*words), service
            await wait_for_key(hands.client, TENANT, f"l3/{service}")
        await hands.whole(TENANT)
    finally:
        await hands.close()


@pytest.fixture
async def hands(lab: Lab) -> AsyncIterator[Hands]:
    """The lab at rest; afterwards everything is healed, and it must come to rest again by itself."""
    made = Hands(lab)
    try:
        await made.whole(TENANT)
        yield made
        await made.whole(TENANT)
    finally:
        lab.switch.heal()
        await made.close()
