"""From evidence to a certificate: when the last holder is certainly done, and the statement that says so.

Pure.  The arithmetic is ``control.evidence``'s, which also verifies; this module only chooses, for each holder, the
evidence that ends sooner, and puts the parts together.  Source: DESIGN section 5.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import UNSET

from keymesh.control import evidence
from keymesh.control.entry import SignedEntry
from keymesh.control.evidence import Certificate, Holder, MeshState, Statement, Support
from keymesh.control.messages import Sealed
from keymesh.control.rows import Rows
from keymesh.control.signing import Suite
from keymesh.control.state import NamespaceState
from keymesh.ledger.maptree import MapTree
from keymesh.model.time import NEVER
from keymesh.registry.records import EvidenceRecord, KillRecord


def holder_evidence(node: str, word: EvidenceRecord | None, *, bound: int) -> Holder:
    """One holder by the evidence that ends sooner: its own word, or ``bound``, the end of every lease."""
    if word is not None:
        end = evidence.ack_end(word.received_at, word.edge_leases_end_in_ms, word.open_edge_leases)
        if end <= bound:
            return Holder(node=node, evidence=evidence.ACK, t=end, ack=word.ack, received_at=word.received_at)
    return Holder(node=node, evidence=evidence.BOUND, t=bound)


def purge_evidence(node: str, receipt: EvidenceRecord | None) -> Holder:
    """One holder of a tenant that is purged: its receipt, and nothing in place of it; without one it is never done."""
    if receipt is None:
        return Holder(node=node, evidence=evidence.PURGED, t=NEVER)
    end = evidence.ack_end(receipt.received_at, receipt.edge_leases_end_in_ms, receipt.open_edge_leases)
    return Holder(node=node, evidence=evidence.PURGED, t=end, ack=receipt.ack, received_at=receipt.received_at)


def holders_evidence(record: KillRecord, words: Mapping[str, EvidenceRecord]) -> tuple[Holder, ...]:
    """Every holder of the record, each with its evidence, in order.  None is left out."""
    if record.action == evidence.DESTROY:
        return tuple([purge_evidence(node, words.get(node)) for node in record.holders])
    bound = evidence.bound_end(record.committed_at, record.ttl_ms)
    return tuple([holder_evidence(node, words.get(node), bound=bound) for node in record.holders])


def end_of(record: KillRecord, words: Mapping[str, EvidenceRecord]) -> int:
    """T by the evidence so far."""
    return evidence.certain_end(record.committed_at, [h.t for h in holders_evidence(record, words)])


def due_at(record: KillRecord, words: Mapping[str, EvidenceRecord], *, booted_at: int, hold_ms: int) -> int:
    """When T has certainly passed by *our* clock.

    What is waited for counts from a moment of this life, or anew from its start: instants of an earlier life are wall
    time, which may have been set since.  ``hold_ms``: by how much our clock jumped ahead meanwhile.
    """
    ends = [at for _, at in ends_here(record, words, booted_at=booted_at, hold_ms=hold_ms)]
    return evidence.certain_end(record.committed_at + hold_ms, ends)


def ends_here(
    record: KillRecord, words: Mapping[str, EvidenceRecord], *, booted_at: int, hold_ms: int
) -> tuple[tuple[Holder, int], ...]:
    """Every holder, and when it is certainly done by our clock; see ``due_at``."""
    found = holders_evidence(record, words)
    return tuple([(h, min(NEVER, _end_here(h, record.committed_at, booted_at) + hold_ms)) for h in found])


def _end_here(holder: Holder, committed_at: int, booted_at: int) -> int:
    if holder.t == NEVER:
        return NEVER
    began = committed_at if holder.evidence == evidence.BOUND else holder.received_at
    return holder.t if began >= booted_at or holder.t == began else max(holder.t, booted_at + holder.t - began)


def is_better(word: EvidenceRecord, held: EvidenceRecord | None) -> bool:
    """Whether a later word ends sooner than the one held."""

    def end(record: EvidenceRecord) -> int:
        return evidence.ack_end(record.received_at, record.edge_leases_end_in_ms, record.open_edge_leases)

    return held is None or end(word) < end(held)


def mesh_part(state: NamespaceState) -> MeshState:
    return MeshState(
        head=state.head.envelope,
        rows=state.rows,
        support=tuple(Support(entry=s.signed.envelope, countersignatures=s.countersignatures) for s in state.support),
    )


def make_certificate(
    record: KillRecord,
    words: Mapping[str, EvidenceRecord],
    *,
    entry: SignedEntry,
    countersignatures: tuple[Sealed, ...],
    mesh: NamespaceState,
    tenant: SignedEntry | None,
    rows: Rows,
    suite: Suite,
    now: int,
) -> Certificate:
    """The signed certificate of a record whose T has passed.

    ``tenant``: the entry that created the tenant, None for scopes of the mesh; ``rows``: the namespace after ``entry``.
    """
    tree = None if tenant is None else MapTree.of(rows)
    holders = holders_evidence(record, words)
    statement = Statement(
        mesh=entry.entry.mesh,
        mesh_head=mesh.head.hash,
        scope=record.scope,
        action=record.action,
        command_id=record.command_id,
        correlation_id=record.correlation_id,
        entry=entry.envelope,
        committed_at=record.committed_at,
        countersignatures=countersignatures,
        ttl_ms=record.ttl_ms,
        holders=holders,
        t=evidence.certain_end(record.committed_at, (h.t for h in holders)),
        issued_at=now,
        tenant=None if tenant is None else tenant.envelope,
        policy=None if tree is None else tree.prove("policy"),
        signers=None if tree is None else tree.prove("signers"),
        not_covered=evidence.NOT_COVERED if record.action != evidence.DESTROY else evidence.NOT_DESTROYED,
        rows=UNSET if record.action != evidence.DESTROY else dict(rows),
    )
    return Certificate(trust=mesh_part(mesh), statement=suite.seal(statement))
