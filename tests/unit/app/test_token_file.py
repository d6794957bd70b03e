"""``--token-file``: which commands take one, what may be in the file, and that nothing of it is shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from keymesh.app import cli
from keymesh.app.admin_client import is_bound, read_token
from keymesh.app.args_common import JWT_FILE_ENV, choose_token_file, chosen_token_file
from keymesh.crypto.jws import make_jws
from keymesh.model.errors import Refused

TAKES = ["tenant list", "tenant show t", "service list", "key list", "key rotate tenant:t", "region list",
         "suspend tenant:t", "revoke tenant:t", "resume tenant:t"]  # fmt: skip
TAKES_NONE = ["region seal r", "region unseal r --share s", "status", "up", "tenant export t -o f"]


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(JWT_FILE_ENV, raising=False)
    chosen_token_file.set(None)


@pytest.mark.parametrize("line", TAKES)
def test_the_flag_wins_over_the_environment(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parse = cli.build_parser().parse_args
    choose_token_file(parse(line.split()))
    assert chosen_token_file.get() is None
    monkeypatch.setenv(JWT_FILE_ENV, "env.jwt")
    choose_token_file(parse(line.split()))
    assert chosen_token_file.get() == "env.jwt"
    choose_token_file(parse([*line.split(), "--token-file", "flag.jwt"]))
    assert chosen_token_file.get() == "flag.jwt"


@pytest.mark.parametrize("line", TAKES_NONE)
def test_commands_that_need_a_certificate_take_no_token(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(JWT_FILE_ENV, "env.jwt")
    choose_token_file(cli.build_parser().parse_args(line.split()))
    assert chosen_token_file.get() is None


def write(path: Path, content: bytes, mode: int = 0o600) -> Path:
    path.touch(mode=mode)
    path.chmod(mode)
    path.write_bytes(content)
    return path


def test_a_token_with_a_line_end(tmp_path: Path) -> None:
    assert read_token(write(tmp_path / "t", b"aa.bb.c-_\n")) == "aa.bb.c-_"
    assert read_token(write(tmp_path / "t", b"aa.bb.cc")) == "aa.bb.cc"


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"canary77 aa", b"canary77\r\nX-Injected: 1", b"canary77\x00", "canary77é".encode(), b"\xffcanary77",
     b"a" * 9_000],
    ids=["empty", "blank", "two words", "two lines", "NUL", "letters", "no UTF-8", "huge"],
)  # fmt: skip
def test_what_is_no_token(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(Refused) as no:
        read_token(write(tmp_path / "token.jwt", content))
    assert no.value.field == "token.jwt"
    assert "canary77" not in str(no.value)


def test_a_file_that_others_can_read_is_not_used(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="0600"):
        read_token(write(tmp_path / "t", b"aa.bb.cc", 0o640))
    with pytest.raises(Refused, match="no file"):
        read_token(tmp_path / "none")


@pytest.mark.parametrize(
    ("confirmation", "bound"),
    [({"x5t#S256": "x"}, True), ({"jkt": "x"}, False), (None, False), ("x5t#S256", False)],
    ids=str,
)
def test_which_token_goes_with_a_certificate(confirmation: object, bound: bool) -> None:
    token = make_jws({"alg": "EdDSA"}, {"cnf": confirmation}, sign=lambda signed: b"x")
    assert is_bound(token) is bound
    assert not is_bound("aa.bb.cc")
