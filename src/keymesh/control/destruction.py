"""What destroying a tenant means as evidence: which of its keys there were, and whether a node's receipt covers them.

A receipt counts for the one purge that it names, and for the admission that its region held the tenant under: a region
that was purged, allowed again and filled again owes another one (``model/README.md``, trace 9).  There is no bound
that could stand in for it: a node that is not heard of may hold what it holds for ever.  Sources: DESIGN sections 1, 5.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from msgspec import to_builtins

from keymesh.control.purge_messages import BackupLine, PurgedKey, PurgeReceipt
from keymesh.control.rows import KeyRow, RestrictionRow, Rows, get, shape_of, split_key_row
from keymesh.control.state import Supported
from keymesh.model.machine import node_address
from keymesh.model.scope import destruction_of

DESTROY: Final = "destroy"
"""The action of a certificate over a ``tenant.purge``."""

DESTROY_KIND: Final = "tenant.destroy"
PURGE_KIND: Final = "tenant.purge"
PURGED: Final = "purged"
"""A holder's evidence: its signed receipt."""


def key_versions(rows: Rows) -> tuple[PurgedKey, ...]:
    """Every key version that a tenant's ``rows`` name, by (key, version)."""
    found = []
    for name in rows:
        row = get(rows, name, KeyRow) if shape_of(name) is KeyRow else None
        if row is not None:
            key, version = split_key_row(name)
            found.append(PurgedKey(key=key, version=version, kid=row.kid, digest=row.digest))
    return tuple(sorted(found, key=lambda k: (k.key, k.version)))


def destruction_row(tenant: str, rows: Rows) -> RestrictionRow | None:
    """``suspended``: it waits; ``none``: cancelled; ``revoked``: purged; None: never asked for."""
    return get(rows, f"restriction/{destruction_of(tenant)}", RestrictionRow)


def admitted_seq(support: Iterable[Supported]) -> int:
    """The entry by which the regions of a tenant hold it; 0 where it is not at hand.

    In this release they are named once, by the entry that creates the tenant.
    """
    return max([s.signed.entry.seq for s in support if s.signed.entry.kind == "tenant.create"], default=0)


def covers(
    receipt: PurgeReceipt, *, order: tuple[int, int], entry_hash: str, admitted: int, keys: Iterable[PurgedKey]
) -> bool:
    """Whether ``receipt`` is about the purge in entry ``order`` (epoch, seq; a later epoch has it too), under the
    admission by entry ``admitted``, and names every one of ``keys``."""
    return (
        receipt.epoch >= order[0]
        and receipt.seq == order[1]
        and receipt.entry_hash in (None, entry_hash)
        and receipt.admitted_seq == admitted
        and receipt.edge_leases_end_in_ms >= 0
        and receipt.open_edge_leases >= 0
        and set(keys) <= set(receipt.keys)
    )


def backups_of(receipts: Iterable[PurgeReceipt]) -> tuple[BackupLine, ...]:
    """The lines of backups that ``receipts`` name, each as far as anybody saw it."""
    newest: dict[tuple[str, str], BackupLine] = {}
    for line in (line for receipt in receipts for line in receipt.backups):
        held = newest.get((line.store, line.origin))
        if held is None or held.last < line.last:
            newest[line.store, line.origin] = line
    return tuple(newest[name] for name in sorted(newest))


def summary(receipts: Sequence[PurgeReceipt]) -> dict[str, Any]:
    """What a destruction's certificate says beyond a kill switch's, as JSON."""
    keys = {key for receipt in receipts for key in receipt.keys}
    return {
        "purged": [node_address(r.region, r.node) for r in receipts],
        "destroyed": [to_builtins(key) for key in sorted(keys, key=lambda k: (k.key, k.version))],
        "others": sorted({digest for receipt in receipts for digest in receipt.others}),
        "backups": [to_builtins(line) for line in backups_of(receipts)],
    }
