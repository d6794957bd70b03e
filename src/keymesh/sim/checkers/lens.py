"""The one place that looks into machines and records: what a node holds durably, what it would allow."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from keymesh.core import context
from keymesh.core.events import LocalRestrict
from keymesh.core.records import local_name, overlay_name, state_name
from keymesh.model.ids import MESH_NAMESPACE, RegionId, ServiceName, TenantId
from keymesh.model.scope import Scope, ScopeKind, parse_scope
from keymesh.model.states import Mode, Operation
from keymesh.sim.ledger import Ledger
from keymesh.sim.process import Machine

SKEW = 1_000  # one in so many: the assumed bound on clock rates


scope_of = parse_scope
overlay_record_of = lru_cache(maxsize=1_024)(overlay_name)
record_of = lru_cache(maxsize=1_024)(state_name)


def durable_seq(m: Machine, namespace: str) -> int:
    """The seq that the node's disk holds of ``namespace``; 0 for none."""
    name = record_of(namespace)
    if name not in m.disk:
        return 0
    seq: int = m.disk[name].head.entry.seq
    return seq


def durable_restrictions(m: Machine, namespace: str, ledger: Ledger) -> dict[str, int]:
    """scope -> seq of every restriction of ``namespace`` that the node's disk holds."""
    held = ledger.restricted(namespace, durable_seq(m, namespace))
    name = overlay_record_of(namespace)
    if name not in m.disk:
        return held
    out = dict(held)
    for scope, row in m.disk[name].rows.items():
        if row.state != "none" and row.seq > out.get(scope, 0):
            out[scope] = row.seq
    return out


def holds_local(m: Machine, event: LocalRestrict) -> bool:
    return local_name(scope_of(event.scope).namespace, event.command_id) in m.disk


def tenant_of(scope: Scope, namespace: str) -> bool:
    """Whether ``scope`` can cover anything of the tenant ``namespace``."""
    return scope.tenant is None or scope.tenant == namespace


def lease_covered(m: Machine, scope: Scope) -> bool:
    """Whether an Edge's published lease has a version that ``scope`` covers."""
    lease = m.published
    if lease is None:
        return False
    config = m.state.config
    if not tenant_of(scope, config.tenant):
        return False
    region, tenant = RegionId(config.region), TenantId(config.tenant)
    service = ServiceName(config.service)
    return any(scope.covers(region=region, tenant=tenant, service=service, version=v.version) for v in lease.versions)


def edge_remaining_ms(m: Machine, t: int) -> int:
    """How long the Edge's published lease has to run by its own clock; negative when it is over."""
    return -1 if m.published is None else int(m.published.deadline - m.proc.clock.now(t)) - 1


def node_allows(
    m: Machine, t: int, namespace: str, service: str, version: int, op: Operation = Operation.UNWRAP
) -> Any:
    return context.may_use(m.state, m.proc.clock.now(t), namespace, service, version, op)


def node_mode(m: Machine, t: int, namespace: str) -> tuple[Mode, str]:
    return context.tenant_mode(m.state, m.proc.clock.now(t), namespace)


def node_restricts(m: Machine, scope: Scope, namespace: str) -> bool:
    """Whether the node's memory restricts everything under ``scope`` here, or keeps the tenant closed."""
    state = m.state
    if namespace == MESH_NAMESPACE:
        held = {r.scope for r in state.mesh.restrictions.values()}
        return scope in held or bool(state.mesh.closed)
    holding = state.tenants.get(namespace)
    if holding is None or holding.closed or state.mesh.closed:
        return True
    return scope in [r.scope for r in holding.restrictions.values()] or scope in [
        s.scope for s in state.locals.values()
    ]


def uses_of(scope: Scope, ledger: Ledger) -> list[tuple[str, str, int]]:
    """(tenant, service, version) of every service key version that ``scope`` may cover, region aside."""
    out = []
    for tenant, key, version in ledger.kids:
        service = context.service_of(key)
        if service is None:
            continue
        if scope.kind in (ScopeKind.MESH, ScopeKind.REGION) or (
            scope.client is None
            and scope.tenant == tenant
            and scope.service in (None, service)
            and scope.version in (None, version)
        ):
            out.append((tenant, service, version))
    return out
