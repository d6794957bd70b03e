"""A key sealed to the public keys of people who may open it: X25519, HKDF-SHA256, XAES-256-GCM.

Whoever seals can't open again: the ephemeral private key is thrown away.  Nothing here says who sealed; that is the
signature's to say.  Sources: RFC 7748, RFC 5869, C2SP XAES-256-GCM; the construction follows age's X25519 recipients.

1. ``e`` is a fresh X25519 key; ``shared = X25519(e, recipient)``, refused where it is all zeros.
2. ``KEK = HKDF-SHA256(shared, salt empty, info "keymesh/recipient/1" || public(e) || recipient)``, 32 bytes.
3. ``sealed = nonce 24 || XAES-256-GCM(KEK, nonce, key, AAD "keymesh/recipient/1" || aad)``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from msgspec import Struct

from keymesh.crypto.xaes import KEY_BYTES, NONCE_BYTES, TAG_BYTES, Octets, xaes_open, xaes_seal
from keymesh.model.errors import Integrity, Refused
from keymesh.model.ids import check_hex

RECIPIENT_BYTES: Final = 32
RECIPIENTS_MAX: Final = 16
SEAL_ENTROPY_BYTES: Final = 32 + NONCE_BYTES
SEALED_BYTES: Final = NONCE_BYTES + KEY_BYTES + TAG_BYTES

_LABEL: Final = b"keymesh/recipient/1"


class Stanza(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One key for one recipient.  ``recipient``: SHA-256 of the public key; ``ephemeral``: public key; both hex."""

    recipient: str
    ephemeral: str
    sealed: bytes


def recipient_id(public: bytes) -> str:
    """How a stanza names whom it is for."""
    return hashlib.sha256(public).hexdigest()


def parse_recipient(text: str) -> bytes:
    """The raw public key in ``text``, 64 hex digits.  Raises Refused, also for one that gives no secret."""
    public = bytes.fromhex(check_hex("recipients", text, hex_bytes=RECIPIENT_BYTES))
    try:
        X25519PrivateKey.from_private_bytes(b"\x01" * 32).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as bad:
        raise Refused.bad_field("recipients", "of small order") from bad
    return public


def check_stanza(stanza: Stanza) -> Stanza:
    """Raises Refused naming the field that is out of its form."""
    check_hex("recipient", stanza.recipient, hex_bytes=32)
    check_hex("ephemeral", stanza.ephemeral, hex_bytes=RECIPIENT_BYTES)
    if len(stanza.sealed) != SEALED_BYTES:
        raise Refused.bad_field("sealed", f"exactly {SEALED_BYTES} bytes")
    return stanza


def seal_to(public: bytes, key: Octets, aad: bytes, *, entropy: bytes) -> Stanza:
    """``key`` (32 bytes) for the holder of ``public``'s private key.  ``entropy``: 56 fresh random bytes, used once."""
    if len(entropy) != SEAL_ENTROPY_BYTES:
        raise Refused.bad_field("entropy", f"exactly {SEAL_ENTROPY_BYTES} bytes")
    if len(key) != KEY_BYTES:
        raise Refused.bad_field("key", f"exactly {KEY_BYTES} bytes")
    ephemeral, nonce = X25519PrivateKey.from_private_bytes(entropy[:32]), entropy[32:]
    ephemeral_public = ephemeral.public_key().public_bytes_raw()
    try:
        shared = ephemeral.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as bad:
        raise Refused.bad_field("recipients", "an X25519 public key that is not of small order") from bad
    kek = _kek(shared, ephemeral_public, public)
    sealed = nonce + xaes_seal(kek, nonce, key, _LABEL + aad)
    return Stanza(recipient=recipient_id(public), ephemeral=ephemeral_public.hex(), sealed=sealed)


def open_stanza(private: X25519PrivateKey, stanzas: Iterable[Stanza], aad: bytes) -> bytes:
    """The key in the stanza that is for ``private``.

    Raises Integrity (opaque): not for this key, damaged, or of another context is one answer.
    """
    public = private.public_key().public_bytes_raw()
    mine = recipient_id(public)
    for stanza in stanzas:
        if stanza.recipient != mine:
            continue
        try:
            check_stanza(stanza)
            ephemeral = bytes.fromhex(stanza.ephemeral)
            shared = private.exchange(X25519PublicKey.from_public_bytes(ephemeral))
        except (Refused, ValueError):
            raise Integrity.opaque() from None
        kek = _kek(shared, ephemeral, public)
        return xaes_open(kek, stanza.sealed[:NONCE_BYTES], stanza.sealed[NONCE_BYTES:], _LABEL + aad)
    raise Integrity.opaque()


def _kek(shared: bytes, ephemeral: bytes, public: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=_LABEL + ephemeral + public).derive(shared)
