"""A real mesh with a tenant whose root key is in a SoftHSM2 token: onboarded, rotated, out of reach, destroyed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.mesh.l1 import HOLDERS, becomes, do, mesh_of, modes, seal_report
from tests.servers.softhsm import destroy_key, make_key, write_tokens

from keymesh.adapters.pkcs11_config import TokenConfig
from keymesh.app.layout import Layout
from keymesh.app.servers.softhsm import SoftHsm

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def layout() -> Iterator[Layout]:
    with mesh_of(*HOLDERS) as made:
        yield made


@pytest.fixture(scope="module")
def hsm(layout: Layout) -> tuple[SoftHsm, TokenConfig]:
    """The customer's token, known to both Cores."""
    soft = SoftHsm(layout.root.parent / "hsm")
    soft.directory.mkdir()
    config = soft.init_token("customer", tenant="acme")
    for label in ("root", "next"):
        make_key(config, label)
    for region in HOLDERS:
        write_tokens(layout.core(region), config)
    return soft, config


async def test_a_tenant_lives_and_dies_with_its_key_in_the_token(
    layout: Layout, hsm: tuple[SoftHsm, TokenConfig], tmp_path: Path
) -> None:
    soft, config = hsm
    uri = "pkcs11:token=customer;object="
    shown = await asyncio.to_thread(do, layout, "tenant", "create", "acme", "--home", "us-east", "--l1", uri + "root")
    assert [(b["provider"], b["state"]) for b in shown["bindings"]] == [("pkcs11", "active")]
    assert shown["bindings"][0]["url"] == uri + "root"
    opens = await seal_report(layout, "acme", tmp_path)
    rotated = await asyncio.to_thread(do, layout, "key", "rotate", "tenant:acme")
    assert rotated["version"] == 2
    assert await asyncio.to_thread(opens)

    soft.tokens.rename(soft.directory / "away")  # silence is borne for the L1 ttl, and no longer
    assert await modes(layout, "acme") == {"synced"}
    await becomes(layout, "acme", "closed")
    (soft.directory / "away").rename(soft.tokens)
    await becomes(layout, "acme", "synced")
    assert await asyncio.to_thread(opens)

    shown = await asyncio.to_thread(do, layout, "tenant", "switch-l1", "acme", "--l1", uri + "next")
    assert sorted(b["state"] for b in shown["bindings"]) == ["active", "retired"]
    destroy_key(config, "root")  # nobody's any more
    assert await asyncio.to_thread(opens)
    destroy_key(config, "next")  # the customer's last word, and they tell nobody
    await becomes(layout, "acme", "closed")
    assert not await asyncio.to_thread(opens)

    pin = Path(config.pin_file).read_bytes().strip()
    for file in layout.root.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert pin not in content, file
            assert file.name == "pkcs11.json" or b"libsofthsm2" not in content, file
