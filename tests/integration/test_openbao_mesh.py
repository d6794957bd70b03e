"""A real mesh whose tenants' root keys are transit keys of a real OpenBao: onboarded, switched, pulled, unreachable."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.mesh.l1 import becomes, do, mesh_of, modes, seal_report
from tests.integration.mesh.live import keymesh
from tests.servers.openbao import TRANSIT_RULES, OpenBaoServer, give_l1, openbao

from keymesh.app.layout import Layout

REGIONS = ("us-east", "us-west", "eu-central")


@pytest.fixture(scope="module")
def layout() -> Iterator[Layout]:
    with mesh_of(*REGIONS) as made:
        yield made


@pytest.fixture(scope="module")
def server(layout: Layout, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBaoServer]:
    """The customer's OpenBao: lets the mesh's Cores in, by certificate or by role."""
    root = layout.ca.read_text(encoding="ascii")
    with openbao(tmp_path_factory.mktemp("openbao"), client_cas=(root,)) as made:
        made.mount("transit", "transit")
        made.transit_key("transit", "root")
        for name in ("l1-cert", "l1-role"):
            made.policy(name, TRANSIT_RULES)
        made.cert_role("cores", made.ca.pem, "l1-cert", allowed_common_names=["core-*"])
        file = made.app_role_file("cores", "l1-role")
        for region in REGIONS:
            by_cert = give_l1(layout.core(region), "acme", made.ca.pem, made.url)
            made.ca.issue(by_cert / "openbao-cores.pem", f"core-{region}")
            by_role = give_l1(layout.core(region), "globex", made.ca.pem, made.url)
            shutil.copy(file, by_role / "openbao-cores.json")
        yield made


def url(server: OpenBaoServer, login: str) -> str:
    return f"openbao:{server.url}/transit/root?ca={server.directory / 'ca.pem'}&{login}"


async def test_a_tenant_lives_and_closes_with_its_transit_key(
    layout: Layout, server: OpenBaoServer, tmp_path: Path
) -> None:
    words = ("tenant", "create", "acme", "--home", "us-east", "--l1", url(server, "cert=cores"))
    shown = await asyncio.to_thread(do, layout, *words)
    assert [(b["provider"], b["state"]) for b in shown["bindings"]] == [("openbao", "active")]
    assert shown["bindings"][0]["url"] == f"{server.url}/transit/keys/root"
    opens = await seal_report(layout, "acme", tmp_path)
    assert await asyncio.to_thread(opens)

    server.policy("l1-cert", {})  # the customer pulls the key, and tells nobody
    await becomes(layout, "acme", "closed")
    assert not await asyncio.to_thread(opens)
    server.policy("l1-cert", TRANSIT_RULES)
    await becomes(layout, "acme", "synced")
    assert await asyncio.to_thread(opens)

    server.kill()  # silence is borne for the L1 ttl, and no longer
    assert await modes(layout, "acme") == {"synced"}
    await becomes(layout, "acme", "closed")
    server.start()
    await becomes(layout, "acme", "synced")
    assert await asyncio.to_thread(opens)


async def test_a_tenant_moves_to_a_transit_key_and_no_secret_is_recorded(layout: Layout, server: OpenBaoServer) -> None:
    await asyncio.to_thread(do, layout, "tenant", "create", "globex", "--home", "us-east")
    await becomes(layout, "globex", "synced")
    words = ("tenant", "switch-l1", "globex", "--l1", url(server, "approle=cores"))
    shown = await asyncio.to_thread(do, layout, *words)
    assert sorted((b["provider"], b["state"]) for b in shown["bindings"]) == [
        ("keymesh-kms", "retired"),
        ("openbao", "active"),
    ]
    await becomes(layout, "globex", "synced")
    server.policy("l1-role", {})
    await becomes(layout, "globex", "closed")
    server.policy("l1-role", TRANSIT_RULES)
    await becomes(layout, "globex", "synced")
    ids = json.loads((server.directory / "cores.json").read_text())
    for file in layout.root.rglob("*"):
        if file.is_file() and file.name != "openbao-cores.json":
            content = file.read_bytes()
            assert ids["secret_id"].encode() not in content, file
            assert b"hvs." not in content and b"X-Vault-Token" not in content, file


async def test_a_bad_name_is_told_before_anything_is_committed(layout: Layout, server: OpenBaoServer) -> None:
    for bad, field in (("cert=cores&token=s.x", "l1"), ("cert=../cores", "l1.cert")):
        done = await asyncio.to_thread(
            keymesh, "tenant", "create", "initech", "--home", "us-east", "--l1", url(server, bad), "--dir", layout.root
        )
        assert done.returncode == 1
        assert field in done.stderr and "Traceback" not in done.stderr
    listed = await asyncio.to_thread(do, layout, "tenant", "list")
    assert "initech" not in [t["tenant"] for t in listed["tenants"]]
