"""Governance leases: from when they count, what renews them, and answers that must change nothing."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from keymesh.control.entry import Leaf
from keymesh.core import leases
from keymesh.core.events import DropKeys
from keymesh.core.may import Grantor
from keymesh.core.state import NO_LEAF, Lease
from keymesh.model.ids import ZERO_DIGEST, Digest
from keymesh.model.machine import Address, ClockWentBack, Received, Tick, Wake
from keymesh.model.states import Mode, Operation
from keymesh.model.time import Instant
from keymesh.sim.suite import FakeSuite
from tests.unit.control.world import Mesh
from tests.unit.core.bench import TENANT, TTL_MS, Bench, furnished


def leaf(epoch: int, seq: int, name: str = "a") -> Leaf:
    return Leaf(epoch=epoch, seq=seq, entry_hash=Digest(name * 64), state=ZERO_DIGEST)


# --- the small rules -------------------------------------------------------------------------------------------------


def test_start_is_the_earlier_of_heartbeat_and_poll() -> None:
    assert leases.lease_start(Instant(100), 0) == 100
    assert leases.lease_start(Instant(100), 30) == 70
    assert leases.lease_start(Instant(100), -30) == 100  # a poll from the future buys nothing


def test_end_takes_the_shorter_ttl_within_the_limit() -> None:
    assert leases.lease_end(Instant(0), 60, None) == 60
    assert leases.lease_end(Instant(0), 60, 20) == 20
    assert leases.lease_end(Instant(0), 60, 90) == 60
    assert leases.lease_end(Instant(0), 2**60, None) == 24 * 3_600_000


def test_has_applied_compares_order_and_at_the_same_place_the_entry() -> None:
    assert leases.has_applied(leaf(1, 5), leaf(1, 5))
    assert leases.has_applied(leaf(1, 6, "b"), leaf(1, 5))
    assert leases.has_applied(leaf(2, 1), leaf(1, 5))
    assert not leases.has_applied(leaf(1, 4), leaf(1, 5))
    assert not leases.has_applied(leaf(1, 9), leaf(2, 1))
    assert not leases.has_applied(leaf(1, 5, "b"), leaf(1, 5))
    assert not leases.has_applied(NO_LEAF, leaf(1, 1))


def test_a_renewal_never_shortens() -> None:
    old = Lease(Instant(100), Grantor.REGISTRY)
    assert leases.renewed(old, Instant(90), Grantor.REGISTRY) is old
    assert leases.renewed(old, Instant(101), Grantor.REGISTRY).until == 101


# --- from when it counts ---------------------------------------------------------------------------------------------


def test_a_lease_counts_from_the_sending() -> None:
    bench = Bench()
    bench.give_all()
    heartbeat, sent_at = bench.beat(), bench.now
    bench.advance(900)
    bench.receive(bench.answer(heartbeat))
    lease = bench.holding().lease
    assert lease is not None
    assert lease.until == sent_at + TTL_MS


def test_a_lease_counts_from_an_older_poll() -> None:
    bench = Bench()
    bench.give_all()
    bench.renew(poll_age_ms=7_000)
    lease = bench.holding().lease
    assert lease is not None
    assert lease.until == bench.now + TTL_MS - 7_000


def test_an_answer_that_took_longer_than_the_ttl_grants_nothing() -> None:
    bench = Bench()
    bench.give_all()
    heartbeat = bench.beat()
    bench.wakes.clear()  # the process is stopped
    bench.now = Instant(bench.now + TTL_MS)
    bench.receive(bench.answer(heartbeat))
    assert bench.holding().lease is None
    assert bench.mode() is Mode.CLOSED


def test_silence_ends_in_autonomous_then_closed_without_keys() -> None:
    bench = Bench().up()
    bench.advance(3_000)
    assert bench.mode() is Mode.SYNCED
    bench.advance(1)
    assert bench.mode() is Mode.AUTONOMOUS
    assert bench.may().allowed
    assert not bench.may(Operation.GRANT).allowed
    bench.advance(TTL_MS - 3_002)
    assert bench.may().allowed
    bench.advance(1)
    assert bench.mode() is Mode.CLOSED
    assert not bench.may().allowed
    assert DropKeys(TENANT) in bench.out
    assert bench.memory == set()


def test_a_late_tick_does_not_keep_a_dead_lease_alive() -> None:
    bench = Bench().up()
    bench.now = Instant(bench.now + TTL_MS)
    assert not bench.may().allowed


def test_a_tenant_may_shorten_its_ttl() -> None:
    mesh = Mesh()
    args = mesh.tenant_args()
    args["policy"]["ttl_ms"] = 5_000
    mesh.do(TENANT, "tenant.create", args)
    bench = Bench(mesh)
    bench.give_all()
    bench.renew()
    held, over_mesh = bench.holding().lease, bench.state.mesh.lease
    assert held is not None
    assert over_mesh is not None
    assert held.until == bench.now + 5_000
    assert over_mesh.until == bench.now + TTL_MS


def test_an_answer_grants_no_more_than_the_mesh_settings() -> None:
    """Certificates reckon with the settings' ttl: a longer word of the Registry's key alone would outlive their T."""
    bench = Bench()
    bench.give_all()
    bench.renew(ttl_ms=24 * 3_600_000)
    held, over_mesh = bench.holding().lease, bench.state.mesh.lease
    assert held is not None
    assert over_mesh is not None
    assert held.until == over_mesh.until == bench.now + TTL_MS
    assert leases.granted_ttl(60, None) == 0


# --- what renews -----------------------------------------------------------------------------------------------------


def end_of(bench: Bench) -> Instant:
    lease = bench.holding().lease
    assert lease is not None
    return lease.until


def test_no_renewal_without_apply_of_the_namespace_but_credit_when_it_comes() -> None:
    bench = Bench().up()
    before = end_of(bench)
    newer = bench.mesh.service(name="mail")
    bench.advance(1_000)
    sent_at = bench.now
    bench.renew()
    assert end_of(bench) == before
    bench.advance(500)
    bench.give(newer)
    assert end_of(bench) == sent_at + TTL_MS


def test_no_renewal_without_apply_of_mesh_but_credit_when_it_comes() -> None:
    bench = Bench().up()
    before = end_of(bench)
    newer = bench.mesh.do("mesh", "region.rotate-ivk", {"region": "us-west", "generation": 2})
    bench.advance(1_000)
    sent_at = bench.now
    bench.renew()
    assert end_of(bench) == before
    bench.give(newer)
    assert end_of(bench) == sent_at + TTL_MS


def test_only_the_newest_offer_is_credited() -> None:
    bench = Bench().up()
    before = end_of(bench)
    first, newest = bench.mesh.service(name="mail"), bench.mesh.service(name="chat")
    bench.advance(1_000)
    bench.renew(leaves={**bench.leaves(), TENANT: first.leaf})
    bench.advance(1_000)
    sent_at = bench.now
    bench.renew()
    bench.give(first)  # enough for the first offer, which no longer counts
    assert end_of(bench) == before
    bench.give(newest)
    assert end_of(bench) == sent_at + TTL_MS


def test_an_entry_of_the_same_place_that_is_another_renews_nothing() -> None:
    bench = Bench().up()
    before = end_of(bench)
    other = msgspec.structs.replace(bench.leaves()[TENANT], entry_hash=Digest("f" * 64))
    bench.advance(1_000)
    bench.renew(leaves={**bench.leaves(), TENANT: other})
    assert end_of(bench) == before


def test_a_namespace_that_is_not_offered_is_not_renewed() -> None:
    """Residency withdrawn: it closes when its lease is over."""
    bench = Bench().up()
    before = end_of(bench)
    bench.advance(1_000)
    bench.renew(leaves={"mesh": bench.leaves()["mesh"]})
    assert end_of(bench) == before


def test_without_the_mesh_leaf_nothing_is_renewed() -> None:
    bench = Bench().up()
    before = end_of(bench)
    bench.advance(1_000)
    bench.renew(leaves={TENANT: bench.leaves()[TENANT]})
    assert end_of(bench) == before


def test_equal_roots_need_no_leaves() -> None:
    bench = Bench().up()
    bench.advance(1_000)
    sent_at = bench.now
    bench.renew(with_leaves=False)
    assert end_of(bench) == sent_at + TTL_MS


def test_equal_roots_vouch_for_what_was_applied_when_the_heartbeat_was_sent() -> None:
    bench = Bench().up()
    before = end_of(bench)
    bench.advance(1_000)
    bench.mesh.service(name="mail")
    bench.renew(with_leaves=False)  # another root than ours, and no leaves
    assert end_of(bench) == before


def test_leaves_count_only_under_the_signed_root() -> None:
    bench = Bench().up()
    before = end_of(bench)
    bench.advance(1_000)
    bench.mesh.restrict("suspend", f"tenant:{TENANT}")
    message = bench.answer(bench.beat())
    assert message.leaves is not None
    forged = {**message.leaves, TENANT: bench.holding().leaf}
    bench.receive(msgspec.structs.replace(message, leaves=forged))
    assert end_of(bench) == before


# --- answers that must change nothing --------------------------------------------------------------------------------


def refused(bench: Bench, message: Any, sender: Any = None) -> bool:
    """Whether ``message`` renews nothing."""
    before, fresh = end_of(bench), bench.state.answered_sent_at
    bench.receive(message) if sender is None else bench.receive(message, sender)
    return end_of(bench) == before and bench.state.answered_sent_at == fresh


@pytest.mark.parametrize(
    "changed",
    [{"mesh": "other"}, {"epoch": 2}, {"epoch": 0}, {"region": "us-west"}, {"node": "n2"}, {"nonce": "guess"}],
)
def test_foreign_answers(changed: dict[str, Any]) -> None:
    bench = Bench().up()
    bench.advance(100)
    heartbeat = bench.beat()
    assert refused(bench, bench.answer(heartbeat, **changed))
    assert not refused(bench, bench.answer(heartbeat))  # and consumed nothing


def test_an_answer_of_another_key_or_sender() -> None:
    bench = Bench().up()
    bench.advance(100)
    heartbeat = bench.beat()
    assert refused(bench, bench.answer(heartbeat, by=FakeSuite("thief")))
    assert refused(bench, bench.answer(heartbeat, by=bench.mesh.nodes["us-west"]))
    assert refused(bench, bench.answer(heartbeat), Address("node:us-west/n1"))
    assert not refused(bench, bench.answer(heartbeat))


def test_an_answer_is_accepted_once() -> None:
    bench = Bench().up()
    bench.advance(100)
    message = bench.answer(bench.beat())
    assert not refused(bench, message)
    bench.advance(100)
    assert refused(bench, message)


def test_an_old_answer_is_not_credited_to_a_new_heartbeat() -> None:
    bench = Bench().up()
    bench.advance(100)
    old = bench.answer(bench.beat())
    bench.advance(100)
    new = bench.beat()
    assert refused(bench, old)
    assert not refused(bench, bench.answer(new))


def test_an_answer_to_an_earlier_life() -> None:
    bench = Bench().up()
    old = bench.answer(bench.beat())
    bench.reboot()
    bench.give_all()
    bench.receive(old)
    assert bench.holding().lease is None
    assert bench.mode() is Mode.CLOSED


def test_leases_do_not_survive_a_crash() -> None:
    bench = Bench().up()
    bench.reboot()
    assert bench.holding().leaf == bench.leaves()[TENANT]
    assert bench.mode() is Mode.CLOSED
    assert not [name for name in bench.disk if "lease" in name]


# --- clock -----------------------------------------------------------------------------------------------------------


def test_a_clock_that_went_back_voids_everything() -> None:
    bench = Bench().up()
    on_its_way = bench.answer(bench.beat())
    bench.take()
    bench.feed(ClockWentBack())
    assert DropKeys(None) in bench.out
    assert bench.memory == set()
    assert bench.mode() is Mode.CLOSED
    bench.receive(on_its_way)
    assert bench.mode() is Mode.CLOSED
    bench.give(bench.mesh.states[TENANT], force=True)  # applying credits no voided offer
    assert bench.mode() is Mode.CLOSED
    bench.receive(bench.answer(bench.heartbeat()))
    assert bench.mode() is Mode.SYNCED


# --- heartbeats ------------------------------------------------------------------------------------------------------


def test_heartbeats_come_by_themselves_within_the_interval_and_never_repeat_a_nonce() -> None:
    bench = Bench().up()
    seen, last = set(), bench.now
    for _ in range(20):
        bench.advance(1_000)
        heartbeat = bench.heartbeat()
        assert heartbeat.nonce not in seen
        seen.add(heartbeat.nonce)
        assert bench.now - last <= 1_000
        last = bench.now
    counters = [m.heartbeat.message.counter for m in bench.sent_heartbeats()]
    assert counters == sorted(set(counters))


def test_leaves_come_along_while_the_roots_differ() -> None:
    bench = Bench()
    bench.give_all()
    assert bench.beat().leaves == bench.leaves()
    bench.renew()
    assert bench.beat().leaves is None


def test_spurious_ticks_only_ask_for_the_same_wake_again() -> None:
    bench = Bench().up()
    for _ in range(5):
        bench.feed(Tick())
    assert set(bench.take()) == {Wake(bench.wakes[-1])}


def test_before_boot_nothing_has_an_effect() -> None:
    from keymesh.core import machine

    bench = Bench(furnished())
    fresh = machine.new_node(bench.state.config)
    assert machine.step(fresh, bench.now, Tick()) == []
    assert machine.step(fresh, bench.now, Received(Address("registry"), "rubbish")) == []
    bench.receive("rubbish")
