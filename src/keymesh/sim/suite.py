"""Signing in simulation: tags instead of curves, objects instead of JSON; refuses what the real suite refuses.

A sealed message carries a proof that names the very object that was sealed and a secret that only suites of that
name hold: another message, another key or a copy does not pass.  Signatures over bytes are keyed hashes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, TypeVar

from msgspec import Struct

from keymesh.crypto.dsse import Envelope, Signature, pae
from keymesh.model.errors import Integrity, Refused
from keymesh.model.ids import KeyId
from keymesh.model.limits import SIGNATURES_MAX

T = TypeVar("T")

_SECRETS: Final[dict[KeyId, bytes]] = {}


class _Proof(Struct, frozen=True):
    secret: bytes
    message: Any


class FakeSealed(Struct, frozen=True):
    """``message`` as the holder of ``key_id`` sealed it."""

    message: Any
    key_id: KeyId
    proof: _Proof

    def __repr__(self) -> str:
        return f"FakeSealed(message={self.message!r}, key_id={self.key_id!r})"


class FakeSuite:
    """The key called ``name``: the same name is the same key, everywhere."""

    __slots__ = ("_secret", "key_id", "name", "public_hex")

    def __init__(self, name: str) -> None:
        self.name = name
        public = hashlib.sha256(b"keymesh-sim-public/" + name.encode()).digest()
        self.public_hex = public.hex()
        self.key_id = KeyId(hashlib.sha256(public).hexdigest())
        self._secret = hashlib.sha256(b"keymesh-sim-secret/" + name.encode()).digest()
        _SECRETS[self.key_id] = self._secret

    @property
    def keys(self) -> dict[KeyId, str]:
        """This key as others are given it."""
        return {self.key_id: self.public_hex}

    def seal(self, message: Any) -> FakeSealed:
        return FakeSealed(message, self.key_id, _Proof(self._secret, message))

    def unseal(self, sealed: Any, shape: type[T], keys: Mapping[KeyId, str]) -> T:
        if type(sealed) is not FakeSealed or not _stands_for(keys, sealed.key_id):
            raise Integrity.opaque()
        proof, message = sealed.proof, sealed.message
        if type(message) is not shape or proof.message is not message or proof.secret != _SECRETS[sealed.key_id]:
            raise Integrity.opaque()
        return message

    def sign(self, payload: bytes, payload_type: str) -> Signature:
        return Signature(self.key_id, _tag(self._secret, payload, payload_type))

    signature = sign

    def signers(self, envelope: Envelope, keys: Mapping[KeyId, str]) -> frozenset[KeyId]:
        if len(envelope.signatures) > SIGNATURES_MAX:
            raise Refused.bad_field("signatures", f"at most {SIGNATURES_MAX}, got {len(envelope.signatures)}")
        return frozenset([s.keyid for s in envelope.signatures if _vouches(s, envelope, keys)])


def _vouches(signature: Signature, envelope: Envelope, keys: Mapping[KeyId, str]) -> bool:
    if signature.keyid not in _SECRETS or not _stands_for(keys, signature.keyid):
        return False
    return signature.sig == _tag(_SECRETS[signature.keyid], envelope.payload, envelope.payload_type)


_FIT: Final[dict[str, KeyId]] = {}


def _stands_for(keys: Mapping[KeyId, str], key_id: KeyId) -> bool:
    """Whether ``key_id`` is among ``keys`` as the hash of its key: so that no key stands twice."""
    if key_id not in keys:
        return False
    public_hex = keys[key_id]
    if public_hex not in _FIT:
        try:
            _FIT[public_hex] = KeyId(hashlib.sha256(bytes.fromhex(public_hex)).hexdigest())
        except ValueError:
            return False
    return _FIT[public_hex] == key_id


@lru_cache(maxsize=16_384)
def _tag(secret: bytes, payload: bytes, payload_type: str) -> bytes:
    return hashlib.blake2b(pae(payload, payload_type), key=secret, digest_size=64).digest()
