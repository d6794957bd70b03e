"""What a node says of a tenant that is purged there, and what the Registry answers (DESIGN sections 1 and 5)."""

from __future__ import annotations

from keymesh.control.messages import Message, Sealed
from keymesh.model.ids import Digest


class PurgedKey(Message):
    """One key version that a region no longer has: its wraps in the key store, its blob in the blob store."""

    key: str
    version: int
    kid: str
    digest: str


class BackupLine(Message):
    """Backups that still hold wrapped keys of the tenant's domain and can't be taken back: manifests ``first`` to
    ``last`` of ``origin`` in ``store``, the last one of hash ``digest``, which names all before it.

    ``kept_until``: Unix ms, by when the store lets go of the newest of them; 0 where nobody promises an end.
    """

    store: str
    origin: str
    first: int
    last: int
    digest: Digest
    kept_until: int


class PurgeReceipt(Message):
    """Node to Registry, signed: of this tenant nothing is left here, and that is durable.

    ``epoch``, ``seq``, ``entry_hash``: the purge that asked for it (the hash where the node applied that very entry);
    ``admitted_seq``: the entry by which the region held the tenant.  ``keys``: all that the log named; ``others``:
    digests of what the region had beside them (older revisions, versions that lost their race).
    """

    mesh: str
    region: str
    node: str
    boot_id: str
    counter: int
    namespace: str
    epoch: int
    seq: int
    entry_hash: Digest | None
    admitted_seq: int
    keys: tuple[PurgedKey, ...]
    others: tuple[str, ...]
    backups: tuple[BackupLine, ...]
    edge_leases_end_in_ms: int
    open_edge_leases: int
    correlation_id: str


class PurgeReceiptMessage(Message):
    """Repeated until ``PurgeNoted``."""

    receipt: Sealed


class PurgeNoted(Message):
    """Registry to node: your receipt for the purge in entry (epoch, seq) is on file."""

    namespace: str
    epoch: int
    seq: int
