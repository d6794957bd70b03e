"""Who a peer is: SPIFFE URIs of DESIGN section 6, parsed once into typed identities.

Decides which URIs are well formed and which mesh they belong to; not what an identity may do (``access.admit``).
Only the canonical text is accepted, so that two texts never name one peer: no percent-encoding, query, fragment,
user part or port, no empty segment, lower-case names only.  Source: SPIFFE-ID 1.0, RFC 3986.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

from keymesh.access.role import Role
from keymesh.model.errors import Refused
from keymesh.model.ids import (
    MeshName,
    NodeId,
    RegionId,
    ServiceName,
    TenantId,
    check_label,
    check_region,
    check_service,
    check_tenant,
)
from keymesh.model.machine import REGISTRY, Address, edge_address, node_address

URI_MAX_CHARS: Final = 512
_SCHEME: Final = "spiffe://"


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreIdentity:
    """A node of a region's Crypto Core."""

    mesh: MeshName
    region: RegionId
    node: NodeId

    def __str__(self) -> str:
        return f"{_SCHEME}{self.domain}/core/{self.node}"

    @property
    def domain(self) -> str:
        return f"{self.region}.{self.mesh}"


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeIdentity:
    """One instance of a Crypto Edge, bound to one service of one tenant."""

    mesh: MeshName
    region: RegionId
    tenant: TenantId
    service: ServiceName
    instance: str

    def __str__(self) -> str:
        return f"{_SCHEME}{self.domain}/tenant/{self.tenant}/edge/{self.service}/{self.instance}"

    @property
    def domain(self) -> str:
        return f"{self.region}.{self.mesh}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientIdentity:
    """A client of one tenant: its administrators' and applications' certificates."""

    mesh: MeshName
    region: RegionId
    tenant: TenantId
    name: str

    def __str__(self) -> str:
        return f"{_SCHEME}{self.domain}/tenant/{self.tenant}/client/{self.name}"

    @property
    def domain(self) -> str:
        return f"{self.region}.{self.mesh}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryIdentity:
    """One replica of the Registry, mesh-wide."""

    mesh: MeshName
    node: NodeId

    def __str__(self) -> str:
        return f"{_SCHEME}{self.domain}/registry/{self.node}"

    @property
    def domain(self) -> str:
        return self.mesh


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminIdentity:
    """A mesh-wide administrator's certificate."""

    mesh: MeshName
    name: str

    def __str__(self) -> str:
        return f"{_SCHEME}{self.domain}/admin/{self.name}"

    @property
    def domain(self) -> str:
        return self.mesh


@dataclass(frozen=True, slots=True, kw_only=True)
class PersonIdentity:
    """Somebody whom an identity provider named and gave roles, by a token; no certificate ever carries this.

    ``issuer``: the provider's name in our configuration.  ``tenant``: whose person it is; None: the mesh's.
    """

    mesh: MeshName
    issuer: str
    name: str
    tenant: TenantId | None
    roles: frozenset[Role]

    def __str__(self) -> str:
        where = "" if self.tenant is None else f"/tenant/{self.tenant}"
        return f"{_SCHEME}{self.domain}{where}/person/{self.issuer}/{self.name}"

    @property
    def domain(self) -> str:
        return self.mesh


Identity: TypeAlias = CoreIdentity | EdgeIdentity | ClientIdentity | RegistryIdentity | AdminIdentity | PersonIdentity


def parse_identity(uri: str, mesh: MeshName) -> Identity:
    """The identity that ``uri`` names in ``mesh``.

    Raises Refused naming ``identity`` for a form not listed in DESIGN section 6 or another mesh, or the part whose
    name is malformed.
    """
    check_label("mesh", mesh)
    if len(uri) > URI_MAX_CHARS:
        raise Refused.bad_field("identity", f"at most {URI_MAX_CHARS} characters, got {len(uri)}")
    if not uri.startswith(_SCHEME):
        raise Refused.bad_field("identity", "must start with spiffe://")
    host, *path = uri.removeprefix(_SCHEME).split("/")
    if host == mesh:
        return _mesh_wide(path, mesh)
    region, dot, rest = host.partition(".")
    if not dot or rest != mesh:
        raise Refused.bad_field("identity", f"not of the mesh {mesh!r}")
    return _regional(path, mesh, check_region(region))


def _mesh_wide(path: list[str], mesh: MeshName) -> Identity:
    match path:
        case ["registry", node]:
            return RegistryIdentity(mesh=mesh, node=NodeId(check_label("node", node)))
        case ["admin", name]:
            return AdminIdentity(mesh=mesh, name=check_label("name", name))
    raise Refused.bad_field("identity", "mesh-wide: /registry/<node> or /admin/<name>")


def _regional(path: list[str], mesh: MeshName, region: RegionId) -> Identity:
    match path:
        case ["core", node]:
            return CoreIdentity(mesh=mesh, region=region, node=NodeId(check_label("node", node)))
        case ["tenant", tenant, "edge", service, instance]:
            return EdgeIdentity(
                mesh=mesh,
                region=region,
                tenant=check_tenant(tenant),
                service=check_service(service),
                instance=check_label("instance", instance),
            )
        case ["tenant", tenant, "client", name]:
            return ClientIdentity(mesh=mesh, region=region, tenant=check_tenant(tenant), name=check_label("name", name))
    raise Refused.bad_field(
        "identity", "regional: /core/<node>, /tenant/<t>/edge/<service>/<instance> or /tenant/<t>/client/<name>"
    )


def address_of(identity: Identity) -> Address | None:
    """The protocol address of a peer that takes part in the machines; None for people and clients."""
    match identity:
        case CoreIdentity():
            return node_address(identity.region, identity.node)
        case EdgeIdentity():
            return edge_address(identity.region, identity.tenant, identity.service, identity.instance)
        case RegistryIdentity():
            return REGISTRY
        case ClientIdentity() | AdminIdentity() | PersonIdentity():
            return None
