"""Receipts: what was decided or done, by whom, and what caused it; one for each, before the effect is released.

Decides the shape of a receipt, of the record in a log, and when a run of records is whole.  Where it is kept is an
adapter's business.  A record is ``{origin, seq, prev, receipt}`` as strict JSON, signed by DSSE; ``prev`` is the
SHA-256 of the record before (the first: zeros), as in the control log, so that one signature vouches for all before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from enum import Enum
from typing import Final, Protocol

import msgspec

from keymesh.crypto.dsse import Envelope
from keymesh.model import strict_json
from keymesh.model.errors import Integrity, Refused
from keymesh.model.ids import (
    ZERO_DIGEST,
    CorrelationId,
    Digest,
    Namespace,
    check_hex,
    check_token,
)
from keymesh.model.time import Instant

RECEIPT_TYPE: Final = "application/vnd.keymesh.receipt.v1+json"
RECORD_MAX_BYTES: Final = 16 * 1024
TEXT_MAX_CHARS: Final = 256
CAUSES_MAX: Final = 32


class Outcome(Enum):
    DONE = "done"
    REFUSED = "refused"
    FAILED = "failed"
    PENDING = "pending"


class Receipt(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One decision.  Never holds a secret: ``digest`` stands for whatever it was about.

    ``lamport`` is max(seen) + 1; ``causes`` are the ids of the receipts that led to this one.  ``subject`` is a scope,
    a key version or another public name; ``reason`` a stable word.
    """

    id: str
    at: Instant
    actor: str
    action: str
    namespace: Namespace
    outcome: Outcome
    correlation_id: CorrelationId
    lamport: int
    causes: tuple[str, ...] = ()
    subject: str = ""
    reason: str = ""
    digest: Digest | None = None


class ReceiptLog(Protocol):
    """Port: the durable log of one origin."""

    def append(self, receipt: Receipt) -> None:
        """Durable when it returns.  Raises Unavailable where it is not: what waits for it must not be released."""
        ...

    def append_all(self, receipts: Sequence[Receipt]) -> None:
        """All of them by one write and one sync, in order."""
        ...


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    origin: str
    seq: int
    prev: Digest
    receipt: Receipt


def next_lamport(seen: Sequence[Receipt]) -> int:
    """The Lamport time of a receipt caused by ``seen``."""
    return max((receipt.lamport for receipt in seen), default=0) + 1


def check_receipt(receipt: Receipt) -> Receipt:
    """Raises Refused naming the field that is out of its limits."""
    check_token("id", receipt.id)
    check_token("correlation_id", receipt.correlation_id)
    for field in ("actor", "action", "namespace"):
        _check_text(field, getattr(receipt, field), least=1)
    for field in ("subject", "reason"):
        _check_text(field, getattr(receipt, field), least=0)
    if receipt.lamport < 1 or receipt.at < 0:
        raise Refused.bad_field("lamport" if receipt.lamport < 1 else "at", "not negative, and a lamport of 1 or more")
    if len(receipt.causes) > CAUSES_MAX:
        raise Refused.bad_field("causes", f"at most {CAUSES_MAX}, got {len(receipt.causes)}")
    for cause in receipt.causes:
        check_token("causes", cause)
    if receipt.digest is not None:
        check_hex("digest", receipt.digest, hex_bytes=32)
    return receipt


def _check_text(field: str, value: str, *, least: int) -> None:
    if not least <= len(value) <= TEXT_MAX_CHARS or not value.isprintable():
        raise Refused.bad_field(field, f"{least} to {TEXT_MAX_CHARS} printable characters")


def record_payload(record: Record) -> bytes:
    """The bytes that are signed and hashed.  Raises Refused for a receipt out of its limits."""
    check_receipt(record.receipt)
    payload = strict_json.dumps(record)
    if len(payload) > RECORD_MAX_BYTES:
        raise Refused.bad_field("receipt", f"at most {RECORD_MAX_BYTES} bytes, got {len(payload)}")
    return payload


def record_hash(payload: bytes) -> Digest:
    return Digest(hashlib.sha256(payload).hexdigest())


class Chain:
    """Where a log stands, moved on record by record: a rule that the writer, the opener and an auditor share."""

    __slots__ = ("head", "lamport", "origin", "seq")

    def __init__(self, origin: str) -> None:
        self.origin = origin
        self.seq = 0
        self.head: Digest = ZERO_DIGEST
        self.lamport = 0

    def next_payload(self, receipt: Receipt) -> bytes:
        """The record that ``receipt`` becomes if it is appended now; moves nothing."""
        return record_payload(Record(origin=self.origin, seq=self.seq + 1, prev=self.head, receipt=receipt))

    def copy(self) -> Chain:
        other = Chain(self.origin)
        other.seq, other.head, other.lamport = self.seq, self.head, self.lamport
        return other

    def accept(self, envelope: Envelope) -> Record:
        """The record in ``envelope`` if it is the next one; its signature is not verified here.

        Raises Integrity where type, form, origin, seq or prev is not what comes next.
        """
        if envelope.payload_type != RECEIPT_TYPE:
            raise Integrity("receipt-log", f"record {self.seq + 1} has another type")
        try:
            record = strict_json.decode(envelope.payload, Record, max_bytes=RECORD_MAX_BYTES)
            check_receipt(record.receipt)
        except Refused as bad:
            raise Integrity("receipt-log", f"record {self.seq + 1} is malformed") from bad
        if (record.origin, record.seq, record.prev) != (self.origin, self.seq + 1, self.head):
            raise Integrity("receipt-log", f"record {self.seq + 1} does not follow the one before")
        self.seq = record.seq
        self.head = record_hash(envelope.payload)
        self.lamport = max(self.lamport, record.receipt.lamport)
        return record
