"""Leases of service keys to Edges: capped, recorded, revoked, and settled one by one; E over crashes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from keymesh.control.messages import RestrictionAck
from keymesh.core import edges
from keymesh.core.lease_book import LeaseBook
from keymesh.core.records import EdgeLeaseRecord, edge_lease_name
from keymesh.model.machine import Address, BootMark, ClockWentAhead, Persist, Persisted
from keymesh.model.scope import parse_scope
from keymesh.model.time import Instant
from keymesh.orbital.edge_messages import LeaseGrant, LeaseRefused
from keymesh.orbital.messages import Hello
from tests.unit.control.world import Mesh, digest
from tests.unit.core.bench import L2_KID, L3_KID, SERVICE, TENANT, TTL_MS, Bench, Edge, next_version

SCOPE = f"tenant:{TENANT}"
EDGE_TTL_MS = 60_000  # of the mesh's service


def record(**changed: Any) -> EdgeLeaseRecord:
    made = EdgeLeaseRecord(
        lease_id="x",
        tenant=TENANT,
        service=SERVICE,
        edge="edge:us-east/acme/pay/e1",
        signing_key="00" * 32,
        versions=(1, 2),
        ttl_ms=5_000,
        end=Instant(9_000),
        boot_id="k1",
        boottime_end_ms=7_000,
    )
    return replace(made, **changed)


def short_service(ttl_ms: int = 5_000) -> Mesh:
    """A tenant whose Edge leases are much shorter than the node's."""
    mesh = Mesh()
    mesh.tenant(TENANT)
    mesh.do(
        TENANT,
        "service.set",
        {"service": SERVICE, "row": {"version": 1, "custody": "leased", "edge_ttl_ms": ttl_ms}},
    )
    mesh.key_version(TENANT, "l2", 1, "b1")
    mesh.key_version(TENANT, f"l3/{SERVICE}", 1, digest(f"{TENANT}/l2/1")[:32])
    return mesh


def last_ack(bench: Bench) -> RestrictionAck:
    return bench.acks()[-1].restrictions[0]


# --- rules -----------------------------------------------------------------------------------------------------------


def test_the_ttl_is_capped_by_each_of_the_nodes_own_leases() -> None:
    assert edges.edge_ttl(50, Instant(100), [Instant(200), Instant(300)]) == 50
    assert edges.edge_ttl(50, Instant(100), [Instant(200), Instant(130)]) == 30
    assert edges.edge_ttl(50, Instant(100), [Instant(100)]) == 0
    assert edges.edge_ttl(10**9, Instant(0), [Instant(10**9)]) == 3_600_000


def test_e_after_a_restart() -> None:
    now = Instant(1_000_000)
    assert edges.end_after_restart(record(), BootMark("k1", 4_000), now) == now + 3_000
    assert edges.end_after_restart(record(), BootMark("k1", 9_000), now) < now
    assert edges.end_after_restart(record(), BootMark("k2", 9_000), now) == now + 5_005  # its clock may be slower
    assert edges.end_after_restart(record(), BootMark("k1", 0), now) == now + 5_005  # never more than its life


@pytest.mark.parametrize(
    ("scope", "covered"),
    [
        ("mesh", True),
        ("region:us-east", True),
        ("region:us-west", False),
        ("tenant:acme", True),
        ("tenant:globex", False),
        ("service:acme/pay", True),
        ("service:acme/mail", False),
        ("key:acme/pay@1", True),
        ("key:acme/pay@3", False),
    ],
)
def test_what_is_under_a_scope(scope: str, covered: bool) -> None:
    assert edges.under(parse_scope(scope), "us-east", record()) is covered


# --- granting --------------------------------------------------------------------------------------------------------


def test_a_lease_is_recorded_before_it_is_granted() -> None:
    bench, edge = Bench().up(), Edge()
    bench.receive(edge.request(), edge.address)
    names = [type(getattr(e, "message", e)).__name__ for e in bench.out]
    assert names.index("Persist") < names.index("LeaseGrant")
    grant = bench.sent(LeaseGrant)[0]
    assert edge_lease_name(grant.lease_id) in bench.disk
    assert [(v.kid, v.version, v.may_wrap) for v in grant.versions] == [(L3_KID, 1, True)]
    assert grant.nonce == "n1"
    assert grant.policy_entry.payload_hash == bench.mesh.history[TENANT][1].head.hash


