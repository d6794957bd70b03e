"""What a node keeps durably beside applied namespace states, and the names of its records.

``ns/<namespace>`` holds a ``NamespaceState``; the others hold the types below.  Governance and L1 leases are never
recorded (DESIGN section 3); Edge leases are, before they are granted, for E of section 5 must survive a crash.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from keymesh.control.entry import SignedEntry
from keymesh.control.purge_messages import BackupLine, PurgedKey
from keymesh.control.rows import RestrictionRow
from keymesh.control.standby import StandbyLie
from keymesh.control.state import NamespaceState
from keymesh.core.budget import Account
from keymesh.model.ids import Digest
from keymesh.model.time import Instant


@dataclass(frozen=True, slots=True)
class LocalRecord:
    """A local suspension: in force until its own entry, or a later one of its namespace, is recorded."""

    command_id: str
    scope: str
    action: str
    actor: str
    correlation_id: str
    authority: tuple[dict[str, Any], ...] = ()
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def args(self) -> dict[str, Any]:
        """The command's arguments, whole."""
        return {**self.options, "scope": self.scope}


@dataclass(frozen=True, slots=True)
class EdgeLeaseRecord:
    """One lease that an Edge may hold.  ``boottime_end_ms`` counts on the clock of kernel boot ``boot_id``."""

    lease_id: str
    tenant: str
    service: str
    edge: str
    signing_key: str
    versions: tuple[int, ...]
    ttl_ms: int
    end: Instant
    boot_id: str
    boottime_end_ms: int


@dataclass(frozen=True, slots=True)
class BudgetRecord:
    """What this node has granted under a service's budget, or the tenant's (``service`` empty)."""

    tenant: str
    service: str
    account: Account


@dataclass(frozen=True, slots=True)
class Charge:
    """That a slice counts in these periods of the budget of ``service`` (empty: the tenant's), at that price."""

    service: str
    price: int
    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SliceRecord:
    """Operations granted to an Edge with a lease: spent, but for the ``unused`` that it gave back.

    ``until``: by this node's clock; ``boottime_until_ms`` counts on the clock of kernel boot ``boot_id``.
    """

    lease_id: str
    tenant: str
    service: str
    edge: str
    signing_key: str
    ops: int
    charges: tuple[Charge, ...]
    until: Instant
    boot_id: str
    boottime_until_ms: int
    unused: int = 0


@dataclass(frozen=True, slots=True)
class OverlayRecord:
    """Restrictions of a verified state whose grants could not be applied (an unproven lift); they only add."""

    namespace: str
    epoch: int
    seq: int
    entry_hash: Digest
    correlation_id: str
    rows: dict[str, RestrictionRow]  # scope -> row


@dataclass(frozen=True, slots=True)
class PurgeRecord:
    """This node has nothing left of a tenant: what its receipt says.  ``seq`` is of the purge, in ``epoch``."""

    namespace: str
    epoch: int
    seq: int
    entry_hash: Digest | None
    admitted_seq: int
    keys: tuple[PurgedKey, ...]
    others: tuple[str, ...]
    backups: tuple[BackupLine, ...]
    correlation_id: str


@dataclass(frozen=True, slots=True)
class QuarantineRecord:
    """Evidence: what was held and what contradicts it."""

    namespace: str
    reason: str
    held: SignedEntry | None
    other: SignedEntry


@dataclass(frozen=True, slots=True)
class ClosedRecord:
    """A namespace kept closed across restarts; (epoch, seq) is the position of what closed it."""

    namespace: str
    reason: str
    epoch: int
    seq: int


@dataclass(frozen=True, slots=True)
class TailRecord:
    """What this node held, as it was signed, when a later epoch's base took its place and lacked some of it for good.

    Each epoch's is kept beside the others', until the Registry has what could be had of it.
    """

    namespace: str
    state: NamespaceState


@dataclass(frozen=True, slots=True)
class ClockRecord:
    """This node's clock was found to differ from the Registry's, by ``ppm``, and not yet to keep time again."""

    ppm: int


CLOCK_NAME: Final = "clock"

RECORD_TYPES: Final = (
    NamespaceState,
    LocalRecord,
    EdgeLeaseRecord,
    OverlayRecord,
    QuarantineRecord,
    ClosedRecord,
    PurgeRecord,
    StandbyLie,
    TailRecord,
    ClockRecord,
    BudgetRecord,
    SliceRecord,
)


def state_name(namespace: str) -> str:
    return f"ns/{namespace}"


def local_name(namespace: str, command_id: str) -> str:
    """A command id is one namespace's: another tenant may use the same."""
    return f"local/{namespace}/{command_id}"


def edge_lease_name(lease_id: str) -> str:
    return f"edge-lease/{lease_id}"


def budget_record_name(tenant: str, service: str) -> str:
    return f"budget/{tenant}/{service}"


def slice_name(lease_id: str) -> str:
    return f"slice/{lease_id}"


def overlay_name(namespace: str) -> str:
    return f"overlay/{namespace}"


def quarantine_name(namespace: str, entry_hash: str) -> str:
    return f"quarantine/{namespace}/{entry_hash}"


def tail_name(namespace: str, epoch: int) -> str:
    """``epoch`` is the tail's own."""
    return f"{old_tail_name(namespace)}/{epoch}"


def old_tail_name(namespace: str) -> str:
    """Of releases that kept the tail of one epoch alone."""
    return f"tail/{namespace}"


def purge_name(namespace: str) -> str:
    return f"purge/{namespace}"


def closed_name(namespace: str, reason: str) -> str:
    return f"closed/{namespace}/{reason}"
