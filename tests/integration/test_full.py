"""``keymesh up --full`` as a person uses it: real servers under a mesh, one of them away, all of it down and up."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.integration.mesh.live import keymesh
from tests.unit.app.founded import short_dir

from keymesh.app.config_database import database_urls
from keymesh.app.config_of_plan import registry_config_of
from keymesh.app.full_servers import servers_of
from keymesh.app.layout import Layout, load_plan
from keymesh.app.servers.openbao import BaoAdmin
from keymesh.app.supervisor_client import ask_supervisor

UP = ("--regions", "us-east,us-west,eu-west", "--heartbeat", "500ms", "--snapshot", "2s", "--allow-unlocked-memory")
PATIENCE_S = 60.0


def said(*words: str | Path, code: int = 0, timeout_s: float = 240) -> Any:
    done = keymesh(*words, "--json", timeout_s=timeout_s)
    assert done.returncode == code, (words, done.stdout, done.stderr)
    return json.loads(done.stdout)


def until(check: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not check():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def until_all_end(directory: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while left := processes_in(directory):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def processes_in(directory: Path) -> list[str]:
    """Command lines of whatever works in ``directory``, or on a directory in it."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            line = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            place = os.readlink(path / "cwd")
        except OSError:
            continue
        if str(directory) in line or place.startswith(str(directory)):
            found.append(line)
    return found


@pytest.fixture(scope="module")
def mesh() -> Iterator[Layout]:
    with short_dir() as path:
        path.chmod(0o755)
        layout = Layout(path / "m")
        try:
            shown = said("up", "--full", *UP, "--dir", layout.root)
            assert (shown["ok"], shown["made"]) == (True, True)
            yield layout
        finally:
            keymesh("down", "--dir", layout.root)


@pytest.fixture(scope="module")
def sealed(mesh: Layout) -> tuple[Path, bytes]:
    """A file sealed under a tenant of the mesh, and what is in it."""
    place = ("--dir", mesh.root)
    said("tenant", "create", "acme", "--home", "us-east", "--regions", "us-east,us-west", *place)
    said("service", "create", "acme/files", *place)
    plain = mesh.root.parent / "plain"
    plain.write_bytes(b"what only acme may read")
    said("seal", plain, "--tenant", "acme", "--service", "files", *place)
    return plain.with_name("plain.sealed"), plain.read_bytes()


def opened(mesh: Layout, sealed: tuple[Path, bytes], region: str) -> bool:
    target = mesh.root.parent / f"opened-{region}"
    said("open", sealed[0], "--region", region, "--force", "-o", target, "--dir", mesh.root)
    return target.read_bytes() == sealed[1]


def test_each_part_is_where_it_should_be(mesh: Layout, sealed: tuple[Path, bytes]) -> None:
    """The log in etcd, the projection in PostgreSQL, wrapped keys in the region's own OpenBao: no file of ours."""
    assert opened(mesh, sealed, "us-west")
    full = load_plan(mesh).full
    assert full is not None
    assert not (mesh.registry / "projection.db").exists()
    assert not list(mesh.root.glob("regions/*/core/keystore.db"))
    servers = servers_of(mesh, full)
    held = {}
    for region, settings in servers.openbao.items():
        status, listed = BaoAdmin(settings).ask("LIST", "/v1/kv/metadata/core/")
        held[region] = status == 200 and len(listed["data"]["keys"]) > 1
    assert held["us-east"] and held["us-west"]
    assert full.etcd.keys() == {"site-a", "site-b", "witness"}
    regional = {str(settings.directory.relative_to(mesh.root)).split("/")[1] for settings in servers.openbao.values()}
    assert regional == {"us-east", "us-west", "eu-west"}
    control = [*(member.directory for member in servers.etcd), servers.postgres.directory, servers.standby.directory]
    assert all(directory.is_relative_to(mesh.root / "control") for directory in control)
    seals = said("region", "seals", "us-east", "--dir", mesh.root)["seals"]
    assert [(seal["kind"], seal["state"]) for seal in seals] == [("pkcs11", "opens"), ("openbao", "opens")]


