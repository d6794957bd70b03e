"""Parcels: every byte counts, and what does not open says nothing more."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keymesh.crypto.blob import L4_BLOB_BYTES, seal_l4
from keymesh.crypto.parcel import OVERHEAD_BYTES, open_parcel, parcel_blob, seal_parcel
from keymesh.crypto.xaes import XaesKey
from keymesh.model.errors import Integrity, Refused

L3 = XaesKey(bytes(range(32)))
KID = bytes(range(16))
L4 = bytes(range(100, 132))
BLOB = seal_l4(L3, KID, "acme", {}, L4, bytes(24))
NONCE = bytes(12)
GOLDEN = "2f029ef6ff282705f4b3fd63779bd5be5d86c5cf"


@given(st.binary(max_size=2_000), st.binary(min_size=12, max_size=12))
def test_there_and_back(payload: bytes, nonce: bytes) -> None:
    parcel = seal_parcel(BLOB, L4, payload, nonce)
    assert len(parcel) == len(payload) + OVERHEAD_BYTES
    assert parcel_blob(parcel) == BLOB
    assert open_parcel(L4, parcel) == payload


def test_golden() -> None:
    parcel = seal_parcel(BLOB, L4, b"seed", NONCE)
    assert parcel[:2] == b"\1\1" and parcel[2 : 2 + L4_BLOB_BYTES] == BLOB and parcel[92:104] == NONCE
    assert parcel[104:].hex() == GOLDEN


def test_every_flipped_byte_is_noticed() -> None:
    parcel = seal_parcel(BLOB, L4, b"seed", NONCE)
    for place in range(len(parcel)):
        changed = bytearray(parcel)
        changed[place] ^= 1
        with pytest.raises((Integrity, Refused)):
            open_parcel(L4, bytes(changed))


def test_every_truncation_is_refused() -> None:
    parcel = seal_parcel(BLOB, L4, b"seed", NONCE)
    for length in range(len(parcel)):
        with pytest.raises((Integrity, Refused)):
            open_parcel(L4, parcel[:length])


def test_another_key_gets_the_one_answer() -> None:
    with pytest.raises(Integrity, match="could not be opened"):
        open_parcel(bytes(32), seal_parcel(BLOB, L4, b"seed", NONCE))


@pytest.mark.parametrize(
    ("parcel", "field"),
    [
        (b"", "ciphertext"),
        (bytes(OVERHEAD_BYTES), "ciphertext.version"),
        (b"\1\2" + bytes(OVERHEAD_BYTES), "ciphertext.scheme"),
        (b"\1\1" + bytes(OVERHEAD_BYTES), "blob.version"),
    ],
)
def test_what_is_malformed_is_named(parcel: bytes, field: str) -> None:
    with pytest.raises(Refused) as refused:
        parcel_blob(parcel)
    assert refused.value.field == field


def test_a_nonce_has_one_length() -> None:
    with pytest.raises(Refused, match="nonce"):
        seal_parcel(BLOB, L4, b"", bytes(11))
