"""Leases given back at an Edge's orderly end: settled at any time, by their own holder's word and no other."""

from __future__ import annotations

import pytest

from keymesh.core import edges
from keymesh.core.events import Sealed, Unsealed
from keymesh.core.records import edge_lease_name
from keymesh.model.machine import Address, ClockWentAhead, Persisted
from keymesh.orbital.edge_messages import EdgeAck, EdgeAckMessage, LeaseReady, LeaseReturned, LeaseReturnedMessage
from tests.unit.core.bench import TENANT, Bench, Edge
from tests.unit.core.test_edges import SCOPE, last_ack, short_service


def test_a_lease_given_back_before_anything_is_restricted_counts_no_more() -> None:
    bench, edge = Bench(short_service()).up(), Edge()
    grant = bench.lease(edge)
    bench.receive(edge.give_back(grant.lease_id), edge.address)
    assert bench.state.edge_leases == {}
    bench.give(bench.mesh.restrict("suspend", SCOPE))
    assert (last_ack(bench).open_edge_leases, last_ack(bench).edge_leases_end_in_ms) == (0, 0)
    assert bench.revocations() == []
    bench.beat()
    assert edge_lease_name(grant.lease_id) not in bench.disk


def test_given_back_while_a_revocation_is_open_it_is_settled_and_acknowledged_at_once() -> None:
    bench, edge = Bench(short_service()).up(), Edge()
    grant = bench.lease(edge)
    bench.give(bench.mesh.restrict("suspend", SCOPE))
    bench.give(bench.mesh.restrict("suspend", f"service:{TENANT}/pay"))
    assert last_ack(bench).open_edge_leases == 1
    assert len({r.revocation_id for r in bench.revocations()}) == 2
    bench.take()
    bench.receive(edge.give_back(grant.lease_id), edge.address)
    assert {(r.open_edge_leases, r.edge_leases_end_in_ms) for r in bench.acks()[-1].restrictions} == {(0, 0)}
    bench.advance(1_100)
    assert bench.revocations() == [], "nobody is there to tell"
    assert bench.state.revocations == {}


def test_e_becomes_the_end_of_what_is_left() -> None:
    bench, one, two = Bench(short_service()).up(), Edge("e1"), Edge("e2")
    bench.lease(one)
    bench.advance(300)
    second = bench.lease(two)
    bench.give(bench.mesh.restrict("suspend", SCOPE))
    assert last_ack(bench).edge_leases_end_in_ms == 5_005
    bench.take()
    bench.receive(two.give_back(second.lease_id), two.address)
    assert (last_ack(bench).open_edge_leases, last_ack(bench).edge_leases_end_in_ms) == (1, 4_705)


def test_a_grant_on_its_way_stays_until_its_end() -> None:
    """The Edge closed while a refresh was pending: the one that it held is settled, the other counts."""
    bench, edge = Bench(short_service()).up(), Edge()
    first = bench.lease(edge)
    bench.crash_at_persist = True  # the disk has not answered yet
    bench.receive(edge.request(), edge.address)
    token = next(iter(bench.state.persisting))
    bench.crash_at_persist = False
    bench.receive(edge.give_back(first.lease_id), edge.address)
    bench.feed(Persisted(token))
    assert len(bench.state.edge_leases) == 1
    assert first.lease_id not in bench.state.edge_leases
    bench.give(bench.mesh.restrict("suspend", SCOPE))
    assert last_ack(bench).open_edge_leases == 1


def test_forged_signatures() -> None:
    bench, edge, other = Bench().up(), Edge("e1"), Edge("e2")
    grant, theirs = bench.lease(edge), bench.lease(other)
    forged = other.give_back(grant.lease_id, edge=edge.address)
    bench.receive(forged, edge.address)  # of another Edge's key, in this one's name
    bench.receive(forged, other.address)
    bench.receive(Edge("unknown").give_back(grant.lease_id, edge=edge.address), edge.address)
    bench.receive(LeaseReturnedMessage(returned="nonsense"), edge.address)
    assert set(bench.state.edge_leases) == {grant.lease_id, theirs.lease_id}
    assert bench.notes().count("lease-return-refused") == 3
    assert bench.notes().count("lease-return-ignored") == 1  # signed, but not by the one whose lease it is


def test_another_edges_lease() -> None:
    bench, edge, other = Bench().up(), Edge("e1"), Edge("e2")
    mine, theirs = bench.lease(edge), bench.lease(other)
    bench.receive(edge.give_back(theirs.lease_id), edge.address)
    bench.receive(edge.give_back(mine.lease_id), other.address)
    bench.receive(edge.give_back(mine.lease_id, edge=other.address), edge.address)
    assert set(bench.state.edge_leases) == {mine.lease_id, theirs.lease_id}


