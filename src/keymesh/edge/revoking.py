"""Revocations at the Edge: dropped first, acknowledged after, then a new lease for what is unaffected.

Source: DESIGN section 5.  The acknowledgement is signed with the key that this life of the Edge gave when it took
its leases, so it settles no lease of another life.
"""

from __future__ import annotations

from typing import Any

from keymesh.edge import leasing, rules
from keymesh.edge.state import ACKED_MAX, EdgeState, address_at
from keymesh.model.machine import Address, Note, Send
from keymesh.model.time import Instant
from keymesh.orbital.edge_messages import EdgeAck, EdgeAckMessage, Revocation


def on_revocation(state: EdgeState, now: Instant, sender: Address, revocation: Revocation) -> list[Any]:
    """1. Drop a lease that is named.  2. Void the request in flight: its answer may be older than the revocation.
    3. Acknowledge every lease named.  4. Ask for a new lease at once.

    A repetition is acknowledged again and changes nothing else; so it cannot keep voiding the new request.
    """
    if not rules.names_edge(revocation, state.config, sender):
        return [Note("edge.revocation-ignored", revocation.correlation_id, (("sender", sender),))]
    effects: list[Any] = []
    held = rules.names_lease(revocation, state.lease)
    if held:
        effects += leasing.drop(state, "revoked")
    known = all((revocation.revocation_id, lease_id) in state.acked for lease_id in revocation.lease_ids)
    if held or not known:
        state.pending = None
    for lease_id in revocation.lease_ids:
        effects.append(_ack(state, sender, revocation, lease_id))
    if held or not known:
        effects.append(
            Note(
                "edge.revoked",
                revocation.correlation_id,
                (("revocation", revocation.revocation_id), ("held", int(held)), ("seq", revocation.seq)),
            )
        )
        effects += leasing.request(state, now)
    return effects


def _ack(state: EdgeState, sender: Address, revocation: Revocation, lease_id: str) -> Send:
    acked = state.acked
    acked[(revocation.revocation_id, lease_id)] = None
    while len(acked) > ACKED_MAX:
        del acked[next(iter(acked))]
    edge = address_at(state, sender)
    ack = EdgeAck(lease_id=lease_id, revocation_id=revocation.revocation_id, edge=edge, dropped=True)
    return Send(sender, EdgeAckMessage(ack=state.config.suite.seal(ack)))
