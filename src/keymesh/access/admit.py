"""The one admission function: may this identity do that, for this tenant, in this region?  Default deny.

Pure.  Residency is decided here and nowhere else; another tenant's ids look exactly like absent ones.  It says who may
*ask*; whether a command fits, and whose signatures it needs beside, is ``control``'s.  Source: DESIGN sections 6 and 9.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from keymesh.access.identity import (
    AdminIdentity,
    ClientIdentity,
    CoreIdentity,
    EdgeIdentity,
    Identity,
    PersonIdentity,
)
from keymesh.access.roles import Assignments, Role, roles_of
from keymesh.control.rows import PolicyRow
from keymesh.model.errors import Refused
from keymesh.model.ids import RegionId, ServiceName, TenantId


class Action(Enum):
    """What can be asked.  Those of the control log are named as their kinds are."""

    REGION_JOIN = "region.join"
    REGION_ROTATE_IVK = "region.rotate-ivk"
    REGION_MIGRATE_KEYSTORE = "region.migrate-keystore"
    REGION_SEALS = "region.seals"  # seal, unseal, change what opens a region's MasterKey
    VOTERS_CHANGE = "voters.change"
    TRUST_ROTATE = "trust.rotate"
    TENANT_CREATE = "tenant.create"
    TENANT_SET = "tenant.set"
    TENANT_LABELS = "tenant.labels"
    TENANT_DESTROY = "tenant.destroy"
    TENANT_CANCEL_DESTROY = "tenant.cancel-destroy"
    L1_SWITCH = "l1.switch"
    SERVICE_SET = "service.set"
    CLIENT_SET = "client.set"
    BUDGET_SET = "budget.set"
    KEY_WANT = "key.want"
    KEY_WANT_REWRAP = "key.want-rewrap"
    SUSPEND = "suspend"
    REVOKE = "revoke"
    RESUME = "resume"
    MESH_READ = "mesh.read"
    TENANT_READ = "tenant.read"
    TENANT_EXPORT = "tenant.export"
    LOG_READ = "log.read"
    CERTIFICATE_READ = "certificate.read"
    SYNC = "sync"  # a node's heartbeats, tasks, acknowledgements
    BLOB = "blob"  # a peer reads or writes wrapped blobs of the residency domain
    OBJECTS = "objects"  # a client's use of the objects that a Core keeps for its service
    LEASE = "lease"  # an Edge takes a lease, or asks the Core to mint and open
    RECOVER = "recover"


class Reach(Enum):
    """What an action is about."""

    MESH = "mesh"
    TENANT = "tenant"
    EITHER = "either"  # a tenant where one is named, else the mesh


@dataclass(frozen=True, slots=True)
class Rule:
    """Who may: any of ``roles``, or a machine of one of ``machines``; on the mesh ``mesh_roles``, where given."""

    reach: Reach
    roles: frozenset[Role] = frozenset()
    machines: tuple[type, ...] = ()
    mesh_roles: frozenset[Role] | None = None

    def roles_on(self, tenant: TenantId | None) -> frozenset[Role]:
        """The roles that permit it on ``tenant`` (None: on the mesh)."""
        return self.roles if tenant is not None or self.mesh_roles is None else self.mesh_roles


_TENANT: Final = frozenset({Role.TENANT_ADMIN})
_KEYS: Final = frozenset({Role.TENANT_ADMIN, Role.KEY_ADMIN})
_OPERATOR: Final = frozenset({Role.OPERATOR})
_KILL: Final = frozenset({Role.TENANT_ADMIN, Role.OPERATOR})
_SEE: Final = frozenset({Role.TENANT_ADMIN, Role.KEY_ADMIN, Role.AUDITOR, Role.OPERATOR})

RULES: Final[dict[Action, Rule]] = {
    Action.REGION_JOIN: Rule(Reach.MESH, _OPERATOR),
    Action.REGION_ROTATE_IVK: Rule(Reach.MESH, _OPERATOR),
    Action.REGION_MIGRATE_KEYSTORE: Rule(Reach.MESH, _OPERATOR),
    Action.REGION_SEALS: Rule(Reach.MESH, _OPERATOR),
    Action.VOTERS_CHANGE: Rule(Reach.MESH, _OPERATOR),
    Action.TRUST_ROTATE: Rule(Reach.MESH, _OPERATOR),
    Action.TENANT_CREATE: Rule(Reach.MESH, _OPERATOR),
    Action.TENANT_SET: Rule(Reach.TENANT, _TENANT),
    Action.TENANT_LABELS: Rule(Reach.TENANT, _TENANT),
    Action.TENANT_DESTROY: Rule(Reach.TENANT, _TENANT),
    Action.TENANT_CANCEL_DESTROY: Rule(Reach.TENANT, _TENANT),
    Action.L1_SWITCH: Rule(Reach.TENANT, _TENANT),
    Action.SERVICE_SET: Rule(Reach.TENANT, _TENANT),
    Action.CLIENT_SET: Rule(Reach.TENANT, _TENANT),
    Action.BUDGET_SET: Rule(Reach.TENANT, _TENANT),
    Action.KEY_WANT: Rule(Reach.TENANT, _KEYS),
    Action.KEY_WANT_REWRAP: Rule(Reach.TENANT, _KEYS),
    Action.SUSPEND: Rule(Reach.EITHER, _KILL),
    Action.REVOKE: Rule(Reach.EITHER, _KILL),
    Action.RESUME: Rule(Reach.EITHER, _TENANT, mesh_roles=_OPERATOR),  # anybody's no stands until its owner's yes
    Action.MESH_READ: Rule(Reach.MESH, frozenset({Role.AUDITOR, Role.OPERATOR, Role.RECOVERY_OFFICER})),
    Action.TENANT_READ: Rule(Reach.TENANT, _SEE),
    Action.TENANT_EXPORT: Rule(Reach.TENANT, _TENANT),
    Action.LOG_READ: Rule(Reach.EITHER, _SEE),
    Action.CERTIFICATE_READ: Rule(Reach.EITHER, _SEE),
    Action.SYNC: Rule(Reach.EITHER, machines=(CoreIdentity,)),
    Action.BLOB: Rule(Reach.TENANT, machines=(CoreIdentity,)),
    Action.OBJECTS: Rule(Reach.TENANT, machines=(ClientIdentity,)),
    Action.LEASE: Rule(Reach.TENANT, machines=(EdgeIdentity,)),
    Action.RECOVER: Rule(Reach.MESH, frozenset({Role.RECOVERY_OFFICER})),
}


@dataclass(frozen=True, slots=True)
class Decision:
    """``code``: ``allowed``, ``denied`` (it is there, you may not), ``absent`` (no such thing, or not for you to know),
    ``residency`` (not in this region)."""

    allowed: bool
    code: str
    reason: str


ALLOWED: Final = Decision(True, "allowed", "")
ABSENT: Final = Decision(False, "absent", "no such tenant")


def _denied(reason: str) -> Decision:
    return Decision(False, "denied", reason)


def action_of(kind: str) -> Action | None:
    """The action that submitting an entry of ``kind`` is; None for kinds that nobody may submit from outside."""
    return Action(kind) if kind in {a.value for a in Action} else None


def admit(
    policy: PolicyRow | None,
    action: Action | None,
    *,
    identity: Identity | None,
    tenant: TenantId | None = None,
    service: ServiceName | None = None,
    region: RegionId | None = None,
    assigned: Assignments | None = None,
) -> Decision:
    """Whether ``identity`` may do ``action`` on ``tenant`` (None: on the mesh) in ``region`` (None: at the Registry).

    ``policy`` is the tenant's, as held where this is asked; None where nobody of that name is known.

    1. Identity and action are known.  2. The action fits what it is asked on.  3. A tenant's action needs its policy.
    4. A machine or client is of that tenant, an Edge of that service.  5. Residency: the place of the action, and the
    region that the identity comes from, are allowed to the tenant.  6. A role or a kind of machine permits it.
    Anything missing is a no.
    """
    rule = None if action is None else RULES.get(action)
    if identity is None or rule is None:
        return _denied("unknown identity or action")
    if (rule.reach is Reach.TENANT and tenant is None) or (rule.reach is Reach.MESH and tenant is not None):
        return _denied(f"not an action on {'a tenant' if tenant is not None else 'the mesh'}")
    if tenant is not None:
        if policy is None or not _may_know(identity, tenant, policy):
            return ABSENT
        if not _in_residence(identity, policy, region):
            return Decision(False, "residency", "not in this region")
    if isinstance(identity, EdgeIdentity) and identity.service != service:
        return ABSENT
    if isinstance(identity, rule.machines):
        return ALLOWED
    held = roles_of(identity, tenant=tenant, policy=policy, assigned=assigned or {})
    if held & rule.roles_on(tenant):
        return ALLOWED
    return ABSENT if tenant is not None and not held else _denied("no role permits it")


def _may_know(identity: Identity, tenant: TenantId, policy: PolicyRow) -> bool:
    """Whether the tenant is any of the identity's business."""
    match identity:
        case EdgeIdentity() | ClientIdentity():
            return identity.tenant == tenant
        case CoreIdentity():
            return identity.region in policy.regions
        case AdminIdentity():
            return True
        case PersonIdentity():
            return identity.tenant is None or identity.tenant == tenant
        case _:
            return False


def _in_residence(identity: Identity, policy: PolicyRow, region: RegionId | None) -> bool:
    """Mesh-wide identities come from no region; all others only from one that is allowed."""
    came_from = identity.region if isinstance(identity, EdgeIdentity | ClientIdentity | CoreIdentity) else None
    return all(place is None or place in policy.regions for place in (region, came_from))


def require(decision: Decision) -> None:
    """Raises Refused with the decision's code where it is a no; ``absent`` reads ``unknown``."""
    if not decision.allowed:
        code = "unknown" if decision.code == "absent" else decision.code
        raise Refused(code, decision.reason)
