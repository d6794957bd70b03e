"""The port through which machines sign and verify: real DSSE in production, tags in simulation.

Machines hold a ``Suite`` that signs with their own key; it is deterministic and gives no key bytes away.
A sealed message is the standard DSSE JSON object of the message's canonical JSON, under a payload type that names the
message's type, so that nothing signed as one thing opens as another.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, Protocol, TypeVar

import msgspec

from keymesh.crypto import dsse
from keymesh.crypto.dsse import ENVELOPE_MAX_BYTES, Envelope, Signature
from keymesh.model import strict_json
from keymesh.model.errors import Integrity, KeymeshError, Refused
from keymesh.model.ids import KeyId
from keymesh.model.limits import HTTP_BODY_MAX_BYTES

T = TypeVar("T")

SEALED_MAX_BYTES: Final = HTTP_BODY_MAX_BYTES
_FRAME_MAX_BYTES: Final = 1_024
"""Of a sealed message's JSON, beside its payload: the type's name and one signature."""


class Suite(Protocol):
    @property
    def key_id(self) -> KeyId:
        """Of the key that this suite signs with."""
        ...

    def seal(self, message: Any) -> Any:
        """``message`` (a msgspec Struct) signed by our key."""
        ...

    def unseal(self, sealed: Any, shape: type[T], keys: Mapping[KeyId, str]) -> T:
        """The message, if one of ``keys`` (key id -> raw public key, hex) signed it.  Raises Integrity otherwise."""
        ...

    def sign(self, payload: bytes, payload_type: str) -> Signature: ...

    def signers(self, envelope: Envelope, keys: Mapping[KeyId, str]) -> frozenset[KeyId]:
        """Those of ``keys`` whose signature on ``envelope`` verifies; each counts once."""
        ...


class PayloadSigner(Protocol):
    """A person's or a machine's key: ``crypto.dsse.Ed25519Signer``, or a suite of either kind."""

    def signature(self, payload: bytes, payload_type: str) -> Signature: ...


def sealed_type(shape: type) -> str:
    """The DSSE payload type of a sealed ``shape``."""
    return f"application/vnd.keymesh.{shape.__name__.lower()}.v1+json"


def to_plain(envelope: Envelope) -> dict[str, Any]:
    """``envelope`` as the JSON object that it is on the wire and inside entries."""
    return dsse.envelope_to_plain(envelope)


def from_plain(value: Any) -> Envelope:
    """Raises Refused naming the field.  Nothing is verified."""
    return dsse.envelope_from_plain(value, max_bytes=SEALED_MAX_BYTES)


def fits(message: Any, *, sealed_max_bytes: int = ENVELOPE_MAX_BYTES) -> bool:
    """Whether ``message`` can be sealed, within so many bytes of JSON; a suite raises where it can't."""
    return len(strict_json.dumps(message)) * 4 <= (sealed_max_bytes - _FRAME_MAX_BYTES) * 3


def public_keys(keys: Mapping[KeyId, str]) -> dict[KeyId, bytes]:
    """Raw keys for those that are well-formed hex; others vouch for nothing."""
    return {name: raw for name, text in keys.items() if (raw := _raw(text)) is not None}


@lru_cache(maxsize=4_096)
def _raw(text: str) -> bytes | None:
    try:
        return bytes.fromhex(text)
    except ValueError:
        return None


class DsseSuite:
    """The real one: Ed25519 over DSSE."""

    __slots__ = ("_signer",)

    def __init__(self, signer: dsse.Signer) -> None:
        self._signer = signer

    @property
    def key_id(self) -> KeyId:
        return self._signer.key_id

    @property
    def public_hex(self) -> str:
        return self._signer.public_key.hex()

    def seal(self, message: Any) -> dict[str, Any]:
        return to_plain(self._signer.sign(strict_json.dumps(message), sealed_type(type(message))))

    def unseal(self, sealed: Any, shape: type[T], keys: Mapping[KeyId, str]) -> T:
        """1. A DSSE object in its one form.  2. Of ``shape``'s own payload type.  3. Signed by one of ``keys``.
        4. Strict canonical JSON of a ``shape``.  Any failure is the one opaque Integrity."""
        try:
            envelope = sealed if isinstance(sealed, Envelope) else from_plain(sealed)
            if envelope.payload_type == sealed_type(shape) and self.signers(envelope, keys):
                message = strict_json.decode(envelope.payload, shape, max_bytes=SEALED_MAX_BYTES)
                if strict_json.dumps(message) == envelope.payload:
                    return message
        except (KeymeshError, TypeError, ValueError, msgspec.MsgspecError):
            raise Integrity.opaque() from None
        raise Integrity.opaque()

    def sign(self, payload: bytes, payload_type: str) -> Signature:
        return self._signer.signature(payload, payload_type)

    def signature(self, payload: bytes, payload_type: str) -> Signature:
        return self._signer.signature(payload, payload_type)

    def signers(self, envelope: Envelope, keys: Mapping[KeyId, str]) -> frozenset[KeyId]:
        return dsse.verify_envelope(envelope, public_keys(keys))


class VerifyOnly:
    """Verification needs a suite, and a suite a signer; this one signs nothing."""

    key_id = KeyId("")
    public_key = b""

    def signature(self, payload: bytes, payload_type: str) -> Signature:
        raise Refused("no-signing-key", "a verifier signs nothing")

    def sign(self, payload: bytes, payload_type: str) -> Envelope:
        raise Refused("no-signing-key", "a verifier signs nothing")
