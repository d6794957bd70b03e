"""kid: a key's name, derived from its bytes, to which it commits (DESIGN section 1).

``kid = HKDF-SHA256(key, salt empty, info "keymesh/kid/1")[:16]``
"""

from __future__ import annotations

import hmac
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from keymesh.crypto.aad import KID_BYTES
from keymesh.crypto.xaes import Octets
from keymesh.model.errors import Integrity
from keymesh.model.ids import Kid, check_hex

_INFO: Final = b"keymesh/kid/1"


def kid_of(key: Octets) -> bytes:
    """The 16 bytes that name ``key``."""
    return HKDF(algorithm=SHA256(), length=KID_BYTES, salt=None, info=_INFO).derive(key)


def kid_matches(key: Octets, kid: Octets) -> bool:
    """Whether ``kid`` names ``key``, in constant time."""
    return hmac.compare_digest(kid_of(key), kid)


def check_kid(key: Octets, kid: Octets) -> None:
    """Raises Integrity (opaque) where ``kid`` does not name ``key``."""
    if not kid_matches(key, kid):
        raise Integrity.opaque()


def kid_hex(kid: Octets) -> Kid:
    """The form in which a kid travels."""
    return Kid(bytes(kid).hex())


def kid_bytes(kid: str) -> bytes:
    """The 16 bytes of a kid in hex.  Raises Refused naming ``kid``."""
    return bytes.fromhex(check_hex("kid", kid, hex_bytes=KID_BYTES))
