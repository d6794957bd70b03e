"""A tenant that is purged: the wipe asked for, its record, and the receipt until the Registry has it.

The purge acts as a restriction first, like every other.  Once its entry is applied (durable), the shell wipes; once
*that* is durable it is recorded, and only then is there a receipt.  Each life wipes anew before it says so again: what
a store that came back, or a write that was under way, brought back is then gone too.  Sources: DESIGN sections 1, 5.
"""

from __future__ import annotations

from dataclasses import dataclass

from keymesh.control import destruction
from keymesh.control.purge_messages import PurgeNoted, PurgeReceipt, PurgeReceiptMessage
from keymesh.core import edges, restrictions
from keymesh.core.events import PurgeTenant, TenantPurged
from keymesh.core.records import PurgeRecord, purge_name
from keymesh.core.state import Holding, NodeState, Out, Purge, note
from keymesh.core.views import Restriction
from keymesh.model.machine import REGISTRY, Received, Send
from keymesh.model.scope import destruction_of
from keymesh.model.time import Instant

AGAIN_MS = 5_000
NOTED_AGAIN_MS = 60_000
NOTED_AGAIN_MAX_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class PurgePending:
    """The record of a purge on its way to the disk."""

    record: PurgeRecord


def purged_by(state: NodeState, holding: Holding) -> Restriction | None:
    """The purge of ``holding`` by what is applied, if it is purged."""
    if holding is state.mesh:
        return None
    found = holding.view.restrictions.get(str(destruction_of(holding.namespace)))
    return found if found is not None and found.state == "revoked" else None


def restore(state: NodeState, record: PurgeRecord) -> None:
    """Take up the record of an earlier life."""
    state.purges[record.namespace] = Purge(seq=record.seq, record=record)


def reconcile(state: NodeState, now: Instant, holding: Holding, out: Out) -> None:
    """Have a purged tenant wiped, once in this life."""
    purge = purged_by(state, holding)
    if purge is None or holding.applied is None:
        return
    held = state.purges.get(holding.namespace)
    if held is None or held.seq != purge.seq:
        held = state.purges[holding.namespace] = Purge(seq=purge.seq)
    if not held.running and not held.done:
        held.running = True
        out.append(PurgeTenant(holding.namespace, holding.applied.head.entry.correlation_id))


def on_purged(state: NodeState, now: Instant, event: TenantPurged, out: Out) -> None:
    """The wipe is durable: record what it was of."""
    holding, held = state.tenants.get(event.namespace), state.purges.get(event.namespace)
    if holding is None or holding.applied is None or held is None or not held.running:
        return
    held.running = False
    purge = purged_by(state, holding)
    if purge is None or purge.seq != held.seq:
        return
    keys = destruction.key_versions(holding.applied.rows)
    named = {k.digest for k in keys}
    before = () if held.record is None else held.record.others
    record = PurgeRecord(
        namespace=holding.namespace,
        epoch=holding.leaf.epoch,
        seq=purge.seq,
        entry_hash=restrictions.setting_entry(holding, purge),
        admitted_seq=destruction.admitted_seq(holding.applied.support),
        keys=keys,
        others=tuple(sorted({*before, *event.digests} - named)),
        backups=event.backups,
        correlation_id=holding.applied.head.entry.correlation_id,
    )
    state.persist("purge", PurgePending(record), ((purge_name(record.namespace), record),), (), out)


def on_recorded(state: NodeState, now: Instant, pending: PurgePending, out: Out) -> None:
    held = state.purges.get(pending.record.namespace)
    if held is None or held.seq != pending.record.seq:
        return
    held.record, held.done = pending.record, True
    note(out, "purged", pending.record.correlation_id, namespace=pending.record.namespace, seq=held.seq)
    on_timer(state, now, pending.record.namespace, out)


def on_record_failed(state: NodeState, now: Instant, pending: PurgePending, out: Out) -> None:
    state.at(Instant(now + AGAIN_MS), "purge", pending.record.namespace)


def on_timer(state: NodeState, now: Instant, namespace: str, out: Out) -> None:
    """Say it again, until the Registry has it; or wipe again, where that could not be recorded.

    One replica's word is not every replica's, and one may have been away: it is said on, ever more rarely.
    """
    held, holding = state.purges.get(namespace), state.tenants.get(namespace)
    if held is None or holding is None:
        return
    if held.done and held.record is not None:
        _send(state, now, held.record, out)
        pause_ms = AGAIN_MS
        if held.noted:
            pause_ms = held.pause_ms = min(NOTED_AGAIN_MAX_MS, max(NOTED_AGAIN_MS, held.pause_ms * 2))
        state.at(Instant(now + pause_ms), "purge", namespace)
    else:
        reconcile(state, now, holding, out)


def _send(state: NodeState, now: Instant, record: PurgeRecord, out: Out) -> None:
    config = state.config
    leases = edges.open_leases(state, destruction_of(record.namespace), now)
    receipt = PurgeReceipt(
        mesh=config.mesh,
        region=config.region,
        node=config.node,
        boot_id=state.life,
        counter=state.next_counter(),
        namespace=record.namespace,
        epoch=record.epoch,
        seq=record.seq,
        entry_hash=record.entry_hash,
        admitted_seq=record.admitted_seq,
        keys=record.keys,
        others=record.others,
        backups=record.backups,
        edge_leases_end_in_ms=edges.leases_end_in_ms(leases, now),
        open_edge_leases=len(leases),
        correlation_id=record.correlation_id,
    )
    out.append(Send(REGISTRY, PurgeReceiptMessage(receipt=config.suite.seal(receipt))))


def on_noted(state: NodeState, now: Instant, event: Received, out: Out) -> None:
    word: PurgeNoted = event.message
    held = state.purges.get(word.namespace)
    if event.sender == REGISTRY and held is not None and held.record is not None:
        held.noted = held.noted or held.record.seq == word.seq