def test_a_lease_that_cannot_be_recorded_is_refused() -> None:
    bench, edge = Bench().up(), Edge()
    bench.disk_works = False
    assert bench.refusal(edge) == "retry"
    assert bench.state.edge_leases == {}


def test_a_lease_never_outlives_the_nodes_own() -> None:
    bench, edge = Bench().up(), Edge()
    bench.advance(500)
    lease = bench.holding().lease
    assert lease is not None
    assert bench.lease(edge).ttl_ms == lease.until - bench.now == TTL_MS - 500
    bench.holding().l1.until = Instant(bench.now + 300)
    assert bench.lease(edge).ttl_ms == 300
    mesh_lease = bench.state.mesh.lease
    assert mesh_lease is not None
    bench.state.mesh.lease = replace(mesh_lease, until=Instant(bench.now + 200))
    assert bench.lease(edge).ttl_ms == 200


def test_a_service_may_ask_for_less() -> None:
    bench = Bench(short_service()).up()
    assert bench.lease(Edge()).ttl_ms == 5_000


@pytest.mark.parametrize(
    ("edge", "changed"),
    [
        (Edge(tenant="globex"), {}),
        (Edge(service="mail"), {}),
        (Edge(region="us-west"), {}),
        (Edge(), {"tenant": "globex"}),
        (Edge(), {"service": "mail"}),
        (Edge(tenant="globex"), {"tenant": TENANT}),
        (Edge(service="mail"), {"service": SERVICE}),
        (Edge(), {"signing_key": "zz"}),
        (Edge(), {"signing_key": ""}),
    ],
)
def test_what_an_edge_may_not_know_looks_absent(edge: Edge, changed: dict[str, Any]) -> None:
    bench = Bench().up()
    assert bench.refusal(edge, **changed) == "unknown"


def test_a_node_is_no_edge() -> None:
    bench, edge = Bench().up(), Edge()
    bench.receive(edge.request(), Address("node:us-west/n1"))
    assert bench.sent(LeaseRefused)[0].code == "unknown"


def test_refusals_say_why() -> None:
    bench, edge = Bench().up(), Edge()
    bench.holding().loaded.clear()
    assert bench.refusal(edge) == "not-loaded"
    bench.now = Instant(bench.now + TTL_MS)
    assert bench.refusal(edge) == "closed"
    bench.give(bench.mesh.restrict("suspend", SCOPE))
    assert bench.refusal(edge) == "restricted"  # in any mode: the Edge is to drop what it holds


def test_a_service_whose_every_version_is_restricted() -> None:
    bench, edge = Bench().up(), Edge()
    bench.give(bench.mesh.restrict("suspend", f"key:{TENANT}/pay@1"))
    assert bench.refusal(edge) == "restricted"


def test_a_restricted_version_is_left_out() -> None:
    mesh = Mesh()
    mesh.furnished(TENANT)
    next_version(mesh, "l3/pay", 2, L2_KID)
    bench, edge = Bench(mesh).up(), Edge()
    assert [(v.version, v.may_wrap) for v in bench.lease(edge).versions] == [(1, False), (2, True)]
    bench.give(mesh.restrict("suspend", f"key:{TENANT}/pay@1"))
    assert [(v.version, v.may_wrap) for v in bench.lease(edge).versions] == [(2, True)]


def test_core_held_custody_releases_nothing() -> None:
    mesh = Mesh()
    mesh.furnished(TENANT)
    row = {"version": 2, "custody": "core-held", "edge_ttl_ms": 5_000}
    mesh.do(TENANT, "service.set", {"service": SERVICE, "row": row})
    bench = Bench(mesh).up()
    assert bench.lease(Edge()).versions == ()


def test_one_edge_holds_a_bounded_number_of_leases() -> None:
    bench, edge = Bench().up(), Edge()
    for _ in range(edges.LEASES_PER_EDGE_MAX):
        bench.lease(edge)
    assert bench.refusal(edge) == "too-many"
    bench.lease(Edge("other"))


