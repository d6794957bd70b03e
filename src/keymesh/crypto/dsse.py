"""DSSE envelopes signed with Ed25519: what is signed, who signed it, and the standard JSON form.

Decides which of the given keys vouch for a payload; who may sign what is ``control``'s to say.  The payload is
carried and verified as the bytes it is; nobody re-serialises.  Sources: DSSE 1.0, RFC 8032.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Final, Protocol, Self

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from keymesh.crypto.xaes import Octets
from keymesh.model import strict_json
from keymesh.model.errors import Refused
from keymesh.model.ids import KeyId, check_hex
from keymesh.model.limits import SIGNATURES_MAX, TASK_MAX_BYTES

SIGNATURE_BYTES: Final = 64
PUBLIC_KEY_BYTES: Final = 32
SEED_BYTES: Final = 32
TYPE_MAX_CHARS: Final = 128
ENVELOPE_MAX_BYTES: Final = 2 * TASK_MAX_BYTES  # base64 of a task, and its signatures

PublicKey = bytes
"""A raw Ed25519 public key, 32 bytes."""

_P: Final = 2**255 - 19
_Y8: Final = int.from_bytes(bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"), "little")
_SMALL_ORDER_Y: Final = frozenset({0, 1, _P - 1, _Y8, _P - _Y8})  # any signature can be forged under these


class Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    keyid: KeyId
    sig: bytes


class Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A payload and the signatures over ``pae`` of it."""

    payload: bytes
    payload_type: str
    signatures: tuple[Signature, ...]

    @property
    def payload_hash(self) -> str:
        """SHA-256 of the payload in hex, signatures not included."""
        return hashlib.sha256(self.payload).hexdigest()


class Signer(Protocol):
    @property
    def key_id(self) -> KeyId: ...

    @property
    def public_key(self) -> PublicKey: ...

    def signature(self, payload: bytes, payload_type: str) -> Signature: ...

    def sign(self, payload: bytes, payload_type: str) -> Envelope: ...


class Suite(Protocol):
    """Signing and verifying as one thing to pass around, so that a simulator can bring a fast one."""

    def sign(self, key_id: KeyId, payload: bytes, payload_type: str) -> Signature: ...

    def verify(self, envelope: Envelope, keys: Mapping[KeyId, PublicKey]) -> frozenset[KeyId]: ...


def pae(payload: bytes, payload_type: str) -> bytes:
    """DSSE's pre-authentication encoding: the bytes that are signed."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def key_id(public_key: PublicKey) -> KeyId:
    """SHA-256 of the raw public key, in hex."""
    return KeyId(hashlib.sha256(public_key).hexdigest())


def check_public_key(public_key: bytes) -> PublicKey:
    """``public_key`` if it is 32 bytes and not of small order.  Raises Refused."""
    if len(public_key) != PUBLIC_KEY_BYTES:
        raise Refused.bad_field("public_key", f"exactly {PUBLIC_KEY_BYTES} bytes, got {len(public_key)}")
    y = (int.from_bytes(public_key, "little") & (2**255 - 1)) % _P
    if y in _SMALL_ORDER_Y:
        raise Refused.bad_field("public_key", "of small order")
    return public_key


class Ed25519Signer:
    """Signs with one Ed25519 key.  OpenSSL holds the private bytes; there is no way to get them out of here."""

    __slots__ = ("_key", "key_id", "public_key")

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public_key: PublicKey = key.public_key().public_bytes_raw()
        self.key_id = key_id(self.public_key)

    @classmethod
    def from_seed(cls, seed: Octets) -> Self:
        """From the 32 bytes of RFC 8032 (``SecretBytes.reveal()``)."""
        if len(seed) != SEED_BYTES:
            raise Refused.bad_field("seed", f"exactly {SEED_BYTES} bytes")
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    @classmethod
    def from_pem(cls, pem: bytes, password: bytes | None = None) -> Self:
        """From a PKCS#8 PEM.  Raises Refused where it is not an Ed25519 key that opens."""
        try:
            key = load_pem_private_key(pem, password)
        except (ValueError, TypeError, UnsupportedAlgorithm) as bad:
            raise Refused.bad_field("signing_key", "a PKCS#8 PEM that opens") from bad
        if not isinstance(key, Ed25519PrivateKey):
            raise Refused.bad_field("signing_key", "Ed25519 only")
        return cls(key)

    def sign_raw(self, data: bytes) -> bytes:
        """Plain Ed25519 over ``data``; for formats that are not DSSE."""
        return self._key.sign(data)

    def signature(self, payload: bytes, payload_type: str) -> Signature:
        return Signature(self.key_id, self._key.sign(pae(payload, payload_type)))

    def sign(self, payload: bytes, payload_type: str) -> Envelope:
        """``payload`` with this one signature."""
        return Envelope(payload, payload_type, (self.signature(payload, payload_type),))

    def __repr__(self) -> str:
        return f"<Ed25519Signer {self.key_id[:16]}>"

    def __reduce_ex__(self, protocol: object) -> str:
        raise TypeError("a signing key has no pickle or copy form")


def add_signature(envelope: Envelope, signature: Signature) -> Envelope:
    """``envelope`` with one signature more; that key's earlier one is replaced.

    Raises Refused beyond the limit of signatures.
    """
    others = tuple(s for s in envelope.signatures if s.keyid != signature.keyid)
    if len(others) >= SIGNATURES_MAX:
        raise Refused.bad_field("signatures", f"at most {SIGNATURES_MAX}")
    return Envelope(envelope.payload, envelope.payload_type, (*others, signature))


