"""Admission: default deny, residency, and other tenants that look absent."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keymesh.access.admit import RULES, Action, Decision, Reach, action_of, admit, require
from keymesh.access.identity import (
    AdminIdentity,
    ClientIdentity,
    CoreIdentity,
    EdgeIdentity,
    Identity,
    PersonIdentity,
    RegistryIdentity,
)
from keymesh.access.roles import Role, roles_of
from keymesh.control.kinds import KINDS
from keymesh.control.rows import PolicyRow
from keymesh.model.errors import Refused
from keymesh.model.ids import MeshName, NodeId, RegionId, ServiceName, TenantId

MESH = MeshName("example")
ACME, OTHER = TenantId("acme"), TenantId("other")
US, EU = RegionId("us-east"), RegionId("eu-west")
PAY = ServiceName("pay")
POLICY = PolicyRow(version=1, home="us-east", domain="us", regions=("us-east", "us-west"), admins=("ann",))

ADMIN = AdminIdentity(mesh=MESH, name="ann")
STRANGER = AdminIdentity(mesh=MESH, name="bob")
OPERATOR = AdminIdentity(mesh=MESH, name="olga")
AUDITOR = AdminIdentity(mesh=MESH, name="aud")
OFFICER = AdminIdentity(mesh=MESH, name="rita")
CORE = CoreIdentity(mesh=MESH, region=US, node=NodeId("n1"))
FAR_CORE = CoreIdentity(mesh=MESH, region=EU, node=NodeId("n1"))
EDGE = EdgeIdentity(mesh=MESH, region=US, tenant=ACME, service=PAY, instance="i1")
CLIENT = ClientIdentity(mesh=MESH, region=US, tenant=ACME, name="app")
REGISTRY = RegistryIdentity(mesh=MESH, node=NodeId("r1"))


def person(name: str, *roles: Role, tenant: TenantId | None = None) -> PersonIdentity:
    return PersonIdentity(mesh=MESH, issuer="corp", name=name, tenant=tenant, roles=frozenset(roles))


EVERY_ROLE = tuple(Role)
PERSON_OPERATOR = person("olga", *EVERY_ROLE)  # named as an assigned administrator is, with every role there is
PERSON_NOBODY = person("ann")  # named as the policy's administrator is, with none
PERSON_ACME = person("eve", *EVERY_ROLE, tenant=ACME)
PERSON_KEYS = person("kay", Role.KEY_ADMIN, tenant=ACME)
PERSON_OTHER = person("ann", *EVERY_ROLE, tenant=OTHER)
PEOPLE = (PERSON_OPERATOR, PERSON_NOBODY, PERSON_ACME, PERSON_KEYS, PERSON_OTHER)
ASSIGNED = {
    "olga": frozenset({Role.OPERATOR}),
    "aud": frozenset({Role.AUDITOR}),
    "rita": frozenset({Role.RECOVERY_OFFICER}),
}
EVERYBODY: tuple[Identity, ...] = (
    ADMIN,
    STRANGER,
    OPERATOR,
    AUDITOR,
    OFFICER,
    CORE,
    FAR_CORE,
    EDGE,
    CLIENT,
    REGISTRY,
    *PEOPLE,
)

# Written out again: who may do what on tenant acme (in us-east), and on the mesh.
TENANT_MATRIX: dict[Action, tuple[Identity, ...]] = {
    Action.TENANT_SET: (ADMIN, PERSON_ACME),
    Action.TENANT_LABELS: (ADMIN, PERSON_ACME),
    Action.TENANT_DESTROY: (ADMIN, PERSON_ACME),
    Action.TENANT_CANCEL_DESTROY: (ADMIN, PERSON_ACME),
    Action.L1_SWITCH: (ADMIN, PERSON_ACME),
    Action.SERVICE_SET: (ADMIN, PERSON_ACME),
    Action.CLIENT_SET: (ADMIN, PERSON_ACME),
    Action.BUDGET_SET: (ADMIN, PERSON_ACME),
    Action.KEY_WANT: (ADMIN, CLIENT, PERSON_ACME, PERSON_KEYS),
    Action.KEY_WANT_REWRAP: (ADMIN, CLIENT, PERSON_ACME, PERSON_KEYS),
    Action.SUSPEND: (ADMIN, OPERATOR, PERSON_ACME, PERSON_OPERATOR),
    Action.REVOKE: (ADMIN, OPERATOR, PERSON_ACME, PERSON_OPERATOR),
    Action.RESUME: (ADMIN, PERSON_ACME),
    Action.TENANT_READ: (ADMIN, OPERATOR, AUDITOR, CLIENT, PERSON_ACME, PERSON_KEYS, PERSON_OPERATOR),
    Action.TENANT_EXPORT: (ADMIN, PERSON_ACME),
    Action.LOG_READ: (ADMIN, OPERATOR, AUDITOR, CLIENT, PERSON_ACME, PERSON_KEYS, PERSON_OPERATOR),
    Action.CERTIFICATE_READ: (ADMIN, OPERATOR, AUDITOR, CLIENT, PERSON_ACME, PERSON_KEYS, PERSON_OPERATOR),
    Action.SYNC: (CORE,),
    Action.BLOB: (CORE,),
    Action.OBJECTS: (CLIENT,),
    Action.LEASE: (EDGE,),
}
MESH_MATRIX: dict[Action, tuple[Identity, ...]] = {
    Action.REGION_JOIN: (OPERATOR, PERSON_OPERATOR),
    Action.REGION_ROTATE_IVK: (OPERATOR, PERSON_OPERATOR),
    Action.REGION_MIGRATE_KEYSTORE: (OPERATOR, PERSON_OPERATOR),
    Action.TRUST_ROTATE: (OPERATOR, PERSON_OPERATOR),
    Action.VOTERS_CHANGE: (OPERATOR, PERSON_OPERATOR),
    Action.REGION_SEALS: (OPERATOR, PERSON_OPERATOR),
    Action.TENANT_CREATE: (OPERATOR, PERSON_OPERATOR),
    Action.SUSPEND: (OPERATOR, PERSON_OPERATOR),
    Action.REVOKE: (OPERATOR, PERSON_OPERATOR),
    Action.RESUME: (OPERATOR, PERSON_OPERATOR),
    Action.MESH_READ: (OPERATOR, AUDITOR, OFFICER, PERSON_OPERATOR),
    Action.LOG_READ: (OPERATOR, AUDITOR, PERSON_OPERATOR),
    Action.CERTIFICATE_READ: (OPERATOR, AUDITOR, PERSON_OPERATOR),
    Action.SYNC: (CORE, FAR_CORE),
    Action.RECOVER: (OFFICER, PERSON_OPERATOR),
}


def on_tenant(action: Action | None, identity: Identity | None, **changed: Any) -> Decision:
    asked: dict[str, Any] = {"tenant": ACME, "service": PAY, "region": US, "assigned": ASSIGNED, **changed}
    policy = asked.pop("policy", POLICY)
    return admit(policy, action, identity=identity, **asked)


@pytest.mark.parametrize("action", list(Action))
@pytest.mark.parametrize("identity", EVERYBODY, ids=str)
def test_tenant_matrix(action: Action, identity: Identity) -> None:
    assert on_tenant(action, identity).allowed is (identity in TENANT_MATRIX.get(action, ()))


@pytest.mark.parametrize("action", list(Action))
@pytest.mark.parametrize("identity", EVERYBODY, ids=str)
def test_mesh_matrix(action: Action, identity: Identity) -> None:
    decision = admit(None, action, identity=identity, assigned=ASSIGNED)
    expected = identity in MESH_MATRIX.get(action, ())
    assert decision.allowed is expected


def test_every_action_has_a_rule() -> None:
    assert RULES.keys() == set(Action)
    assert all(rule.roles or rule.machines for rule in RULES.values())


@pytest.mark.parametrize("action", [a for a in Action if RULES[a].reach is not Reach.MESH])
@pytest.mark.parametrize("identity", [EDGE, CLIENT, FAR_CORE, STRANGER, PERSON_NOBODY, PERSON_ACME], ids=str)
def test_another_tenant_looks_absent(action: Action, identity: Identity) -> None:
    """Existing but foreign, and not existing at all, are one and the same answer."""
    foreign = replace_policy(regions=("us-east",), admins=("zoe",))
    there = admit(foreign, action, identity=identity, tenant=OTHER, service=PAY, region=US, assigned=ASSIGNED)
    absent = admit(None, action, identity=identity, tenant=OTHER, service=PAY, region=US, assigned=ASSIGNED)
    assert there == absent
    assert there.code == "absent"


def test_residency_by_place_and_by_origin() -> None:
    assert on_tenant(Action.KEY_WANT, ADMIN, region=EU).code == "residency"
    far_client = ClientIdentity(mesh=MESH, region=EU, tenant=ACME, name="app")
    assert on_tenant(Action.KEY_WANT, far_client).code == "residency"
    far_edge = replace(EDGE, region=EU)
    assert on_tenant(Action.LEASE, far_edge).code == "residency"
    assert on_tenant(Action.LEASE, far_edge, region=EU).code == "residency"


def test_an_edge_of_another_service_sees_nothing() -> None:
    assert on_tenant(Action.LEASE, EDGE, service=ServiceName("mail")).code == "absent"
    assert on_tenant(Action.LEASE, EDGE, service=None).code == "absent"


def test_assigned_tenant_roles_are_ignored() -> None:
    """Nobody becomes every tenant's admin by a mesh-wide assignment."""
    sneaky = {"bob": frozenset({Role.TENANT_ADMIN, Role.KEY_ADMIN})}
    assert roles_of(STRANGER, tenant=ACME, policy=POLICY, assigned=sneaky) == frozenset()
    assert not on_tenant(Action.KEY_WANT, STRANGER, assigned=sneaky).allowed


