"""What the Registry keeps beside the log: commit proofs, kill-switch progress, who holds a new blob, parked tasks.

Everything else is a projection of the log and is made anew at boot.  Losing any of these costs time, never safety:
commits are asked for again, certificates fall back to the bound.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final, TypeAlias, assert_never, get_args

from msgspec import Struct

from keymesh.control.messages import Sealed
from keymesh.control.standby import StandbyLie


class Record(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all records."""


class CommitRecord(Record, frozen=True):
    """A majority of the voter set has this entry.  ``committed_at`` is an Instant, no earlier than the commit."""

    namespace: str
    seq: int
    entry_hash: str
    countersignatures: tuple[Sealed, ...]
    committed_at: int


class KillRecord(Record, frozen=True):
    """One restriction on its way to a certificate.

    ``status``: ``pending`` (not committed), ``revoking``, ``certified``, ``superseded`` (a later restriction of the
    scope took over), ``lifted`` (resumed before it was certified).  ``holders`` are node addresses, read after the
    commit; ``certificate`` is sealed.
    """

    command_id: str
    correlation_id: str
    namespace: str
    seq: int
    entry_hash: str
    scope: str
    action: str
    status: str = "pending"
    committed_at: int = 0
    mesh_seq: int = 0
    ttl_ms: int = 0
    holders: tuple[str, ...] = ()
    t: int = 0
    certified_at: int = 0
    certificate: Any = None


class EvidenceRecord(Record, frozen=True):
    """A holder's own word: ``ack`` sealed, and the Instant it came.

    It is about the entry of ``entry_hash`` and no other: a command may stand in another entry after a restore.  Empty
    where nobody recorded which, and then it counts for nothing.
    """

    command_id: str
    namespace: str
    node: str
    ack: Sealed
    received_at: int
    edge_leases_end_in_ms: int
    open_edge_leases: int
    entry_hash: str = ""


class HoldersRecord(Record, frozen=True):
    """Regions whose blob store has that key version, by the minter's word."""

    namespace: str
    key: str
    version: int
    regions: tuple[str, ...]


class WaitRecord(Record, frozen=True):
    """How much of the wait of the ``tenant.destroy`` in entry ``seq`` some Registry has seen pass.

    Of the entry of ``entry_hash`` alone; empty where nobody recorded which, and then it is no head start.
    """

    namespace: str
    seq: int
    waited_ms: int
    entry_hash: str = ""


class ParkedRecord(Record, frozen=True):
    node: str
    namespace: str
    seq: int
    reason: str
    at: int


AnyRecord: TypeAlias = (
    CommitRecord | KillRecord | EvidenceRecord | HoldersRecord | WaitRecord | ParkedRecord | StandbyLie
)
RECORD_TYPES: Final[tuple[type, ...]] = get_args(AnyRecord)


def still_true(records: Mapping[str, AnyRecord], hashes: Collection[str]) -> dict[str, AnyRecord]:
    """Of the records beside a log that is lost, those that hold beside one of the entries of ``hashes``.

    What names exactly one of these entries, and rests on nothing else of that history: proofs of commits, issued
    certificates, waits; and what is proven against a voter.  All else is found out again.
    """
    return {name: record for name, record in records.items() if _holds(record, hashes)}


def _holds(record: AnyRecord, hashes: Collection[str]) -> bool:
    match record:
        case StandbyLie():
            return True
        case CommitRecord() | WaitRecord():
            return record.entry_hash in hashes
        case KillRecord():  # one without its certificate counts holders by the lost mesh
            return record.certificate is not None and record.entry_hash in hashes
        case EvidenceRecord() | HoldersRecord() | ParkedRecord():
            return False
        case _:
            assert_never(record)


def commit_name(namespace: str, seq: int) -> str:
    return f"commit/{namespace}/{seq}"


def kill_name(command_id: str, namespace: str) -> str:
    return f"kill/{namespace}/{command_id}"


def evidence_name(command_id: str, namespace: str, node: str) -> str:
    return f"evidence/{namespace}/{command_id}/{node}"


def holders_name(namespace: str, key: str, version: int) -> str:
    return f"holders/{namespace}/{key}/{version}"


def wait_name(namespace: str) -> str:
    return f"wait/{namespace}"


def parked_name(node: str, namespace: str) -> str:
    return f"parked/{node}/{namespace}"