def test_leases_that_are_still_being_recorded_count() -> None:
    bench, edge = Bench().up(), Edge()
    bench.crash_at_persist = True  # the disk has not answered yet
    for _ in range(edges.LEASES_PER_EDGE_MAX):
        bench.receive(edge.request(), edge.address)
    bench.crash_at_persist = False
    assert bench.refusal(edge) == "too-many"
    bench.lease(Edge("other"))


def test_records_of_leases_that_are_over_are_forgotten() -> None:
    bench = Bench(short_service()).up()
    grant = bench.lease(Edge())
    bench.advance(7_000)
    assert bench.state.edge_leases == {}
    assert edge_lease_name(grant.lease_id) not in bench.disk


# --- revocation ------------------------------------------------------------------------------------------------------


def test_a_restriction_is_pushed_before_it_is_recorded_and_repeated_until_acknowledged() -> None:
    bench, edge = Bench().up(), Edge()
    grant = bench.lease(edge)
    bench.take()
    bench.give(bench.mesh.restrict("suspend", SCOPE))
    names = [type(getattr(e, "message", e)).__name__ for e in bench.out]
    assert names.index("Revocation") < names.index("Persist")
    first = bench.revocations()[0]
    assert first.lease_ids == (grant.lease_id,)
    bench.take()
    bench.advance(1_100)
    assert bench.revocations() == [first, first]
    bench.receive(edge.ack(grant.lease_id, first.revocation_id), edge.address)
    bench.take()
    bench.advance(2_000)
    assert bench.revocations() == []


def test_e_is_the_end_of_what_is_not_settled_and_shrinks_with_each_acknowledgement() -> None:
    bench, one, two = Bench(short_service()).up(), Edge("e1"), Edge("e2")
    first = bench.lease(one)
    bench.advance(300)
    second = bench.lease(two)
    bench.advance(200)
    bench.give(bench.mesh.restrict("suspend", SCOPE))
    assert (last_ack(bench).open_edge_leases, last_ack(bench).edge_leases_end_in_ms) == (2, 4_805)
    by_lease = {r.lease_ids[0]: r.revocation_id for r in bench.revocations()}
    bench.take()
    bench.receive(two.ack(second.lease_id, by_lease[second.lease_id]), two.address)
    assert (last_ack(bench).open_edge_leases, last_ack(bench).edge_leases_end_in_ms) == (1, 4_505)
    bench.receive(one.ack(first.lease_id, by_lease[first.lease_id]), one.address)
    assert (last_ack(bench).open_edge_leases, last_ack(bench).edge_leases_end_in_ms) == (0, 0)


def test_e_is_acknowledged_anew_when_the_last_lease_is_over_by_itself() -> None:
    bench = Bench(short_service()).up()
    bench.lease(Edge())
    bench.give(bench.mesh.restrict("suspend", SCOPE))
    bench.take()
    bench.advance(5_005)
    assert (last_ack(bench).open_edge_leases, last_ack(bench).edge_leases_end_in_ms) == (0, 0)


def test_an_acknowledgement_before_the_apply_does_not_count() -> None:
    bench, edge = Bench().up(), Edge()
    grant = bench.lease(edge)
    early = edge.ack(grant.lease_id, "anything")
    bench.receive(early, edge.address)
    bench.give(bench.mesh.restrict("suspend", SCOPE))
    assert last_ack(bench).open_edge_leases == 1
    bench.receive(early, edge.address)
    assert grant.lease_id in bench.state.edge_leases


@pytest.mark.parametrize(
    "changed", [{"dropped": False}, {"edge": "edge:us-east/acme/pay/other"}, {"revocation_id": "r"}, {"lease_id": "l"}]
)
def test_acknowledgements_that_do_not_say_the_right_thing(changed: dict[str, Any]) -> None:
    bench, edge = Bench().up(), Edge()
    grant = bench.lease(edge)
    bench.give(bench.mesh.restrict("suspend", SCOPE))
    good = bench.revocations()[0]
    fields = {"lease_id": grant.lease_id, "revocation_id": good.revocation_id, **changed}
    bench.receive(edge.ack(**fields), edge.address)
    assert grant.lease_id in bench.state.edge_leases


