"""A client is served where its tenant names it, here, while nothing is in force against it, its service or more."""

from __future__ import annotations

from dataclasses import replace

import pytest

from keymesh.access.identity import ClientIdentity
from keymesh.core import clients
from keymesh.core.events import LocalRestrict, Sealed
from keymesh.model.ids import MeshName as Mesh
from keymesh.model.ids import Namespace, RegionId, TenantId
from keymesh.model.states import Operation
from keymesh.model.time import Instant
from tests.unit.core.bench import REGION, SERVICE, TENANT, TTL_MS, Bench

APP = ClientIdentity(mesh=Mesh("dev"), region=RegionId(REGION), tenant=TenantId(Namespace(TENANT)), name="app")
ASKED = (Operation.WRAP, Operation.UNWRAP, Operation.EXPORT)


def named() -> Bench:
    bench = Bench().up()
    bench.give(bench.mesh.do(TENANT, "client.set", {"client": "app", "row": {"version": 1, "service": SERVICE}}))
    assert bench.mode() is not None
    return bench


def why(bench: Bench, identity: ClientIdentity = APP, service: str = SERVICE) -> set[str]:
    return {clients.why_not(bench.state, bench.now, identity, service, operation) for operation in ASKED}


def test_a_named_client_of_this_region_is_served_for_its_service_alone() -> None:
    bench = named()
    assert why(bench) == {""}
    assert clients.service_of(bench.state, APP) == SERVICE
    assert why(bench, service="mail") == {"unknown-client"}
    assert why(bench, replace(APP, name="other")) == {"unknown-client"}
    assert why(bench, replace(APP, region=RegionId("us-west"))) == {"other-region"}
    assert why(bench, replace(APP, tenant=TenantId(Namespace("globex")))) == {"absent"}
    assert clients.service_of(bench.state, replace(APP, tenant=TenantId(Namespace("globex")))) is None


@pytest.mark.parametrize(
    ("scope", "word"),
    [
        (f"client:{TENANT}/app", "restricted-client"),
        (f"service:{TENANT}/{SERVICE}", "restricted-service"),
        (f"tenant:{TENANT}", "restricted-tenant"),
        (f"region:{REGION}", "restricted-region"),
        ("mesh", "restricted-mesh"),
    ],
)
def test_every_scope_above_and_its_own_ends_it_at_once(scope: str, word: str) -> None:
    bench = named()
    bench.give(bench.mesh.restrict("suspend", scope))
    assert why(bench) == {word}


def test_a_restriction_of_another_client_or_service_is_none_of_its_business() -> None:
    bench = named()
    for scope in (f"client:{TENANT}/other", f"service:{TENANT}/mail"):
        bench.give(bench.mesh.restrict("revoke", scope))
    assert why(bench) == {""}


def test_a_local_suspension_ends_it_before_anybody_else_knows() -> None:
    bench = named()
    bench.feed(LocalRestrict("cmd", f"client:{TENANT}/app", "suspend", "ann", "corr"))
    assert why(bench) == {"restricted-client"}
    assert clients.is_ended(bench.state, TENANT, "app")
    assert not clients.is_ended(bench.state, TENANT, "other")
    assert not clients.is_ended(bench.state, "globex", "app")


def test_no_lease_no_master_key_no_service() -> None:
    bench = named()
    bench.feed(Sealed())
    assert why(bench) == {"sealed"}
    bench = named()
    late = Instant(bench.now + 3 * TTL_MS)
    assert clients.why_not(bench.state, late, APP, SERVICE, Operation.EXPORT) == "lease"