def test_commands_have_actions_or_nobody_may_submit_them() -> None:
    internal = {"mesh.genesis", "l1.retire", "key.create", "key.activate", "key.rewrapped", "tenant.purge"}
    internal |= {"epoch.adopt", "epoch.open"}
    assert {k for k in KINDS if action_of(k) is None} == internal
    assert on_tenant(action_of("key.create"), ADMIN).code == "denied"
    assert action_of("sudo") is None


def test_an_operator_suspends_a_tenant_and_cannot_undo_it() -> None:
    """Only who the tenant's own policy lists lifts its suspensions; the mesh's are the operator's."""
    assert on_tenant(Action.SUSPEND, OPERATOR).allowed
    assert on_tenant(Action.RESUME, OPERATOR).code == "denied"
    assert on_tenant(Action.RESUME, ADMIN).allowed
    assert not admit(None, Action.RESUME, identity=ADMIN, assigned=ASSIGNED).allowed
    assert admit(None, Action.RESUME, identity=OPERATOR, assigned=ASSIGNED).allowed
    listed = replace_policy(regions=("us-east",), admins=("ann", "olga"))
    assert on_tenant(Action.RESUME, OPERATOR, policy=listed).allowed


def test_require_speaks_in_refusals() -> None:
    require(on_tenant(Action.KEY_WANT, ADMIN))
    with pytest.raises(Refused) as refused:
        require(on_tenant(Action.KEY_WANT, STRANGER))
    assert refused.value.code == "unknown"
    with pytest.raises(Refused) as refused:
        require(on_tenant(Action.RECOVER, ADMIN))
    assert refused.value.code == "denied"


@given(
    action=st.sampled_from(list(Action)),
    identity=st.sampled_from(EVERYBODY),
    doubt=st.sampled_from(["action", "identity", "policy", "assigned", "region"]),
)
def test_doubt_never_turns_no_into_yes(action: Action, identity: Identity, doubt: str) -> None:
    """I7: replacing any one input by doubt."""
    before = on_tenant(action, identity)
    if doubt == "action":
        after = on_tenant(None, identity)
    elif doubt == "identity":
        after = on_tenant(action, None)
    elif doubt == "region":
        after = on_tenant(action, identity, region=RegionId("nowhere"))
    else:
        after = on_tenant(action, identity, **{doubt: None})
    assert before.allowed or not after.allowed


def replace_policy(**fields: Any) -> PolicyRow:
    return PolicyRow(version=1, home="us-east", domain="us", **fields)
