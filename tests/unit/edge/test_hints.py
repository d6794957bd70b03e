"""A refused Edge asks ever more rarely, and at once when its Core says that it may; no Core makes it spin."""

from __future__ import annotations

import pytest
from tests.unit.edge.world import CORE, OTHER_CORE, Bench, of, revocation, sent

from keymesh.edge import rules
from keymesh.edge.snapshot import Connected, Publish, SendFailed
from keymesh.model.machine import Address, Send, Tick
from keymesh.orbital.edge_messages import ANNOUNCED, LeaseReady, LeaseRefused, LeaseRequest

READY = LeaseReady(tenant="acme", service="files")
HOUR = 3_600_000


def refuse(bench: Bench, code: str = "restricted", *, at: int | None = None) -> None:
    asked = [e.to for e in bench.log if isinstance(e, Send) and isinstance(e.message, LeaseRequest)][-1]
    bench.receive(LeaseRefused(nonce=bench.request.nonce, code=code, retry_after_ms=1_000), sender=asked, at=at)


def due(bench: Bench) -> int:
    assert bench.state.next_request_at is not None
    return bench.state.next_request_at


def asks(bench: Bench, message: object = READY, *, at: int | None = None, sender: Address = CORE) -> int:
    return len(sent(bench.receive(message, at=at, sender=sender), LeaseRequest))


def refused_for_long(code: str = "restricted") -> Bench:
    bench = Bench()
    for _ in range(9):
        refuse(bench, code, at=bench.now + 10)
        bench.feed(Tick(), at=due(bench))
    refuse(bench, code, at=bench.now + 10)
    return bench


# --- waiting -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", sorted(ANNOUNCED))
def test_refusals_double_up_to_half_a_minute(code: str) -> None:
    bench = Bench()
    waits = []
    for _ in range(10):
        refuse(bench, code)
        waits.append(due(bench) - bench.now)
        bench.feed(Tick(), at=due(bench))
    for n, wait in enumerate(waits):
        least = min(1_000 << n, rules.RETRY_MAX_MS)
        assert least <= wait <= least * 5 // 4
    assert max(waits) <= 30_000


@pytest.mark.parametrize("code", ["unknown", "too-many", "retry"])
def test_what_nobody_announces_is_asked_for_every_few_seconds(code: str) -> None:
    bench = refused_for_long(code)
    assert due(bench) - bench.now <= 5_000


def test_a_lost_hint_costs_no_more_than_the_longest_wait() -> None:
    bench = refused_for_long()
    at = due(bench)
    assert at <= bench.now + 30_000
    assert sent(bench.feed(Tick(), at=at), LeaseRequest)


# --- hints -------------------------------------------------------------------------------------------------------


def test_a_hint_asks_at_once_and_a_repeated_one_not_again() -> None:
    bench = refused_for_long()
    bench.now += 5_000
    assert asks(bench) == 1
    assert asks(bench) == 0, "in flight"
    bench.receive(bench.grant())
    assert bench.lease().lease_id == "lease-1"
    assert asks(bench) == 0, "held"
    assert not sent(bench.feed(Tick(), at=bench.now + 1_000), LeaseRequest)


def test_a_hint_while_a_request_is_in_flight_is_not_lost() -> None:
    bench = refused_for_long()
    bench.feed(Tick(), at=due(bench))
    assert asks(bench) == 0
    refuse(bench, at=bench.now + 300)
    assert due(bench) == bench.now, "right after the refusal, which may be older than the hint"
    assert sent(bench.feed(Tick()), LeaseRequest)
    refuse(bench)
    assert due(bench) >= bench.now + 1_000, "a hint is good for one question"


@pytest.mark.parametrize("lost", ["failed", "silent"])
def test_a_hint_survives_a_request_that_is_lost(lost: str) -> None:
    bench = refused_for_long()
    bench.feed(Tick(), at=due(bench))
    asks(bench)
    if lost == "failed":
        bench.feed(SendFailed(bench.request.nonce), at=bench.now + 300)
    else:
        bench.feed(Tick(), at=bench.now + 5_000)
    bench.feed(Tick())
    asked = [e.to for e in bench.log if isinstance(e, Send) and isinstance(e.message, LeaseRequest)][-1]
    assert bench.state.pending is not None
    assert asked == CORE, "the one that gave the hint"


