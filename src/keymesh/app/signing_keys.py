"""Signing keys of roots, officers, tenants and nodes, in files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from keymesh.adapters import key_files
from keymesh.crypto.dsse import Ed25519Signer, key_id


@dataclass(frozen=True, slots=True)
class SigningKey:
    private: Ed25519PrivateKey

    @property
    def public_hex(self) -> str:
        return key_files.signing_public_raw(self.private).hex()

    @property
    def key_id(self) -> str:
        return key_id(bytes.fromhex(self.public_hex))

    @property
    def signer(self) -> Ed25519Signer:
        return Ed25519Signer(self.private)


def new_signer(path: Path) -> SigningKey:
    key = key_files.new_signing_key()
    key_files.write_signing_key(path, key)
    return SigningKey(key)


def load_signer(path: Path) -> SigningKey:
    return SigningKey(key_files.load_signing_key(path))
