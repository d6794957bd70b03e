"""A real mesh whose tenants' root keys are transit keys of a real OpenBao: onboarded, switched, pulled, unreachable."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.mesh.live import TIMING, keymesh, until
from tests.servers.openbao import TRANSIT_RULES, OpenBaoServer, openbao

from keymesh.app import cli
from keymesh.app.admin_client import AdminClient
from keymesh.app.bootstrap import parse_regions
from keymesh.app.cli_mesh import start_mesh
from keymesh.app.layout import Layout, load_plan
from keymesh.app.supervisor_client import stop_mesh
from keymesh.model.errors import KeymeshError

REGIONS = "us-east,us-west,eu-central"


@pytest.fixture(scope="module")
def layout() -> Iterator[Layout]:
    root = Path(tempfile.mkdtemp(prefix="km", dir="/tmp"))
    made = Layout(root / "m")
    try:
        start_mesh(made, regions=parse_regions(REGIONS), timing=TIMING, links=False, allow_unlocked_memory=True)
        yield made
    finally:
        with contextlib.suppress(Exception):
            stop_mesh(made)
        shutil.rmtree(root, ignore_errors=True)


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
        for region in REGIONS.split(","):
            shutil.copy(file, layout.core(region) / "openbao-cores.json")
            made.ca.issue(layout.core(region) / "openbao-cores.pem", f"core-{region}")
        yield made


def do(layout: Layout, *words: str) -> Any:
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert cli.main([*words, "--dir", str(layout.root), "--json"]) == 0, (words, said.getvalue())
    return json.loads(said.getvalue())


def url(server: OpenBaoServer, login: str) -> str:
    return f"openbao:{server.url}/transit/root?ca={server.directory / 'ca.pem'}&{login}"


async def modes(layout: Layout, tenant: str) -> set[str]:
    """What the tenant's Cores say, each for itself."""
    seen = set()
    async with AdminClient(layout, load_plan(layout)) as client:
        for region in ("us-east", "us-west"):
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


async def test_a_tenant_lives_and_closes_with_its_transit_key(
    layout: Layout, server: OpenBaoServer, tmp_path: Path
) -> None:
    words = ("tenant", "create", "acme", "--home", "us-east", "--l1", url(server, "cert=cores"))
    shown = await asyncio.to_thread(do, layout, *words)
    assert [(b["provider"], b["state"]) for b in shown["bindings"]] == [("openbao", "active")]
    assert shown["bindings"][0]["url"] == f"{server.url}/transit/keys/root"
    await asyncio.to_thread(do, layout, "service", "create", "files", "--tenant", "acme")
    await becomes(layout, "acme", "synced")
    plain, sealed = tmp_path / "report", tmp_path / "report.sealed"
    plain.write_bytes(b"the report")

    def opens() -> bool:
        again = tmp_path / "again"
        again.unlink(missing_ok=True)
        done = keymesh("open", sealed, "-o", again, "--dir", layout.root)
        return done.returncode == 0 and again.read_bytes() == b"the report"

    done = await asyncio.to_thread(
        keymesh, "seal", plain, "-o", sealed, "--tenant", "acme", "--service", "files", "--dir", layout.root
    )
    assert done.returncode == 0, done.stderr
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
