"""The command line in this process: mistakes are one line and an exit code, JSON is JSON, text is only text."""

from __future__ import annotations

import argparse
import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.app.founded import founded

from keymesh.adapters import pki
from keymesh.app import cli
from keymesh.app.args_common import Later, duration_ms, show_ms
from keymesh.app.cli_common import _cell, emit, facts, table
from keymesh.app.cli_errors import guarded
from keymesh.app.cli_mesh import timing_of
from keymesh.app.cli_seal import parse_context
from keymesh.app.cli_service import _policy_of, _service_name
from keymesh.app.config_ask import EXAMPLE
from keymesh.app.registry_views import TenantRows, show_service
from keymesh.control.rows import PolicyRow, ServiceRow
from keymesh.model.errors import Integrity, Refused, Unavailable

pytestmark = pytest.mark.usefixtures("template")

LONG = "a sentence of some length that says what is wrong, " * 6


# --- durations -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("0ms", 0),
        ("500ms", 500),
        ("2s", 2_000),
        ("5m", 300_000),
        ("1h", 3_600_000),
        ("30d", 30 * 86_400_000),
        ("007s", 7_000),
        ("999999999d", 999_999_999 * 86_400_000),
    ],
)
def test_durations(text: str, ms: int) -> None:
    assert duration_ms(text) == ms


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5",
        "s",
        "5 s",
        " 5s",
        "5s ",
        "5s\n",
        "-5s",
        "+5s",
        "1.5s",
        "1e3s",
        "5S",
        "5sec",
        "1h30m",
        "٣s",
        "²s",
        "1" * 10 + "s",
    ],
)
def test_no_durations(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        duration_ms(text)


@given(st.integers(0, 10**12))
def test_what_is_shown_in_whole_units_is_read_alike(ms: int) -> None:
    shown = show_ms(ms)
    if "." not in shown:
        assert duration_ms(shown) == ms
    else:
        assert abs(float(shown.removesuffix("s")) * 1_000 - ms) <= 51


# --- errors ----------------------------------------------------------------------------------------------------------


def failing(error: BaseException) -> Callable[[argparse.Namespace], int]:
    def run(args: argparse.Namespace) -> int:
        raise error

    return run


ERRORS = [
    (Refused("not-found", LONG, field="tenant"), 1, "not-found"),
    (Refused.bad_field("ttl", "2s to 1d [red]:key:[/red]"), 1, "bad-field"),
    (Unavailable("unreachable", LONG), 3, "unreachable"),
    (Integrity.opaque(), 4, "integrity"),
    (FileNotFoundError(errno.ENOENT, "No such file or directory", "/x/y"), 1, "file"),
    (FileExistsError(errno.EEXIST, "File exists", "/x"), 1, "file"),
    (NotADirectoryError(errno.ENOTDIR, "Not a directory", "/x/y"), 1, "file"),
    (IsADirectoryError(errno.EISDIR, "Is a directory", "/x"), 1, "file"),
    (PermissionError(errno.EACCES, "Permission denied", "/x"), 1, "file"),
    (OSError(errno.ENOSPC, "No space left on device"), 3, "system"),
    (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), 3, "system"),
]


