"""The L4 blob: 90 bytes that an application keeps beside what it encrypted (DESIGN section 1).

====== ============================================
offset
====== ============================================
0      0x01, the blob format
1      0x02, the scheme: XAES-256-GCM
2      kid of the L3, 16
18     nonce, 24
42     ciphertext of the L4, 32
74     tag, 16
====== ============================================

A blob that is not of this form is refused and the field named; one that does not open says nothing more.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from typing import Final

from keymesh.crypto.aad import KID_BYTES, l4_aad
from keymesh.crypto.xaes import KEY_BYTES, NONCE_BYTES, TAG_BYTES, Octets, XaesKey
from keymesh.model.errors import Integrity, Refused

L4_VERSION: Final = 0x01
SCHEME_XAES: Final = 0x02
L4_BYTES: Final = KEY_BYTES
L4_BLOB_BYTES: Final = 2 + KID_BYTES + NONCE_BYTES + L4_BYTES + TAG_BYTES

_HEAD: Final = bytes((L4_VERSION, SCHEME_XAES))
_NONCE_AT: Final = 2 + KID_BYTES
_SEALED_AT: Final = _NONCE_AT + NONCE_BYTES


def check_l4_blob(blob: Octets) -> None:
    """Raises Refused naming length, version or scheme; says nothing about whether the blob opens."""
    if len(blob) != L4_BLOB_BYTES:
        raise Refused.bad_field("blob", f"exactly {L4_BLOB_BYTES} bytes, got {len(blob)}")
    if blob[0] != L4_VERSION:
        raise Refused.bad_field("blob.version", f"only {L4_VERSION} is known, got {blob[0]}")
    if blob[1] != SCHEME_XAES:
        raise Refused.bad_field("blob.scheme", f"only {SCHEME_XAES} is known, got {blob[1]}")


def blob_kid(blob: Octets) -> bytes:
    """The kid of the L3 that sealed ``blob``, as it claims."""
    check_l4_blob(blob)
    return bytes(blob[2:_NONCE_AT])


def seal_l4(xkey: XaesKey, kid: bytes, tenant: str, context: Mapping[str, str], l4: Octets, nonce: bytes) -> bytes:
    """The blob of ``l4``; ``xkey`` is the L3 that ``kid`` names, ``nonce`` 24 fresh random bytes."""
    if len(l4) != L4_BYTES:
        raise Refused.bad_field("l4", f"exactly {L4_BYTES} bytes, got {len(l4)}")
    return b"".join((_HEAD, kid, nonce, xkey.seal(nonce, l4, l4_aad(tenant, kid, context))))


def open_l4(xkey: XaesKey, kid: bytes, tenant: str, context: Mapping[str, str], blob: Octets) -> bytes:
    """The 32 bytes of the L4.

    Raises Refused where the blob or the context is malformed, Integrity (opaque) where another key, tenant or
    context sealed it, or it was changed.
    """
    check_l4_blob(blob)
    if not hmac.compare_digest(blob[2:_NONCE_AT], kid):
        raise Integrity.opaque()
    return xkey.open(blob[_NONCE_AT:_SEALED_AT], blob[_SEALED_AT:], l4_aad(tenant, kid, context))
