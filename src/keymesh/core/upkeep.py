"""Bringing a tenant's keys in line with what is in force: after an apply, a lease, a proof of L1, a release."""

from __future__ import annotations

from keymesh.core import edges, l1_lease, loading, minter
from keymesh.core.state import Holding, NodeState, Out
from keymesh.model.ids import MESH_NAMESPACE
from keymesh.model.time import Instant


def settle(state: NodeState, now: Instant, holding: Holding, out: Out) -> None:
    """Drop, load, mint and probe as this tenant's state asks for; Edges that wait for it hear when they may ask."""
    loaded = loading.reconcile(state, now, holding, out)
    made = minter.reconcile(state, now, holding, out)
    holding.steady = loaded and made
    l1_lease.watch(state, now, holding)
    edges.announce(state, now, holding.namespace, out)


def settle_all(state: NodeState, now: Instant, out: Out) -> None:
    for name in sorted(state.tenants):
        settle(state, now, state.tenants[name], out)


def settle_namespace(state: NodeState, now: Instant, namespace: str, out: Out) -> None:
    """One tenant, or for ``mesh`` all of them."""
    if namespace == MESH_NAMESPACE:
        settle_all(state, now, out)
    elif (holding := state.tenants.get(namespace)) is not None:
        settle(state, now, holding, out)
