"""SPIFFE URIs: canonical or refused, and the round trip."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keymesh.access.identity import (
    AdminIdentity,
    ClientIdentity,
    CoreIdentity,
    EdgeIdentity,
    Identity,
    PersonIdentity,
    RegistryIdentity,
    address_of,
    parse_identity,
)
from keymesh.access.role import Role
from keymesh.model.errors import Refused
from keymesh.model.ids import MeshName, NodeId, RegionId, ServiceName, TenantId

MESH = MeshName("mesh1")
EU = RegionId("eu-central")

KNOWN: list[tuple[str, Identity]] = [
    ("spiffe://eu-central.mesh1/core/n1", CoreIdentity(mesh=MESH, region=EU, node=NodeId("n1"))),
    (
        "spiffe://eu-central.mesh1/tenant/acme/edge/files/e-1",
        EdgeIdentity(mesh=MESH, region=EU, tenant=TenantId("acme"), service=ServiceName("files"), instance="e-1"),
    ),
    (
        "spiffe://eu-central.mesh1/tenant/acme/client/alice",
        ClientIdentity(mesh=MESH, region=EU, tenant=TenantId("acme"), name="alice"),
    ),
    ("spiffe://mesh1/registry/r1", RegistryIdentity(mesh=MESH, node=NodeId("r1"))),
    ("spiffe://mesh1/admin/alice", AdminIdentity(mesh=MESH, name="alice")),
]


@pytest.mark.parametrize(("uri", "identity"), KNOWN)
def test_known_forms_round_trip(uri: str, identity: Identity) -> None:
    assert parse_identity(uri, MESH) == identity
    assert str(identity) == uri


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "spiffe://",
        "spiffe:///core/n1",
        "spiffe://mesh1",
        "spiffe://mesh1/",
        "SPIFFE://mesh1/registry/r1",
        "spiffe://MESH1/registry/r1",
        "https://mesh1/registry/r1",
        "spiffe://mesh2/registry/r1",
        "spiffe://eu.mesh2/core/n1",
        "spiffe://eu.mesh1.evil/core/n1",
        "spiffe://a.eu.mesh1/core/n1",
        "spiffe://.mesh1/core/n1",
        "spiffe://eu.mesh1./core/n1",
        "spiffe://eu.mesh1:443/core/n1",
        "spiffe://u@eu.mesh1/core/n1",
        "spiffe://eu.mesh1/core/n1/",
        "spiffe://eu.mesh1//core/n1",
        "spiffe://eu.mesh1/core//n1",
        "spiffe://eu.mesh1/core/n1?x",
        "spiffe://eu.mesh1/core/n1#x",
        "spiffe://eu.mesh1/core/n%31",
        "spiffe://eu.mesh1/core/N1",
        "spiffe://eu.mesh1/core/n1 ",
        "spiffe://eu.mesh1/core/n1\n",
        "spiffe://eu.mesh1/core/n1\x00",
        "spiffe://eu.mesh1/core/..",
        "spiffe://eu.mesh1/core/*",
        "spiffe://eu.mesh1/core/ｎ1",  # a full-width letter
        "spiffe://eu.mesh1/core/" + "n" * 64,
        "spiffe://eu.mesh1/core",
        "spiffe://eu.mesh1/registry/r1",
        "spiffe://eu.mesh1/admin/alice",
        "spiffe://mesh1/core/n1",
        "spiffe://mesh1/tenant/acme/client/alice",
        "spiffe://eu.mesh1/tenant/mesh/client/alice",
        "spiffe://eu.mesh1/tenant/acme/edge/files",
        "spiffe://eu.mesh1/tenant/acme/edge/files/e1/more",
        "spiffe://eu.mesh1/tenant/acme/owner/alice",
        "spiffe://eu.mesh1/core/" + "n/" * 400,
    ],
)
def test_anything_else_is_refused(uri: str) -> None:
    with pytest.raises(Refused):
        parse_identity(uri, MESH)


def test_a_mesh_that_is_no_label_is_refused() -> None:
    with pytest.raises(Refused):
        parse_identity("spiffe://a.b/registry/r1", MeshName("a.b"))


def test_only_machines_have_addresses() -> None:
    assert [address_of(identity) for _, identity in KNOWN] == [
        "node:eu-central/n1",
        "edge:eu-central/acme/files/e-1",
        None,
        "registry",
        None,
    ]


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="spife:/.mh1coretnadgl%?#@-", max_size=60).map(lambda tail: "spiffe://eu.mesh1/" + tail))
def test_what_parses_prints_as_it_was(uri: str) -> None:
    try:
        identity = parse_identity(uri, MESH)
    except Refused:
        return
    assert str(identity) == uri


@pytest.mark.parametrize("tenant", [None, TenantId("acme")])
def test_no_certificate_carries_a_person(tenant: TenantId | None) -> None:
    """A person is known by a token alone: the URI by which the log names one is no identity of a certificate."""
    person = PersonIdentity(mesh=MESH, issuer="corp", name="eve", tenant=tenant, roles=frozenset(Role))
    with pytest.raises(Refused):
        parse_identity(str(person), MESH)
    assert address_of(person) is None
