"""XAES keys, associated data and L4 blobs: what opens, and every change that must not."""

from __future__ import annotations

import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keymesh.crypto import aad, blob, kid
from keymesh.crypto.xaes import XaesKey, xaes_open, xaes_seal
from keymesh.model.errors import Integrity, Refused
from keymesh.model.limits import CONTEXT_MAX_BYTES, CONTEXT_MAX_PAIRS

L3 = bytes(range(32))
KEY = XaesKey(L3)
KID = kid.kid_of(L3)
CONTEXT = {"table": "users", "id": "17"}
BLOB = blob.seal_l4(KEY, KID, "acme", CONTEXT, b"\7" * 32, b"\5" * 24)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
contexts = st.dictionaries(texts, texts, max_size=6)


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=24, max_size=24), contexts)
def test_a_blob_opens_to_what_was_sealed(l4: bytes, nonce: bytes, context: dict[str, str]) -> None:
    sealed = blob.seal_l4(KEY, KID, "acme", context, l4, nonce)
    assert len(sealed) == blob.L4_BLOB_BYTES
    assert blob.open_l4(KEY, KID, "acme", dict(reversed(context.items())), memoryview(sealed)) == l4


def test_every_bit_flip_is_noticed() -> None:
    assert blob.open_l4(KEY, KID, "acme", CONTEXT, BLOB) == b"\7" * 32
    for bit in range(len(BLOB) * 8):
        changed = bytearray(BLOB)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Refused if bit < 16 else Integrity):
            blob.open_l4(KEY, KID, "acme", CONTEXT, changed)


def test_every_truncation_is_refused() -> None:
    for length in range(len(BLOB)):
        with pytest.raises(Refused):
            blob.open_l4(KEY, KID, "acme", CONTEXT, BLOB[:length])


@given(contexts, contexts, st.sampled_from(["acme", "acm", "acmee", "other"]))
def test_another_context_or_tenant_does_not_open(sealed_with: dict[str, str], tried: dict[str, str], who: str) -> None:
    sealed = blob.seal_l4(KEY, KID, "acme", sealed_with, b"\7" * 32, b"\5" * 24)
    if (sealed_with, "acme") == (tried, who):
        assert blob.open_l4(KEY, KID, who, tried, sealed) == b"\7" * 32
    else:
        with pytest.raises(Integrity):
            blob.open_l4(KEY, KID, who, tried, sealed)


@given(contexts, contexts)
def test_context_encoding_is_injective_and_sorted_by_utf8(one: dict[str, str], two: dict[str, str]) -> None:
    assert (aad.encode_context(one) == aad.encode_context(two)) == (one == two)
    by_bytes = sorted(one.items(), key=lambda pair: pair[0].encode())
    expected = len(one).to_bytes(4, "big") + b"".join(aad.lp(k.encode()) + aad.lp(v.encode()) for k, v in by_bytes)
    assert aad.encode_context(one) == expected


def test_context_limits_are_exact() -> None:
    most = "v" * (CONTEXT_MAX_BYTES - 8 - 1)
    assert len(aad.encode_context({"k": most})) == 4 + CONTEXT_MAX_BYTES
    aad.encode_context({f"{i}": "" for i in range(CONTEXT_MAX_PAIRS)})
    bad: list[list[tuple[str, str]]] = [
        [("k", most + "v")],
        [(f"{i}", "") for i in range(CONTEXT_MAX_PAIRS + 1)],
        [("a", "1"), ("b", ""), ("a", "1")],
        [("a", "1"), ("a", "2")],
        [("\ud800", "")],
        [("", "\udfff")],
    ]
    for pairs in bad:
        with pytest.raises(Refused) as caught:
            aad.encode_pairs(pairs)
        assert caught.value.field == "context"


@pytest.mark.parametrize(
    ("level", "over"),
    [
        (aad.Level.IVK, {"domain": "eu"}),
        (aad.Level.MASTER, {"domain": "eu"}),
        (aad.Level.L2, {"key": "orders"}),
        (aad.Level.L3, {"version": 0}),
        (aad.Level.L3, {"version": 2**32}),
        (aad.Level.L3, {"version": -1}),
        (aad.Level.L3, {"kid": b"short"}),
        (aad.Level.L3, {"tenant": "\ud800"}),
    ],
)
def test_wrap_aad_refuses_what_the_format_excludes(level: aad.Level, over: dict[str, object]) -> None:
    base: dict[str, object] = {"tenant": "t", "domain": "", "key": level.value, "version": 1, "kid": KID}
    aad.wrap_aad(aad.Subject(level=level, **base), KID)  # type: ignore[arg-type]
    with pytest.raises(Refused):
        aad.wrap_aad(aad.Subject(level=level, **(base | over)), KID)  # type: ignore[arg-type]
    with pytest.raises(Refused):
        aad.wrap_aad(aad.Subject(level=level, **base), KID + b"x")  # type: ignore[arg-type]


@pytest.mark.parametrize("n_bytes", [0, 16, 31, 33, 64])
def test_wrong_sizes_are_refused(n_bytes: int) -> None:
    with pytest.raises(Refused):
        XaesKey(bytes(n_bytes))
    with pytest.raises(Refused):
        KEY.seal(bytes(n_bytes), b"", b"")
    with pytest.raises(Refused):
        KEY.open(bytes(n_bytes), bytes(48), b"")
    with pytest.raises(Refused):
        KEY.open_into(bytes(n_bytes), bytes(48), b"", bytearray(32))
    with pytest.raises(Refused):
        blob.seal_l4(KEY, KID, "acme", {}, bytes(n_bytes), bytes(24))


def test_open_into_writes_nothing_it_did_not_verify() -> None:
    sealed = KEY.seal(bytes(24), b"p" * 32, b"aad")
    out = bytearray(32)
    KEY.open_into(bytes(24), sealed, b"aad", out)
    assert out == b"p" * 32
    with pytest.raises(Integrity):
        KEY.open_into(bytes(24), sealed, b"other", out)
    assert out == bytes(32)
    with pytest.raises(Integrity):
        KEY.open_into(bytes(24), sealed, b"aad", bytearray(31))


@pytest.mark.parametrize("length", range(16))
def test_shorter_than_a_tag_is_opaque(length: int) -> None:
    with pytest.raises(Integrity, match="could not be opened"):
        xaes_open(L3, bytes(24), bytes(length), b"")


def test_a_key_shows_nothing_and_cannot_be_copied() -> None:
    assert repr(KEY) == "<XaesKey>"
    assert XaesKey(L3) != KEY
    for leak in (pickle.dumps, copy.copy, copy.deepcopy, hash):
        with pytest.raises(TypeError):
            leak(KEY)
    assert xaes_seal(L3, bytes(24), b"x", b"") == KEY.seal(bytes(24), b"x", b"")


def test_kid_forms() -> None:
    assert kid.kid_bytes(kid.kid_hex(KID)) == KID
    kid.check_kid(L3, KID)
    with pytest.raises(Integrity):
        kid.check_kid(L3, KID[:15] + b"x")
    assert not kid.kid_matches(L3, KID[:15])
    for bad in ("", "00" * 15, "AB" * 16, "zz" * 16, "00" * 17):
        with pytest.raises(Refused):
            kid.kid_bytes(bad)