@lru_cache(maxsize=1_024)
def _loaded(public_key: PublicKey) -> tuple[KeyId, Ed25519PublicKey] | None:
    try:
        return key_id(public_key), Ed25519PublicKey.from_public_bytes(check_public_key(public_key))
    except (Refused, ValueError):
        return None


def verify_envelope(envelope: Envelope, keys: Mapping[KeyId, PublicKey]) -> frozenset[KeyId]:
    """The keys of ``keys`` that vouch for ``envelope``: an empty set where none does.

    1. More signatures than the limit are refused, unread.
    2. Signatures of keys that ``keys`` lacks are ignored.
    3. A key whose id is not its own hash, or that is of small order, vouches for nothing: so that no key counts twice.
    4. A key vouches where one of its signatures verifies over ``pae``; it counts once.
    """
    if len(envelope.signatures) > SIGNATURES_MAX:
        raise Refused.bad_field("signatures", f"at most {SIGNATURES_MAX}, got {len(envelope.signatures)}")
    signed = pae(envelope.payload, envelope.payload_type)
    vouching: set[KeyId] = set()
    for signature in envelope.signatures:
        public_key = keys.get(signature.keyid)
        loaded = None if public_key is None or signature.keyid in vouching else _loaded(public_key)
        if loaded is None or loaded[0] != signature.keyid or len(signature.sig) != SIGNATURE_BYTES:
            continue
        try:
            loaded[1].verify(signature.sig, signed)
        except InvalidSignature:
            continue
        vouching.add(signature.keyid)
    return frozenset(vouching)


class Ed25519Suite:
    """The real suite: signs with the keys that it was given, verifies with any."""

    __slots__ = ("_signers",)

    def __init__(self, signers: Iterable[Signer] = ()) -> None:
        self._signers = {signer.key_id: signer for signer in signers}

    def sign(self, key_id: KeyId, payload: bytes, payload_type: str) -> Signature:
        """Raises Refused where this node does not hold that key."""
        signer = self._signers.get(key_id)
        if signer is None:
            raise Refused("no-signing-key", "this node does not hold that signing key", field="key_id")
        return signer.signature(payload, payload_type)

    def verify(self, envelope: Envelope, keys: Mapping[KeyId, PublicKey]) -> frozenset[KeyId]:
        return verify_envelope(envelope, keys)


class _WireSignature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    keyid: str
    sig: str


class _WireEnvelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    payload: str
    payloadType: str
    signatures: list[_WireSignature]


def _base64(field: str, text: str) -> bytes:
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Refused.bad_field(field, "standard base64") from None
    if base64.b64encode(raw).decode() != text:
        raise Refused.bad_field(field, "standard base64, padded, in its one form")
    return raw


def envelope_to_json(envelope: Envelope) -> bytes:
    """The standard DSSE JSON of ``envelope``."""
    return strict_json.dumps(_wire(envelope))


def envelope_to_plain(envelope: Envelope) -> dict[str, Any]:
    """What a reader of ``envelope_to_json`` has before it.  Raises Refused for what no reader takes."""
    wire = _wire(envelope)
    _check_size(wire, ENVELOPE_MAX_BYTES)
    plain: dict[str, Any] = msgspec.to_builtins(wire)
    return plain


def _wire(envelope: Envelope) -> _WireEnvelope:
    signatures = [_WireSignature(s.keyid, base64.b64encode(s.sig).decode()) for s in envelope.signatures]
    return _WireEnvelope(base64.b64encode(envelope.payload).decode(), envelope.payload_type, signatures)


def envelope_from_json(raw: bytes, *, max_bytes: int = ENVELOPE_MAX_BYTES) -> Envelope:
    """Raises Refused naming the field.  The signatures are not verified."""
    return _envelope(strict_json.decode(raw, _WireEnvelope, max_bytes=max_bytes))


def envelope_from_plain(value: Any, *, max_bytes: int = ENVELOPE_MAX_BYTES) -> Envelope:
    """As ``envelope_from_json``, of a value that the strict reader has read; ``max_bytes`` of its JSON."""
    _check_size(value, max_bytes)
    return _envelope(strict_json.convert(value, _WireEnvelope))


def _check_size(value: Any, max_bytes: int) -> None:
    if (size := len(strict_json.dumps(value))) > max_bytes:
        raise Refused.bad_field("json", f"at most {max_bytes} bytes, got {size}")


def _envelope(wire: _WireEnvelope) -> Envelope:
    if not 0 < len(wire.payloadType) <= TYPE_MAX_CHARS:
        raise Refused.bad_field("payloadType", f"1 to {TYPE_MAX_CHARS} characters")
    if not 0 < len(wire.signatures) <= SIGNATURES_MAX:
        raise Refused.bad_field("signatures", f"1 to {SIGNATURES_MAX}, got {len(wire.signatures)}")
    return Envelope(
        _base64("payload", wire.payload), wire.payloadType, tuple(_signature(wire_s) for wire_s in wire.signatures)
    )


def _signature(wire: _WireSignature) -> Signature:
    sig = _base64("signatures.sig", wire.sig)
    if len(sig) != SIGNATURE_BYTES:
        raise Refused.bad_field("signatures.sig", f"exactly {SIGNATURE_BYTES} bytes, got {len(sig)}")
    return Signature(KeyId(check_hex("signatures.keyid", wire.keyid, hex_bytes=32)), sig)
