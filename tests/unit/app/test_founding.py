"""A mesh with several Registries is founded: keys, certificates, the genesis file, and ``registry init``."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from tests.unit.app.founded import TIMING, plan_for, short_dir

from keymesh.access.identity import RegistryIdentity
from keymesh.adapters import pki
from keymesh.adapters.sqlite_log import SqliteControlLog
from keymesh.adapters.tls import Credentials
from keymesh.app.bootstrap import bootstrap, finish, make_plan, parse_regions
from keymesh.app.cli import main
from keymesh.app.config_of_plan import core_config_of, registry_config_of
from keymesh.app.genesis_file import load_genesis, save_genesis
from keymesh.app.layout import Layout, MeshPlan
from keymesh.app.supervisor import children_of
from keymesh.app.trust_file import load_trust
from keymesh.control.rows import DelegationRow
from keymesh.model.errors import Integrity, KeymeshError, Refused
from keymesh.model.ids import MeshName


def two_registries() -> MeshPlan:
    return msgspec.structs.replace(plan_for(), replicas={"r2": 4_711})


def test_each_replica_has_a_key_a_certificate_and_a_directory_of_its_own() -> None:
    plan = two_registries()
    with short_dir() as path:
        layout = Layout(path / "m")
        genesis = bootstrap(layout, plan)
        finish(layout, plan, genesis)
        row = msgspec.convert(genesis.entry.body.args["delegations"]["registry"], DelegationRow)
        assert len(row.keys) == 2
        assert row.threshold == 1
        for node in ("r1", "r2"):
            certificate = Credentials(layout.registry_of(node) / "tls.pem").certificate
            assert pki.identity_of(certificate, MeshName(plan.mesh)) == RegistryIdentity(
                mesh=MeshName(plan.mesh),
                node=node,  # type: ignore[arg-type]
            )
            config = registry_config_of(layout, plan, node)
            config.check()
            assert (config.node, config.data_dir) == (node, str(layout.registry_of(node)))
        assert [c.name for c in children_of(layout, plan) if "registry" in c.name] == ["registry", "registry-r2"]
        core = core_config_of(layout, plan, "us-east")
        assert core.registries == (f"https://127.0.0.1:{plan.registry_port}", "https://127.0.0.1:4711")
        with pytest.raises(Refused) as unknown:
            registry_config_of(layout, plan, "r3")
        assert unknown.value.field == "node"


def test_a_full_mesh_has_its_log_in_etcd_and_its_projection_in_postgresql() -> None:
    plan = make_plan(parse_regions("a,b"), TIMING, links=False, allow_unlocked_memory=True, full=True)
    layout = Layout(Path("/m"))
    for node in plan.registry_nodes:
        config = registry_config_of(layout, plan, node)
        assert config.log is not None
        assert config.database is not None
        config.log.check()
        config.database.check()
        assert config.log.kind == "etcd"
        assert len(config.log.endpoints) == 3
        assert config.database.kind == "postgresql"
        assert str(config.database.endpoints[0].password_file).startswith(f"{layout.registry_of(node)}/")
    assert len(plan.registry_nodes) == 2


def test_the_first_entry_is_kept_as_it_was_signed(tmp_path: Path) -> None:
    plan = plan_for()
    with short_dir() as path:
        layout = Layout(path / "m")
        genesis = bootstrap(layout, plan)
        assert load_genesis(layout.genesis) == genesis
        assert load_genesis(layout.genesis).hash == load_trust(layout.trust).genesis
        save_genesis(tmp_path / "copy.json", genesis)
        assert (tmp_path / "copy.json").read_bytes() == layout.genesis.read_bytes()
    for content in (b"", b"{}", b"[1]", b"\xff"):
        (tmp_path / "bad.json").write_bytes(content)
        with pytest.raises(KeymeshError):
            load_genesis(tmp_path / "bad.json")
    with pytest.raises(Refused) as absent:
        load_genesis(tmp_path / "none.json")
    assert absent.value.field == "genesis"


def registry_toml(layout: Layout, plan: MeshPlan, data_dir: Path) -> Path:
    path = layout.root / "registry.toml"
    path.write_text(
        f'role = "registry"\nmesh = "{plan.mesh}"\ndata_dir = "{data_dir}"\n[listen]\nport = {plan.registry_port}\n'
        f'[identity]\ntls_file = "registry/tls.pem"\nsigning_key_file = "registry/signing.pem"\n'
        f'ca_file = "pki/ca.pem"\ntrust_file = "trust.json"\n'
    )
    return path


def init(capsys: pytest.CaptureFixture[str], config: Path, genesis: Path) -> tuple[int, dict[str, object]]:
    code = main(["registry", "init", "--config", str(config), "--genesis", str(genesis), "--json"])
    out = capsys.readouterr().out
    return code, json.loads(out) if code == 0 else {}


async def head_of(directory: Path, mesh: str) -> str:
    log = SqliteControlLog(directory / "log.db", mesh=mesh)
    rows = (await log.read(0))[1]
    await log.close()
    assert len(rows) == 1
    return rows[0][1].hash


def test_a_log_is_founded_by_command_once(capsys: pytest.CaptureFixture[str]) -> None:
    import asyncio

    plan = plan_for()
    with short_dir() as path:
        layout, other = Layout(path / "m"), Layout(path / "o")
        genesis = bootstrap(layout, plan)
        bootstrap(other, plan)
        config = registry_toml(layout, plan, path / "data")
        assert init(capsys, config, layout.genesis) == (
            0,
            {"ok": True, "mesh": "dev", "founded": True, "index": 1},
        )
        code, again = init(capsys, config, layout.genesis)
        assert (code, again["founded"]) == (0, False)
        assert init(capsys, config, other.genesis)[0] == Integrity.exit_code, "not what the trust file names"
        foreign = registry_toml(other, plan, path / "data")
        assert init(capsys, foreign, other.genesis)[0] == Integrity.exit_code, "the log of another mesh"
        assert asyncio.run(head_of(path / "data", plan.mesh)) == genesis.hash
        assert init(capsys, config, path / "none.json")[0] == Refused("x", "x").exit_code
        assert init(capsys, path / "none.toml", layout.genesis)[0] != 0
