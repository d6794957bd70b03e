"""L1 leases: a success counts from its sending; a denial closes at once; unreachable runs out; never waived."""

from __future__ import annotations

import pytest

from keymesh.control.messages import HeartbeatMessage, ReprobeL1
from keymesh.core import l1_lease, l1_proof
from keymesh.core.events import DropKeys, L1Outcome, L1Probed, LoadKeys, ProbeL1
from keymesh.model.machine import Address
from keymesh.model.states import Mode
from keymesh.model.time import Instant
from tests.unit.core.bench import TENANT, Bench, Edge

L1_TTL_MS = 60_000  # of the mesh
PROBE_MS = 5_000


def probed(
    bench: Bench, outcome: L1Outcome, *, started_at: int | None = None, every: bool = False, by: str = "b1"
) -> None:
    at = Instant(bench.now if started_at is None else started_at)
    bench.feed(L1Probed(TENANT, by, outcome, at, every))


def test_counts_from_the_sending() -> None:
    assert l1_proof.l1_end(Instant(100), 50) == 150
    bench = Bench().up()
    sent_at = bench.now
    bench.advance(5_000)
    probed(bench, L1Outcome.OK, started_at=sent_at + 1_000)
    assert bench.holding().l1.until == sent_at + 1_000 + L1_TTL_MS
    probed(bench, L1Outcome.OK, started_at=sent_at)  # one that comes late shortens nothing
    assert bench.holding().l1.until == sent_at + 1_000 + L1_TTL_MS


def test_a_load_proves_l1_from_when_it_was_sent() -> None:
    bench = Bench()
    bench.loads = False
    bench.give_all()
    bench.renew()
    load = bench.effects(LoadKeys)[0]
    sent_at = bench.now
    bench.advance(900)
    bench.load(load, started_at=sent_at)
    assert bench.holding().l1.until == sent_at + L1_TTL_MS


def test_probes_come_by_themselves_while_keys_are_loaded() -> None:
    bench = Bench().up()
    bench.advance(PROBE_MS)
    assert bench.effects(ProbeL1) == [ProbeL1(TENANT, "b1", False)]


@pytest.mark.parametrize("seed", range(20))
def test_the_interval_is_spread_and_never_longer(seed: int) -> None:
    assert 4_500 <= l1_lease.probe_interval_ms(5_000, f"s{seed}") <= 5_000


def test_denied_closes_at_once_tells_edges_reports_and_asks_again() -> None:
    bench, edge = Bench().up(), Edge()
    bench.lease(edge)
    bench.take()
    probed(bench, L1Outcome.DENIED)
    assert bench.mode() is Mode.CLOSED
    assert DropKeys(TENANT) in bench.out
    assert bench.memory == set()
    assert len(bench.revocations()) == 1
    assert bench.refusal(edge) == "closed"
    bench.advance(1)
    assert bench.heartbeat().l1_denied == (TENANT,)
    bench.renew()
    assert bench.mode() is Mode.CLOSED  # no lease waives it
    assert bench.effects(LoadKeys) == []
    bench.advance(2_500)
    assert bench.effects(ProbeL1)[-1] == ProbeL1(TENANT, "b1", True)


def test_after_a_denial_only_a_later_success_of_every_replica_opens() -> None:
    bench = Bench().up()
    bench.advance(1_000)
    early = bench.now - 500
    probed(bench, L1Outcome.DENIED)
    probed(bench, L1Outcome.OK, started_at=early, every=True)
    assert bench.mode() is Mode.CLOSED
    probed(bench, L1Outcome.OK, every=False)
    assert bench.mode() is Mode.CLOSED
    probed(bench, L1Outcome.UNREACHABLE, every=True)
    assert bench.mode() is Mode.CLOSED
    probed(bench, L1Outcome.OK, every=True, by="other")
    assert bench.mode() is Mode.CLOSED
    bench.advance(10)
    probed(bench, L1Outcome.OK, every=True)
    assert bench.mode() is Mode.SYNCED
    assert bench.memory
    assert bench.beat().l1_denied == ()


