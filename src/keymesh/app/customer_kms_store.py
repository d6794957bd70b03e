"""The customer KMS's keys: AES-256-GCM in a private file, for development and demonstration.

Decides when a key may be used.  A change is durable before it is acknowledged; a disabling acts first and is recorded
after, so that a full disk cannot keep a key in use.  Wrap: ``0x01 || u32be(version) || nonce 12 || ciphertext || tag
16``, under the AAD ``"keymesh/kms/1" || lp(key name) || u32be(version) || lp(caller's aad)``.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from keymesh.adapters.customer_kms import KeyStatus
from keymesh.adapters.files import write_file
from keymesh.adapters.key_files import read_private
from keymesh.core.l1 import PLAIN_MAX_BYTES
from keymesh.model import strict_json
from keymesh.model.errors import Integrity, Refused, Unavailable
from keymesh.model.ids import check_label

KEYS_MAX: Final = 1_024
AAD_MAX_BYTES: Final = 1_024
_FILE_MAX_BYTES: Final = 2 * 1024 * 1024
_FORMAT: Final = 1
_HEAD: Final = struct.Struct(">BI12s")
_TAG_BYTES: Final = 16


class StoredKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    version: int
    material: str  # hex
    enabled: bool = True
    disabled_replicas: list[str] = []

    def __repr__(self) -> str:
        return f"<StoredKey version {self.version}>"


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    keys: dict[str, StoredKey]


class KmsStore:
    """All keys, shared by every replica's listener."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._keys: dict[str, StoredKey] = {}
        if path.exists():
            self._keys = strict_json.decode(
                read_private(path, max_bytes=_FILE_MAX_BYTES), _File, max_bytes=_FILE_MAX_BYTES
            ).keys

    def create(self, name: str) -> KeyStatus:
        """Raises Refused ``conflict`` where the name is taken, ``too-many`` at the limit."""
        check_label("name", name)
        if name in self._keys:
            raise Refused("conflict", f"a key {name!r} exists", field="name")
        if len(self._keys) >= KEYS_MAX:
            raise Refused("too-many", f"at most {KEYS_MAX} keys")
        self._replace(name, StoredKey(version=1, material=os.urandom(32).hex()))
        return self.status(name)

    def status(self, name: str) -> KeyStatus:
        key = self._key(name)
        return KeyStatus(
            name=name, version=key.version, enabled=key.enabled, disabled_replicas=sorted(key.disabled_replicas)
        )

    def disable(self, name: str, replica: str | None) -> KeyStatus:
        """In force at once.  Raises Unavailable where it could not be recorded; it stays in force nevertheless."""
        key = self._key(name)
        if replica is None:
            changed = msgspec.structs.replace(key, enabled=False)
        else:
            changed = msgspec.structs.replace(key, disabled_replicas=sorted({*key.disabled_replicas, replica}))
        self._keys[name] = changed
        self._replace(name, changed)
        return self.status(name)

    def enable(self, name: str, replica: str | None) -> KeyStatus:
        """Recorded first.  Without a replica every disabling of the key ends."""
        key = self._key(name)
        if replica is None:
            changed = msgspec.structs.replace(key, enabled=True, disabled_replicas=[])
        else:
            left = [other for other in key.disabled_replicas if other != replica]
            changed = msgspec.structs.replace(key, disabled_replicas=left)
        self._replace(name, changed)
        return self.status(name)

    def wrap(self, name: str, replica: str, plaintext: bytes, aad: bytes) -> bytes:
        """Raises Refused ``no-such-key`` or ``disabled``."""
        if not 0 < len(plaintext) <= PLAIN_MAX_BYTES:
            raise Refused.bad_field("plaintext", f"1..{PLAIN_MAX_BYTES} bytes")
        key = self._usable(name, replica)
        head = _HEAD.pack(_FORMAT, key.version, os.urandom(12))
        return head + _cipher(key).encrypt(head[-12:], plaintext, _aad(name, key.version, aad))

    def unwrap(self, name: str, replica: str, wrapped: bytes, aad: bytes) -> bytes:
        """Raises Refused ``no-such-key`` or ``disabled``, and Integrity for bytes that this key did not wrap."""
        key = self._usable(name, replica)
        if len(wrapped) <= _HEAD.size + _TAG_BYTES:
            raise Integrity.opaque()
        form, version, nonce = _HEAD.unpack_from(wrapped)
        if (form, version) != (_FORMAT, key.version):
            raise Integrity.opaque()
        try:
            return _cipher(key).decrypt(nonce, wrapped[_HEAD.size :], _aad(name, version, aad))
        except InvalidTag:
            raise Integrity.opaque() from None

    def _key(self, name: str) -> StoredKey:
        key = self._keys.get(name)
        if key is None:
            raise Refused("no-such-key", "no such key", field="name")
        return key

    def _usable(self, name: str, replica: str) -> StoredKey:
        key = self._key(name)
        if not key.enabled or replica in key.disabled_replicas:
            raise Refused("disabled", "the key is disabled by its owner")
        return key

    def _replace(self, name: str, key: StoredKey) -> None:
        keys = {**self._keys, name: key}
        try:
            write_file(self._path, strict_json.dumps(_File(keys=keys)))
        except OSError as failed:
            raise Unavailable("disk", f"the change could not be recorded: {failed.strerror}") from failed
        self._keys = keys


def _cipher(key: StoredKey) -> AESGCM:
    return AESGCM(bytes.fromhex(key.material))


def _aad(name: str, version: int, aad: bytes) -> bytes:
    label = name.encode("ascii")
    return b"".join((b"keymesh/kms/1", len(label).to_bytes(4), label, version.to_bytes(4), len(aad).to_bytes(4), aad))
