"""Roles, and which identity holds which: mesh-wide ones by assignment, a tenant's by its own policy.

Decides who somebody is to a tenant; what a role may do is ``access.admit``'s table.  Source: DESIGN section 6.
"""

from __future__ import annotations

from collections.abc import Mapping

from keymesh.access.identity import AdminIdentity, ClientIdentity, Identity, PersonIdentity
from keymesh.access.role import IN_TENANT, MESH_WIDE
from keymesh.access.role import Role as Role
from keymesh.control.rows import PolicyRow
from keymesh.model.ids import TenantId

Assignments = Mapping[str, frozenset[Role]]
"""Administrator's name -> mesh-wide roles.  Whoever is not named has none."""


def roles_of(
    identity: Identity, *, tenant: TenantId | None, policy: PolicyRow | None, assigned: Assignments
) -> frozenset[Role]:
    """Roles of a person towards ``tenant`` (None: towards the mesh).

    An administrator's certificate is mesh-wide: it has what was assigned to its name, and is tenant admin where the
    tenant's policy lists that name.  A tenant's own client is key admin at home, tenant admin where listed, nothing
    elsewhere.  A person by a token has the roles that the token gave, in its tenant or, where it names none, towards
    the mesh.  Machines (Cores, Edges, the Registry) have no roles.
    """
    match identity:
        case AdminIdentity():
            held = assigned.get(identity.name, frozenset()) & MESH_WIDE
            listed = policy is not None and identity.name in policy.admins
            return held | {Role.TENANT_ADMIN} if listed else held
        case ClientIdentity():
            if tenant is None or policy is None or identity.tenant != tenant:
                return frozenset()
            listed = identity.name in policy.admins
            return frozenset({Role.TENANT_ADMIN, Role.KEY_ADMIN} if listed else {Role.KEY_ADMIN})
        case PersonIdentity(tenant=None):
            return identity.roles & MESH_WIDE
        case PersonIdentity():
            return identity.roles & IN_TENANT if policy is not None and identity.tenant == tenant else frozenset()
        case _:
            return frozenset()
