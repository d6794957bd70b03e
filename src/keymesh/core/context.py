"""From a node's state to what ``may`` judges; and the short questions that other rules ask of it.

Loading and minting come before there is an L1 lease (the load itself proves L1), so they ask with the L1 lease taken
as given; a denial still closes them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from msgspec import structs

from keymesh.control.rows import L2_NAME
from keymesh.core import may
from keymesh.core.may import NO_KEY, MayContext, NoKey, Verdict
from keymesh.core.state import Holding, NodeState
from keymesh.core.views import key_state
from keymesh.model.ids import MESH_NAMESPACE, RegionId, ServiceName, TenantId
from keymesh.model.scope import ScopeKind
from keymesh.model.states import KeyState, Mode, Operation
from keymesh.model.time import NEVER, Instant

MESH: Final = ScopeKind.MESH.value
REGION: Final = ScopeKind.REGION.value
TENANT: Final = ScopeKind.TENANT.value
SERVICE: Final = ScopeKind.SERVICE.value
KEY: Final = ScopeKind.KEY.value
LOCAL: Final = "local"
_KIND_WORDS: Final = {kind: kind.value for kind in ScopeKind} | {ScopeKind.DESTRUCTION: TENANT}  # as of all of it
COVERED_MAX: Final = 4_096


def covered_kinds(state: NodeState, namespace: str, service: str | None, version: int | None) -> frozenset[str]:
    """The kinds of restriction, ``local`` for local suspensions, that cover that use here.

    Remembered until a restriction or a local suspension comes or goes (``NodeState.restrictions_changed``).
    """
    use = (namespace, service, version)
    try:
        return state.covered[use]
    except KeyError:
        if len(state.covered) >= COVERED_MAX:
            state.covered.clear()
        found = state.covered[use] = _covered_kinds(state, namespace, service, version)
        return found


def _covered_kinds(state: NodeState, namespace: str, service: str | None, version: int | None) -> frozenset[str]:
    region, tenant = RegionId(state.config.region), TenantId(namespace)
    name = None if service is None else ServiceName(service)
    found: set[str] = set()
    for holding in (state.mesh, state.tenants.get(namespace)):
        if holding is not None and holding.restrictions:
            for restriction in holding.restrictions.values():
                scope = restriction.scope
                if scope.covers(region=region, tenant=tenant, service=name, version=version):
                    found.add(_KIND_WORDS[scope.kind])
    if state.locals:
        for suspension in state.locals.values():
            if suspension.scope.covers(region=region, tenant=tenant, service=name, version=version):
                found.add(LOCAL)
    return frozenset(found)


def closed(state: NodeState, holding: Holding | None) -> bool:
    """Whether evidence, doubt or a denial keeps the tenant closed, leases aside."""
    if holding is None or holding.applied is None or holding.closed or state.mesh.closed:
        return True
    if state.unrecorded:
        for waiting in state.unrecorded.values():
            if holding.namespace in waiting.namespaces or MESH_NAMESPACE in waiting.namespaces:
                return True
    policy = holding.view.policy
    return policy is None or state.config.region not in policy.regions


def context(
    state: NodeState,
    namespace: str,
    *,
    service: str | None = None,
    version: int | None = None,
    l1_given: bool = False,
    key: KeyState | NoKey | None = NO_KEY,
) -> MayContext:
    """What ``may`` needs to judge a use of ``namespace`` (of one service, of one version of its key)."""
    holding = state.tenants.get(namespace)
    covered = covered_kinds(state, namespace, service, version)
    lease = None if holding is None else holding.lease
    mesh_lease = state.mesh.lease
    l1 = None if holding is None else holding.l1
    return MayContext(
        sealed=state.sealed,
        closed=closed(state, holding),
        restricted_mesh=MESH in covered,
        restricted_region=REGION in covered,
        restricted_tenant=TENANT in covered,
        restricted_service=SERVICE in covered,
        restricted_key=KEY in covered,
        restricted_local=LOCAL in covered,
        lease_until=None if lease is None else lease.until,
        grantor=None if lease is None else lease.grantor,
        mesh_lease_until=None if mesh_lease is None else mesh_lease.until,
        l1_until=NEVER if l1_given else None if l1 is None else l1.until,
        answered_sent_at=state.answered_sent_at,
        interval_ms=state.interval_ms,
        key_state=key,
    )


def may_use(state: NodeState, now: Instant, namespace: str, service: str, version: int, op: Operation) -> Verdict:
    """Whether ``op`` is allowed on one version of a service's key; asked before the work and before its release."""
    row = None
    if namespace in state.tenants:
        row = state.tenants[namespace].view.keys.get((f"l3/{service}", version))
    key = None if row is None else key_state(row)
    return may.may(context(state, namespace, service=service, version=version, key=key), op, now)


def may_lease(state: NodeState, now: Instant, namespace: str, service: str) -> Verdict:
    """Whether this service's keys may be leased to an Edge at all; each version is judged by itself as well."""
    return may.may(context(state, namespace, service=service), Operation.LEASE, now)


def may_load(state: NodeState, now: Instant, namespace: str) -> Verdict:
    """Whether keys of the tenant may be brought into memory."""
    return may.may(context(state, namespace, l1_given=True), Operation.UNWRAP, now)


def may_load_and_keep(state: NodeState, now: Instant, namespace: str) -> tuple[Verdict, Verdict]:
    """``may_load`` and ``may_keep``, of one look at the state."""
    ctx = context(state, namespace)
    given = structs.replace(ctx, l1_until=NEVER)
    return may.may(given, Operation.UNWRAP, now), may.may(ctx, Operation.UNWRAP, now)


def may_mint(state: NodeState, now: Instant, namespace: str, service: str | None) -> Verdict:
    """Whether a key version may be made here: a grant, so only where the Registry answered lately."""
    return may.may(context(state, namespace, service=service, l1_given=True), Operation.GRANT, now)


def may_keep(state: NodeState, now: Instant, namespace: str) -> Verdict:
    """Whether loaded keys of the tenant may stay in memory."""
    return may.may(context(state, namespace), Operation.UNWRAP, now)


def tenant_mode(state: NodeState, now: Instant, namespace: str) -> tuple[Mode, str]:
    """The tenant's mode here, and why it is not better."""
    return may.mode_of(context(state, namespace), now)


@lru_cache(maxsize=4_096)
def service_of(key: str) -> str | None:
    """The service whose key that is; None for L2."""
    return None if key == L2_NAME else key.partition("/")[2]


def version_restricted(state: NodeState, namespace: str, key: str, version: int) -> bool:
    """Whether a restriction covers that version of ``key`` here.  An L2 falls under what covers the whole tenant."""
    service = service_of(key)
    return bool(covered_kinds(state, namespace, service, None if service is None else version))
