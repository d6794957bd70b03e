"""Kubernetes KMS v2: what an API server asks of its plugin, over one service's Edge.

What is encrypted is a seed of data keys, some 32 bytes; it goes into a parcel under a data key of its own.  The key id
is the kid of the L3 in use: it changes with each rotation and with nothing else, and is never given again.  Source:
the API server's rules for ``v2.KeyManagementService`` (key id below 1 kB, ciphertext below 1 kB, annotations below
32 kB; we give none).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from keymesh.compat.ring import Keys
from keymesh.crypto.blob import blob_kid
from keymesh.crypto.parcel import OVERHEAD_BYTES, PARCEL_NONCE_BYTES, open_parcel, parcel_blob, seal_parcel
from keymesh.crypto.xaes import Octets
from keymesh.model.errors import Integrity, KeymeshError, Refused

API_VERSION: Final = "v2"
HEALTHY: Final = "ok"
CIPHERTEXT_MAX: Final = 1_023
PLAINTEXT_MAX: Final = CIPHERTEXT_MAX - OVERHEAD_BYTES
UID_MAX: Final = 1_024
CONTEXT: Final[Mapping[str, str]] = {"keymesh": "kubernetes-kms-v2"}
"""Bound to every key that is made here: nobody else's blob opens, and none of these opens elsewhere by mistake."""


class Status(NamedTuple):
    """``healthz`` other than ``ok`` is shown by the API server's own health check."""

    version: str
    healthz: str
    key_id: str


class Encrypted(NamedTuple):
    ciphertext: bytes
    key_id: str


def key_id_of(blob: Octets) -> str:
    return blob_kid(blob).hex()


class KubernetesKms:
    """The three calls.  ``random``: fresh bytes for nonces."""

    def __init__(self, keys: Keys, random: Callable[[int], bytes]) -> None:
        self._keys = keys
        self._random = random
        self._last = ""

    async def status(self) -> Status:
        """Whether an encryption would succeed now, by trying: a key is made and thrown away.  It is polled.

        Never raises: while keys may not be used it says why, under the key id known last.
        """
        try:
            made = await self._keys.create_key(CONTEXT)
        except KeymeshError as why:
            return Status(API_VERSION, f"{why.message} [{why.code}]", self._last)
        self._last = key_id_of(made.blob)
        return Status(API_VERSION, HEALTHY, self._last)

    async def encrypt(self, plaintext: bytes, uid: str) -> Encrypted:
        """Raises Refused (too large, restricted), Unavailable."""
        check_uid(uid)
        if len(plaintext) > PLAINTEXT_MAX:
            raise Refused.bad_field("plaintext", f"at most {PLAINTEXT_MAX} bytes, got {len(plaintext)}")
        made = await self._keys.create_key(CONTEXT, plaintext=True)
        if made.plaintext is None:
            raise Integrity.opaque()
        sealed = seal_parcel(made.blob, made.plaintext, plaintext, self._random(PARCEL_NONCE_BYTES))
        return Encrypted(sealed, key_id_of(made.blob))

    async def decrypt(self, ciphertext: bytes, uid: str, key_id: str, annotations: Sequence[str] = ()) -> bytes:
        """``key_id`` is what ``encrypt`` gave with it; ``annotations``: their names.

        Raises Refused (malformed, another key's, restricted), Integrity (changed), Unavailable.
        """
        check_uid(uid)
        if len(ciphertext) > CIPHERTEXT_MAX:
            raise Refused.bad_field("ciphertext", f"at most {CIPHERTEXT_MAX} bytes, got {len(ciphertext)}")
        if annotations:
            raise Refused.bad_field("annotations", "none: this plugin gives none")
        blob = parcel_blob(ciphertext)
        if key_id != key_id_of(blob):
            raise Refused.bad_field("key_id", "the one that came with the ciphertext")
        return open_parcel(await self._keys.decrypt_key(blob, CONTEXT), ciphertext)


def check_uid(uid: str) -> None:
    """Raises Refused.  It only names the request."""
    if len(uid) > UID_MAX:
        raise Refused.bad_field("uid", f"at most {UID_MAX} characters, got {len(uid)}")
