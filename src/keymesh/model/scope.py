"""Scopes of the kill switch: key version, service, client, tenant, region, mesh; one text form each.

``tenant:T``, ``service:T/S``, ``key:T/S@V``, ``client:T/C``, ``region:R``, ``mesh``; and ``destruction:T``, by which a
tenant's destruction restricts all of it apart from what anybody else suspends or resumes.  A client's scope covers no
key: it is what is done in that client's name that ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from keymesh.model.errors import Refused
from keymesh.model.ids import (
    MESH_NAMESPACE,
    Namespace,
    RegionId,
    ServiceName,
    TenantId,
    check_label,
    check_region,
    check_service,
    check_tenant,
)
from keymesh.model.states import Word


class ScopeKind(Word):
    KEY = "key"
    SERVICE = "service"
    CLIENT = "client"
    TENANT = "tenant"
    REGION = "region"
    MESH = "mesh"
    DESTRUCTION = "destruction"


@dataclass(frozen=True, slots=True)
class Scope:
    """What a restriction covers.  ``version`` is 1-based and set for key scopes only."""

    kind: ScopeKind
    tenant: TenantId | None = None
    service: ServiceName | None = None
    version: int | None = None
    region: RegionId | None = None
    client: str | None = None

    def __str__(self) -> str:
        match self.kind:
            case ScopeKind.KEY:
                return f"key:{self.tenant}/{self.service}@{self.version}"
            case ScopeKind.SERVICE:
                return f"service:{self.tenant}/{self.service}"
            case ScopeKind.CLIENT:
                return f"client:{self.tenant}/{self.client}"
            case ScopeKind.TENANT:
                return f"tenant:{self.tenant}"
            case ScopeKind.REGION:
                return f"region:{self.region}"
            case ScopeKind.MESH:
                return "mesh"
            case ScopeKind.DESTRUCTION:
                return f"destruction:{self.tenant}"

    @property
    def namespace(self) -> Namespace:
        """The control-log namespace whose entries restrict this scope."""
        return MESH_NAMESPACE if self.tenant is None else Namespace(self.tenant)

    @property
    def needs_four_eyes(self) -> bool:
        return self.kind in (ScopeKind.REGION, ScopeKind.MESH)

    def covers(self, *, region: RegionId, tenant: TenantId, service: ServiceName | None, version: int | None) -> bool:
        """Whether a use of that tenant's key (a tenant-wide use where ``service`` is None) falls under this scope."""
        match self.kind:
            case ScopeKind.MESH:
                return True
            case ScopeKind.REGION:
                return self.region == region
            case ScopeKind.TENANT | ScopeKind.DESTRUCTION:
                return self.tenant == tenant
            case ScopeKind.SERVICE:
                return self.tenant == tenant and self.service == service
            case ScopeKind.KEY:
                return self.tenant == tenant and self.service == service and self.version == version
            case ScopeKind.CLIENT:  # whoever uses a key under it is asked for by name
                return False


def destruction_of(tenant: str) -> Scope:
    """What the destruction of ``tenant`` restricts."""
    return Scope(ScopeKind.DESTRUCTION, tenant=TenantId(Namespace(tenant)))


def client_scope(tenant: str, client: str) -> Scope:
    """What restricts one client of ``tenant``."""
    return Scope(ScopeKind.CLIENT, tenant=TenantId(Namespace(tenant)), client=client)


def parse_kill_scope(text: str) -> Scope:
    """As ``parse_scope``, of what people suspend, revoke and resume.  Raises Refused for a destruction's own."""
    scope = parse_scope(text)
    if scope.kind is ScopeKind.DESTRUCTION:
        raise Refused.bad_field("scope", "a destruction is begun by tenant.destroy and ended by tenant.cancel-destroy")
    return scope


@lru_cache(maxsize=4_096)
def parse_scope(text: str) -> Scope:
    """The scope that ``text`` names.  Raises Refused naming the field ``scope`` and the accepted forms."""
    head, colon, rest = text.partition(":")
    if text == "mesh":
        return Scope(ScopeKind.MESH)
    if colon and head == "region":
        return Scope(ScopeKind.REGION, region=check_region(rest))
    if colon and head == "tenant":
        return Scope(ScopeKind.TENANT, tenant=check_tenant(rest))
    if colon and head == ScopeKind.DESTRUCTION.value:
        return destruction_of(check_tenant(rest))
    tenant, slash, tail = rest.partition("/")
    if slash and head == "service":
        return Scope(ScopeKind.SERVICE, tenant=check_tenant(tenant), service=check_service(tail))
    if slash and head == ScopeKind.CLIENT.value:
        return client_scope(check_tenant(tenant), check_label("client", tail))
    service, at, version = tail.partition("@")
    if slash and at and head == "key" and version.isascii() and version.isdigit() and 0 < len(version) < 10:
        if int(version) > 0 and not version.startswith("0"):
            return Scope(
                ScopeKind.KEY, tenant=check_tenant(tenant), service=check_service(service), version=int(version)
            )
    raise Refused.bad_field("scope", "one of tenant:T, service:T/S, key:T/S@V, client:T/C, region:R, mesh")
