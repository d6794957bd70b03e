"""Wraps, bindings and the cascade: every bit counts, the kid binds, and opened keys live in key pages only."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keymesh.crypto import keywrap, wrap
from keymesh.crypto.aad import Level, Subject
from keymesh.crypto.kid import kid_of
from keymesh.crypto.pages import KeyPages
from keymesh.crypto.xaes import XaesKey
from keymesh.model.errors import Integrity, KeymeshError, Refused
from keymesh.model.ids import BindingId

PARENT, CHILD = bytes(range(32)), bytes(range(32, 64))
X, PARENT_KID = XaesKey(PARENT), kid_of(PARENT)
SUBJECT = Subject(level=Level.L2, tenant="acme", domain="eu", key="l2", version=1, kid=kid_of(CHILD))
BINDING_ID = BindingId("kms-1")


@pytest.fixture
def pages() -> Iterator[KeyPages]:
    pool = KeyPages(pages_max=2)
    yield pool
    pool.wipe_all()


def flips(data: bytes) -> Iterator[tuple[int, bytes]]:
    for bit in range(len(data) * 8):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        yield bit // 8, bytes(changed)


def test_every_bit_flip_of_a_wrap_is_noticed(pages: KeyPages) -> None:
    sealed = wrap.seal_key(X, PARENT_KID, SUBJECT, pages.put(CHILD), bytes(24))
    for at, changed in flips(sealed):
        with pytest.raises(Refused if at < 2 else Integrity):
            wrap.open_key(X, PARENT_KID, SUBJECT, changed, pages)
    assert pages.slots_in_use == 0


def test_every_bit_flip_and_truncation_of_a_binding_is_noticed_or_is_the_providers(pages: KeyPages) -> None:
    provider = b"provider's"
    sealed = wrap.seal_binding(X, BINDING_ID, provider, SUBJECT, pages.put(CHILD), bytes(24))
    start = 2 + 4 + len(BINDING_ID) + 4
    for at, changed in flips(sealed):
        if start <= at < start + len(provider):  # the provider authenticates its own blob
            assert wrap.parse_binding(changed).provider_blob != provider
            continue
        with pytest.raises(KeymeshError):
            wrap.open_binding(X, BINDING_ID, SUBJECT, changed, pages)
    for length in range(len(sealed)):
        with pytest.raises(Refused):
            wrap.parse_binding(sealed[:length])


def test_every_bit_flip_of_a_cascade_is_noticed(pages: KeyPages) -> None:
    inner = wrap.seal_binding(X, BINDING_ID, b"p", SUBJECT, pages.put(CHILD), bytes(24))
    sealed = wrap.seal_cascade(X, PARENT_KID, SUBJECT, inner, bytes(24))
    for at, changed in flips(sealed):
        with pytest.raises(Refused if at < 2 else Integrity):
            wrap.open_cascade(X, PARENT_KID, SUBJECT, changed)


def test_a_key_is_only_sealed_under_its_own_name(pages: KeyPages) -> None:
    other = pages.put(bytes(32))
    with pytest.raises(Integrity):
        wrap.seal_key(X, PARENT_KID, SUBJECT, other, bytes(24))
    with pytest.raises(Integrity):
        wrap.seal_binding(X, BINDING_ID, b"p", SUBJECT, other, bytes(24))


@pytest.mark.parametrize(
    ("binding_id", "provider"), [("", b"p"), ("b" * 129, b"p"), ("é" * 65, b"p"), ("b", b""), ("b", bytes(4097))]
)
def test_binding_limits(binding_id: str, provider: bytes, pages: KeyPages) -> None:
    with pytest.raises(Refused):
        wrap.seal_binding(X, BindingId(binding_id), provider, SUBJECT, pages.put(CHILD), bytes(24))


def test_the_largest_binding_and_its_cascade_fit(pages: KeyPages) -> None:
    largest = BindingId("b" * 128)
    inner = wrap.seal_binding(X, largest, bytes(4096), SUBJECT, pages.put(CHILD), bytes(24))
    assert len(inner) == wrap.BINDING_MAX_BYTES
    sealed = wrap.seal_cascade(X, PARENT_KID, SUBJECT, inner, bytes(24))
    assert len(sealed) == wrap.WRAP_MAX_BYTES
    assert wrap.open_cascade(X, PARENT_KID, SUBJECT, sealed) == inner


def test_only_a_binding_goes_into_a_cascade() -> None:
    for not_one in (CHILD, b"", b"\3\2"):
        with pytest.raises(Refused):
            wrap.seal_cascade(X, PARENT_KID, SUBJECT, not_one, bytes(24))


@given(st.binary(max_size=200))
def test_parsers_refuse_or_give_back_the_same_bytes(data: bytes) -> None:
    for parse in (wrap.parse_wrap, wrap.parse_binding):
        for head in (b"", b"\2\2", b"\3\2"):
            try:
                assert parse(head + data).pack() == head + data
            except Refused as refused:
                assert refused.field is not None


def test_key_wrap_sizes_are_refused_by_field() -> None:
    for call in (keywrap.kw_wrap, keywrap.kw_unwrap, keywrap.kwp_wrap, keywrap.kwp_unwrap):
        with pytest.raises(Refused, match="kek"):
            call(bytes(20), bytes(16))
        with pytest.raises(Refused, match="key"):
            call(bytes(32), b"")
        with pytest.raises(Refused, match="key"):
            call(bytes(32), bytes(64 * 1024 + 1))
    for length in (8, 15, 17, 20):
        with pytest.raises(Refused, match="multiple of 8"):
            keywrap.kw_wrap(bytes(32), bytes(length))


@given(st.binary(min_size=1, max_size=80), st.integers(min_value=0))
def test_key_wrap_with_padding_notices_every_flip(key: bytes, bit: int) -> None:
    wrapped = bytearray(keywrap.kwp_wrap(PARENT, key))
    assert keywrap.kwp_unwrap(PARENT, bytes(wrapped)) == key
    wrapped[bit // 8 % len(wrapped)] ^= 1 << bit % 8
    with pytest.raises(Integrity):
        keywrap.kwp_unwrap(PARENT, bytes(wrapped))
