"""Restrictions in force, how they act at once, and how they are acknowledged (DESIGN sections 2 and 5).

A restriction acts in memory before it is recorded; it is acknowledged only when recorded.  What is in force is the
union of the applied state, of restrictions seen beyond it (``Overlay``) and of local suspensions: nothing here ever
takes one away.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from keymesh.control.messages import Ack, AckMessage, RestrictionAck
from keymesh.core import edges, loading, revoking
from keymesh.core.records import EdgeLeaseRecord
from keymesh.core.state import NO_LEAF, Holding, NodeState, Out, Overlay
from keymesh.core.views import Restriction
from keymesh.model.ids import Digest
from keymesh.model.machine import REGISTRY, Send
from keymesh.model.scope import Scope
from keymesh.model.time import Instant


def union(applied: Mapping[str, Restriction], overlay: Overlay | None) -> dict[str, Restriction]:
    """Both together.  Of one scope, the later word counts, except that ``revoked`` stays."""
    found = dict(applied)
    for text, beyond in () if overlay is None else overlay.restrictions.items():
        held = found.get(text)
        if held is None or (held.state != "revoked" and beyond.seq > held.seq) or beyond.state == "revoked":
            found[text] = beyond
    return found


def applied_restrictions(state: NodeState, holding: Holding) -> Mapping[str, Restriction]:
    """Those that the applied state holds."""
    return state.mesh_view.restrictions if holding is state.mesh else holding.view.restrictions


def refresh(state: NodeState, holding: Holding) -> None:
    """Recompute what is in force for ``holding`` after its state or its overlay changed."""
    holding.restrictions = union(applied_restrictions(state, holding), holding.overlay)
    state.restrictions_changed()


def newer(held: Mapping[str, Restriction], new: Mapping[str, Restriction]) -> list[Restriction]:
    """Restrictions in ``new`` that say more than ``held``: a new scope, or a later entry for one; in scope order."""
    return [found for text, found in sorted(new.items()) if (was := held.get(text)) is None or found.seq > was.seq]


def affected(state: NodeState, scope: Scope) -> Iterable[Holding]:
    """Tenants here that ``scope`` can touch."""
    if scope.tenant is None:
        return [state.tenants[name] for name in sorted(state.tenants)]
    holding = state.tenants.get(scope.tenant)
    return [] if holding is None else [holding]


def enforce(state: NodeState, now: Instant, scope: Scope, order: tuple[int, int], corr: str, out: Out) -> None:
    """Make a restriction that is in force act: keys under it leave memory, Edges are told."""
    for holding in affected(state, scope):
        loading.drop_restricted(state, holding, out)
    revoking.revoke(state, now, scope, order, corr, out)


def close(state: NodeState, now: Instant, holding: Holding, reason: str, order: tuple[int, int], out: Out) -> None:
    """Close a tenant (or, for ``mesh``, all of them) for ``reason``: keys leave memory, Edges are told."""
    if reason in holding.closed:
        return
    holding.closed[reason] = order
    if holding is state.mesh:
        loading.drop_all(state, out)
    else:
        loading.drop_namespace(state, holding, out)
    revoking.revoke(state, now, revoking.whole(holding.namespace), order, reason, out)


# --- acknowledgements ------------------------------------------------------------------------------------------------


def durable(state: NodeState, holding: Holding) -> dict[str, Restriction]:
    """Restrictions in force that are recorded, and so may be acknowledged."""
    overlay = holding.overlay
    recorded = overlay if overlay is not None and overlay.recorded else None
    return union(applied_restrictions(state, holding), recorded)


def setting_entry(holding: Holding, restriction: Restriction) -> Digest | None:
    """Hash of the entry that set ``restriction``, where this node knows exactly that entry."""
    applied, seq = holding.applied, restriction.seq
    if applied is not None:
        if applied.head.entry.seq == seq:
            return applied.head.hash
        for supported in applied.support:
            if supported.signed.entry.seq == seq:
                return supported.signed.hash
    overlay = holding.overlay
    if overlay is not None and overlay.record.seq == seq:
        return overlay.record.entry_hash
    return None


def restriction_acks(state: NodeState, now: Instant, holding: Holding) -> tuple[RestrictionAck, ...]:
    """Each recorded restriction with E: by when the last Edge lease under it that is not settled is over."""
    found: list[RestrictionAck] = []
    for text, restriction in sorted(durable(state, holding).items()):
        leases = edges.open_leases(state, restriction.scope, now)
        found.append(
            RestrictionAck(
                scope=text,
                seq=restriction.seq,
                entry_hash=setting_entry(holding, restriction),
                edge_leases_end_in_ms=edges.leases_end_in_ms(leases, now),
                open_edge_leases=len(leases),
            )
        )
    return tuple(found)


def acknowledge(
    state: NodeState,
    now: Instant,
    namespace: str,
    out: Out,
    *,
    outcome: str = "applied",
    reason: str = "",
    correlation_id: str = "",
) -> None:
    """Send a signed Ack: the leaf as applied durably, and every recorded restriction in force."""
    holding = state.holding(namespace)
    config = state.config
    ack = Ack(
        mesh=config.mesh,
        region=config.region,
        node=config.node,
        boot_id=state.life,
        counter=state.next_counter(),
        namespace=namespace,
        leaf=NO_LEAF if holding is None else holding.leaf,
        outcome=outcome,
        reason=reason,
        restrictions=() if holding is None else restriction_acks(state, now, holding),
        correlation_id=correlation_id,
    )
    out.append(Send(REGISTRY, AckMessage(ack=config.suite.seal(ack))))


def acknowledge_lease(state: NodeState, now: Instant, lease: EdgeLeaseRecord, out: Out) -> None:
    """``lease`` is settled or over: acknowledge anew what it was the last, or the longest, to wait for."""
    for holding in (state.mesh, state.tenants.get(lease.tenant)):
        if holding is not None and any(
            edges.under(restriction.scope, state.config.region, lease)
            and _was_last(edges.newest_open(state, restriction.scope, now), lease)
            for restriction in durable(state, holding).values()
        ):
            acknowledge(state, now, holding.namespace, out)


def _was_last(others: Iterable[EdgeLeaseRecord], lease: EdgeLeaseRecord) -> bool:
    return all(other.end < lease.end for other in others)