@pytest.mark.parametrize(("error", "code", "word"), ERRORS, ids=lambda value: type(value).__name__)
def test_an_error_is_one_line_or_one_object(
    error: BaseException, code: int, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert guarded(failing(error), argparse.Namespace()) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert said.err.rstrip().endswith(f"[{word}]")
    assert guarded(failing(error), argparse.Namespace(json=True)) == code
    said = capsys.readouterr()
    assert said.err == ""
    shown = json.loads(said.out)
    assert (shown["ok"], shown["error"]["code"]) == (False, word)
    assert set(shown["error"]) == {"code", "message", "field"}


def test_an_interrupt_is_130_and_a_bug_is_a_bug(capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(failing(KeyboardInterrupt()), argparse.Namespace()) == 130
    assert "interrupted" in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError):
        guarded(failing(ZeroDivisionError()), argparse.Namespace())


# --- output ----------------------------------------------------------------------------------------------------------

HOSTILE = "[bold]x[/bold] [/] [link=http://h]y[/link] :key: a:100:b"


def test_what_others_wrote_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    table("t", ("a", "b"), [(HOSTILE, 1), (None, True)])
    facts("f", {"k": HOSTILE, "none": None})
    shown = capsys.readouterr().out
    assert shown.replace("\n", "").replace(" ", "").count(HOSTILE.replace(" ", "")) == 2
    facts("nothing", {})


def test_cells_are_short() -> None:
    assert [_cell(v) for v in (None, True, False, 5, "x", "ab" * 16, "ab" * 32, "AB" * 16, "ab" * 17)] == [
        "",
        "yes",
        "no",
        "5",
        "x",
        "ab" * 6,
        "ab" * 6,
        "AB" * 16,
        "ab" * 17,
    ]


def test_json_or_words_never_both(capsys: pytest.CaptureFixture[str]) -> None:
    emit(argparse.Namespace(json=True), {"b": 1, "a": ("ü",)}, lambda: print("words"))
    assert json.loads(capsys.readouterr().out) == {"a": ["ü"], "b": 1}
    emit(argparse.Namespace(json=False), {"b": 1}, lambda: print("words"))
    assert capsys.readouterr().out == "words\n"


# --- the parser ------------------------------------------------------------------------------------------------------


def leaves(parser: argparse.ArgumentParser, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    groups = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not groups:
        yield path, parser
    for group in groups:
        for name, inner in group.choices.items():
            yield from leaves(inner, (*path, name))


def test_every_command_has_an_example_that_it_takes_itself() -> None:
    whole = cli.build_parser()
    found = dict(leaves(whole))
    assert len(found) > 30
    for words, parser in found.items():
        head = "example: keymesh " + " ".join(words)
        assert parser.epilog is not None, words
        assert parser.epilog.startswith(head), words
        example = parser.epilog.splitlines()[0].removeprefix("example: keymesh ").split(" | ")[0]
        args = whole.parse_args(example.split())
        assert callable(args.run), words
        assert parser.format_help()


def test_every_command_leads_to_a_function() -> None:
    for words, parser in leaves(cli.build_parser()):
        run = parser.get_default("run")
        assert isinstance(run, Later), words
        assert run.load().__module__ == f"keymesh.app.{run.module}", words


HEAVY = ("aiohttp", "asyncio", "cryptography", "msgspec", "prometheus_client", "rich", "sqlalchemy", "sqlite3")
ROOMS = ("adapters", "control", "core", "edge", "registry", "sim")
EDGE = tuple(f"keymesh.edge.{part}" for part in ("client", "hot", "machine", "sidecar"))
"""All of the Edge but for where a server listens, which every role's server uses."""
# What a process imports before it does anything -> what is none of its business.
STRANGERS = {
    "cli": (*HEAVY, *(f"keymesh.{room}" for room in ROOMS)),
    "supervisor": ("aiohttp", "prometheus_client", "sqlalchemy", "rich", "keymesh.core", "keymesh.edge", "keymesh.sim"),
    "registry_app": ("rich", "keymesh.core", *EDGE, "keymesh.sim", "keymesh.app.cli"),
    "core_app": ("rich", "sqlalchemy", "keymesh.registry", *EDGE, "keymesh.sim", "keymesh.app.cli"),
    "edge_app": ("rich", "sqlalchemy", "sqlite3", "keymesh.core", "keymesh.registry", "keymesh.sim", "keymesh.app.cli"),
    "cli_status": ("sqlalchemy", "sqlite3", "keymesh.core", "keymesh.edge", "keymesh.registry", "keymesh.sim"),
    "cli_verify": ("aiohttp", "asyncio", "sqlite3", "keymesh.core", "keymesh.edge", "keymesh.registry", "keymesh.sim"),
    "cli_tenant": ("sqlalchemy", "sqlite3", "keymesh.edge", "keymesh.registry", "keymesh.sim"),
    "cli_mesh": ("sqlalchemy", "keymesh.registry", "keymesh.sim"),
}


@pytest.mark.parametrize("module", STRANGERS)
def test_a_process_imports_what_it_needs_and_no_more(module: str) -> None:
    """In a process of its own; the command line must answer at once, and a role must not carry another's code."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, keymesh.app.{module}; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    imported = done.stdout.split()
    found = [n for n in STRANGERS[module] if any(name == n or name.startswith(f"{n}.") for name in imported)]
    assert found == []


@pytest.mark.parametrize(
    "words",
    [[], ["nonsense"], ["up", "--ttl", "1x"], ["tenant"], ["tenant", "create"], ["--dir", "x", "up"], ["verify"]],
)
def test_usage_errors_exit_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("usage: keymesh")


@pytest.mark.parametrize(
    "words",
    [
        ["key", "show", "mesh"],
        ["key", "rotate", "key:a/b@1"],
        ["key", "rewrap", "region:x"],
        ["tenant", "create", "mesh"],
        ["tenant", "show", "../x"],
        ["service", "set", "files", "--edge-ttl", "1m"],
        ["service", "set", "a/b"],
        ["service", "set", "a/b", "--edge-ttl", "61m"],
        ["service", "set", "a/b", "--mint-budget", "-1"],
        ["service", "set", "a/b", "--open-budget", "none", "--mint-budget", "-5"],
        ["region", "show", "US"],
        ["pki", "enrol", "acme", "-o", "x"],
        ["pki", "show", "/absent.pem"],
        ["pki", "show", "/"],
        ["verify", "/absent.json"],
        ["customer-kms", "status", "root", "--dir", "/absent"],
        ["customer-kms", "allow", "--dir", "/absent", "--mesh-ca", "/absent"],
        ["open", "/absent.sealed", "--offline", "--chain", "/absent", "--l1", "kms:x#y"],
        ["sim", "run", "--seeds", "0"],
    ],
    ids=" ".join,
)
def test_a_users_mistake_is_one_line_and_exit_1(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 1
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert said.err.startswith("error: ")
    assert cli.main([*words, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False


@pytest.mark.parametrize(
    "words",
    [["suspend", "tenant:acme"], ["revoke", "tenant:acme"], ["tenant", "export", "acme", "--force"]],
    ids=" ".join,
)
def test_an_output_that_is_no_file_is_refused_before_anything_is_asked(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for output in (os.devnull, str(tmp_path), str(tmp_path / "absent" / "file")):
        assert cli.main([*words, "-o", output, "--dir", "/absent", "--json"]) == 2
        error = json.loads(capsys.readouterr().out)["error"]
        assert (error["code"], error["field"]) == ("not-writable", "output")
        assert output in error["message"] and "nothing was done" in error["message"]


def test_a_certificate_file_of_somebody_else_is_shown_not_interpreted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.unit.adapters.pki_world import now

    root = pki.create_root("dev", now=now())
    path = tmp_path / "c.pem"
    path.write_bytes(pki.certificates_pem([root.certificate]))
    assert cli.main(["pki", "show", str(path)]) == 0
    assert "certificates" in capsys.readouterr().out
    for junk in (b"", b"junk", b"\xff", path.read_bytes()[:200]):
        path.write_bytes(junk)
        assert cli.main(["pki", "show", str(path)]) == 1


def test_a_file_of_another_encoding_is_a_mistake_not_a_bug(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with founded() as (layout, _):
        file = tmp_path / "ca.pem"
        file.write_bytes("é".encode("latin-1"))
        words = ["customer-kms", "allow", "--dir", str(layout.customer_kms), "--mesh-ca", str(file)]
        assert cli.main(words) in (1, 3)
        assert capsys.readouterr().err.startswith("error: ")


def test_certificates_of_a_mesh_are_listed_and_renewed(capsys: pytest.CaptureFixture[str]) -> None:
    with founded() as (layout, plan):
        where = ["--dir", str(layout.root)]
        assert cli.main(["pki", "show", "--json", *where]) == 0
        roles = [c["role"] for c in json.loads(capsys.readouterr().out)["certificates"]]
        assert roles == ["root", "operator", "registry", *(f"core-{r}" for r in plan.regions)]
        before = (layout.admin / "operator.pem").read_bytes()
        assert cli.main(["pki", "renew", "operator", "--json", *where]) == 0
        assert json.loads(capsys.readouterr().out)["role"] == "operator"
        assert (layout.admin / "operator.pem").read_bytes() != before
        assert cli.main(["pki", "renew", "nobody", *where]) == 1
        assert "core-us-east" in capsys.readouterr().err


def test_a_mesh_that_does_not_run_is_exit_3(capsys: pytest.CaptureFixture[str]) -> None:
    with founded() as (layout, _):
        where = ["--dir", str(layout.root)]
        assert cli.main(["status", *where]) == 3
        assert cli.main(["tenant", "list", *where]) == 3
        assert cli.main(["tenant", "list", "--json", *where]) == 3
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["ok"] is False
        assert cli.main(["down", "--json", *where]) == 0
        assert json.loads(capsys.readouterr().out) == {"ok": True, "stopped": False}
        assert cli.main(["suspend", "mesh", *where]) == 1  # a second signature is asked for first
        assert "--approve-key" in capsys.readouterr().err
        own = str(layout.keys / "officer-1.pem")
        assert cli.main(["suspend", "mesh", "--approve-key", own, *where]) == 1
        assert "not the initiator" in capsys.readouterr().err


# --- arguments -------------------------------------------------------------------------------------------------------


def timing(**changes: Any) -> argparse.Namespace:
    good = {"ttl": 60_000, "heartbeat": 1_000, "edge_ttl": 5_000, "l1_probe": 5_000, "l1_ttl": None, "snapshot": 5_000}
    return argparse.Namespace(**good | changes)


def test_timing_within_its_limits() -> None:
    assert timing_of(timing()).l1_ttl_ms == 60_000
    assert timing_of(timing(l1_ttl=500)).l1_ttl_ms == 500
    for change in (
        {"ttl": 1_999},
        {"ttl": 86_400_001},
        {"heartbeat": 99},
        {"heartbeat": 30_001},
        {"edge_ttl": 999},
        {"edge_ttl": 3_600_001},
        {"l1_probe": 499},
        {"l1_ttl": 0},
        {"l1_ttl": 86_400_001},
        {"snapshot": 499},
    ):
        with pytest.raises(Refused) as refused:
            timing_of(timing(**change))
        assert refused.value.field == next(iter(change)).replace("_", "-")


def test_contexts_are_pairs() -> None:
    assert parse_context([]) == {}
    assert parse_context(["a=b", "c==d", "e=", "ü=€"]) == {"a": "b", "c": "=d", "e": "", "ü": "€"}
    for bad in (["a"], ["=b"], [""], ["a=1", "a=2"], ["a=\udcff"], ["\udcff=a"]):
        with pytest.raises(Refused) as refused:
            parse_context(bad)
        assert refused.value.field == "context"


def test_the_whole_policy_of_a_service_is_shown_and_carried_over() -> None:
    """A field that the policy gains is shown, and a change of another keeps it."""
    row = ServiceRow(version=3, custody="leased", edge_ttl_ms=7_000, mint_budget=5, open_budget=None)
    policy = PolicyRow(version=1, home="us-east", domain="us", regions=("us-east",), admins=())
    space = TenantRows("acme", policy, {"service/pay": msgspec.json.encode(row)}, 4)
    shown = msgspec.to_builtins(show_service(space, "pay"))
    assert set(ServiceRow.__struct_fields__) < set(shown)
    assert _policy_of(shown | {"index": 4}) == row
    for name in ServiceRow.__struct_fields__:
        with pytest.raises(Refused) as refused:
            _policy_of({k: v for k, v in shown.items() if k != name})
        assert name in refused.value.message


def test_a_service_is_named_whole_or_in_two() -> None:
    def name(service: str, tenant: str | None = None) -> tuple[str, str]:
        return _service_name(argparse.Namespace(service=service, tenant=tenant))

    assert name("a/b") == name("b", "a") == name("a/b", "a") == ("a", "b")
    for service, tenant in (
        ("b", None),
        ("a/b", "c"),
        ("a/b/c", None),
        ("/b", None),
        ("a/", None),
        ("", "a"),
        ("b", ""),
    ):
        with pytest.raises(Refused):
            name(service, tenant)


# --- usage, interrupts and reasons ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["open", "/absent.sealed", "--offline"],
        ["open", "/absent"],
        ["seal", "x", "--tenant", "A!", "--service", "files"],
        ["seal", "x", "--tenant", "acme", "--service", "files", "--context", "k"],
        ["suspend", "acme"],
        ["resume", "acme"],
        ["service", "create", "acme"],
        ["suspend", "tenant:Acme"],
        ["service", "create", "files"],
        ["service", "create", "a/b", "--tenant", "c"],
        ["service", "create", "a/b", "--edge-ttl", "2h"],
        ["fuzz", "run", "nope"],
        ["sim", "ask", "--config", "ASK", "--faults", "meteor=1/h"],
        ["verify", "CERT"],
    ],
    ids=" ".join,
)
def test_what_the_command_line_itself_has_wrong_is_exit_2(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ASK").write_text(EXAMPLE)
    (tmp_path / "CERT").write_text("{}")
    assert cli.main(words) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert cli.main([*words, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["ok"] is False


@pytest.mark.parametrize("words", [["suspend", "--json"], ["tenant", "create", "--json"], ["--json"]], ids=" ".join)
def test_a_usage_error_is_an_object_too_where_one_was_asked_for(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert json.loads(said.out)["error"]["code"] == "usage"
    assert json.loads(said.out)["error"]["message"] in said.err
    with pytest.raises(SystemExit):
        cli.main(words[:-1])
    assert capsys.readouterr().out == ""


def test_ctrl_c_while_the_commands_are_read_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> argparse.ArgumentParser:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "build_parser", interrupted)
    assert cli.main(["status"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_verify_without_a_root_says_how_to_name_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.json").write_text("{}")
    assert cli.main(["verify", "c.json"]) == 2
    assert "no trust.json here: give the mesh's root keys with --root FILE" in capsys.readouterr().err