def test_an_acknowledgement_of_another_edge_or_key() -> None:
    bench, edge, other = Bench().up(), Edge("e1"), Edge("e2")
    mine, theirs = bench.lease(edge), bench.lease(other)
    bench.give(bench.mesh.restrict("suspend", SCOPE))
    by_lease = {r.lease_ids[0]: r.revocation_id for r in bench.revocations()}
    good = (mine.lease_id, by_lease[mine.lease_id])
    bench.receive(other.ack(*good), other.address)
    bench.receive(other.ack(*good, edge=edge.address), edge.address)  # not signed with the key of that lease
    bench.receive(edge.ack(theirs.lease_id, by_lease[theirs.lease_id]), edge.address)
    bench.receive(edge.ack(*good), other.address)
    assert set(bench.state.edge_leases) == {mine.lease_id, theirs.lease_id}
    bench.receive(edge.ack(*good), edge.address)
    assert set(bench.state.edge_leases) == {theirs.lease_id}


def test_a_key_of_an_earlier_lease_does_not_settle_a_later_one() -> None:
    bench, before, after = Bench().up(), Edge("e1"), Edge("e1")
    after.suite = type(after.suite)("edge-e1-second-life")
    bench.lease(before)
    grant = bench.lease(after)
    bench.give(bench.mesh.restrict("suspend", SCOPE))
    revocation = bench.revocations()[0]
    assert len(revocation.lease_ids) == 2
    bench.receive(before.ack(grant.lease_id, revocation.revocation_id), before.address)
    assert grant.lease_id in bench.state.edge_leases
    bench.receive(after.ack(grant.lease_id, revocation.revocation_id), after.address)
    assert grant.lease_id not in bench.state.edge_leases


def test_an_acknowledgement_settles_no_later_lease() -> None:
    bench, edge = Bench().up(), Edge()
    first = bench.lease(edge)
    bench.give(bench.mesh.restrict("suspend", SCOPE))
    ack = edge.ack(first.lease_id, bench.revocations()[0].revocation_id)
    bench.receive(ack, edge.address)
    bench.give(bench.mesh.restrict("resume", SCOPE))
    bench.renew()
    second = bench.lease(edge)
    bench.give(bench.mesh.restrict("suspend", SCOPE))
    bench.receive(ack, edge.address)
    assert second.lease_id in bench.state.edge_leases
    assert last_ack(bench).open_edge_leases == 1


def test_a_key_scope_takes_only_leases_that_hold_the_version() -> None:
    mesh = Mesh()
    mesh.furnished(TENANT)
    bench, edge, late = Bench(mesh).up(), Edge("e1"), Edge("e2")
    bench.lease(edge)
    bench.give(mesh.restrict("suspend", f"key:{TENANT}/pay@1"))
    bench.give(next_version(mesh, "l3/pay", 2, L2_KID))
    bench.renew()
    bench.take()
    grant = bench.lease(late)
    assert [v.version for v in grant.versions] == [2]
    bench.give(mesh.states[TENANT])
    assert last_ack(bench).open_edge_leases == 1


def test_an_edge_that_comes_back_is_told_again() -> None:
    bench, edge, other = Bench().up(), Edge("e1"), Edge("e2")
    bench.lease(edge)
    bench.lease(other)
    bench.give(bench.mesh.restrict("suspend", SCOPE))
    bench.take()
    bench.receive(Hello(region="us-east", node="e1", boot_id="b"), edge.address)
    assert len(bench.revocations()) == 1


# --- E over crashes --------------------------------------------------------------------------------------------------


def test_e_survives_a_crash_on_the_same_kernel_boot() -> None:
    bench, edge = Bench(short_service()).up(), Edge()
    grant = bench.lease(edge)
    bench.advance(2_000)
    bench.reboot()
    bench.give(bench.mesh.restrict("suspend", SCOPE))
    assert (last_ack(bench).open_edge_leases, last_ack(bench).edge_leases_end_in_ms) == (1, 3_005)
    revocation = bench.revocations()[0]
    bench.receive(edge.ack(grant.lease_id, revocation.revocation_id), edge.address)
    assert last_ack(bench).open_edge_leases == 0


def test_e_is_the_whole_life_after_another_kernel_boot() -> None:
    bench = Bench(short_service()).up()
    bench.lease(Edge())
    bench.advance(2_000)
    bench.reboot(kernel=True)
    bench.give(bench.mesh.restrict("suspend", SCOPE))
    assert (last_ack(bench).open_edge_leases, last_ack(bench).edge_leases_end_in_ms) == (1, 5_005)


