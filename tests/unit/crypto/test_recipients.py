"""Keys sealed to recovery officers: who opens them, who does not, and that the answer is always the same."""

from __future__ import annotations

import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from keymesh.crypto.recipients import (
    SEAL_ENTROPY_BYTES,
    SEALED_BYTES,
    Stanza,
    check_stanza,
    open_stanza,
    parse_recipient,
    recipient_id,
    seal_to,
)
from keymesh.model.errors import Integrity, Refused

KEY = bytes(range(32))
AAD = b"line"
ENTROPY = hashlib.sha512(b"entropy").digest()[:SEAL_ENTROPY_BYTES]


def officer(name: str) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest())


def public(name: str) -> bytes:
    return officer(name).public_key().public_bytes_raw()


def stanza(name: str = "a", key: bytes = KEY, aad: bytes = AAD) -> Stanza:
    return seal_to(public(name), key, aad, entropy=ENTROPY)


def test_each_of_several_officers_opens_it_and_nobody_else() -> None:
    stanzas = [stanza("a"), stanza("b")]
    assert open_stanza(officer("a"), stanzas, AAD) == open_stanza(officer("b"), stanzas, AAD) == KEY
    with pytest.raises(Integrity) as failed:
        open_stanza(officer("c"), stanzas, AAD)
    assert (failed.value.code, failed.value.message) == ("integrity", "could not be opened")


def test_the_form_is_fixed() -> None:
    """Written out from the module's own steps, so that what was sealed opens in every later release."""
    made = stanza()
    assert made.recipient == recipient_id(public("a")) == hashlib.sha256(public("a")).hexdigest()
    assert made.ephemeral == X25519PrivateKey.from_private_bytes(ENTROPY[:32]).public_key().public_bytes_raw().hex()
    assert len(made.sealed) == SEALED_BYTES
    assert made.sealed[:24] == ENTROPY[32:]
    assert hashlib.sha256(made.sealed).hexdigest() == GOLDEN


GOLDEN = "8919697d62245d914f6074fa9022a0e7ce757975b5c605c941134f2c37069572"


@given(at=st.integers(0, SEALED_BYTES * 8 - 1))
def test_no_bit_of_it_may_change(at: int) -> None:
    made = stanza()
    raw = bytearray(made.sealed)
    raw[at // 8] ^= 1 << at % 8
    same_answer(structs.replace(made, sealed=bytes(raw)))


@given(at=st.integers(0, 255))
def test_no_bit_of_the_ephemeral_key_may_change(at: int) -> None:
    made = stanza()
    raw = bytearray.fromhex(made.ephemeral)
    raw[at // 8] ^= 1 << at % 8
    if at == 255:  # RFC 7748: the top bit of a public key is not looked at; it is in the KEK
        assert bytes(raw) != bytes.fromhex(made.ephemeral)
    same_answer(structs.replace(made, ephemeral=raw.hex()))


@pytest.mark.parametrize(
    "broken",
    [
        structs.replace(stanza(), sealed=b""),
        structs.replace(stanza(), sealed=stanza().sealed + b"\0"),
        structs.replace(stanza(), ephemeral="00" * 32),
        structs.replace(stanza(), ephemeral="01" + "00" * 31),
        structs.replace(stanza(), ephemeral="zz"),
        structs.replace(stanza("b"), recipient=recipient_id(public("a"))),
        stanza(aad=b"another line"),
    ],
)
def test_whatever_is_wrong_with_it_the_answer_is_one(broken: Stanza) -> None:
    same_answer(broken)


def same_answer(broken: Stanza) -> None:
    with pytest.raises(Integrity) as failed:
        open_stanza(officer("a"), [broken], AAD)
    assert (failed.value.code, failed.value.message, failed.value.field) == ("integrity", "could not be opened", None)


def test_keys_that_give_no_secret_are_refused_before_anything_is_sealed_to_them() -> None:
    for text in ("00" * 32, "01" + "00" * 31, "", "zz" * 32, "AB" * 32, "00" * 31):
        with pytest.raises(Refused) as failed:
            parse_recipient(text)
        assert failed.value.field == "recipients"
    assert parse_recipient(public("a").hex()) == public("a")
    with pytest.raises(Refused):
        seal_to(bytes(32), KEY, AAD, entropy=ENTROPY)


def test_what_is_sealed_is_a_key_with_enough_chance() -> None:
    with pytest.raises(Refused):
        seal_to(public("a"), KEY[:-1], AAD, entropy=ENTROPY)
    with pytest.raises(Refused):
        seal_to(public("a"), KEY, AAD, entropy=ENTROPY[:-1])


def test_a_stanza_out_of_its_form_is_refused_by_field() -> None:
    assert check_stanza(stanza()) == stanza()
    for fields in ({"recipient": "x"}, {"ephemeral": "x"}, {"sealed": b"x"}):
        with pytest.raises(Refused) as failed:
            check_stanza(structs.replace(stanza(), **fields))
        assert failed.value.field == next(iter(fields))
