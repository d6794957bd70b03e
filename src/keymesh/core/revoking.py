"""Telling Edges to drop leases, and what settles a lease (DESIGN section 5).

An Edge's acknowledgement settles one lease, by its id, and counts only here, where the lease was granted, and only
once this node itself holds what revoked it: from then on it grants none for the key.  An Edge that ends gives its
leases back, which counts at any time.
"""

from __future__ import annotations

import hashlib
from typing import TypeVar

from keymesh.control.messages import Sealed
from keymesh.core import edges
from keymesh.core.records import EdgeLeaseRecord, edge_lease_name
from keymesh.core.state import NodeState, OpenRevocation, Out, note
from keymesh.core.views import edge_key
from keymesh.model.errors import KeymeshError
from keymesh.model.ids import MESH_NAMESPACE, KeyId, Namespace, TenantId
from keymesh.model.machine import Address, Send
from keymesh.model.scope import Scope, ScopeKind
from keymesh.model.time import Instant
from keymesh.orbital.edge_messages import EdgeAck, EdgeAckMessage, LeaseReturned, LeaseReturnedMessage, Revocation

RETRY_MS = 500

W = TypeVar("W", EdgeAck, LeaseReturned)


def whole(namespace: str) -> Scope:
    """The scope of a whole namespace."""
    if namespace == MESH_NAMESPACE:
        return Scope(ScopeKind.MESH)
    return Scope(ScopeKind.TENANT, tenant=TenantId(Namespace(namespace)))


def revocation_id(scope: Scope, order: tuple[int, int], edge: str, service: str) -> str:
    """The same after a restart, so that an acknowledgement on its way still counts."""
    return hashlib.sha256(f"{scope}|{order[0]}|{order[1]}|{edge}|{service}".encode()).hexdigest()[:32]


def revoke(state: NodeState, now: Instant, scope: Scope, order: tuple[int, int], corr: str, out: Out) -> None:
    """Tell every Edge that may hold a lease under ``scope`` to drop it; repeated until acknowledged or over.

    ``order`` is the (epoch, seq) of what restricts, (0, 0) for what has none yet.
    """
    by_edge: dict[tuple[str, str, str], set[str]] = {}
    for lease in edges.open_leases(state, scope, now):
        by_edge.setdefault((lease.edge, lease.tenant, lease.service), set()).add(lease.lease_id)
    for (edge, tenant, service), lease_ids in sorted(by_edge.items()):
        name = revocation_id(scope, order, edge, service)
        found = state.revocations.get(name)
        if found is None:
            found = OpenRevocation(name, Address(edge), tenant, service, *order, corr, lease_ids)
            state.revocations[name] = found
        else:
            found.lease_ids |= lease_ids
        _send(found, out)
    if state.revocations and not state.revoking:
        state.revoking = True
        state.at(Instant(now + RETRY_MS), "revoke")


def _send(revocation: OpenRevocation, out: Out) -> None:
    out.append(
        Send(
            revocation.edge,
            Revocation(
                revocation_id=revocation.revocation_id,
                lease_ids=tuple(sorted(revocation.lease_ids)),
                tenant=revocation.tenant,
                service=revocation.service,
                epoch=revocation.epoch,
                seq=revocation.seq,
                correlation_id=revocation.correlation_id,
            ),
        )
    )


def on_timer(state: NodeState, now: Instant, _: str, out: Out) -> None:
    """Repeat what is neither acknowledged nor over."""
    for name in sorted(state.revocations):
        revocation = state.revocations[name]
        revocation.lease_ids &= state.edge_leases.keys()
        if revocation.lease_ids:
            _send(revocation, out)
        else:
            del state.revocations[name]
    state.revoking = bool(state.revocations)
    if state.revoking:
        state.at(Instant(now + RETRY_MS), "revoke")


def on_hello(state: NodeState, edge: Address, out: Out) -> None:
    """An Edge (re)connected: tell it again at once."""
    for name in sorted(state.revocations):
        revocation = state.revocations[name]
        if revocation.edge == edge and revocation.lease_ids & state.edge_leases.keys():
            _send(revocation, out)


def on_lease_end(state: NodeState, now: Instant, lease_id: str) -> EdgeLeaseRecord | None:
    """A lease that is over by itself, now forgotten."""
    returned = state.edge_returned.get(lease_id)
    if returned is not None and returned.end <= now:
        del state.edge_returned[lease_id]
    lease = state.edge_leases.get(lease_id)
    if lease is None or now < lease.end:
        return None
    _forget(state, lease)
    return lease


