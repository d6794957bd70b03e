"""Who may use which services of a sidecar, and where it listens: what is said in words is checked."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from keymesh.access.callers import parse_callers
from keymesh.edge.sidecar_bind import bind_tcp, bind_unix
from keymesh.edge.sidecar_callers import OWNER, Caller, unix_callers
from keymesh.model.errors import Refused
from keymesh.model.hostport import parse_tcp

FILES = ("acme", "files")


def test_a_caller_uses_what_it_was_given_and_nothing_else() -> None:
    caller = Caller(frozenset({FILES}))
    assert caller.may_use(FILES) and not caller.may_use(("acme", "other")) and not caller.is_owner
    assert OWNER.may_use(("any", "thing")) and OWNER.is_owner
    assert not Caller(frozenset()).may_use(FILES)


def test_a_connection_that_outlives_its_certificate_is_of_no_use(monkeypatch: pytest.MonkeyPatch) -> None:
    caller = Caller(frozenset({FILES}), until_ms=5_000)
    monkeypatch.setattr(time, "time_ns", lambda: 4_999_999_999)
    assert caller.may_use(FILES)
    monkeypatch.setattr(time, "time_ns", lambda: 5_000_000_000)
    assert not caller.may_use(FILES)


def test_callers_in_words() -> None:
    assert parse_callers(["1001=acme/files,acme/other", "0=acme/files"]) == {
        1001: frozenset({FILES, ("acme", "other")}),
        0: frozenset({FILES}),
    }


@pytest.mark.parametrize(
    "words",
    [
        ["1001"],
        ["=acme/files"],
        ["bob=acme/files"],
        ["-1=acme/files"],
        ["4294967295=acme/files"],
        ["1=acme"],
        ["1="],
        ["1=acme/files,"],
        ["1=ACME/files"],
        ["1=acme/../files"],
        ["1=acme/files", "1=acme/other"],
        ["\u0661=acme/files"],
        [f"{n}=acme/files" for n in range(1_025)],
    ],
    ids=lambda words: " ".join(words[:3]),
)
def test_callers_in_other_words_are_refused(words: list[str]) -> None:
    with pytest.raises(Refused):
        parse_callers(words)


class Transport:
    def __init__(self, end: socket.socket) -> None:
        self._end = end

    def get_extra_info(self, name: str) -> Any:
        return self._end if name == "socket" else None


def test_the_kernel_says_who_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    us = os.getuid()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        transport: Any = Transport(ours)
        assert unix_callers({})(transport) is OWNER
        monkeypatch.setattr("keymesh.edge.sidecar_callers.ROOT_UID", us + 1)
        monkeypatch.setattr(os, "getuid", lambda: us + 1)
        assert unix_callers({})(transport) is None
        found = unix_callers({us: frozenset({FILES})})(transport)
        assert found == Caller(frozenset({FILES}))


@pytest.mark.parametrize(
    "text", ["", "host", ":80", "host:", "host:0", "host:65536", "host:-1", "host:http", "h:\u0661"]
)
def test_an_address_is_host_and_port(text: str) -> None:
    with pytest.raises(Refused):
        parse_tcp(text)


def test_addresses() -> None:
    assert parse_tcp("127.0.0.1:8444") == ("127.0.0.1", 8_444)
    assert parse_tcp("[::1]:8444") == ("::1", 8_444)


def test_a_port_is_shared_by_those_who_say_so() -> None:
    with bind_tcp("127.0.0.1", 0, shared=True) as first:
        first.listen()
        port = first.getsockname()[1]
        with bind_tcp("127.0.0.1", port, shared=True):
            pass
        with pytest.raises(Refused) as caught:
            bind_tcp("127.0.0.1", port)
        assert caught.value.code == "address-in-use"
    with pytest.raises(Refused):
        bind_tcp("no.such.host.invalid", 80)


def test_a_socket_has_the_mode_of_its_callers(tmp_path: Path) -> None:
    with bind_unix(tmp_path / "own"), bind_unix(tmp_path / "all", shared=True):
        assert (tmp_path / "own").stat().st_mode & 0o777 == 0o600
        assert (tmp_path / "all").stat().st_mode & 0o777 == 0o666


def test_a_file_in_the_place_of_a_socket_is_nobodys_leftover(tmp_path: Path) -> None:
    """Connecting to it is refused just as to a dead process's socket is; it is not ours to remove."""
    path = tmp_path / "notes"
    path.write_text("mine")
    with pytest.raises(Refused, match="not a socket"):
        bind_unix(path)
    assert path.read_text() == "mine"


def test_a_dead_processs_socket_is_replaced(tmp_path: Path) -> None:
    bind_unix(tmp_path / "s").close()
    with bind_unix(tmp_path / "s") as again:
        assert again.getsockname() == str(tmp_path / "s")
