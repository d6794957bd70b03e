"""Edges that were refused a lease, and are told once when one can be had: so that they need not ask all the time.

In memory only: after a restart the Edges connect anew and ask.  Decides neither who is refused nor what can be leased
(``edges``).  What is lost costs an Edge no more than its own longest wait.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from keymesh.core.state import NodeState, Out
from keymesh.model.machine import Address, Send
from keymesh.orbital.edge_messages import LeaseReady

WAITING_PER_TENANT_MAX: Final = 4_096


def remember(state: NodeState, edge: Address, tenant: str, service: str) -> None:
    """``edge`` was refused.  Each tenant has its own room; in a full one the oldest gives way."""
    edges = state.waiting.setdefault(tenant, {})
    edges.pop(edge, None)
    if len(edges) >= WAITING_PER_TENANT_MAX:
        del edges[next(iter(edges))]
    edges[edge] = service


def forget(state: NodeState, edge: Address, tenant: str) -> None:
    """``edge`` has its lease, or wants none."""
    edges = state.waiting.get(tenant)
    if edges is not None and edges.pop(edge, None) is not None and not edges:
        del state.waiting[tenant]


def tell(state: NodeState, tenant: str, leasable: Callable[[str], bool], out: Out) -> None:
    """Tell, and forget, the tenant's Edges whose service is leasable."""
    edges = state.waiting.get(tenant, {})
    ready = {service for service in dict.fromkeys(edges.values()) if leasable(service)}
    for edge, service in list(edges.items()):
        if service in ready:
            forget(state, edge, tenant)
            out.append(Send(edge, LeaseReady(tenant=tenant, service=service)))
