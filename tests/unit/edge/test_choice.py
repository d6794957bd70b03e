"""Which Core an Edge asks: by latency and readiness, with little patience for silence and much against moving."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from tests.unit.edge.world import (
    CORE,
    OTHER_CORE,
    PUBLIC_KEY,
    SUITE,
    Bench,
    config,
    counting_entropy,
    of,
    revocation,
    sent,
)

from keymesh.edge import choice
from keymesh.edge.choice import Moves, Seen
from keymesh.edge.client_shell import EdgeShell, addresses
from keymesh.edge.machine import new_edge
from keymesh.edge.snapshot import Closing, Measured, Publish, SendFailed
from keymesh.model.errors import Unavailable
from keymesh.model.machine import Address, Send, Tick
from keymesh.model.time import Instant
from keymesh.orbital.edge_messages import (
    EdgeAck,
    EdgeAckMessage,
    LeaseReady,
    LeaseRefused,
    LeaseRequest,
    LeaseReturned,
    LeaseReturnedMessage,
)

THIRD = Address("node:us/n1")
KEYS = {SUITE.key_id: PUBLIC_KEY}
CORES = (CORE, OTHER_CORE, THIRD)
NOW = Instant(100_000)


def at(rtt_ms: float, in_a_row: int = choice.SETTLED) -> Seen:
    return Seen(rtt_ms=rtt_ms, in_a_row=in_a_row)


def asked(bench: Bench) -> Address:
    return [e.to for e in bench.log if isinstance(e, Send) and isinstance(e.message, LeaseRequest)][-1]


def three() -> Bench:
    return Bench(state=new_edge(config(cores=CORES)))


# --- rules -----------------------------------------------------------------------------------------------------------


def test_a_measurement_is_smoothed() -> None:
    seen = Seen()
    choice.answered(seen, 40)
    choice.answered(seen, 80)
    assert seen.rtt_ms == 50


def test_after_a_failure_the_nearest_good_one_then_the_next_in_line_then_the_one_that_rests_least() -> None:
    assert choice.after_failure(CORES, {OTHER_CORE: at(80), THIRD: at(20)}, 0, NOW) == 2
    assert choice.after_failure(CORES, {}, 0, NOW) == 1
    resting = {OTHER_CORE: Seen(rests_until=Instant(NOW + 9)), THIRD: Seen(rests_until=Instant(NOW + 5))}
    assert choice.after_failure(CORES, resting, 0, NOW) == 2
    assert choice.after_failure((CORE,), {}, 0, NOW) == 0


def test_only_a_core_that_answered_several_times_and_is_nearer_by_a_good_part_is_worth_a_move() -> None:
    def found(candidate: Seen, current: Seen | None) -> int | None:
        seen = {OTHER_CORE: candidate} | ({} if current is None else {CORE: current})
        return choice.nearer(CORES, seen, 0, Moves(), NOW)

    assert found(at(20), at(60)) == 1
    assert found(at(20, in_a_row=choice.SETTLED - 1), at(60)) is None
    assert found(at(50), at(60)) is None
    assert found(at(1), at(4)) is None, "noise"
    assert found(at(20), None) is None
    resting = Seen(rtt_ms=20, in_a_row=choice.SETTLED, rests_until=Instant(NOW + 1))
    assert found(resting, at(60)) is None


def test_the_nearest_of_several_is_the_one() -> None:
    assert choice.nearer(CORES, {CORE: at(90), OTHER_CORE: at(50), THIRD: at(10)}, 0, Moves(), NOW) == 2


def test_each_move_makes_the_next_one_later_and_a_long_quiet_forgets() -> None:
    moves = Moves()
    now, waits = NOW, []
    for _ in range(5):
        choice.moved(moves, now)
        waits.append(choice.dwell_ms(moves.count))
        now = Instant(now + waits[-1])
    assert waits == [10_000, 20_000, 40_000, 80_000, 160_000]
    choice.moved(moves, Instant(now + choice.DWELL_MAX_MS))
    assert moves.count == 1


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 400), st.integers(1, 3_000)), max_size=400))
def test_however_the_measurements_swing_there_is_no_storm(swings: list[tuple[int, int, int]]) -> None:
    """At most six moves in the first ten minutes, whatever is measured."""
    seen: dict[Address, Seen] = {core: Seen() for core in CORES}
    moves, current, now, made = Moves(), 0, NOW, 0
    for core, rtt_ms, pause_ms in swings:
        now = Instant(now + pause_ms)
        if now >= NOW + 600_000:
            break
        choice.answered(seen[CORES[core]], rtt_ms)
        found = choice.nearer(CORES, seen, current, moves, now)
        if found is not None:
            assert found != current
            current, made = found, made + 1
            choice.moved(moves, now)
    assert made <= 7


# --- the machine -----------------------------------------------------------------------------------------------------


def measured(bench: Bench, core: Address, rtt_ms: int | None, times: int = choice.SETTLED) -> None:
    for _ in range(times):
        bench.feed(Measured(core, rtt_ms))


def test_a_lost_request_goes_at_once_to_the_nearest_that_is_known_to_be_there() -> None:
    bench = three()
    measured(bench, OTHER_CORE, 80)
    measured(bench, THIRD, 20)
    bench.feed(SendFailed(bench.request.nonce))
    bench.feed(Tick())
    assert asked(bench) == THIRD


def test_a_core_that_dies_is_left_before_the_lease_ends_and_the_lease_stays() -> None:
    bench = three()
    bench.receive(bench.grant(ttl_ms=60_000), at=10)
    measured(bench, THIRD, 20)
    effects = bench.feed(Measured(CORE, None), at=1_000)
    assert asked(bench) == THIRD
    assert not of(effects, Publish), "what is held stays in use until the next one comes"
    bench.receive(bench.grant(ttl_ms=60_000, lease_id="lease-2"), sender=THIRD)
    assert bench.lease().granted_by == THIRD


def test_a_core_that_dies_is_kept_where_no_other_is_known() -> None:
    bench = three()
    bench.receive(bench.grant(ttl_ms=60_000), at=10)
    before = len(of(bench.log, Send))
    bench.feed(Measured(CORE, None), at=1_000)
    bench.feed(Measured(THIRD, None), at=1_000)
    bench.feed(Measured(Address("node:nobody/n1"), 1), at=1_000)
    assert len(of(bench.log, Send)) == before


def test_a_core_that_cannot_serve_now_is_left_for_one_that_can() -> None:
    bench = three()
    measured(bench, OTHER_CORE, 80)
    bench.receive(LeaseRefused(nonce=bench.request.nonce, code="closed", retry_after_ms=1_000))
    bench.feed(Tick())
    assert asked(bench) == OTHER_CORE


def test_nobody_shops_for_a_core_that_has_not_heard_of_a_restriction() -> None:
    bench = three()
    measured(bench, OTHER_CORE, 80)
    bench.receive(LeaseRefused(nonce=bench.request.nonce, code="restricted", retry_after_ms=500))
    for _ in range(5):
        at_ms = bench.state.next_request_at
        assert at_ms is not None
        bench.feed(Tick(), at=at_ms)
        assert asked(bench) == CORE
        bench.receive(LeaseRefused(nonce=bench.request.nonce, code="restricted", retry_after_ms=500))


def test_a_slow_answer_is_not_waited_for_where_another_is_known_to_be_quick() -> None:
    bench = three()
    bench.receive(bench.grant(ttl_ms=60_000), at=20)
    measured(bench, THIRD, 20)
    due = bench.state.next_request_at
    assert due is not None
    bench.feed(Tick(), at=due)
    assert asked(bench) == CORE
    bench.feed(Tick(), at=due + choice.HEDGE_MIN_MS - 1)
    assert asked(bench) == CORE
    bench.feed(Tick(), at=due + choice.HEDGE_MIN_MS)
    bench.feed(Tick())
    assert asked(bench) == THIRD


def test_it_returns_to_a_near_core_once_that_has_proved_itself() -> None:
    bench = three()
    measured(bench, OTHER_CORE, 60)
    bench.feed(SendFailed(bench.request.nonce))
    bench.feed(Tick())
    bench.receive(bench.grant(ttl_ms=4_000), at=bench.now + 60, sender=OTHER_CORE)
    measured(bench, CORE, 2)
    due = bench.state.next_request_at
    assert due is not None
    bench.feed(Tick(), at=due)
    assert asked(bench) == CORE


def test_a_core_of_another_region_hears_the_name_that_it_knows() -> None:
    """Its acknowledgements and returns settle leases there, and are no other Edge's word."""
    there = Address("edge:us/acme/files/e9")
    bench = Bench(state=new_edge(config(cores=CORES, known_as={THIRD: there})))
    bench.receive(bench.grant(ttl_ms=60_000), at=10)
    for core, name in ((CORE, bench.state.address), (THIRD, there)):
        acks = sent(bench.receive(revocation("lease-9", revocation_id=f"r-{core}"), sender=core), EdgeAckMessage)
        assert [SUITE.unseal(m.ack, EdgeAck, KEYS).edge for m in acks] == [name]
    bench.state.pending = None
    bench.state.granted = {"l-here": (CORE, Instant(60_000)), "l-there": (THIRD, Instant(60_000))}
    words = [SUITE.unseal(m.returned, LeaseReturned, KEYS) for m in sent(bench.feed(Closing()), LeaseReturnedMessage)]
    assert {w.lease_id: w.edge for w in words} == {"l-here": bench.state.address, "l-there": there}


