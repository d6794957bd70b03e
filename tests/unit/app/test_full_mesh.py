"""A mesh on real servers, as a plan: who listens where, what each role is told, what is refused before it is made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tests.unit.app.founded import TIMING, founded, short_dir

from keymesh.app.bootstrap import bootstrap, finish, make_plan, parse_regions
from keymesh.app.cli import main
from keymesh.app.config_endpoint import Endpoint
from keymesh.app.config_of_plan import core_config_of, registry_config_of
from keymesh.app.doctor import walk
from keymesh.app.full_plan import named_ports
from keymesh.app.full_servers import servers_of
from keymesh.app.layout import Layout, MeshPlan, load_plan
from keymesh.app.servers import ownership
from keymesh.model import strict_json
from keymesh.model.errors import Refused

REGIONS = parse_regions("us-east,us-west,eu-west")


def plan_for(*, links: bool = False) -> MeshPlan:
    return make_plan(REGIONS, TIMING, links=links, allow_unlocked_memory=True, full=True)


def test_every_port_is_its_own() -> None:
    plan = plan_for(links=True)
    assert plan.full is not None and plan.links is not None and plan.kms_ports is not None
    servers = named_ports(plan.full)
    ports = [*servers.values(), *plan.registry_nodes.values(), *plan.links.values(), *plan.kms_ports.values()]
    ports += [region.port for region in plan.regions.values()]
    assert len(set(ports)) == len(ports)


def test_what_a_region_reaches_outside_it_reaches_through_links_that_can_be_cut(tmp_path: Path) -> None:
    """Both replicas of the Registry, and the broker."""
    plan = plan_for(links=True)
    assert plan.links is not None
    for region in plan.regions:
        through = [plan.links[f"{region} {name}"] for name in ("registry", "registry-r2")]
        assert plan.registries(region) == tuple(f"https://127.0.0.1:{port}" for port in through)
        broker = core_config_of(Layout(tmp_path), plan, region).broker
        assert broker is not None and f":{plan.links[f'{region} rabbitmq']}/" in broker.endpoints[0].url
    direct = plan_for()
    assert direct.registries("us-east") == tuple(f"https://127.0.0.1:{p}" for p in direct.registry_nodes.values())


def test_no_region_is_taken_for_a_registry() -> None:
    for name in ("registry", "registry-r2"):
        with pytest.raises(Refused):
            parse_regions(name)


def test_the_control_plane_is_apart_from_every_region_and_a_core_is_told_of_its_own_alone(tmp_path: Path) -> None:
    layout, plan = Layout(tmp_path), plan_for()
    assert plan.full is not None
    servers = servers_of(layout, plan.full)
    control = {servers.postgres.directory, *(member.directory for member in servers.etcd)}
    regional = {region: server.directory for region, server in servers.openbao.items()}
    assert all(tmp_path / "control" in directory.parents for directory in control)
    assert all(tmp_path / "regions" / region in directory.parents for region, directory in regional.items())
    for region, bao in servers.openbao.items():
        core = core_config_of(layout, plan, region)
        assert core.broker is not None and core.seals is not None and core.keystore is not None
        for section in (core.broker, core.seals, core.keystore):
            section.check()
        assert [url.partition(":")[0] for url in core.seals.initial] == ["pkcs11", "openbao"]
        assert bao.url in core.seals.initial[1]
        told = [e for _, e in walk(core_config_of(layout, plan, region)) if isinstance(e, Endpoint)]
        assert bao.url in {endpoint.url for endpoint in told}
        others = {other.url for name, other in servers.openbao.items() if name != region}
        assert others.isdisjoint(endpoint.url for endpoint in told)
        assert all(str(layout.core(region)) in str(endpoint.cert_file) for endpoint in told)
    for node in plan.registry_nodes:
        config = registry_config_of(layout, plan, node)
        config.check()
        assert config.log is not None and len(config.log.endpoints) == 3
        assert config.broker is not None
        config.broker.check()
        received = [core_config_of(layout, plan, region).broker for region in plan.regions]
        assert {core.protocol for core in received if core is not None} == {"amqp", "mqtt"}
        assert set(config.broker.regions) == set(plan.regions)


def test_a_plan_that_has_been_made_is_read_again() -> None:
    with short_dir() as path:
        layout, plan = Layout(path / "m"), plan_for()
        finish(layout, plan, bootstrap(layout, plan))
        assert load_plan(layout).full == plan.full
        assert b"password" not in strict_json.dumps(load_plan(layout))


@pytest.mark.usefixtures("template")
def test_other_flags_do_not_make_it_another_mesh(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keymesh.app.cli_mesh.check_place", lambda root: None)
    with founded() as (layout, _):
        assert main(["up", "--full", "--dir", str(layout.root), "--json"]) == 1
        assert "made without real servers" in capsys.readouterr().out


def test_what_is_not_installed_is_told_before_anything_is_made(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with short_dir() as path:
        for words in (
            ("up", "--full", "--dir", str(path / "m")),
            ("demo", "--full", "--dir", str(path / "d")),
            ("faults", "run", "--dir", str(path / "f")),
        ):
            assert main([*words, "--json"]) == 1
            told = json.loads(capsys.readouterr().out)["error"]
            assert told["code"] == "missing-binary" and "apt-get install -y etcd-server" in told["message"]
        assert list(path.iterdir()) == []


def test_a_place_that_a_server_cannot_come_to_is_refused_before_anything_is_made(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ownership, "switches_user", lambda user: user is not None)
    with short_dir() as path:
        path.chmod(0o700)
        assert main(["up", "--full", "--dir", str(path / "m"), "--json"]) == 1
        told = json.loads(capsys.readouterr().out)["error"]
        assert (told["code"], told["field"]) == ("bad-field", "dir") and "cannot be entered" in told["message"]
        assert list(path.iterdir()) == []
