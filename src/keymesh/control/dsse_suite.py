"""The real ``Suite``: messages sealed as DSSE envelopes under Ed25519, each type under a payload type of its own.

Decides the payload type of a sealed message, so that bytes signed as one kind are never taken for another; not who
may sign what.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from keymesh.crypto.dsse import Envelope, Signature, Signer, verify_envelope
from keymesh.model import strict_json
from keymesh.model.errors import Integrity, Refused
from keymesh.model.ids import KeyId
from keymesh.model.limits import TASK_MAX_BYTES

T = TypeVar("T")

_CAPITAL = re.compile(r"(?<!^)(?=[A-Z])")


def payload_type(shape: type) -> str:
    """``EdgeAck`` is ``application/vnd.keymesh.edge-ack.v1+json``."""
    return f"application/vnd.keymesh.{_CAPITAL.sub('-', shape.__name__).lower()}.v1+json"


class DsseSuite:
    """Signs with one key, verifies with any.  ``Sealed`` is an ``Envelope``, or its plain form off the wire."""

    __slots__ = ("_signer",)

    def __init__(self, signer: Signer) -> None:
        self._signer = signer

    @property
    def key_id(self) -> KeyId:
        return self._signer.key_id

    def seal(self, message: Any) -> Envelope:
        """``message`` (a msgspec Struct) signed by our key."""
        return self._signer.sign(strict_json.dumps(message), payload_type(type(message)))

    def unseal(self, sealed: Any, shape: type[T], keys: Mapping[KeyId, str]) -> T:
        """The message, if one of ``keys`` (key id -> raw public key, hex) signed it as a ``shape``.

        Raises Integrity otherwise, Refused where it is signed but malformed.
        """
        envelope = to_envelope(sealed)
        if envelope.payload_type != payload_type(shape):
            raise Integrity("payload-type", f"not a sealed {shape.__name__}", field="payloadType")
        if not self.signers(envelope, keys):
            raise Integrity("signature", "no known key signed this", field="signatures")
        return strict_json.decode(envelope.payload, shape, max_bytes=TASK_MAX_BYTES)

    def sign(self, payload: bytes, payload_type: str) -> Signature:
        return self._signer.signature(payload, payload_type)

    def signers(self, envelope: Envelope, keys: Mapping[KeyId, str]) -> frozenset[KeyId]:
        """Those of ``keys`` whose signature on ``envelope`` verifies; each counts once."""
        return verify_envelope(envelope, {key_id: _raw(public_key) for key_id, public_key in keys.items()})


def to_envelope(sealed: Any) -> Envelope:
    """The envelope that ``sealed`` is, or whose plain form (off the wire or the disk) it is.  Raises Integrity."""
    if isinstance(sealed, Envelope):
        return sealed
    try:
        return msgspec.convert(sealed, Envelope)
    except msgspec.ValidationError as bad:
        raise Integrity("envelope", "not a signed envelope") from bad


def _raw(public_key: str) -> bytes:
    try:
        return bytes.fromhex(public_key)
    except ValueError as bad:
        raise Refused.bad_field("public_key", "hex") from bad
