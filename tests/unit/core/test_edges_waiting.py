"""Edges that were refused are told once when a lease can be had again, whatever it was that stood against it."""

from __future__ import annotations

from typing import Any

import pytest

from keymesh.control.messages import Recorded
from keymesh.core import edges, waiting
from keymesh.core.events import L1Outcome, L1Probed, LocalRestrict, Sealed, Unsealed
from keymesh.model.machine import Address, Persisted, Send
from keymesh.model.time import Instant
from keymesh.orbital.edge_messages import ANNOUNCED, RETRY, LeaseReady, LeaseRefused
from tests.unit.control.world import Mesh
from tests.unit.core.bench import L2_KID, SERVICE, TENANT, TTL_MS, Bench, Edge, next_version

SCOPE = f"tenant:{TENANT}"


def told(bench: Bench) -> list[Address]:
    """Who was told since the last look, which this is."""
    return [e.to for e in bench.take() if isinstance(e, Send) and isinstance(e.message, LeaseReady)]


def suspended(scope: str = SCOPE, mesh: Mesh | None = None) -> Bench:
    bench = Bench(mesh).up()
    bench.give(bench.mesh.restrict("suspend", scope))
    return bench


def refused(bench: Bench, *names: str, code: str = "restricted") -> list[Edge]:
    found = [Edge(name) for name in names]
    assert [bench.refusal(edge) for edge in found] == [code] * len(found)
    bench.take()
    return found


@pytest.mark.parametrize("scope", [SCOPE, f"service:{TENANT}/{SERVICE}", f"key:{TENANT}/{SERVICE}@1", "region:us-east"])
def test_a_resume_tells_each_edge_that_was_refused_once(scope: str) -> None:
    bench = suspended(scope)
    one, two = refused(bench, "e1", "e2")
    bench.refusal(one)
    assert told(bench) == []
    bench.give(bench.mesh.restrict("resume", scope))
    bench.renew()
    assert sorted(told(bench)) == sorted([one.address, two.address])
    assert bench.state.waiting == {}
    bench.renew()
    bench.give(bench.mesh.mesh, force=True)
    assert told(bench) == []
    bench.lease(one)


def test_what_it_says_is_of_the_service() -> None:
    bench = suspended()
    refused(bench, "e1")
    bench.give(bench.mesh.restrict("resume", SCOPE))
    bench.renew()
    assert bench.sent(LeaseReady) == [LeaseReady(tenant=TENANT, service=SERVICE)]


def test_nobody_is_told_while_something_else_stands_against_it() -> None:
    bench = suspended()
    (edge,) = refused(bench, "e1")
    bench.give(bench.mesh.restrict("suspend", f"service:{TENANT}/{SERVICE}"))
    bench.give(bench.mesh.restrict("resume", SCOPE))
    bench.renew()
    assert told(bench) == []
    bench.give(bench.mesh.restrict("resume", f"service:{TENANT}/{SERVICE}"))
    bench.renew()
    assert told(bench) == [edge.address]


def test_a_lease_that_ran_out_and_came_back() -> None:
    bench = Bench().up()
    bench.advance(TTL_MS + 1)
    (edge,) = refused(bench, "e1", code="closed")
    bench.renew()
    assert told(bench) == [edge.address]


def test_keys_that_are_loaded_at_last() -> None:
    bench = Bench()
    bench.loads = False
    bench.give_all()
    bench.renew()
    (edge,) = refused(bench, "e1", code="closed")  # no proof of L1 yet
    bench.loads = True
    bench.advance(31_000)
    bench.renew()
    assert told(bench) == [edge.address]


def test_an_unsealed_node() -> None:
    bench = Bench().up()
    bench.feed(Sealed())
    (edge,) = refused(bench, "e1", code="closed")
    bench.feed(Unsealed(ivk_generation=1))
    assert told(bench) == [edge.address]


def test_l1_that_opens_again() -> None:
    bench = Bench().up()

    def probe(outcome: L1Outcome) -> None:
        bench.now = Instant(bench.now + 1)
        bench.feed(
            L1Probed(
                namespace=TENANT, binding_id="b1", outcome=outcome, all_replicas=True, started_at=bench.now,
            )
        )  # fmt: skip

    probe(L1Outcome.DENIED)
    (edge,) = refused(bench, "e1", code="closed")
    probe(L1Outcome.OK)
    assert told(bench) == [edge.address]


