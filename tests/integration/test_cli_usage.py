"""The command line where there is no mesh: help with examples, usage errors, mistakes told in one line."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.mesh.live import keymesh

from keymesh.app import cli


def leaves(parser: argparse.ArgumentParser, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command that does something."""
    groups = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not groups:
        yield path
    for group in groups:
        for name, inner in group.choices.items():
            yield from leaves(inner, (*path, name))


COMMANDS = sorted(leaves(cli.build_parser()))


def test_every_promised_command_exists() -> None:
    promised = {
        "up", "down", "status", "suspend", "resume", "revoke", "verify", "seal", "open", "demo",
        "tenant create", "tenant list", "tenant show", "tenant switch-l1", "tenant export",
        "service create", "service set", "service list", "service show",
        "key list", "key show", "key rotate", "key rewrap", "region list", "region show", "region rotate-ivk",
        "region migrate-keystore",
        "bench edge", "bench killswitch", "sim run", "sim replay", "customer-kms run", "pki show",
    }  # fmt: skip
    assert promised <= {" ".join(words) for words in COMMANDS}


@pytest.mark.parametrize("words", COMMANDS, ids=[" ".join(words) for words in COMMANDS])
def test_help_has_an_example(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([*words, "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "example: keymesh " + " ".join(words) in " ".join(said.split())
    assert "exit codes" in cli.build_parser().format_help()


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("nonsense",),
        ("tenant",),
        ("tenant", "nonsense"),
        ("tenant", "create"),
        ("service", "create"),
        ("service", "create", "files", "--tenant", "acme", "--custody", "shared"),
        ("service", "set", "acme/files", "--custody", "shared"),
        ("service", "set", "acme/files", "--mint-budget", "many"),
        ("suspend",),
        ("suspend", "tenant:acme", "--wait", "soon"),
        ("up", "--ttl", "1 hour"),
        ("up", "--ttl", "-5s"),
        ("up", "--nonsense"),
        ("bench",),
        ("sim", "run", "--seeds", "many"),
        ("verify",),
    ],
    ids=" ".join,
)
def test_usage_errors_are_exit_code_2(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(list(words))
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert said.out == "" and "usage: keymesh" in said.err and "Traceback" not in said.err


NO_MESH = (
    ("down",),
    ("status",),
    ("tenant", "list"),
    ("tenant", "show", "acme"),
    ("tenant", "create", "acme", "--home", "us-east"),
    ("tenant", "export", "acme"),
    ("tenant", "switch-l1", "acme", "--l1", "kms:x#y"),
    ("service", "list"),
    ("service", "create", "files", "--tenant", "acme"),
    ("key", "list"),
    ("key", "rotate", "tenant:acme"),
    ("region", "list"),
    ("region", "rotate-ivk", "us-east"),
    ("suspend", "tenant:acme"),
    ("resume", "tenant:acme"),
    ("revoke", "tenant:acme"),
    ("certificate", "show", "c1"),
    ("pki", "show"),
    ("pki", "renew", "operator"),
    ("seal", "FILE", "--tenant", "acme", "--service", "files"),
)


@pytest.mark.parametrize("words", NO_MESH, ids=" ".join)
def test_a_directory_without_a_mesh_is_refused_by_name(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KEYMESH_DIR", raising=False)
    (tmp_path / "FILE").write_bytes(b"x")
    for given, where in ((("--dir", str(tmp_path / "none")), "none"), ((), ".keymesh")):
        assert cli.main([*words, *given]) == 1
        said = capsys.readouterr()
        assert said.out == ""
        assert str(tmp_path / where) in said.err and "keymesh up" in said.err
    if words[0] != "seal":
        assert cli.main([*words, "--json"]) == 1
        assert json.loads(capsys.readouterr().out)["error"]["code"] == "not-found"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["FILE"]


def test_who_shows_a_file_as_a_command_is_told_how_it_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "tenant-acme.cert.json"
    file.write_text("{}")
    assert cli.main(["certificate", "show", str(file), "--dir", str(tmp_path)]) == 1
    assert f"keymesh verify {file}" in capsys.readouterr().err.replace("\n", " ")


def test_a_broken_plan_is_refused_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for content in (b"", b"{}", b"{", b"\xff", b'{"version": 1, "mesh": 5}', b"[" * 100_000):
        (tmp_path / "mesh.json").write_bytes(content)
        for words in (("status",), ("tenant", "list"), ("up",), ("down",)):
            assert cli.main([*words, "--dir", str(tmp_path)]) in (1, 4), (words, content[:20])
            said = capsys.readouterr()
            assert said.err.startswith("error: ") and "Traceback" not in said.err, (words, content[:20])


def test_verify_of_what_is_no_certificate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trust = tmp_path / "trust.json"
    trust.write_text(
        json.dumps(
            {
                "mesh": "dev",
                "root": {"version": 1, "keys": {"0" * 64: "0" * 64}, "threshold": 1},
                "genesis": "0" * 64,
            }
        )
    )
    file = tmp_path / "c.json"
    for content in (
        b"",
        b"{}",
        b"null",
        b"\x00" * 100,
        b'{"payload":"","payloadType":"","signatures":[]}',
        b"[" * 9_999,
    ):
        file.write_bytes(content)
        assert cli.main(["verify", str(file), "--root", str(trust)]) in (1, 4), content[:20]
        assert "Traceback" not in capsys.readouterr().err
    file.write_bytes(b"{" + b" " * (17 * 1024 * 1024))
    assert cli.main(["verify", str(file), "--root", str(trust)]) == 1
    file.write_bytes(b"{}")
    for root in (tmp_path / "none.json", tmp_path, file):
        assert cli.main(["verify", str(file), "--root", str(root)]) in (1, 4)
    assert cli.main(["verify", str(tmp_path), "--root", str(trust)]) == 1
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ("up", "--regions", "A"),
        ("up", "--regions", "a,a"),
        ("up", "--regions", "registry"),
        ("up", "--regions", ","),
        ("up", "--regions", ",".join(f"r{n}" for n in range(17))),
        ("up", "--ttl", "1s"),
        ("up", "--ttl", "99d"),
        ("up", "--edge-ttl", "2h"),
        ("up", "--heartbeat", "0s"),
        ("up", "--ttl", "10s", "--heartbeat", "9s"),
        ("up", "--l1-probe", "1ms"),
        ("up", "--l1-ttl", "0s"),
        ("up", "--snapshot", "0s"),
    ],
    ids=" ".join,
)
def test_up_refuses_what_it_cannot_be(
    words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*words, "--dir", str(tmp_path / "d")]) == 1
    assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "d" / "mesh.json").exists()


def test_up_in_a_path_too_long_or_not_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deep = tmp_path / ("d" * 100)
    assert cli.main(["up", "--dir", str(deep)]) == 1
    assert "too long" in capsys.readouterr().err
    (tmp_path / "file").write_text("x")
    assert cli.main(["up", "--dir", str(tmp_path / "file")]) == 1
    assert cli.main(["up", "--dir", "/proc/keymesh"]) == 1
    assert "Traceback" not in capsys.readouterr().err


def test_a_reader_that_hangs_up_is_no_traceback() -> None:
    done = keymesh("--version")
    assert (done.returncode, done.stdout[:8]) == (0, "keymesh ")
    done = keymesh("status", "--dir", "/nonexistent")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
