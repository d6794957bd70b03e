"""The port through which machines sign and verify: real DSSE in production, tags in simulation.

Machines hold a ``Suite`` that signs with their own key; it is deterministic and gives no key bytes away.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

from keymesh.crypto.dsse import Envelope, Signature
from keymesh.model.ids import KeyId

T = TypeVar("T")


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
