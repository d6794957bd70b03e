"""Entries of the control log: fields, the signed payload, and the hash that chains them (DESIGN section 2).

The payload is the UTF-8 JSON of ``Entry`` in ``strict_json`` form, signed as it is in a DSSE envelope; nobody
re-serialises to verify.  ``entry_hash`` is SHA-256 of the payload, without signatures.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

from msgspec import Struct

from keymesh.crypto.dsse import Envelope
from keymesh.model import strict_json
from keymesh.model.errors import Integrity, Refused
from keymesh.model.ids import Digest
from keymesh.model.limits import ENTRY_MAX_BYTES

ENTRY_PAYLOAD_TYPE: Final = "application/vnd.keymesh.entry.v1+json"
FIRST_EPOCH: Final = 1
AUTHORITY_PAYLOAD_TYPE: Final = "application/vnd.keymesh.authority.v1+json"


class Body(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``args`` by kind (see ``kinds``); ``authority``: DSSE envelopes (as JSON) over the command, by signers
    beyond the Registry's online key."""

    args: dict[str, Any]
    authority: tuple[dict[str, Any], ...] = ()


class Entry(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One committed change of one namespace.  ``issued_at`` is Unix time in ms, for people only."""

    mesh: str
    epoch: int
    namespace: str
    seq: int  # from 1, per namespace, across epochs
    prev: Digest
    mesh_seq: int  # mesh head whose delegations sign it; its own seq - 1 in the mesh namespace
    kind: str
    body: Body
    state: Digest  # map-tree root over the namespace's rows after this entry
    actor: str
    correlation_id: str
    command_id: str
    issued_at: int


class Authority(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an officer or tenant signer signs: one command, whole, until ``not_after`` (Unix ms)."""

    mesh: str
    namespace: str
    command_id: str
    kind: str
    args_sha256: Digest
    not_after: int


class SignedEntry:
    """An entry with the exact bytes that were signed.

    Not a dataclass on purpose: codecs must carry the envelope alone and derive the rest (``parse_entry``).
    """

    __slots__ = ("entry", "envelope", "hash")

    def __init__(self, *, entry: Entry, hash: Digest, envelope: Envelope) -> None:
        self.entry: Final = entry
        self.hash: Final = hash
        self.envelope: Final = envelope

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SignedEntry) and (self.hash, self.envelope) == (other.hash, other.envelope)

    def __hash__(self) -> int:
        return hash(self.hash)

    def __repr__(self) -> str:
        e = self.entry
        return f"SignedEntry({e.namespace}:{e.epoch}:{e.seq} {e.kind} {self.hash[:12]})"


class Leaf(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Position and content of a namespace: a leaf of every heads tree and manifest."""

    epoch: int
    seq: int
    entry_hash: Digest
    state: Digest

    @property
    def order(self) -> tuple[int, int]:
        return (self.epoch, self.seq)


def leaf_of(signed: SignedEntry) -> Leaf:
    e = signed.entry
    return Leaf(epoch=e.epoch, seq=e.seq, entry_hash=signed.hash, state=e.state)


def encode_entry(entry: Entry) -> bytes:
    """The payload bytes.  Raises Refused past 64 KiB."""
    raw = strict_json.dumps(entry)
    if len(raw) > ENTRY_MAX_BYTES:
        raise Refused.bad_field("entry", f"at most {ENTRY_MAX_BYTES} bytes, got {len(raw)}")
    return raw


def entry_hash(payload: bytes) -> Digest:
    return Digest(hashlib.sha256(payload).hexdigest())


def parse_entry(envelope: Envelope) -> SignedEntry:
    """The entry in ``envelope``, unverified.  Raises Integrity for another payload type or a non-canonical form,
    Refused for malformed or oversized JSON."""
    if envelope.payload_type != ENTRY_PAYLOAD_TYPE:
        raise Integrity("payload-type", "not a control-log entry", field="payloadType")
    entry = strict_json.decode(envelope.payload, Entry, max_bytes=ENTRY_MAX_BYTES)
    if strict_json.dumps(entry) != envelope.payload:
        raise Integrity("not-canonical", "the entry is not in its one form", field="payload")
    return SignedEntry(entry=entry, hash=entry_hash(envelope.payload), envelope=envelope)