def test_a_load_that_is_denied_closes_and_a_load_begun_before_does_not_open() -> None:
    bench = Bench()
    bench.l1 = "denied"
    bench.give_all()
    bench.renew()
    assert bench.mode() is Mode.CLOSED
    assert bench.holding().l1.denied_at is not None
    bench.advance(1)
    assert bench.heartbeat().l1_denied == (TENANT,)


def test_a_success_on_its_way_during_a_denial_loads_nothing() -> None:
    bench = Bench()
    bench.loads = False
    bench.give_all()
    bench.renew()
    load = bench.effects(LoadKeys)[0]
    probed(bench, L1Outcome.DENIED)
    bench.load(load)
    assert bench.mode() is Mode.CLOSED
    assert bench.memory == set()
    assert bench.holding().loaded == {}


def test_unreachable_closes_when_the_ttl_has_passed_and_heals_by_itself() -> None:
    bench = Bench().up()
    until = bench.holding().l1.until
    assert until is not None
    bench.l1 = "unreachable"
    while bench.now < until - 1:
        bench.advance(min(500, until - 1 - bench.now))
        bench.renew()
        if bench.effects(ProbeL1):
            bench.take()
            probed(bench, L1Outcome.UNREACHABLE)
    assert bench.may().allowed
    bench.advance(1)
    assert not bench.may().allowed
    assert bench.mode() is Mode.CLOSED
    assert bench.memory == set()
    bench.l1 = "ok"
    for _ in range(40):
        bench.advance(1_000)
        bench.renew()
    assert bench.mode() is Mode.SYNCED
    assert bench.memory


def test_unreachable_is_asked_again_each_interval() -> None:
    bench = Bench().up()
    bench.advance(PROBE_MS)
    probed(bench, L1Outcome.UNREACHABLE)
    bench.take()
    bench.advance(1_000)
    assert len(bench.effects(ProbeL1)) == 1


# --- another node was denied -----------------------------------------------------------------------------------------


def reprobe(bench: Bench) -> None:
    bench.receive(ReprobeL1(namespace=TENANT))


def test_every_replica_must_succeed_within_ten_seconds() -> None:
    bench = Bench().up()
    reprobe(bench)
    assert bench.effects(ProbeL1) == [ProbeL1(TENANT, "b1", True)]
    assert bench.may().allowed
    probed(bench, L1Outcome.OK, every=True)
    bench.advance(11_000)
    assert bench.holding().closed == {}


@pytest.mark.parametrize("outcome", [None, L1Outcome.UNREACHABLE, L1Outcome.DENIED])
def test_else_it_closes(outcome: L1Outcome | None) -> None:
    bench = Bench().up()
    reprobe(bench)
    if outcome is not None:
        probed(bench, outcome, every=True)
    probed(bench, L1Outcome.OK, every=False)  # a routine probe proves nothing here
    bench.advance(10_000)
    bench.renew()
    assert bench.mode() is Mode.CLOSED
    bench.advance(10)
    probed(bench, L1Outcome.OK, every=True)
    bench.renew()
    assert bench.mode() is Mode.SYNCED


def test_only_the_registry_may_ask_and_only_for_what_is_held() -> None:
    bench = Bench().up()
    bench.receive(ReprobeL1(namespace=TENANT), Address("node:us-west/n1"))
    bench.receive(ReprobeL1(namespace="globex"))
    assert bench.effects(ProbeL1) == []
    bench.feed(L1Probed("globex", "b1", L1Outcome.OK, bench.now, True))
    assert bench.sent(HeartbeatMessage) == []


def test_asking_twice_does_not_put_the_end_off() -> None:
    bench = Bench().up()
    reprobe(bench)
    bench.advance(9_000)
    reprobe(bench)
    bench.advance(1_000)
    bench.renew()
    assert bench.mode() is Mode.CLOSED
