"""What a Core node's machine asks of its shell beyond the shared effects, and what the shell tells it.

Keys are named, never carried: the shell keeps the bytes in locked pages.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from keymesh.control.purge_messages import BackupLine
from keymesh.model.time import Instant


@dataclass(frozen=True, slots=True)
class KeyRef:
    """``key`` is ``l2`` or ``l3/<service>``."""

    namespace: str
    key: str
    version: int
    revision: int
    kid: str
    digest: str
    parent: str


# --- effects ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LoadKeys:
    """Make every key in ``keys`` present in memory (fetching blobs, unwrapping with IVK and L1 where needed)."""

    namespace: str
    keys: tuple[KeyRef, ...]
    bindings: tuple[tuple[str, str, Any], ...]  # (binding id, provider, descriptor)
    correlation_id: str


@dataclass(frozen=True, slots=True)
class DropKeys:
    """Wipe from memory.  ``kids`` None: everything of the namespace; ``namespace`` None: everything."""

    namespace: str | None
    kids: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class ProbeL1:
    """Have the customer's L1 unwrap the current binding on each of its replicas.

    One that denies makes the outcome DENIED.  Else OK needs every one to succeed where ``all_replicas``, any one
    where not.
    """

    namespace: str
    binding_id: str
    all_replicas: bool


@dataclass(frozen=True, slots=True)
class MintKey:
    """Generate, wrap under ``parent``, store in two of the domain's blob stores, re-open the stored bytes."""

    namespace: str
    key: str
    version: int
    parent: str  # binding id for l2, kid of the L2 for l3
    correlation_id: str


@dataclass(frozen=True, slots=True)
class RewrapKey:
    """Wrap the same material anew under ``parent`` as ``revision``; store; re-open."""

    ref: KeyRef
    revision: int
    parent: str
    correlation_id: str


@dataclass(frozen=True, slots=True)
class WipeMinted:
    """This node lost the race for that version: forget the material and its blob."""

    namespace: str
    kid: str


@dataclass(frozen=True, slots=True)
class RotateIvk:
    """Bring the region's IVK to ``generation`` and re-seal what older ones sealed."""

    generation: int


@dataclass(frozen=True, slots=True)
class MigrateStore:
    """Bring the region's key store to ``schema``; the next ``StoreSeen`` says what came of it."""

    schema: int


@dataclass(frozen=True, slots=True)
class PurgeTenant:
    """Destroy everything of the tenant at rest and in memory, for good, and let nothing of it be written from now on;
    answered by ``TenantPurged`` once that is durable, however long it takes."""

    namespace: str
    correlation_id: str


@dataclass(frozen=True, slots=True)
class TakeSnapshot:
    """Recompute every namespace's state from what is really stored and loaded; answered by ``SnapshotTaken``."""


@dataclass(frozen=True, slots=True)
class ReplyLocal:
    """Outcome of the ``LocalRestrict`` of that id and scope: durable here (``recorded``) or not."""

    command_id: str
    scope: str
    recorded: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class BudgetReply:
    """Whether the operations of ``UseBudget`` are counted, and recorded."""

    token: str
    allowed: bool
    reason: str = ""
    retry_after_ms: int = 0


# --- events ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reconnected:
    """The connection to the Registry was lost, and is tried anew or there again: whoever answers may know nothing."""


@dataclass(frozen=True, slots=True)
class Unsealed:
    """The MasterKey is in memory; ``ivk_generation`` is the active IVK's."""

    ivk_generation: int


@dataclass(frozen=True, slots=True)
class StoreSeen:
    """The key store was looked at and is ours: its schema, and the newest that this release knows."""

    schema: int
    newest: int


@dataclass(frozen=True, slots=True)
class Sealed:
    """The MasterKey has left memory: nothing can be used until ``Unsealed``."""


@dataclass(frozen=True, slots=True)
class KeysLoaded:
    """``loaded`` are in memory and match their kid; ``failed`` are (ref, reason).

    ``l1``: "ok", "denied", "unreachable" or "unused"; ``l1_started_at``: when the earliest L1 call was *sent*.
    """

    namespace: str
    loaded: tuple[KeyRef, ...]
    failed: tuple[tuple[KeyRef, str], ...]
    l1: str
    l1_started_at: Instant


class L1Outcome(Enum):
    OK = "ok"
    DENIED = "denied"
    UNREACHABLE = "unreachable"


@dataclass(frozen=True, slots=True)
class L1Probed:
    """``started_at``: when the call was sent.  With all replicas asked, OK means that every one succeeded."""

    namespace: str
    binding_id: str
    outcome: L1Outcome
    started_at: Instant
    all_replicas: bool


@dataclass(frozen=True, slots=True)
class KeyMinted:
    namespace: str
    key: str
    version: int
    kid: str
    digest: str
    parent: str
    holders: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MintFailed:
    namespace: str
    key: str
    version: int
    reason: str


@dataclass(frozen=True, slots=True)
class RewrapFailed:
    namespace: str
    key: str
    version: int
    revision: int
    reason: str


@dataclass(frozen=True, slots=True)
class KeyRewrapped:
    namespace: str
    key: str
    version: int
    revision: int
    digest: str
    parent: str


@dataclass(frozen=True, slots=True)
class IvkRotated:
    generation: int


@dataclass(frozen=True, slots=True)
class TenantPurged:
    """Nothing of the tenant is left at rest, and that is durable.  ``digests``: of every wrap and blob that was there;
    ``backups``: those that still hold some."""

    namespace: str
    digests: tuple[str, ...]
    backups: tuple[BackupLine, ...] = ()


@dataclass(frozen=True, slots=True)
class SnapshotTaken:
    """namespace -> recomputed state root."""

    states: dict[str, str]


@dataclass(frozen=True, slots=True)
class LocalRestrict:
    """An administrator's restriction, issued here; ``actor`` was authenticated and admitted.

    ``options``: its arguments beside the scope, as whoever signed ``authority`` signed them.
    """

    command_id: str
    scope: str
    action: str
    actor: str
    correlation_id: str
    authority: tuple[dict[str, Any], ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class UseBudget:
    """An Edge has the Core make or open so many keys; ``token`` names the question."""

    token: str
    tenant: str
    service: str
    ops: int
