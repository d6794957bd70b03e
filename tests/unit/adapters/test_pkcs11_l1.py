"""The head of a token's wrap, as the formats page has it, and what is refused before any token is asked."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable

import pytest

from keymesh.adapters.pkcs11_l1 import Pkcs11L1
from keymesh.adapters.pkcs11_messages import Failed, Unwrap, Why, Wrap
from keymesh.adapters.pkcs11_process import TokenSaid
from keymesh.core.l1 import L1Denied, L1Unreachable
from keymesh.model.errors import Integrity, KeymeshError, Refused, Unavailable

KEY_ID = hashlib.sha256(b"keymesh/pkcs11-l1/1\0\0\0\x04root").digest()[:16]


class Token:
    """Answers with ``says``; remembers what it was asked."""

    def __init__(self, says: bytes | Exception) -> None:
        self.says = says
        self.asked: list[object] = []

    async def call(self, request: object) -> bytes:
        self.asked.append(request)
        if isinstance(self.says, Exception):
            raise self.says
        return self.says


def key(token: Token) -> Pkcs11L1:
    return Pkcs11L1(lambda: token, "root")  # type: ignore[arg-type, return-value]


async def test_the_head_names_the_key_and_the_context_is_bound() -> None:
    token = Token(b"\x01inner")
    wrapped = await key(token).wrap(b"e")
    assert wrapped == b"\x01" + KEY_ID + b"\x01inner"
    aad = b"keymesh/pkcs11-l1/1\0\0\0\x04root"
    assert token.asked == [Wrap(key="root", plain=b"e", aad=aad)]
    token.says = b"e"
    assert await key(token).unwrap(wrapped) == b"e"
    assert token.asked[1:] == [Unwrap(key="root", wrapped=b"\x01inner", aad=aad)]


async def test_what_is_not_this_keys_never_reaches_the_token() -> None:
    token = Token(b"e")
    head = b"\x01" + KEY_ID
    for bad in (b"", head, head[:-1], head + b"\x00x", head + b"\x04x", b"\x02" + KEY_ID + b"\x01x", head + bytes(300)):
        with pytest.raises(Integrity):
            await key(token).unwrap(bad)
    assert token.asked == []


@pytest.mark.parametrize("says", [b"", bytes(65)])
async def test_an_answer_of_another_size_is_silence(says: bytes) -> None:
    with pytest.raises(L1Unreachable):
        await key(Token(says)).unwrap(b"\x01" + KEY_ID + b"\x01x")
    with pytest.raises(L1Unreachable):
        await key(Token(bytes(256))).wrap(b"e")


TABLE: list[tuple[Why, type[KeymeshError]]] = [
    (Why.PIN, L1Denied),
    (Why.NO_KEY, L1Denied),
    (Why.NOT_PERMITTED, L1Denied),
    (Why.LIBRARY, L1Unreachable),
    (Why.TOKEN, L1Unreachable),
    (Why.AMBIGUOUS, L1Unreachable),
    (Why.SESSIONS, L1Unreachable),
    (Why.DEVICE, L1Unreachable),
    (Why.BLOB, Integrity),
    (Why.UNFIT, Refused),
]


@pytest.mark.parametrize(("why", "becomes"), TABLE)
async def test_what_the_token_said_in_the_ports_words(why: Why, becomes: type[KeymeshError]) -> None:
    calls: list[Callable[[Pkcs11L1], Awaitable[object]]] = [
        lambda k: k.wrap(b"e"),
        lambda k: k.unwrap(b"\x01" + KEY_ID + b"\x01x"),
        lambda k: k.make_key(),
    ]
    for call in calls:
        with pytest.raises(becomes) as caught:
            await call(key(Token(TokenSaid(Failed(why, "Word")))))
        assert type(caught.value) is becomes
        assert caught.value.__suppress_context__
    assert {w for w, _ in TABLE} == set(Why)


async def test_silence_keeps_its_code() -> None:
    for silent in (
        Unavailable("pkcs11-busy", "later", retry_after_ms=7),
        L1Unreachable("pkcs11-not-configured", "none"),
    ):
        with pytest.raises(L1Unreachable) as caught:
            await key(Token(silent)).wrap(b"e")
        assert (caught.value.code, caught.value.retry_after_ms) == (silent.code, silent.retry_after_ms)
