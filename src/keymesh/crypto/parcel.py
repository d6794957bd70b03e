"""A parcel: a small payload under a data key of its own, whose wrapped blob comes along.

====== ============================================
offset
====== ============================================
0      0x01, the parcel format
1      0x01, the scheme: AES-256-GCM
2      the L4 blob, 90
92     nonce, 12
104    ciphertext, as long as the payload
       tag, 16
====== ============================================

The L4 is fresh for each parcel and seals nothing else.  Version, scheme and blob are authenticated with the payload.
Files have the stream format instead.
"""

from __future__ import annotations

from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from keymesh.crypto.blob import L4_BLOB_BYTES, check_l4_blob
from keymesh.crypto.xaes import TAG_BYTES, Octets
from keymesh.model.errors import Integrity, Refused

PARCEL_VERSION: Final = 0x01
SCHEME_GCM: Final = 0x01
PARCEL_NONCE_BYTES: Final = 12

_HEAD: Final = bytes((PARCEL_VERSION, SCHEME_GCM))
_NONCE_AT: Final = len(_HEAD) + L4_BLOB_BYTES
_SEALED_AT: Final = _NONCE_AT + PARCEL_NONCE_BYTES
OVERHEAD_BYTES: Final = _SEALED_AT + TAG_BYTES


def parcel_blob(parcel: Octets) -> bytes:
    """The wrapped data key of ``parcel``.  Raises Refused naming length, version or scheme."""
    if len(parcel) < OVERHEAD_BYTES:
        raise Refused.bad_field("ciphertext", f"at least {OVERHEAD_BYTES} bytes, got {len(parcel)}")
    if parcel[0] != PARCEL_VERSION:
        raise Refused.bad_field("ciphertext.version", f"only {PARCEL_VERSION} is known, got {parcel[0]}")
    if parcel[1] != SCHEME_GCM:
        raise Refused.bad_field("ciphertext.scheme", f"only {SCHEME_GCM} is known, got {parcel[1]}")
    blob = bytes(parcel[len(_HEAD) : _NONCE_AT])
    check_l4_blob(blob)
    return blob


def seal_parcel(blob: Octets, l4: Octets, payload: Octets, nonce: bytes) -> bytes:
    """``payload`` under ``l4``, a fresh key whose blob is ``blob``; ``nonce`` is 12 fresh random bytes."""
    check_l4_blob(blob)
    if len(nonce) != PARCEL_NONCE_BYTES:
        raise Refused.bad_field("nonce", f"exactly {PARCEL_NONCE_BYTES} bytes, got {len(nonce)}")
    head = _HEAD + bytes(blob)
    return b"".join((head, nonce, AESGCM(l4).encrypt(nonce, payload, head)))


def open_parcel(l4: Octets, parcel: Octets) -> bytes:
    """The payload.  Raises Refused where ``parcel`` is malformed, Integrity (opaque) where it does not open."""
    parcel_blob(parcel)
    nonce = bytes(parcel[_NONCE_AT:_SEALED_AT])
    try:
        return AESGCM(l4).decrypt(nonce, parcel[_SEALED_AT:], parcel[:_NONCE_AT])
    except InvalidTag:
        raise Integrity.opaque() from None