def test_the_core_that_gave_the_hint_is_asked() -> None:
    bench = refused_for_long()
    effects = bench.receive(READY, at=bench.now + 5_000, sender=OTHER_CORE)
    assert [e.to for e in of(effects, Send)] == [OTHER_CORE]


def test_a_hint_helps_a_lease_that_was_not_renewed() -> None:
    bench = Bench()
    bench.receive(bench.grant(ttl_ms=60_000))
    bench.feed(Tick(), at=due(bench))
    refuse(bench, "closed")
    assert bench.state.lease is not None
    assert asks(bench, at=bench.now + 500) == 1


@pytest.mark.parametrize(
    ("sender", "message"),
    [
        (Address("node:us/n1"), READY),
        (CORE, LeaseReady(tenant="other", service="files")),
        (CORE, LeaseReady(tenant="acme", service="other")),
    ],
)
def test_hints_of_strangers_or_for_strangers_do_nothing(sender: Address, message: LeaseReady) -> None:
    bench = refused_for_long()
    at = due(bench)
    assert asks(bench, message, at=bench.now + 5_000, sender=sender) == 0
    assert due(bench) == at
    assert bench.state.hint is None


def test_no_core_makes_an_edge_spin() -> None:
    """It gives hints all the time, and refuses: in an hour hardly more is asked than without."""
    bench = refused_for_long()
    before = len(sent(bench.log, LeaseRequest))
    end = bench.now + HOUR
    for now in range(bench.now, end, 50):
        bench.receive(READY, at=now)
        bench.feed(Tick(), at=now)
        if bench.state.pending is not None:
            bench.receive(READY)
            refuse(bench)
    assert len(sent(bench.log, LeaseRequest)) - before <= 3_600 // 20


def test_a_grant_makes_hints_count_again() -> None:
    bench = refused_for_long()
    for _ in range(20):
        bench.receive(READY, at=bench.now + 100)
        if bench.state.pending is not None:
            refuse(bench)
    while bench.state.pending is None:
        bench.feed(Tick(), at=due(bench))
    bench.receive(bench.grant())
    assert bench.state.hints == 0
    bench.receive(revocation("lease-1"))
    refuse(bench, at=bench.now + 300)
    assert asks(bench) == 1


@pytest.mark.parametrize("core", [CORE, OTHER_CORE])
def test_a_stream_that_opens_asks_its_core_whatever_was_refused_before(core: Address) -> None:
    bench = refused_for_long()
    effects = bench.feed(Connected(core), at=bench.now + 500)
    assert [e.to for e in of(effects, Send) if isinstance(e.message, LeaseRequest)] == [core]
    assert not of(effects, Publish)


def test_a_stream_that_opens_right_after_a_refusal_waits_a_moment() -> None:
    bench = refused_for_long()
    assert not sent(bench.feed(Connected(CORE)), LeaseRequest)
    assert due(bench) <= bench.now + rules.HINT_GAP_MS


@pytest.mark.parametrize("lost", [False, True])
def test_a_stream_that_opens_and_breaks_makes_no_edge_spin(lost: bool) -> None:
    """In an hour hardly more is asked than without; whether the requests are refused or lost."""
    bench = refused_for_long()
    before = len(sent(bench.log, LeaseRequest))
    end = bench.now + HOUR
    for now in range(bench.now, end, 50):
        bench.feed(Connected(CORE), at=now)
        bench.feed(Tick(), at=now)
        if bench.state.pending is not None and lost:
            bench.feed(SendFailed(bench.request.nonce))
        elif bench.state.pending is not None:
            refuse(bench)
    assert len(sent(bench.log, LeaseRequest)) - before <= 3_600 // (5 if lost else 20)


def test_after_a_quiet_time_a_stream_that_opens_asks_at_once_again() -> None:
    bench = refused_for_long()
    for now in range(bench.now, bench.now + 60_000, 50):
        bench.feed(Connected(CORE), at=now)
        if bench.state.pending is not None:
            refuse(bench)
    assert bench.state.hints > 5
    quiet_until = bench.now + rules.HINT_QUIET_MS
    while due(bench) < quiet_until:
        bench.feed(Tick(), at=due(bench))
        refuse(bench)
    assert sent(bench.feed(Connected(CORE), at=max(quiet_until, bench.now + 300)), LeaseRequest)
