"""Fuzz target ``blob``: the L4 blob as an application hands it back, changed on the way."""

from __future__ import annotations

import random
from typing import Final

from keymesh.app.fuzz.bytes import spoil
from keymesh.app.fuzz.target import Fault
from keymesh.crypto.blob import L4_BLOB_BYTES, blob_kid, open_l4, seal_l4
from keymesh.crypto.kid import kid_of
from keymesh.crypto.xaes import XaesKey
from keymesh.model.errors import Integrity, Refused

_L3: Final = bytes(range(32))
_L4: Final = b"\7" * 32
_CONTEXT: Final = {"table": "users", "id": "17"}


class BlobTarget:
    """Of all inputs only the blobs that were sealed open, and to what was sealed."""

    def __init__(self) -> None:
        self._key = XaesKey(_L3)
        self._kid = kid_of(_L3)
        self._sealed = [self._seal(bytes((n,)) * 24) for n in range(16)]

    def _seal(self, nonce: bytes) -> bytes:
        return seal_l4(self._key, self._kid, "acme", _CONTEXT, _L4, nonce)

    def make(self, rng: random.Random) -> bytes:
        blob = rng.choice(self._sealed)
        match rng.randrange(8):
            case 0:
                return blob
            case 1:
                return rng.randbytes(rng.randint(0, 2 * L4_BLOB_BYTES))
            case 2:
                return blob[:2] + rng.randbytes(L4_BLOB_BYTES - 2)
            case 3:  # parts of two valid ones
                at, other = rng.randrange(L4_BLOB_BYTES), rng.choice(self._sealed)
                return blob[:at] + other[at:]
            case _:
                return spoil(rng, blob)

    def run(self, data: bytes) -> None:
        genuine = data in self._sealed
        try:
            if blob_kid(data) != data[2:18]:
                raise Fault("the kid is another one than the blob says")
            opened = open_l4(self._key, self._kid, "acme", _CONTEXT, memoryview(data))
        except (Refused, Integrity) as no:
            if genuine:
                raise Fault("a blob that was sealed does not open") from no
            return
        if not genuine:
            raise Fault("a blob that nobody sealed opens")
        if opened != _L4:
            raise Fault("a blob opens to another key than was sealed")
