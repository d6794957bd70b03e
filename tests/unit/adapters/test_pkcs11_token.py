"""How a library's errors are told apart, and that a PIN is never the last try: with a library made of plain objects."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import Any

import pkcs11
import pytest
from pkcs11 import Mechanism, TokenFlag
from pkcs11 import exceptions as p11

from keymesh.adapters.pkcs11_messages import (
    Done,
    Failed,
    MakeKey,
    Open,
    Request,
    Unwrap,
    Why,
    Wrap,
    answer_of,
    body_bytes,
    pack,
    read_request,
)
from keymesh.adapters.pkcs11_token import Token, TokenFailed, _padded, _plain, open_token
from keymesh.adapters.pkcs11_worker import serve
from keymesh.model.errors import Unavailable

NO_FLAGS = TokenFlag(0)
OPEN = Open(module="/lib.so", token="t", serial="", pin=b"1234")


class Library:
    """A library of one token; ``fails`` at the call of that name."""

    def __init__(self, flags: TokenFlag = NO_FLAGS, **fails: Exception) -> None:
        self.flags = flags
        self.fails = fails
        self.pins: list[str] = []
        self.slot = self

    def _maybe(self, name: str) -> None:
        if name in self.fails:
            raise self.fails[name]

    def get_token(self, **_: object) -> Library:
        self._maybe("get_token")
        return self

    def get_mechanisms(self) -> set[Mechanism]:
        return {Mechanism.AES_GCM}

    def open(self, *, user_pin: str) -> Library:
        self.pins.append(user_pin)
        self._maybe("open")
        return self

    def get_key(self, **_: object) -> Any:
        self._maybe("get_key")
        return self


def opened(monkeypatch: pytest.MonkeyPatch, library: Library) -> Token:
    monkeypatch.setattr(pkcs11, "lib", lambda path: library)
    return open_token(OPEN)


@pytest.mark.parametrize("flag", [TokenFlag.USER_PIN_FINAL_TRY, TokenFlag.USER_PIN_LOCKED])
def test_a_pin_is_not_the_last_try(monkeypatch: pytest.MonkeyPatch, flag: TokenFlag) -> None:
    library = Library(flags=flag)
    with pytest.raises(TokenFailed) as caught:
        opened(monkeypatch, library)
    assert caught.value.why is Why.PIN
    assert library.pins == []


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (p11.NoSuchToken, Why.TOKEN),
        (p11.MultipleTokensReturned, Why.TOKEN),
        (p11.TokenNotPresent, Why.TOKEN),
        (p11.PinIncorrect, Why.PIN),
        (p11.PinLocked, Why.PIN),
        (p11.PinExpired, Why.PIN),
        (p11.PinLenRange, Why.PIN),
        (p11.UserPinNotInitialized, Why.PIN),
        (p11.SessionCount, Why.SESSIONS),
        (p11.DeviceMemory, Why.SESSIONS),
        (p11.NoSuchKey, Why.NO_KEY),
        (p11.MultipleObjectsReturned, Why.AMBIGUOUS),
        (p11.DeviceError, Why.DEVICE),
        (p11.DeviceRemoved, Why.DEVICE),
        (p11.GeneralError, Why.DEVICE),
        (p11.SessionHandleInvalid, Why.DEVICE),
        (p11.UserNotLoggedIn, Why.DEVICE),
    ],
)
def test_errors_are_told_apart_wherever_they_come(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception], why: Why
) -> None:
    steps: dict[str, Callable[[], object]] = {
        "get_token": lambda: opened(monkeypatch, Library(get_token=error())),
        "open": lambda: opened(monkeypatch, Library(open=error())),
        "wrap": lambda: opened(monkeypatch, Library(get_key=error())).wrap("k", b"x", b""),
        "unwrap": lambda: opened(monkeypatch, Library(get_key=error())).unwrap("k", b"\x01x", b""),
    }
    for step in steps.values():
        with pytest.raises(TokenFailed) as caught:
            step()
        assert caught.value.why is why


def test_a_pin_that_is_no_text_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library()
    monkeypatch.setattr(pkcs11, "lib", lambda path: library)
    with pytest.raises(TokenFailed) as caught:
        open_token(Open(module="/lib.so", token="t", serial="", pin=b"\xff"))
    assert (caught.value.why, library.pins) == (Why.PIN, [])


def test_a_library_that_does_not_load_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: str) -> Any:
        raise RuntimeError("dlopen")

    monkeypatch.setattr(pkcs11, "lib", broken)
    with pytest.raises(TokenFailed) as caught:
        open_token(OPEN)
    assert caught.value.why is Why.LIBRARY


def test_the_worker_answers_in_order_and_only_after_it_was_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    def answers(*requests: Request) -> list[object]:
        sent, said = io.BytesIO(b"".join(map(pack, requests))), io.BytesIO()
        serve(sent, said)
        said.seek(0)
        out: list[object] = []
        while head := said.read(4):
            out.append(answer_of(said.read(body_bytes(head))))
        return out

    library = Library(get_key=p11.NoSuchKey())
    monkeypatch.setattr(pkcs11, "lib", lambda path: library)
    wrap = Wrap(key="k", plain=b"x", aad=b"")
    assert answers(OPEN, wrap, wrap, OPEN) == [
        Done(),
        Failed(Why.NO_KEY, "NoSuchKey"),
        Failed(Why.NO_KEY, "NoSuchKey"),
        Failed(Why.DEVICE, "opened twice"),
    ]
    assert answers(wrap) == []
    assert library.pins == ["1234"]


def test_without_the_binding_the_worker_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "keymesh.adapters.pkcs11_token", None)
    said = io.BytesIO()
    serve(io.BytesIO(pack(OPEN)), said)
    said.seek(0)
    answer = answer_of(said.read(body_bytes(said.read(4))))
    assert answer == Failed(Why.LIBRARY, "python-pkcs11 is not installed")


def test_messages_have_a_limit_and_show_no_secret() -> None:
    for head in (b"\0\0\0\0", b"\xff\xff\xff\xff"):
        with pytest.raises(Unavailable):
            body_bytes(head)
    with pytest.raises(Unavailable):
        answer_of(b"\xc1")
    assert read_request(io.BytesIO(b"\0\0")) is None
    secrets: list[object] = [OPEN, Wrap(key="k", plain=b"1234", aad=b""), Done(b"1234")]
    assert "1234" not in repr(secrets)
    assert read_request(io.BytesIO(pack(MakeKey(key="k")))) == MakeKey(key="k")
    assert read_request(io.BytesIO(pack(Unwrap(key="k", wrapped=b"w", aad=b"")))) == Unwrap(
        key="k", wrapped=b"w", aad=b""
    )


@pytest.mark.parametrize("n_bytes", [1, 6, 7, 8, 32, 64])
def test_padding_comes_off_and_no_other_does(n_bytes: int) -> None:
    plain = b"p" * n_bytes
    padded = _padded(plain)
    assert len(padded) % 8 == 0
    assert _plain(padded) == plain
    for bad in (b"", padded[:-1], padded + b"\0", padded[1:], bytes((255,)) + padded[1:], padded + bytes(8)):
        with pytest.raises(TokenFailed):
            _plain(bad)
