"""``keymesh config check | show``, and how a role starts or refuses to."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
from tests.unit.app.founded import founded
from tests.unit.app.spread import copy_of_hosts
from tests.unit.app.test_config_file import CORE, EDGE

from keymesh.app import cli, core_app, edge_app, registry_app, role_start
from keymesh.app.config_of_plan import core_config_of
from keymesh.app.role_start import role_parser, start_role
from keymesh.edge import sidecar_process
from keymesh.model.errors import Integrity


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A Core's and an Edge's files, of one ceremony."""
    home = copy_of_hosts(tmp_path / "mesh") / "core-us-east"
    (home / "edge-trust.json").write_bytes((tmp_path / "mesh" / "edge-us-east" / "trust.json").read_bytes())
    (home / "core.toml").write_text(CORE)
    (home / "edge.toml").write_text(EDGE.replace("trust.json", "edge-trust.json"))
    (home / "bad.toml").write_text(CORE.replace("7601", "99999", 1).replace("mesh =", "mash ="))
    return home


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(role_start, "setup_logging", lambda role: None)
    return caplog


class Server:
    """Keeps what it was told and answers ``code``."""

    def __init__(self, code: int) -> None:
        self.told: list[Any] = []
        self.code = code

    def __call__(self, config: Any, **_: Any) -> int:
        self.told.append(config)
        return self.code


def fields_of(logged: pytest.LogCaptureFixture) -> list[Any]:
    return [vars(record)["fields"] for record in logged.records]


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = cli.main([str(word) for word in words])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_a_file_without_fault(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "config", "check", home / "core.toml", "--json")
    assert (code, json.loads(out)) == (
        0,
        {"ok": True, "file": str(home / "core.toml"), "role": "core", "errors": []},
    )
    assert run(capsys, "config", "check", home / "core.toml")[:2] == (
        0,
        f"{home / 'core.toml'}: this core can run\n",
    )


def test_a_file_with_faults(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "config", "check", home / "bad.toml", "--role", "core", "--json")
    said = json.loads(out)
    assert (code, said["ok"], said["role"]) == (1, False, "core")
    assert said["errors"] == [
        {"field": "mash", "line": 2, "reason": "no such field; did you mean mesh?"},
        {"field": "listen.port", "line": 8, "reason": "1 to 65535"},
        {"field": "mesh", "line": None, "reason": "missing; expected text"},
    ]
    code, out, err = run(capsys, "config", "check", home / "bad.toml")
    assert (code, out) == (1, "")
    assert err.splitlines() == [
        f"{home / 'bad.toml'}: line 2: mash: no such field; did you mean mesh?",
        f"{home / 'bad.toml'}: line 8: listen.port: 1 to 65535",
        f"{home / 'bad.toml'}: mesh: missing; expected text",
    ]


def test_the_role_is_the_files_or_is_said(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "config", "check", home / "edge.toml", "--json")
    assert code == 1
    assert json.loads(out)["errors"] == [{"field": "role", "line": None, "reason": "missing; or say it with --role"}]
    assert run(capsys, "config", "check", home / "edge.toml", "--role", "edge")[0] == 0
    code, out, _ = run(capsys, "config", "check", home / "core.toml", "--role", "edge", "--json")
    assert code == 1
    assert {"field": "role", "line": 1, "reason": "must be edge"} in json.loads(out)["errors"]
    with pytest.raises(SystemExit) as usage:
        cli.main(["config", "check", str(home / "core.toml"), "--role", "mars"])
    assert usage.value.code == 2
    code, out, _ = run(capsys, "config", "check", home / "absent.toml", "--role", "core", "--json")
    assert code == 1
    assert json.loads(out)["errors"][0]["reason"] == "the file cannot be read: No such file or directory"


