"""Wraps of keys under keys, and the sovereign binding under a customer's L1 (DESIGN section 1).

* wrap:    ``0x02 || 0x02 || kid(parent) 16 || nonce 24 || ciphertext || tag 16``
* binding: ``0x03 || 0x02 || lp(binding id) || lp(provider.wrap(E)) || nonce 24 || ciphertext || tag 16``
* cascade: a wrap of level ``l2`` under the IVK whose plaintext is a whole sovereign binding

``E`` is a one-time key that only the provider can unwrap, so that the context is bound also where a provider has no
associated data.  An opened key is compared with its kid, which makes a wrap commit to one key; it goes straight into
locked memory.  Malformed blobs are refused by field, blobs that do not open get one opaque answer.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import Final

from keymesh.crypto.aad import KID_BYTES, Level, Subject, lp, utf8, wrap_aad
from keymesh.crypto.blob import SCHEME_XAES
from keymesh.crypto.kid import check_kid
from keymesh.crypto.pages import KeyPages, SecretBytes
from keymesh.crypto.xaes import KEY_BYTES, NONCE_BYTES, TAG_BYTES, Octets, XaesKey
from keymesh.model.errors import Integrity, Refused
from keymesh.model.ids import BindingId, Digest

WRAP_VERSION: Final = 0x02
BINDING_VERSION: Final = 0x03
BINDING_ID_MAX_BYTES: Final = 128
PROVIDER_BLOB_MAX_BYTES: Final = 4_096
BINDING_MAX_BYTES: Final = (
    2 + 4 + BINDING_ID_MAX_BYTES + 4 + PROVIDER_BLOB_MAX_BYTES + NONCE_BYTES + KEY_BYTES + TAG_BYTES
)
WRAP_MAX_BYTES: Final = 2 + KID_BYTES + NONCE_BYTES + BINDING_MAX_BYTES + TAG_BYTES

_SEALED_KEY_BYTES: Final = KEY_BYTES + TAG_BYTES


@dataclass(frozen=True, slots=True)
class Wrap:
    """A wrap taken apart; ``sealed`` is ciphertext and tag."""

    parent_kid: bytes
    nonce: bytes
    sealed: bytes

    def pack(self) -> bytes:
        return b"".join((bytes((WRAP_VERSION, SCHEME_XAES)), self.parent_kid, self.nonce, self.sealed))


@dataclass(frozen=True, slots=True)
class Binding:
    """A sovereign binding taken apart; ``provider_blob`` is what the L1 provider made of E."""

    binding_id: BindingId
    provider_blob: bytes
    nonce: bytes
    sealed: bytes

    def pack(self) -> bytes:
        head = bytes((BINDING_VERSION, SCHEME_XAES))
        return b"".join((head, lp(self.binding_id.encode()), lp(self.provider_blob), self.nonce, self.sealed))


def digest(blob: Octets) -> Digest:
    """The name under which a blob is recorded and stored: SHA-256 in hex."""
    return Digest(hashlib.sha256(blob).hexdigest())


def _check_head(blob: Octets, version: int, max_bytes: int) -> None:
    if not 2 <= len(blob) <= max_bytes:
        raise Refused.bad_field("blob", f"2 to {max_bytes} bytes, got {len(blob)}")
    if blob[0] != version:
        raise Refused.bad_field("blob.version", f"expected {version}, got {blob[0]}")
    if blob[1] != SCHEME_XAES:
        raise Refused.bad_field("blob.scheme", f"only {SCHEME_XAES} is known, got {blob[1]}")


def parse_wrap(blob: Octets) -> Wrap:
    """Raises Refused naming length, version or scheme."""
    _check_head(blob, WRAP_VERSION, WRAP_MAX_BYTES)
    data = bytes(blob)
    nonce_at = 2 + KID_BYTES
    sealed_at = nonce_at + NONCE_BYTES
    if len(data) < sealed_at + TAG_BYTES:
        raise Refused.bad_field("blob", f"at least {sealed_at + TAG_BYTES} bytes, got {len(data)}")
    return Wrap(data[2:nonce_at], data[nonce_at:sealed_at], data[sealed_at:])


def _parse_lp(data: bytes, at: int, *, field: str, max_bytes: int) -> tuple[bytes, int]:
    length = int.from_bytes(data[at : at + 4], "big")
    end = at + 4 + length
    if len(data) < at + 4 or not 0 < length <= max_bytes or end > len(data):
        raise Refused.bad_field(field, f"1 to {max_bytes} bytes, all present")
    return data[at + 4 : end], end


def parse_binding(blob: Octets) -> Binding:
    """Raises Refused naming length, version, scheme or the field that is out of its limit."""
    _check_head(blob, BINDING_VERSION, BINDING_MAX_BYTES)
    data = bytes(blob)
    raw_id, at = _parse_lp(data, 2, field="blob.binding_id", max_bytes=BINDING_ID_MAX_BYTES)
    provider_blob, at = _parse_lp(data, at, field="blob.provider", max_bytes=PROVIDER_BLOB_MAX_BYTES)
    if len(data) != at + NONCE_BYTES + _SEALED_KEY_BYTES:
        raise Refused.bad_field("blob", f"exactly {at + NONCE_BYTES + _SEALED_KEY_BYTES} bytes, got {len(data)}")
    try:
        binding_id = BindingId(raw_id.decode())
    except UnicodeDecodeError:
        raise Refused.bad_field("blob.binding_id", "UTF-8") from None
    return Binding(binding_id, provider_blob, data[at : at + NONCE_BYTES], data[at + NONCE_BYTES :])


def seal_key(parent: XaesKey, parent_kid: bytes, subject: Subject, key: SecretBytes, nonce: bytes) -> bytes:
    """The wrap of ``key`` under ``parent``.  Raises Integrity where ``subject.kid`` does not name ``key``."""
    check_kid(key.reveal(), subject.kid)
    return Wrap(parent_kid, nonce, parent.seal(nonce, key.reveal(), wrap_aad(subject, parent_kid))).pack()


def open_key(parent: XaesKey, parent_kid: bytes, subject: Subject, blob: Octets, pages: KeyPages) -> SecretBytes:
    """The key in ``blob``, in locked memory.

    Raises Refused where the blob is malformed, Integrity (opaque) where parent, subject or blob is another.
    """
    wrap = parse_wrap(blob)
    _same(wrap.parent_kid, parent_kid)
    return _open_key(parent, wrap.nonce, wrap.sealed, wrap_aad(subject, parent_kid), subject.kid, pages)


def seal_binding(
    one_time: XaesKey, binding_id: BindingId, provider_blob: bytes, subject: Subject, key: SecretBytes, nonce: bytes
) -> bytes:
    """The sovereign binding of ``key``; ``one_time`` is E, and ``provider_blob`` what the provider made of it."""
    check_kid(key.reveal(), subject.kid)
    if not 0 < len(utf8("binding_id", binding_id)) <= BINDING_ID_MAX_BYTES:
        raise Refused.bad_field("binding_id", f"1 to {BINDING_ID_MAX_BYTES} bytes")
    if not 0 < len(provider_blob) <= PROVIDER_BLOB_MAX_BYTES:
        raise Refused.bad_field("provider_blob", f"1 to {PROVIDER_BLOB_MAX_BYTES} bytes, got {len(provider_blob)}")
    sealed = one_time.seal(nonce, key.reveal(), wrap_aad(subject, binding_id))
    return Binding(binding_id, provider_blob, nonce, sealed).pack()


def open_binding(
    one_time: XaesKey, binding_id: BindingId, subject: Subject, blob: Octets, pages: KeyPages
) -> SecretBytes:
    """The key in a sovereign binding whose E the provider has unwrapped.  Raises as ``open_key``."""
    binding = parse_binding(blob)
    _same(binding.binding_id.encode(), binding_id.encode())
    return _open_key(one_time, binding.nonce, binding.sealed, wrap_aad(subject, binding_id), subject.kid, pages)


def seal_cascade(ivk: XaesKey, ivk_kid: bytes, subject: Subject, binding_blob: bytes, nonce: bytes) -> bytes:
    """The cascade: ``binding_blob`` (the L2's sovereign binding) under the IVK.  Needs no L1."""
    _check_l2(subject)
    parse_binding(binding_blob)
    return Wrap(ivk_kid, nonce, ivk.seal(nonce, binding_blob, wrap_aad(subject, ivk_kid))).pack()


def open_cascade(ivk: XaesKey, ivk_kid: bytes, subject: Subject, blob: Octets) -> bytes:
    """The sovereign binding inside a cascade, still sealed by the customer's L1.  Raises as ``open_key``."""
    _check_l2(subject)
    wrap = parse_wrap(blob)
    _same(wrap.parent_kid, ivk_kid)
    inner = ivk.open(wrap.nonce, wrap.sealed, wrap_aad(subject, ivk_kid))
    parse_binding(inner)
    return inner


def _check_l2(subject: Subject) -> None:
    if subject.level is not Level.L2:
        raise Refused.bad_field("level", "a cascade holds an L2")


def _same(found: bytes, expected: bytes) -> None:
    if not hmac.compare_digest(found, expected):
        raise Integrity.opaque()


def _open_key(xkey: XaesKey, nonce: bytes, sealed: bytes, aad: bytes, kid: bytes, pages: KeyPages) -> SecretBytes:
    secret = pages.fill(KEY_BYTES, lambda view: xkey.open_into(nonce, sealed, aad, view))
    try:
        check_kid(secret.reveal(), kid)
    except Integrity:
        secret.wipe()
        raise
    return secret
