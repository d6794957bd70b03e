"""Reading one backup store: its lines, manifest by manifest, opened chunk by chunk with a recovery key.

Says nothing about what the chunks mean (``backup_verify``); a restore reads by the same way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from keymesh.control import backup_manifest as bm
from keymesh.control.backup_chunks import Item, key_aad, open_chunk
from keymesh.control.backup_manifest import Manifest, Marker
from keymesh.control.backup_store import BackupStore
from keymesh.crypto.dsse import Envelope
from keymesh.crypto.kid import check_kid, kid_bytes
from keymesh.crypto.recipients import open_stanza
from keymesh.model import strict_json
from keymesh.model.errors import Integrity, Refused
from keymesh.model.ids import ZERO_DIGEST


@dataclass(frozen=True, slots=True)
class Stored:
    """A manifest as it lies in the store; who signed it is not known yet."""

    manifest: Manifest
    envelope: Envelope


def read_marker(store: BackupStore, *, mesh: str) -> Marker:
    """What the store is for.  Raises Refused where it is no backup store, Integrity where it is another mesh's."""
    raw = store.get(bm.MARKER_NAME, max_bytes=bm.MARKER_MAX_BYTES)
    if raw is None:
        raise Refused("no-backup", f"no backup in {store.address}", field="store")
    try:
        marker = strict_json.decode(raw, Marker, max_bytes=bm.MARKER_MAX_BYTES)
    except Refused as bad:
        raise Integrity("foreign-store", f"the store's marker is not one: {bad.message}", field="marker") from bad
    if marker.format != bm.FORMAT:
        raise Integrity("foreign-store", "this release does not know this store's format", field="format")
    if marker.mesh != mesh:
        raise Integrity("foreign-mesh", f"the backups of mesh {marker.mesh[:64]!r}", field="mesh")
    return marker


def read_lines(store: BackupStore, marker: Marker, *, now_ms: int, newest: bool = False) -> dict[str, list[Stored]]:
    """Every manifest of every line, oldest first; with ``newest`` only those of each line's newest set.

    1. Every name is a manifest's.  2. Each holds the manifest of its name, of this mesh and domain.  3. None is from
    the future (5 min): its age could not be told.  4. Each follows the one before; the oldest is a full one.
    Raises Integrity.
    """
    lines: dict[str, list[Stored]] = {}
    names = store.names("manifests/")
    for name in _newest_sets(store, names) if newest else names:
        origin, seq = bm.split_manifest_name(name)
        line = lines.setdefault(origin, [])
        stored = _read_manifest(store, name)
        m = stored.manifest
        if (m.mesh, m.domain) != (marker.mesh, marker.domain):
            raise Integrity("foreign-mesh", f"{name} is of another mesh or domain", field="mesh")
        if (m.origin, m.seq) != (origin, seq):
            raise Integrity("manifest-order", f"another manifest lies at {name}", field="seq")
        if m.created_at > now_ms + bm.FUTURE_MAX_MS:
            raise Integrity("future", f"{name} was made in the future", field="created_at")
        prev = line[-1] if line else None
        if prev is None:
            bm.check_follows(m, None, ZERO_DIGEST)
        else:
            bm.check_follows(m, prev.manifest, bm.manifest_hash(prev.envelope))
        line.append(stored)
    return lines


def _newest_sets(store: BackupStore, names: Sequence[str]) -> list[str]:
    """Of each line, from the full backup on that its last manifest goes back to."""
    lasts = {bm.split_manifest_name(name)[0]: name for name in names}
    bases = {origin: _read_manifest(store, name).manifest.base for origin, name in lasts.items()}
    return [name for name in names if bm.split_manifest_name(name)[1] >= bases[bm.split_manifest_name(name)[0]]]


def _read_manifest(store: BackupStore, name: str) -> Stored:
    raw = store.get(name, max_bytes=bm.ENVELOPE_MAX_BYTES)
    if raw is None:
        raise Integrity("missing-object", f"{name} is gone", field="name")
    return Stored(*bm.parse_manifest(raw))


def open_key(m: Manifest, private: X25519PrivateKey) -> bytes:
    """The backup key of ``m``.  Raises Integrity (opaque)."""
    key = open_stanza(private, m.recipients, key_aad(mesh=m.mesh, origin=m.origin, seq=m.seq))
    check_kid(key, kid_bytes(m.kid))
    return key


def open_chunks(store: BackupStore, m: Manifest, private: X25519PrivateKey) -> Iterator[tuple[str, list[Item]]]:
    """(kind, items) of each chunk of ``m``, in order.  Raises Integrity: missing, changed, or not to be opened."""
    key = open_key(m, private)
    for place, ref in enumerate(m.chunks):
        sealed = store.get(bm.chunk_name(ref.sha256), max_bytes=bm.CHUNK_MAX_BYTES)
        if sealed is None:
            raise Integrity("missing-object", f"{m.origin}: chunk {place} of {m.seq} is gone", field="chunks")
        yield ref.kind, open_chunk(m, place, sealed, key)