def test_the_second_site_follows_the_first(mesh: Layout, sealed: tuple[Path, bytes]) -> None:
    """What the projection says is soon in the standby too, which takes no writes."""
    plan = load_plan(mesh)
    config = registry_config_of(mesh, plan).database
    assert config is not None and plan.full is not None
    _, standby = database_urls(config, mesh.registry)
    with psycopg.connect(standby, autocommit=True, connect_timeout=5) as db:

        def tenants() -> list[Any]:
            return db.execute("SELECT tenant FROM tenants").fetchall()

        until(lambda: tenants() == [("acme",)], "the tenant in the standby")
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            db.execute("DELETE FROM tenants")


def test_the_doctor_is_content_and_names_what_is_not_there(mesh: Layout, sealed: tuple[Path, bytes]) -> None:
    shown = said("doctor", "--dir", mesh.root)
    assert shown["ok"], [check for check in shown["checks"] if not check["ok"]]
    names = {check["name"] for check in shown["checks"]}
    for expected in ("registry r1 log.endpoints[2]", "registry r1 database.endpoints[0] clock", "process postgres"):
        assert expected in names
    assert len([name for name in names if name.startswith("core us-west seal ")]) == 2
    assert ask_supervisor(mesh, {"do": "hold", "name": "etcd-site-b"}) == {"ok": True}
    try:
        until(lambda: not _child(mesh, "etcd-site-b")["ready"], "the end of the member")
        gone = {"process etcd-site-b", *(f"registry {node} log.endpoints[1]" for node in ("r1", "r2"))}

        def ill() -> set[str]:
            checks = said("doctor", "--dir", mesh.root, code=1)["checks"]
            return {check["name"] for check in checks if not check["ok"]}

        until(lambda: ill() == gone, "just that, once the others have a leader again")
        said("service", "create", "acme/more", "--dir", mesh.root)  # a majority goes on
    finally:
        assert ask_supervisor(mesh, {"do": "release", "name": "etcd-site-b"}) == {"ok": True}
    until(lambda: _child(mesh, "etcd-site-b")["ready"], "the member's return")


def test_a_server_that_is_killed_comes_back_by_itself(mesh: Layout, sealed: tuple[Path, bytes]) -> None:
    for name in ("postgres", "openbao-us-east", "rabbitmq"):
        before = _child(mesh, name)
        os.kill(before["pid"], 9)
        until(partial(_is_another, mesh, name, before["pid"]), f"{name} again")
    said("service", "create", "acme/later", "--dir", mesh.root)
    assert opened(mesh, sealed, "us-east")


def test_no_process_outlives_the_supervisor_and_up_finds_everything_again(
    mesh: Layout, sealed: tuple[Path, bytes]
) -> None:
    """As where the machine's memory runs out: the supervisor is gone at once, and says nothing to anybody."""
    status = ask_supervisor(mesh, {"do": "status"})
    assert status is not None
    os.kill(status["pid"], 9)
    until_all_end(mesh.root)
    shown = said("up", "--dir", mesh.root)  # what the mesh is, its plan says
    assert (shown["made"], shown["processes"]) == (False, len(_children(mesh)))
    assert opened(mesh, sealed, "us-west")
    services = said("tenant", "show", "acme", "--dir", mesh.root)["services"]
    assert "files" in json.dumps(services)
    assert said("down", "--dir", mesh.root)["stopped"]
    until_all_end(mesh.root)  # the supervisor itself is the last


def _is_another(mesh: Layout, name: str, pid: int) -> bool:
    child = _child(mesh, name)
    return child["pid"] not in (None, pid) and bool(child["ready"])


def _children(mesh: Layout) -> dict[str, Any]:
    children: dict[str, Any] = (ask_supervisor(mesh, {"do": "status"}) or {})["children"]
    return children


def _child(mesh: Layout, name: str) -> Any:
    return _children(mesh)[name]