def test_a_replay_settles_no_later_lease() -> None:
    bench, edge = Bench().up(), Edge()
    first = bench.lease(edge)
    word = edge.give_back(first.lease_id)
    bench.receive(word, edge.address)
    bench.take()
    second = bench.lease(edge)
    for _ in range(2):
        bench.receive(word, edge.address)
    assert set(bench.state.edge_leases) == {second.lease_id}
    assert bench.notes().count("lease-return-ignored") == 2


def test_an_earlier_life_gives_back_nothing_of_a_later_one() -> None:
    bench, before, after = Bench().up(), Edge("e1"), Edge("e1")
    after.suite = type(after.suite)("edge-e1-second-life")
    first, second = bench.lease(before), bench.lease(after)
    bench.receive(before.give_back(second.lease_id), before.address)
    assert second.lease_id in bench.state.edge_leases
    bench.receive(before.give_back(first.lease_id), before.address)
    assert set(bench.state.edge_leases) == {second.lease_id}


@pytest.mark.parametrize("known", [False, True])
def test_a_lease_that_was_not_granted_here(known: bool) -> None:
    bench, edge = Bench().up(), Edge()
    held = {bench.lease(edge).lease_id} if known else set()
    bench.receive(edge.give_back("ab" * 16), edge.address)
    assert set(bench.state.edge_leases) == held


def test_a_node_gives_back_nothing() -> None:
    bench, edge = Bench().up(), Edge()
    grant = bench.lease(edge)
    bench.receive(edge.give_back(grant.lease_id), Address("node:us-west/n1"))
    assert grant.lease_id in bench.state.edge_leases


def test_neither_word_passes_for_the_other() -> None:
    bench, edge = Bench().up(), Edge()
    grant = bench.lease(edge)
    bench.give(bench.mesh.restrict("suspend", SCOPE))
    ack = EdgeAck(
        lease_id=grant.lease_id,
        revocation_id=bench.revocations()[0].revocation_id,
        edge=edge.address,
        dropped=True,
    )
    bench.receive(LeaseReturnedMessage(returned=edge.suite.seal(ack)), edge.address)
    returned = LeaseReturned(lease_id=grant.lease_id, edge=edge.address)
    bench.receive(EdgeAckMessage(ack=edge.suite.seal(returned)), edge.address)
    assert grant.lease_id in bench.state.edge_leases


def test_a_crash_before_the_record_is_gone_only_makes_e_larger() -> None:
    bench, edge = Bench(short_service()).up(), Edge()
    grant = bench.lease(edge)
    bench.receive(edge.give_back(grant.lease_id), edge.address)
    bench.reboot()
    bench.give(bench.mesh.restrict("suspend", SCOPE))
    assert last_ack(bench).open_edge_leases == 1
    bench.receive(edge.give_back(grant.lease_id), edge.address)
    assert last_ack(bench).open_edge_leases == 0


def test_a_return_of_an_earlier_life_leaves_the_later_ones_wait_alone() -> None:
    """A rolling restart: the new process waits already when the old one ends in order."""
    bench, before, after = Bench().up(), Edge("e1"), Edge("e1")
    after.suite = type(after.suite)("edge-e1-second-life")
    grant = bench.lease(before)
    bench.feed(Sealed())
    assert bench.refusal(after) == "closed"
    bench.receive(before.give_back(grant.lease_id), before.address)
    bench.feed(Unsealed(ivk_generation=1))
    assert len(bench.sent(LeaseReady)) == 1


def test_leases_taken_and_given_back_count_until_their_own_end() -> None:
    bench, edge = Bench(short_service()).up(), Edge()
    for _ in range(edges.LEASES_PER_EDGE_MAX):
        bench.take()
        bench.receive(edge.give_back(bench.lease(edge).lease_id), edge.address)
    assert bench.refusal(edge) == "too-many"
    assert bench.state.edge_leases == {}
    bench.lease(Edge("other"))
    bench.give(bench.mesh.restrict("suspend", SCOPE))
    assert last_ack(bench).open_edge_leases == 1, "settled all the same"
    bench.give(bench.mesh.restrict("resume", SCOPE))
    bench.advance(5_006)
    assert bench.state.edge_returned == {}, "nothing is kept beyond the end"
    bench.renew()
    bench.lease(edge)


def test_a_returned_lease_whose_end_was_put_off_counts_until_then() -> None:
    bench, edge = Bench(short_service()).up(), Edge()
    grant = bench.lease(edge)
    bench.feed(ClockWentAhead(2_000))
    bench.receive(edge.give_back(grant.lease_id), edge.address)
    bench.advance(5_006)
    assert edges.leases_of(bench.state, edge.address) == 1
    bench.advance(2_000)
    assert edges.leases_of(bench.state, edge.address) == 0