def _forget(state: NodeState, lease: EdgeLeaseRecord) -> None:
    del state.edge_leases[lease.lease_id]
    state.edge_gone.append(edge_lease_name(lease.lease_id))


def settles(state: NodeState, sender: Address, ack: EdgeAck, lease: EdgeLeaseRecord | None) -> bool:
    """Whether ``ack`` settles ``lease``: dropped, told by the Edge that holds it, and in answer to a revocation that
    this node holds open for that very lease (so the restriction is applied here)."""
    revocation = state.revocations.get(ack.revocation_id)
    return (
        ack.dropped
        and lease is not None
        and lease.edge == sender == ack.edge
        and revocation is not None
        and revocation.edge == sender
        and lease.lease_id in revocation.lease_ids
    )


def on_edge_ack(state: NodeState, sender: Address, message: EdgeAckMessage, out: Out) -> EdgeLeaseRecord | None:
    """Settle one lease: the one settled, or None where the acknowledgement does not count.

    1. It is sealed by a key that this Edge gave with one of its leases.
    2. That lease is the one that it names, and was granted here.
    3. It answers a revocation that is open for that lease.
    """
    ack = _signed(state, sender, message.ack, EdgeAck, "edge-ack-refused", out)
    if ack is None:
        return None
    named = state.edge_leases.get(ack.lease_id)
    if named is None or not settles(state, sender, ack, named):
        note(out, "edge-ack-ignored", lease=ack.lease_id)
        return None
    state.revocations[ack.revocation_id].lease_ids.discard(named.lease_id)
    _forget(state, named)
    return named


def gives_back(sender: Address, returned: LeaseReturned, lease: EdgeLeaseRecord | None) -> bool:
    """Whether ``returned`` settles ``lease``: told by the Edge that holds it, of itself.

    No revocation need be open, and nothing need be applied here, unlike for an acknowledgement: that comes from an
    Edge that goes on and asks again, so it counts only once this node grants nothing more for the key.  This comes
    from a life that ends.  It dropped its keys before it said so, under a signing key that no other life has; it
    takes no grant from then on, this lease's or another's, whatever is still on its way; and lease ids never come
    again.  So the lease is used by nobody after this word, under whichever restriction, present or to come.

    It settles the lease that it names and no other: one whose grant was on its way has its own record, which counts
    until its end.
    """
    return lease is not None and lease.edge == sender == returned.edge


def on_lease_returned(
    state: NodeState, sender: Address, message: LeaseReturnedMessage, out: Out
) -> EdgeLeaseRecord | None:
    """Settle one lease at its holder's orderly end: the one settled, or None where the word does not count.

    1. It is sealed by the key that this Edge gave with the lease that it names.
    2. That lease was granted here, to this Edge.

    It goes on counting against the Edge's limit until its own end.  The Edge's wait for another lease is left alone:
    it may be a later life's.
    """
    returned = _signed(state, sender, message.returned, LeaseReturned, "lease-return-refused", out)
    if returned is None:
        return None
    named = state.edge_leases.get(returned.lease_id)
    if named is None or not gives_back(sender, returned, named):
        note(out, "lease-return-ignored", lease=returned.lease_id)
        return None
    for revocation in state.revocations.values():
        revocation.lease_ids.discard(named.lease_id)
    _forget(state, named)
    state.edge_returned[named.lease_id] = named
    return named


def _signed(state: NodeState, sender: Address, sealed: Sealed, shape: type[W], refused: str, out: Out) -> W | None:
    """What ``sender`` says of one of its leases: sealed by the key that it gave with that very lease; for a lease that
    is not here, with any of its leases here.  None, and a note ``refused``, otherwise."""
    keys: dict[KeyId, str] = {}
    for lease in state.edge_leases.of_edge(sender):
        keys.update(edge_key(lease.signing_key))
    try:
        word = state.config.suite.unseal(sealed, shape, keys)
        named = state.edge_leases.get(word.lease_id)
        if named is not None and len(keys) > 1:
            state.config.suite.unseal(sealed, shape, edge_key(named.signing_key))
    except KeymeshError as bad:
        note(out, refused, reason=bad.code)
        return None
    return word
