"""Chunks of a backup: what they hold, sealed; pure bytes to bytes.

A chunk is ``nonce 24 || XAES-256-GCM`` under its manifest's backup key, named by the SHA-256 of these bytes.  Its
plaintext is ``u32be(n) || n x item``; an item is a fixed number of ``lp`` fields by kind.  The AAD binds mesh, line,
manifest number, kind and place, so no chunk opens anywhere but where it was written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

from keymesh.control.backup_manifest import BLOBS, CHUNK_MAX_BYTES, LOG, RECEIPTS, RECORDS, STATES, ChunkRef, Manifest
from keymesh.crypto.kid import kid_of
from keymesh.crypto.recipients import SEAL_ENTROPY_BYTES, Stanza, seal_to
from keymesh.crypto.xaes import KEY_BYTES, NONCE_BYTES, TAG_BYTES, Octets, xaes_open, xaes_seal
from keymesh.model.errors import Integrity, Refused
from keymesh.model.ids import Digest

Item = tuple[bytes, ...]

FIELDS: Final = {LOG: 2, RECORDS: 2, RECEIPTS: 2, STATES: 2, BLOBS: 3}
"""log: (index as u64be, DSSE envelope); records: (name, record); receipts: (origin, DSSE envelope);
states: (namespace, state; empty: no longer held); blobs: (tenant, digest in hex, blob)."""

PLAIN_MAX_BYTES: Final = CHUNK_MAX_BYTES - NONCE_BYTES - TAG_BYTES
CHUNK_TARGET_BYTES: Final = 1024 * 1024
_LABEL: Final = b"keymesh/backup/1"


def lp(value: bytes) -> bytes:
    """``u32be(len) || value``."""
    return len(value).to_bytes(4, "big") + value


def key_aad(*, mesh: str, origin: str, seq: int) -> bytes:
    """What a sealed backup key is bound to."""
    return _LABEL + lp(mesh.encode()) + lp(origin.encode()) + seq.to_bytes(8, "big")


def chunk_aad(*, mesh: str, origin: str, seq: int, kind: str, place: int) -> bytes:
    """``place`` counts all chunks of the manifest from 0."""
    return key_aad(mesh=mesh, origin=origin, seq=seq) + lp(kind.encode()) + place.to_bytes(4, "big")


def encode_items(kind: str, items: Sequence[Item]) -> bytes:
    """The plaintext of a chunk.  Raises Refused past its limit."""
    out = bytearray(len(items).to_bytes(4, "big"))
    for item in items:
        if len(item) != FIELDS[kind]:
            raise Refused.bad_field("item", f"{FIELDS[kind]} fields in {kind}")
        for value in item:
            out += lp(value)
    if len(out) > PLAIN_MAX_BYTES:
        raise Refused.bad_field("chunk", f"at most {PLAIN_MAX_BYTES} bytes")
    return bytes(out)


def decode_items(kind: str, plain: bytes, *, items: int) -> list[Item]:
    """Exactly ``items`` items and nothing behind them.  Raises Integrity ``chunk``."""
    view, at = memoryview(plain), 4
    if len(plain) < 4 or int.from_bytes(view[:4], "big") != items or items * FIELDS[kind] * 4 > len(plain):
        raise Integrity("chunk", "a chunk has another number of items than its manifest says", field="items")
    found: list[Item] = []
    for _ in range(items):
        fields = []
        for _ in range(FIELDS[kind]):
            end = at + 4
            size = int.from_bytes(view[at:end], "big")
            if end > len(plain) or end + size > len(plain):
                raise Integrity("chunk", "a chunk is cut short", field="items")
            fields.append(bytes(view[end : end + size]))
            at = end + size
        found.append(tuple(fields))
    if at != len(plain):
        raise Integrity("chunk", "a chunk has bytes behind its items", field="items")
    return found


class ChunkSealer:
    """The backup key of one manifest while it is written.  ``key`` is wiped by ``forget``; it has no other form."""

    __slots__ = ("_key", "_line", "refs")

    def __init__(self, *, mesh: str, origin: str, seq: int, key: bytearray) -> None:
        if len(key) != KEY_BYTES:
            raise Refused.bad_field("key", f"exactly {KEY_BYTES} bytes")
        self._key = key
        self._line = (mesh, origin, seq)
        self.refs: list[ChunkRef] = []

    @property
    def kid(self) -> str:
        return kid_of(self._key).hex()

    def seal(self, kind: str, items: Sequence[Item], *, nonce: bytes) -> tuple[ChunkRef, bytes]:
        """The next chunk.  ``nonce``: 24 fresh random bytes."""
        mesh, origin, seq = self._line
        aad = chunk_aad(mesh=mesh, origin=origin, seq=seq, kind=kind, place=len(self.refs))
        sealed = nonce + xaes_seal(self._key, nonce, encode_items(kind, items), aad)
        sha256 = Digest(hashlib.sha256(sealed).hexdigest())
        ref = ChunkRef(kind=kind, sha256=sha256, n_bytes=len(sealed), items=len(items))
        self.refs.append(ref)
        return ref, sealed

    def stanzas(self, recipients: Sequence[bytes], *, entropy: bytes) -> tuple[Stanza, ...]:
        """The key for each recipient; ``entropy``: 56 fresh bytes for each."""
        mesh, origin, seq = self._line
        aad = key_aad(mesh=mesh, origin=origin, seq=seq)
        step = SEAL_ENTROPY_BYTES
        return tuple(
            seal_to(public, self._key, aad, entropy=entropy[n * step : (n + 1) * step])
            for n, public in enumerate(recipients)
        )

    def forget(self) -> None:
        self._key[:] = bytes(len(self._key))

    def __repr__(self) -> str:
        return "<ChunkSealer>"


def open_chunk(m: Manifest, place: int, sealed: bytes, key: Octets) -> list[Item]:
    """What chunk ``place`` of ``m`` holds.

    1. The bytes are those that the manifest names.  2. They open, in this place.  3. They are as many items.
    Raises Integrity: ``chunk-hash``, the opaque one, or ``chunk``.
    """
    ref = m.chunks[place]
    if len(sealed) != ref.n_bytes or hashlib.sha256(sealed).hexdigest() != ref.sha256:
        raise Integrity("chunk-hash", f"{m.origin}: chunk {place} of {m.seq} is not what was written", field="sha256")
    if len(sealed) < NONCE_BYTES + TAG_BYTES:
        raise Integrity.opaque()
    aad = chunk_aad(mesh=m.mesh, origin=m.origin, seq=m.seq, kind=ref.kind, place=place)
    plain = xaes_open(key, sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], aad)
    return decode_items(ref.kind, plain, items=ref.items)