def test_what_was_in_force_before_a_crash_is_pushed_again_under_the_same_name() -> None:
    bench, edge = Bench().up(), Edge()
    grant = bench.lease(edge)
    bench.give(bench.mesh.restrict("suspend", SCOPE))
    before = bench.revocations()[0]
    bench.take()
    bench.reboot()
    after = bench.revocations()[0]
    assert (after.revocation_id, after.lease_ids) == (before.revocation_id, before.lease_ids)
    bench.receive(edge.ack(grant.lease_id, before.revocation_id), edge.address)  # on its way during the crash
    assert bench.state.edge_leases == {}


def test_a_lease_recorded_but_never_granted_still_counts() -> None:
    bench, edge = Bench(short_service()).up(), Edge()
    bench.receive(edge.request(), edge.address)
    puts = [put for e in bench.effects(Persist) for put in e.puts]
    assert puts
    bench.reboot()
    bench.give(bench.mesh.restrict("suspend", SCOPE))
    assert last_ack(bench).open_edge_leases == 1


# --- E over jumps of the clock ---------------------------------------------------------------------------------------


def jumped_while_recording(by_ms: int) -> Bench:
    """The wall clock was set while the record of a lease of 5 s was being written."""
    bench, edge = Bench(short_service()).up(), Edge()
    bench.crash_at_persist = True  # the disk has not answered yet
    bench.receive(edge.request(), edge.address)
    bench.disk.update(put for e in bench.effects(Persist) for put in e.puts)
    bench.crash_at_persist = False
    bench.now = Instant(bench.now + by_ms)
    bench.feed(ClockWentAhead(by_ms))
    bench.feed(Persisted(next(iter(bench.state.persisting))))
    assert [grant.ttl_ms for grant in bench.sent(LeaseGrant)] == [5_000]
    return bench


def test_a_clock_that_jumps_while_a_lease_is_recorded_does_not_end_it() -> None:
    bench = jumped_while_recording(20_000)
    bench.give(bench.mesh.restrict("suspend", SCOPE))
    assert (last_ack(bench).open_edge_leases, last_ack(bench).edge_leases_end_in_ms) == (1, 5_005)
    bench.take()
    bench.advance(5_005)
    assert (last_ack(bench).open_edge_leases, last_ack(bench).edge_leases_end_in_ms) == (0, 0)


@pytest.mark.parametrize("kernel", [False, True])
def test_e_after_a_restart_takes_no_notice_of_a_jump_of_the_clock(kernel: bool) -> None:
    """By boot time, which did not jump; or the whole life."""
    bench = jumped_while_recording(20_000)
    bench.advance(2_000)
    bench.reboot(kernel=kernel)
    bench.give(bench.mesh.restrict("suspend", SCOPE))
    left_ms = 5_005 if kernel else 3_005
    assert (last_ack(bench).open_edge_leases, last_ack(bench).edge_leases_end_in_ms) == (1, left_ms)


# --- many ------------------------------------------------------------------------------------------------------------


def test_the_books_of_edges_and_tenants_say_the_same_as_the_book_of_all() -> None:
    book = LeaseBook()
    for n in range(12):
        book[f"l{n}"] = record(lease_id=f"l{n}", tenant=f"t{n % 2}", edge=f"e{n % 3}")
    book["l3"] = record(lease_id="l3", tenant="t1", edge="e0", end=Instant(1))
    book["l4"] = record(lease_id="l4", tenant="t9", edge="e9")  # of another
    del book["l0"]
    assert book.pop("l11", None) is not None
    assert book.pop("l11", None) is None
    for edge in ("e0", "e1", "e2", "e9", "none"):
        assert list(book.of_edge(edge)) == [lease for lease in book.values() if lease.edge == edge]
    for tenant in ("t0", "t1", "t9", "none"):
        of_tenant = [lease for lease in book.values() if lease.tenant == tenant]
        assert list(book.newest_first(tenant)) == of_tenant[::-1]
    assert {lease.lease_id for lease in book.newest_first(None)} == set(book) == set(dict(book))
    book.clear()
    assert book == {}
    assert list(book.of_edge("e1")) == list(book.newest_first("t1")) == list(book.newest_first(None)) == []
