"""Whether a Core serves a client of a tenant here and now: one question for every operation and for every answer.

Decides nothing of its own: the desired state says whose service the client is, ``access.admit`` whether it and this
region may have to do with the tenant, restrictions of its own scope whether it is ended, ``may`` all the rest.
"""

from __future__ import annotations

from keymesh.access.admit import Action, admit
from keymesh.access.identity import ClientIdentity
from keymesh.core import context
from keymesh.core.may import may
from keymesh.core.state import NodeState
from keymesh.model.ids import RegionId
from keymesh.model.scope import ScopeKind
from keymesh.model.states import Operation
from keymesh.model.time import Instant


def service_of(state: NodeState, identity: ClientIdentity) -> str | None:
    """The service whose objects are the client's; None where the tenant names no such client."""
    holding = state.tenants.get(identity.tenant)
    row = None if holding is None else holding.view.clients.get(identity.name)
    return None if row is None else row.service


def is_ended(state: NodeState, tenant: str, client: str) -> bool:
    """Whether a restriction of the client's own scope is in force here, recorded or local."""
    holding = state.tenants.get(tenant)
    scopes = [] if holding is None else [found.scope for found in holding.restrictions.values()]
    scopes += [local.scope for local in state.locals.values()]
    return any((s.kind, s.tenant, s.client) == (ScopeKind.CLIENT, tenant, client) for s in scopes)


def why_not(state: NodeState, now: Instant, identity: ClientIdentity, service: str, operation: Operation) -> str:
    """A stable word for the refusal, empty where ``identity`` may do ``operation`` with its ``service``'s objects.

    1. The client comes from this region, and admission lets it in.  2. Its tenant names it, for that service.
    3. Nothing ended it.  4. ``may`` allows the operation for the service: seal, leases, every wider restriction.
    """
    holding = state.tenants.get(identity.tenant)
    policy = None if holding is None or holding.applied is None else holding.view.policy
    region = RegionId(state.config.region)
    if identity.region != region:
        return "other-region"
    decision = admit(policy, Action.OBJECTS, identity=identity, tenant=identity.tenant, region=region)
    if not decision.allowed:
        return decision.code
    if service_of(state, identity) != service:
        return "unknown-client"
    if is_ended(state, identity.tenant, identity.name):
        return "restricted-client"
    verdict = may(context.context(state, identity.tenant, service=service), operation, now)
    return "" if verdict.allowed else verdict.reason or "denied"