def test_a_core_that_says_it_would_serve_is_asked_whatever_was_measured() -> None:
    bench = three()
    measured(bench, THIRD, 20)
    bench.receive(LeaseRefused(nonce=bench.request.nonce, code="closed", retry_after_ms=24_000))
    bench.feed(Tick())
    assert asked(bench) == THIRD
    bench.receive(LeaseRefused(nonce=bench.request.nonce, code="closed", retry_after_ms=24_000), sender=THIRD)
    bench.feed(Measured(CORE, None), at=bench.now + 1_000)
    bench.receive(LeaseReady(tenant="acme", service="files"), at=bench.now + 5_000)
    assert asked(bench) == CORE


# --- the shell -------------------------------------------------------------------------------------------------------


class TwoCores:
    """``delays``: how long each takes to say that it is ready; None: it is not."""

    def __init__(self, delays: dict[str, float | None]) -> None:
        self.delays = delays
        self.asked: list[str] = []

    async def post(self, core: str, message: Any) -> Any:
        if isinstance(message, LeaseRequest):
            self.asked.append(core)
        raise Unavailable("unreachable", "gone")

    async def ready(self, core: str) -> None:
        delay_s = self.delays[core]
        if delay_s is None:
            raise Unavailable("peer-answer", "not ready")
        await asyncio.sleep(delay_s)

    @asynccontextmanager
    async def stream(self, core: str) -> AsyncIterator[AsyncIterator[Any]]:
        raise Unavailable("unreachable", "no stream")
        yield


async def test_the_shell_measures_each_core_and_says_which_is_not_ready() -> None:
    cores = addresses(["https://a", "https://b", "https://c"])
    transport = TwoCores({"https://a": None, "https://b": 0.05, "https://c": 0.0})
    shell = EdgeShell(config(cores=tuple(cores)), transport, cores=cores, entropy=counting_entropy())
    shell.start()
    try:
        a, b, c = (shell.state.seen.get(core, Seen()) for core in cores)
        async with asyncio.timeout(10):
            while not (a.failures and b.in_a_row >= 2 and c.in_a_row >= 2):
                await asyncio.sleep(0.02)
                a, b, c = (shell.state.seen.get(core, Seen()) for core in cores)
    finally:
        await shell.stop()
    assert b.rtt_ms is not None and c.rtt_ms is not None and c.rtt_ms < 50 <= b.rtt_ms
    assert a.rtt_ms is None
