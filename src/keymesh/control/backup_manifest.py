"""Manifests of backups: what one backup holds, what it follows, and the rules of their chain.

A *line* is all that one origin (the Registry, or one node for its residency domain) writes into one store: manifests
numbered from 1, each naming the one before by its hash.  A *set* is a full backup and the incremental ones on it: what
a restore reads.  Decides form and order; not who signed (``check_signed_by``'s caller knows the keys) and not what the
chunks say.  Byte layouts are in ``docs/formats.md``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from keymesh.crypto.dsse import Envelope, PublicKey, Signer, envelope_from_json, envelope_to_json, verify_envelope
from keymesh.crypto.recipients import RECIPIENTS_MAX, Stanza, check_stanza
from keymesh.model import strict_json
from keymesh.model.errors import Integrity, KeymeshError, Refused
from keymesh.model.ids import ZERO_DIGEST, Digest, KeyId, check_hex, check_label

FORMAT: Final = "keymesh/backup/1"
MANIFEST_TYPE: Final = "application/vnd.keymesh.backup.v1+json"
MANIFEST_MAX_BYTES: Final = 4 * 1024 * 1024
ENVELOPE_MAX_BYTES: Final = 6 * 1024 * 1024
CHUNK_MAX_BYTES: Final = 8 * 1024 * 1024
CHUNKS_MAX: Final = 16_384
SEQ_MAX: Final = 10**12
FUTURE_MAX_MS: Final = 5 * 60_000
REGISTRY_ORIGIN: Final = "registry"

LOG: Final = "log"
RECORDS: Final = "records"
RECEIPTS: Final = "receipts"
STATES: Final = "states"
BLOBS: Final = "blobs"
KINDS: Final = (LOG, RECORDS, RECEIPTS, STATES, BLOBS)
"""What chunks hold: the Registry's line the first three, a domain's the last two."""

_ORIGIN: Final = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,126}[a-z0-9])?")
_MANIFEST_NAME: Final = re.compile(r"manifests/([a-z0-9.-]{1,128})/([0-9]{12})")


class ChunkRef(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``sha256`` is of the sealed bytes and names them in the store; ``items`` is how many things are in it."""

    kind: str
    sha256: Digest
    n_bytes: int
    items: int