def test_a_local_suspension_that_is_recorded_and_lifted() -> None:
    bench = Bench().up()
    options = {"reason": "", "abandon_children": False}
    bench.feed(LocalRestrict("cmd", SCOPE, "suspend", "alice", "c", options=options))
    (edge,) = refused(bench, "e1")
    args = {"scope": SCOPE, **options}
    entry = bench.mesh.do(TENANT, "suspend", args, command_id="cmd").head.entry
    bench.give(bench.mesh.restrict("resume", SCOPE))
    bench.renew()
    assert told(bench) == [], "the local suspension is in force until its own entry is known to be applied"
    bench.give(bench.mesh.restrict("suspend", SCOPE))
    bench.receive(Recorded(command_id="cmd", namespace=TENANT, epoch=entry.epoch, seq=entry.seq))
    assert told(bench) == []
    bench.give(bench.mesh.restrict("resume", SCOPE))
    bench.renew()
    assert told(bench) == [edge.address]


def test_who_is_refused_for_a_record_that_failed_is_not_kept_waiting_for_a_word() -> None:
    bench, edge = Bench().up(), Edge()
    bench.disk_works = False
    assert bench.refusal(edge) == RETRY
    assert RETRY not in ANNOUNCED
    assert bench.state.waiting == {}
    bench.disk_works = True
    bench.lease(edge)


def test_versions_that_changed_while_the_record_was_written_are_worth_another_try() -> None:
    bench, edge = Bench().up(), Edge()
    token = recording(bench, edge)
    bench.give(next_version(bench.mesh, f"l3/{SERVICE}", 2, L2_KID))
    bench.feed(Persisted(token))
    assert [refused.code for refused in bench.sent(LeaseRefused)] == [RETRY]
    assert bench.state.waiting == {}
    bench.lease(edge)


def test_what_came_between_request_and_record_is_said_and_its_end_announced() -> None:
    bench, edge = Bench().up(), Edge()
    token = recording(bench, edge)
    bench.give(bench.mesh.restrict("suspend", SCOPE))
    bench.feed(Persisted(token))
    assert [refused.code for refused in bench.sent(LeaseRefused)] == ["restricted"]
    bench.take()
    bench.give(bench.mesh.restrict("resume", SCOPE))
    bench.renew()
    assert told(bench) == [edge.address]


def recording(bench: Bench, edge: Edge) -> str:
    """The token of a lease whose record is still being written."""
    bench.crash_at_persist = True
    bench.receive(edge.request(), edge.address)
    bench.crash_at_persist = False
    return next(iter(bench.state.persisting))


def test_an_edge_that_is_granted_after_all_is_forgotten() -> None:
    bench = Bench().up()
    loaded = dict(bench.holding().loaded)
    bench.holding().loaded.clear()
    one, two = refused(bench, "e1", "e2", code="not-loaded")
    bench.holding().loaded.update(loaded)
    bench.lease(one)
    assert list(bench.state.waiting[TENANT]) == [two.address]
    bench.lease(two)
    assert bench.state.waiting == {}


def test_strangers_and_those_with_too_many_are_not_remembered() -> None:
    bench = Bench().up()
    assert bench.refusal(Edge(tenant="globex")) == "unknown"
    assert bench.refusal(Edge(tenant="globex"), tenant=TENANT) == "unknown"
    assert bench.refusal(Edge(service="mail")) == "unknown"
    edge = Edge()
    for _ in range(edges.LEASES_PER_EDGE_MAX):
        bench.lease(edge)
    assert bench.refusal(edge) == "too-many"
    assert bench.state.waiting == {}


def test_who_waits_is_bounded_for_each_tenant_and_the_oldest_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "WAITING_PER_TENANT_MAX", 3)
    bench = suspended()
    one, *rest = refused(bench, "e1", "e2", "e3")
    bench.refusal(one)  # the newest again
    late = refused(bench, "e4")[0]
    waiting.remember(bench.state, Address("other"), "globex", SERVICE)
    assert list(bench.state.waiting[TENANT]) == [rest[1].address, one.address, late.address]
    assert list(bench.state.waiting["globex"]) == ["other"]


def test_a_restart_forgets_them_for_they_come_back_by_themselves() -> None:
    bench = suspended()
    refused(bench, "e1")
    bench.reboot()
    assert bench.state.waiting == {}


def test_only_the_service_that_can_be_leased() -> None:
    bench = Bench().up()
    state: Any = bench.state
    waiting.remember(state, Address("a"), TENANT, SERVICE)
    waiting.remember(state, Address("b"), TENANT, "mail")
    bench.feed(Unsealed(ivk_generation=1))
    assert told(bench) == ["a"]
    assert state.waiting == {TENANT: {"b": "mail"}}
