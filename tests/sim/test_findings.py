"""What the simulator found, each as small as it gets."""

from __future__ import annotations

from tests.unit.core.bench import Bench, Edge
from tests.unit.registry.harness import with_tenant

from keymesh.core import edges
from keymesh.core.events import Reconnected
from keymesh.core.machine import new_node
from keymesh.core.machine import step as core_step
from keymesh.core.records import EdgeLeaseRecord
from keymesh.core.state import NodeConfig
from keymesh.model.machine import (
    REGISTRY,
    Booted,
    BootMark,
    ClockWentAhead,
    Persist,
    Persisted,
    PersistFailed,
    Send,
    Tick,
    Wake,
)
from keymesh.model.scope import parse_scope
from keymesh.model.time import Instant
from keymesh.orbital.edge_messages import LeaseGrant
from keymesh.orbital.messages import Hello
from keymesh.registry import certificate
from keymesh.registry.records import EvidenceRecord, KillRecord
from keymesh.sim.suite import FakeSuite

NODE = "node:eu-west/n1"


def _node() -> NodeConfig:
    suite = FakeSuite("node")
    return NodeConfig(
        mesh="m", region="eu-west", node="n1", suite=suite, root_keys=FakeSuite("root").keys, root_threshold=1
    )


def _booted() -> Booted:
    return Booted({}, BootMark("k", 0), b"\1" * 32)


def test_a_node_greets_a_registry_that_may_be_a_new_one() -> None:
    """It knows nobody, and a restriction that it appended as it died would wait for the next heartbeat."""
    node = new_node(_node())
    core_step(node, Instant(0), _booted())
    node.greeted = True
    nonce = node.outstanding
    effects = core_step(node, Instant(5_000), Reconnected())
    assert [(e.to, e.message.node) for e in effects if type(e) is Send] == [(REGISTRY, "n1")]
    assert node.outstanding is nonce, "the heartbeat that is out still counts"
    later = core_step(node, Instant(6_000), Tick())
    assert [e.to for e in later if type(e) is Send and type(e.message) is Hello] == [REGISTRY], "it may have been lost"


def test_an_edge_lease_outlives_a_jump_of_its_cores_clock() -> None:
    """The Core's wall clock gains 13 s; the Edge's has not: E must not shrink by it."""
    node = new_node(_node())
    core_step(node, Instant(0), _booted())
    node.edge_leases["l"] = EdgeLeaseRecord(
        lease_id="l", tenant="t", service="s", edge="e", signing_key="00" * 32, versions=(1,), ttl_ms=20_000,
        end=Instant(20_020), boot_id="k", boottime_end_ms=20_020,
    )  # fmt: skip
    core_step(node, Instant(13_000), ClockWentAhead(13_000))
    open_leases = edges.open_leases(node, parse_scope("tenant:t"), Instant(13_000))
    assert edges.leases_end_in_ms(open_leases, Instant(13_000)) == 20_020
    core_step(node, Instant(21_000), PersistFailed("anything"))
    assert "l" in node.edge_leases


def test_an_edges_slower_clock_is_allowed_for_over_its_whole_lease() -> None:
    assert edges.held_for(60_000) == 60_060


def _record() -> KillRecord:
    return KillRecord(
        command_id="c", correlation_id="k", namespace="t", seq=2, entry_hash="0" * 64, scope="tenant:t",
        action="suspend", committed_at=1_000, ttl_ms=60_000, holders=(NODE,),
    )  # fmt: skip


def _word(received_at: int, ends_in: int, leases: int) -> dict[str, EvidenceRecord]:
    word = EvidenceRecord(
        command_id="c", namespace="t", node=NODE, ack=None, received_at=received_at,
        edge_leases_end_in_ms=ends_in, open_edge_leases=leases,
    )  # fmt: skip
    return {NODE: word}


def test_a_certificate_waits_out_a_jump_of_the_registrys_clock() -> None:
    due = certificate.due_at(_record(), {}, booted_at=0, hold_ms=0)
    assert due == 1_000 + 60_060 + 2_000
    assert certificate.due_at(_record(), {}, booted_at=0, hold_ms=7_000) == due + 7_000


def test_what_an_earlier_life_waited_for_is_waited_for_anew() -> None:
    """Instants of an earlier life are wall time, which may have been set since."""
    assert certificate.due_at(_record(), {}, booted_at=50_000, hold_ms=0) == 50_000 + 62_060
    assert certificate.due_at(_record(), _word(2_000, 9_000, 1), booted_at=50_000, hold_ms=0) == 50_000 + 9_009


def test_a_word_that_nothing_is_open_needs_no_waiting_in_any_life() -> None:
    assert certificate.due_at(_record(), _word(2_000, 0, 0), booted_at=50_000, hold_ms=0) == 2_000


def test_a_lease_granted_late_ends_with_the_nodes_own() -> None:
    """The wall clock gained most of the node's lease while the record was written."""
    bench, edge = Bench().up(), Edge()
    bench.crash_at_persist = True
    bench.receive(edge.request(), edge.address)
    (record,) = bench.effects(Persist)[-1:]
    bench.crash_at_persist = False
    lease = bench.holding().lease
    assert lease is not None
    bench.now = Instant(lease.until - 700)
    bench.take()
    bench.feed(Persisted(record.token))
    (grant,) = bench.sent(LeaseGrant)
    assert 0 < grant.ttl_ms <= 700


def test_a_tick_is_asked_for_anew_when_the_clock_went_ahead() -> None:
    """The timer behind it runs in true time: what a Core would send again in a second waited for the whole jump."""
    bench = Bench().up()
    before = bench.state.woken_at
    (wake,) = core_step(bench.state, Instant(bench.now + 30_000), ClockWentAhead(30_000))
    assert type(wake) is Wake
    assert wake.at == max(before, bench.now + 30_001)
    world = with_tenant()
    world.ok(world.label("acme", 1))
    world.wakes.clear()
    world.now = Instant(world.now + 30_000)
    world.feed(ClockWentAhead(30_000))
    assert world.wakes, "the Registry asks as well"