class Manifest(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One backup.  Nothing in it names a tenant.

    ``full``: it needs no other; else it needs all from number ``base`` on.  ``after_index`` and ``index``: log entries
    after the first, up to and with the second, are in it (both 0 in a domain's line).  ``entries``, ``namespaces``,
    ``blobs`` and ``heads_root`` are of the whole set up to here.  ``missing``: blobs that the writer did not have.
    ``created_at``: Unix ms, for people.  ``kid`` names the backup key, which ``recipients`` hold sealed.
    """

    format: str
    mesh: str
    origin: str
    domain: str  # residency domain; empty for the Registry's line
    seq: int
    prev: Digest
    full: bool
    base: int
    epoch: int
    after_index: int
    index: int
    entries: int
    namespaces: int
    blobs: int
    missing: int
    heads_root: Digest
    created_at: int
    kid: str
    recipients: tuple[Stanza, ...]
    chunks: tuple[ChunkRef, ...]


class Marker(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a store is for, written into it once: one mesh, one domain (empty: the Registry's)."""

    format: str
    mesh: str
    domain: str


MARKER_NAME: Final = "keymesh-backup.json"
MARKER_MAX_BYTES: Final = 4 * 1024


def manifest_prefix(origin: str) -> str:
    return f"manifests/{check_origin(origin)}/"


def manifest_name(origin: str, seq: int) -> str:
    """Sorts as the numbers do."""
    if not 1 <= seq < SEQ_MAX:
        raise Refused.bad_field("seq", f"1 to {SEQ_MAX - 1}")
    return f"{manifest_prefix(origin)}{seq:012d}"


def split_manifest_name(name: str) -> tuple[str, int]:
    """(origin, seq).  Raises Integrity for a name that no manifest has: something else lies there."""
    match = _MANIFEST_NAME.fullmatch(name)
    if match is None or not _ORIGIN.fullmatch(match[1]) or int(match[2]) < 1:
        raise Integrity("foreign-object", f"not a manifest's name: {name[:160]!r}", field="name")
    return match[1], int(match[2])


def chunk_name(sha256: str) -> str:
    """Where a chunk lies.  Raises Refused for what is no digest."""
    check_hex("sha256", sha256, hex_bytes=32)
    return f"chunks/{sha256[:2]}/{sha256}"


def check_origin(origin: str) -> str:
    if not _ORIGIN.fullmatch(origin) or ".." in origin:
        raise Refused.bad_field("origin", "1 to 128 lower-case letters, digits, inner dots and hyphens")
    return origin


def node_origin(region: str, node: str) -> str:
    """The line of one node for its domain."""
    return f"{check_label('region', region)}.{check_label('node', node)}"


def manifest_hash(envelope: Envelope) -> Digest:
    """What the next manifest names in ``prev``."""
    return Digest(hashlib.sha256(envelope.payload).hexdigest())


def sign_manifest(manifest: Manifest, signer: Signer) -> bytes:
    """The object that is stored.  Raises Refused where it is out of its limits."""
    payload = strict_json.dumps(check_manifest(manifest))
    if len(payload) > MANIFEST_MAX_BYTES:
        raise Refused.bad_field("manifest", f"at most {MANIFEST_MAX_BYTES} bytes")
    return envelope_to_json(signer.sign(payload, MANIFEST_TYPE))


def parse_manifest(raw: bytes) -> tuple[Manifest, Envelope]:
    """The manifest in a stored object, its signature not verified.  Raises Integrity ``manifest``."""
    try:
        envelope = envelope_from_json(raw, max_bytes=ENVELOPE_MAX_BYTES)
        if envelope.payload_type != MANIFEST_TYPE:
            raise Refused.bad_field("payloadType", "a backup's manifest")
        manifest = strict_json.decode(envelope.payload, Manifest, max_bytes=MANIFEST_MAX_BYTES)
        if strict_json.dumps(manifest) != envelope.payload:
            raise Refused.bad_field("payload", "in its one form")
        return check_manifest(manifest), envelope
    except KeymeshError as bad:
        raise Integrity("manifest", f"a manifest is not one: {bad.message}", field=bad.field) from bad


def check_signed_by(envelope: Envelope, keys: Mapping[KeyId, PublicKey]) -> None:
    """Raises Integrity ``bad-signature`` unless one of ``keys`` signed it."""
    if not verify_envelope(envelope, keys):
        raise Integrity("bad-signature", "a manifest is signed by nobody who may", field="signatures")


def check_manifest(m: Manifest) -> Manifest:
    """What can be said of one manifest by itself.  Raises Refused naming the field."""
    if m.format != FORMAT:
        raise Refused.bad_field("format", f"{FORMAT!r} is what this release reads")
    check_label("mesh", m.mesh)
    check_origin(m.origin)
    if (m.origin == REGISTRY_ORIGIN) is not (m.domain == ""):
        raise Refused.bad_field("domain", "empty for the Registry's line, and for no other")
    if m.domain:
        check_label("domain", m.domain)
    check_hex("prev", m.prev, hex_bytes=32)
    check_hex("heads_root", m.heads_root, hex_bytes=32)
    check_hex("kid", m.kid, hex_bytes=16)
    if not 1 <= m.seq < SEQ_MAX or not 1 <= m.base <= m.seq or m.full is not (m.base == m.seq):
        raise Refused.bad_field("base", "a full backup is its own base; others have an earlier one")
    if (m.seq == 1) is not (m.prev == ZERO_DIGEST):
        raise Refused.bad_field("prev", "zeros for the first manifest, and for no other")
    if min(m.epoch, m.entries, m.namespaces, m.blobs, m.missing, m.created_at) < 0:
        raise Refused.bad_field("manifest", "no count or instant below 0")
    if not 0 <= m.after_index <= m.index or (m.full and m.after_index):
        raise Refused.bad_field("after_index", "0 in a full backup, never beyond index")
    if not 1 <= len(m.recipients) <= RECIPIENTS_MAX:
        raise Refused.bad_field("recipients", f"1 to {RECIPIENTS_MAX}")
    for stanza in m.recipients:
        check_stanza(stanza)
    if len(m.chunks) > CHUNKS_MAX:
        raise Refused.bad_field("chunks", f"at most {CHUNKS_MAX}")
    for chunk in m.chunks:
        check_hex("sha256", chunk.sha256, hex_bytes=32)
        if chunk.kind not in KINDS or not 0 < chunk.n_bytes <= CHUNK_MAX_BYTES or chunk.items < 1:
            raise Refused.bad_field("chunks", f"of a known kind, at most {CHUNK_MAX_BYTES} bytes, not empty")
    return m


def check_follows(m: Manifest, prev: Manifest | None, prev_hash: Digest) -> None:
    """``m`` comes right after ``prev`` in its line; None: it is the oldest that there is.

    1. The same line.  2. The next number, naming the hash of ``prev``.  3. Epoch and index do not fall.
    4. An incremental one continues the set of ``prev`` where that ends.  5. The oldest is a full one.
    Raises Integrity: ``manifest-gap``, ``manifest-fork`` or ``manifest-order``.
    """
    if prev is None:
        if not m.full:
            raise Integrity("manifest-gap", f"{m.origin}: what {m.seq} is based on is missing", field="base")
        return
    if (m.mesh, m.origin, m.domain) != (prev.mesh, prev.origin, prev.domain):
        raise Integrity("manifest-order", f"{m.origin}: {m.seq} is of another line", field="origin")
    if m.seq != prev.seq + 1:
        raise Integrity("manifest-gap", f"{m.origin}: {m.seq} follows {prev.seq}", field="seq")
    if m.prev != prev_hash:
        raise Integrity("manifest-fork", f"{m.origin}: {m.seq} follows another {prev.seq}", field="prev")
    if m.epoch < prev.epoch or m.index < prev.index or m.entries < prev.entries:
        raise Integrity("manifest-order", f"{m.origin}: {m.seq} holds less than {prev.seq}", field="index")
    if not m.full and (m.base != prev.base or m.after_index != prev.index):
        raise Integrity("manifest-gap", f"{m.origin}: {m.seq} does not continue the set of {prev.seq}", field="base")
