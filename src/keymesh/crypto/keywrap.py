"""AES key wrap for keys that come from or go to other systems (KMIP, PKCS#11): RFC 3394 (KW) and RFC 5649 (KWP).

Never used for the mesh's own wraps, which bind context (see ``wrap``).
"""

from __future__ import annotations

from typing import Final

from cryptography.hazmat.primitives import keywrap

from keymesh.model.errors import Integrity, Refused

WRAPPED_MAX_BYTES: Final = 64 * 1024
_KEK_BYTES: Final = frozenset({16, 24, 32})


def _check(kek: bytes, key: bytes) -> None:
    if len(kek) not in _KEK_BYTES:
        raise Refused.bad_field("kek", "16, 24 or 32 bytes")
    if not 0 < len(key) <= WRAPPED_MAX_BYTES:
        raise Refused.bad_field("key", f"1 to {WRAPPED_MAX_BYTES} bytes, got {len(key)}")


def kw_wrap(kek: bytes, key: bytes) -> bytes:
    """RFC 3394; ``key`` is at least 16 bytes and a multiple of 8."""
    _check(kek, key)
    if len(key) < 16 or len(key) % 8:
        raise Refused.bad_field("key", f"at least 16 bytes and a multiple of 8, got {len(key)}")
    return keywrap.aes_key_wrap(kek, key)


def kw_unwrap(kek: bytes, wrapped: bytes) -> bytes:
    """Raises Integrity (opaque) where it does not open."""
    _check(kek, wrapped)
    try:
        return keywrap.aes_key_unwrap(kek, wrapped)
    except keywrap.InvalidUnwrap:
        raise Integrity.opaque() from None


def kwp_wrap(kek: bytes, key: bytes) -> bytes:
    """RFC 5649; any length from one byte."""
    _check(kek, key)
    return keywrap.aes_key_wrap_with_padding(kek, key)


def kwp_unwrap(kek: bytes, wrapped: bytes) -> bytes:
    """Raises Integrity (opaque) where it does not open."""
    _check(kek, wrapped)
    try:
        return keywrap.aes_key_unwrap_with_padding(kek, wrapped)
    except keywrap.InvalidUnwrap:
        raise Integrity.opaque() from None
