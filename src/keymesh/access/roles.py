"""Roles, and which identity holds which: mesh-wide ones by assignment, a tenant's by its own policy.

Decides who somebody is to a tenant; what a role may do is ``access.admit``'s table.  Source: DESIGN section 6.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final

from keymesh.access.identity import AdminIdentity, ClientIdentity, Identity
from keymesh.control.rows import PolicyRow
from keymesh.model.ids import TenantId


class Role(Enum):
    """``TENANT_ADMIN`` and ``KEY_ADMIN`` are held in one tenant, the others mesh-wide."""

    TENANT_ADMIN = "tenant-admin"
    KEY_ADMIN = "key-admin"
    AUDITOR = "auditor"
    OPERATOR = "operator"
    RECOVERY_OFFICER = "recovery-officer"


MESH_WIDE: Final = frozenset({Role.AUDITOR, Role.OPERATOR, Role.RECOVERY_OFFICER})

Assignments = Mapping[str, frozenset[Role]]
"""Administrator's name -> mesh-wide roles.  Whoever is not named has none."""


def roles_of(
    identity: Identity, *, tenant: TenantId | None, policy: PolicyRow | None, assigned: Assignments
) -> frozenset[Role]:
    """Roles of a person towards ``tenant`` (None: towards the mesh).

    An administrator's certificate is mesh-wide: it has what was assigned to its name, and is tenant admin where the
    tenant's policy lists that name.  A tenant's own client is key admin at home, tenant admin where listed, nothing
    elsewhere.  Machines (Cores, Edges, the Registry) have no roles.
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
        case _:
            return frozenset()