def test_the_effective_configuration_with_its_sources(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEYMESH_CORE__LISTEN__PORT", "17601")
    code, out, _ = run(capsys, "config", "show", home / "core.toml", "--json")
    said = json.loads(out)
    fields = {field.pop("field"): field for field in said.pop("fields")}
    assert (code, said) == (0, {"ok": True, "file": str(home / "core.toml"), "role": "core"})
    environment = {"value": 17601, "source": "environment", "line": None, "variable": "KEYMESH_CORE__LISTEN__PORT"}
    assert fields["listen.port"] == environment
    assert fields["region"] == {"value": "us-east", "source": "file", "line": 3, "variable": "KEYMESH_CORE__REGION"}
    assert fields["allow_unlocked_memory"] == {
        "value": False,
        "source": "default",
        "line": None,
        "variable": "KEYMESH_CORE__ALLOW_UNLOCKED_MEMORY",
    }
    assert fields["registries[1]"]["variable"] == "KEYMESH_CORE__REGISTRIES__1"
    code, out, _ = run(capsys, "config", "show", home / "core.toml")
    rows = {row[0]: row[1:] for line in out.splitlines() if len(row := line.split()) >= 3}
    assert code == 0
    assert rows["listen.port"] == ["17601", "$KEYMESH_CORE__LISTEN__PORT"]
    assert rows["region"] == ["us-east", "line", "3"]
    assert rows["identity.issuer_file"] == ["-", "default"]
    code, out, _ = run(capsys, "config", "show", home / "bad.toml", "--json")
    assert (code, len(json.loads(out)["errors"])) == (1, 2), "the environment has another port"


# --- starting --------------------------------------------------------------------------------------------------------


def test_a_role_starts_from_its_file(home: Path, logged: pytest.LogCaptureFixture) -> None:
    server = Server(7)
    args = role_parser("core").parse_args(["--config", str(home / "core.toml")])
    assert start_role(args, "core", embedded=core_config_of, serve=server) == 7
    assert server.told[0].region == "us-east"


@pytest.mark.usefixtures("template")
def test_a_role_starts_from_an_embedded_mesh(logged: pytest.LogCaptureFixture) -> None:
    with founded() as (layout, plan):
        server = Server(0)
        args = role_parser("core").parse_args(["--dir", str(layout.root), "--region", "us-west"])
        assert start_role(args, "core", embedded=core_config_of, serve=server) == 0
        assert server.told == [core_config_of(layout, plan, "us-west")]
        args = role_parser("core").parse_args(["--dir", str(layout.root)])
        assert start_role(args, "core", embedded=core_config_of, serve=server) == 1
    assert fields_of(logged)[-1]["code"] == "unknown-region"


def test_a_role_is_told_one_way_only(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--dir", "a", "--config", "b"]):
        with pytest.raises(SystemExit) as usage:
            role_parser("core").parse_args(words)
        assert usage.value.code == 2


def test_every_fault_is_logged_and_nothing_starts(home: Path, logged: pytest.LogCaptureFixture) -> None:
    args = argparse.Namespace(config=str(home / "bad.toml"), dir=None, region=None)
    for role in (core_app, registry_app, edge_app):
        logged.clear()
        assert role.run(args) == 1
        assert {record.levelname for record in logged.records} == {"CRITICAL"}
        assert len(logged.records) > 1
        assert {"code", "field", "line", "reason"} == set(fields_of(logged)[0])


def test_what_stands_against_serving_is_the_exit_code(home: Path, logged: pytest.LogCaptureFixture) -> None:
    def broken(config: Any) -> int:
        raise Integrity.opaque()

    args = role_parser("core").parse_args(["--config", str(home / "core.toml")])
    assert start_role(args, "core", embedded=core_config_of, serve=broken) == 4
    assert fields_of(logged)[-1] == {"code": "integrity", "reason": "could not be opened"}


def test_an_edge_is_told_everything_of_its_file(
    home: Path, logged: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(0)
    monkeypatch.setattr(sidecar_process, "main", server)
    text = EDGE.replace("trust.json", "edge-trust.json").replace(
        'cores = ["https', 'cores = ["https://d.example:7601", "https'
    )
    more = "listen_tcp = '127.0.0.1:8444'\ntcp_identity = 'acme/files'\nworkers = 2\n"
    callers = "\n[callers]\n1001 = ['acme/files', 'acme/other']\n"
    (home / "edge.toml").write_text("allow_unlocked_memory = true\nservices = ['acme/files']\n" + more + text + callers)
    assert cli.main(["edge", "run", "--config", str(home / "edge.toml")]) == 0
    assert vars(server.told[0]) == {
        "dir": str(home),
        "socket": str(home / "edge.sock"),
        "region": "us-east",
        "mesh": "dev",
        "elsewhere": [],
        "core_url": ["https://d.example:7601", "https://c.example:7601"],
        "ca": str(home / "ca.pem"),
        "trust": str(home / "edge-trust.json"),
        "service": ["acme/files"],
        "caller": ["1001=acme/files,acme/other"],
        "tcp": "127.0.0.1:8444",
        "tcp_identity": "acme/files",
        "workers": 2,
        "connections": 10_240,
        "worker": None,
        "listen_fd": None,
        "allow_unlocked_memory": True,
    }
