"""The log in etcd is lost under two replicas, and restored: a new one beside it, which both take up."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.integration.replicas_mesh import REGIONS, ReplicasMesh, both, patiently, replicas_mesh, until

from keymesh.app import cli
from keymesh.app.admin_client import AdminClient
from keymesh.app.control_logs import found, make_log
from keymesh.app.genesis_file import load_genesis
from keymesh.app.layout import load_plan
from keymesh.model.errors import KeymeshError

pytestmark = pytest.mark.slow


class Lost:
    """The mesh, and its commands."""

    def __init__(self, mesh: ReplicasMesh, capsys: pytest.CaptureFixture[str]) -> None:
        self.mesh, self.layout, self._capsys = mesh, mesh.layout, capsys

    def cli(self, *words: str | Path, code: int = 0) -> Any:
        self._capsys.readouterr()
        assert cli.main([*map(str, words), "--dir", str(self.layout.root), "--json"]) == code, self._capsys.readouterr()
        return json.loads(self._capsys.readouterr().out or "null")

    def restore(self, backup: Path, *more: str | Path, code: int = 0) -> Any:
        keys = [word for n in (1, 2) for word in ("--approve-key", self.layout.keys / f"officer-{n}.pem")]
        return self.cli("registry", "restore", "--from", backup, *keys, *more, code=code)

    def again(self) -> None:
        """Both replicas, as the plan has them now."""
        self.mesh.plan = load_plan(self.layout)
        for node in self.mesh.plan.registry_nodes:
            self.mesh.launch(node)

    def end_replicas(self) -> None:
        for node in self.mesh.plan.registry_nodes:
            self.mesh.kill(node)


async def shown(client: AdminClient) -> dict[str, Any]:
    found: dict[str, Any] = await patiently(lambda: client.call("GET", "/v1/tenants/acme"))
    return found


async def suspended_everywhere(client: AdminClient, epoch: int) -> bool:
    try:
        for region in REGIONS:
            held = (await client.call("GET", "/v1/status", target=region, timeout_s=5))["tenants"]["acme"]
            if (held["restricted"], held["epoch"]) != (["tenant:acme"], epoch):
                return False
    except (KeymeshError, KeyError):
        return False
    return True


@pytest.fixture
def mesh() -> Iterator[ReplicasMesh]:
    with replicas_mesh() as running:
        yield running


async def test_both_replicas_go_on_from_a_log_that_was_made_beside_the_lost_one(
    mesh: ReplicasMesh, capsys: pytest.CaptureFixture[str]
) -> None:
    await mesh.until_serving()
    lost, layout = Lost(mesh, capsys), mesh.layout
    mesh.kill("r1")
    mesh.keeps_backups, mesh.plan = "r1", load_plan(layout)
    mesh.launch("r1")
    await mesh.until_serving()
    async with both(mesh) as (first, second):
        await mesh.create_tenant(second, "acme")
        made = await asyncio.to_thread(lost.cli, "backup", "create", "--full", code=1)  # no region keeps any
        assert made["registry"]["ok"], made
        backup = layout.root.parent / "backup"
        shutil.copytree(layout.backups(""), backup)
        await first.command("acme", "tenant.labels", {"labels": {"v": "late"}})
        await second.command("acme", "suspend", {"scope": "tenant:acme"})
        await until(lambda: suspended_everywhere(first, 1), "the suspension everywhere")
    entries = await mesh.entries()
    whole = await asyncio.to_thread(lost.restore, backup, code=1)
    assert whole["error"]["code"] == "log-exists"

    lost.end_replicas()
    assert mesh.lose_log() > len(entries)
    await leave_something(mesh, "keymesh@2/")
    taken = await asyncio.to_thread(lost.restore, backup, code=1)  # somebody else writes the same epoch
    assert taken["error"]["code"] == "log-exists"
    assert load_plan(layout).log_prefix == ""

    done = await asyncio.to_thread(lost.restore, backup)
    assert (done["epoch"], done["log_prefix"], done["serving"]) == (3, "keymesh@3/", False), done
    assert (done["voters"], done["refused"]) == (3, [])
    assert done["set_aside"] == dict.fromkeys(mesh.plan.registry_nodes, "records.db.before-epoch-3")
    lost.again()
    await mesh.until_serving()
    async with both(mesh) as (first, second):
        await until(lambda: suspended_everywhere(first, 3), "epoch 3 everywhere")
        for client in (first, second):
            tenant = await shown(client)
            assert "suspended" in tenant.values(), tenant
    after = await mesh.entries()
    assert [signed.hash for _, signed in after][: len(entries)] == [signed.hash for _, signed in entries]

    # and by configuration files, as hosts of their own have them
    lost.end_replicas()
    assert mesh.lose_log() > len(after)
    files = [layout.root / f"{node}.toml" for node in mesh.plan.registry_nodes]
    configs = [word for file in files for word in ("--config", file)]
    again = await asyncio.to_thread(lost.restore, backup, *configs)
    assert (again["epoch"], again["log_prefix"]) == (4, "keymesh@4/"), again
    assert load_plan(layout).log_prefix == "keymesh@3/"
    for file in files:
        text = file.read_text()
        assert text.count("keymesh@3/") == 1
    mesh.plan = msgspec.structs.replace(mesh.plan, log_prefix=again["log_prefix"])
    for node in mesh.plan.registry_nodes:
        mesh.launch(node)
    await mesh.until_serving()
    async with both(mesh) as (first, second):
        await until(lambda: suspended_everywhere(first, 4), "epoch 4 everywhere")
        await second.command("acme", "resume", {"scope": "tenant:acme"})


async def leave_something(mesh: ReplicasMesh, prefix: str) -> None:
    """Another log, begun under that prefix."""
    config = mesh.registry_config("r1").log
    assert config is not None
    there = msgspec.structs.replace(config, prefix=prefix)
    log = make_log(there, mesh=mesh.plan.mesh, directory=mesh.layout.root, may_found=True)
    try:
        assert await found(log, load_genesis(mesh.layout.genesis))
    finally:
        await log.close()
