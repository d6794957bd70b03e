"""A node whose clock drifts from the Registry's takes no lease; one that keeps time is never accused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keymesh.core.clock_watch import ASSUMED_PPM, CLOCKS_MAX, KEPT_MS, SPACING_MS, WATCHED_MS, ClockWatch, Reading
from keymesh.core.explain import explain
from keymesh.model.machine import ClockWentAhead, ClockWentBack
from keymesh.model.states import Mode, Operation
from keymesh.model.time import Instant
from tests.unit.core.bench import Bench

TENANT = "acme"
START = 1_700_000_000_000


def reading(true_ms: int, *, ppm: int = 0, there_ms: int = 20, back_ms: int = 30, theirs_ppm: int = 0) -> Reading:
    """Sent at true time ``true_ms`` by a node whose clock is off by ``ppm``."""

    def ours(t: int) -> Instant:
        return Instant(START + t + t * ppm // 1_000_000)

    at = true_ms + there_ms
    return Reading(ours(true_ms), ours(at + back_ms), at + at * theirs_ppm // 1_000_000)


@given(
    ppm=st.integers(-499, 499),
    theirs=st.integers(-499, 499),
    steps=st.lists(st.tuples(st.integers(1, 90_000), st.integers(0, 5_000), st.integers(0, 60_000)), max_size=60),
)
def test_whoever_keeps_within_the_assumption_is_never_accused(
    ppm: int, theirs: int, steps: list[tuple[int, int, int]]
) -> None:
    watch, t = ClockWatch(), 0
    for pause, there, back in steps:
        t += pause + there + back
        new = reading(t, ppm=ppm, there_ms=there, back_ms=back, theirs_ppm=theirs)
        assert watch.keeps("r", new)
        t += there + back


@pytest.mark.parametrize("ppm", [50_000, -50_000, 21_000, -21_000])
def test_two_in_a_hundred_are_noticed_at_once(ppm: int) -> None:
    watch = ClockWatch()
    kept = [watch.keeps("r", reading(t, ppm=ppm)) for t in range(0, 130_000, 10_000)]
    assert kept[0] and not kept[-1]
    assert abs(watch.ppm - ppm) < 2_500
    assert not any(kept[kept.index(False) :])


@pytest.mark.parametrize("ppm", [1_500, -1_500])
def test_one_in_a_thousand_is_noticed_after_five_minutes(ppm: int) -> None:
    watch = ClockWatch()
    kept = [watch.keeps("r", reading(t, ppm=ppm)) for t in range(0, KEPT_MS, 10_000)]
    first = kept.index(False) * 10_000
    assert WATCHED_MS <= first <= WATCHED_MS + 3 * SPACING_MS


def test_a_round_trip_is_no_drift_and_drift_shows_in_spite_of_round_trips() -> None:
    watch = ClockWatch()
    assert all(watch.keeps("r", reading(t, there_ms=4_000, back_ms=4_000)) for t in range(0, 120_000, 10_000))
    watch = ClockWatch()
    assert not all(
        watch.keeps("r", reading(t, ppm=50_000, there_ms=900, back_ms=900)) for t in range(0, 120_000, 10_000)
    )


def test_it_is_believed_again_after_five_minutes_of_good_behaviour_and_not_before() -> None:
    watch = ClockWatch()
    for t in range(0, 60_000, 10_000):
        watch.keeps("r", reading(t, ppm=50_000))
    assert watch.drifts
    good = [watch.keeps("r", reading(t)) for t in range(60_000, 60_000 + 2 * WATCHED_MS, 10_000)]
    # the step between the two is one more that differs: five minutes from there
    assert WATCHED_MS <= good.index(True) * 10_000 <= WATCHED_MS + 2 * SPACING_MS
    assert not watch.drifts and watch.ppm == 0


def test_a_clock_of_the_registrys_that_is_new_is_no_fresh_start() -> None:
    watch = ClockWatch()
    for t in range(0, 60_000, 10_000):
        watch.keeps("old", reading(t, ppm=50_000))
    assert not watch.keeps("new", reading(70_000, ppm=50_000))
    assert watch.drifts


def test_one_bad_clock_among_the_registrys_condemns_nobody() -> None:
    watch, bad = ClockWatch(), True
    for t in range(0, 120_000, 10_000):
        assert watch.keeps("good", reading(t))
        bad = watch.keeps("bad", reading(t + 5_000, theirs_ppm=50_000))
        assert not watch.drifts
    assert not bad
    assert watch.keeps("third", reading(130_000))


def test_a_jump_of_ours_voids_what_was_read_and_not_what_was_found() -> None:
    watch = ClockWatch()
    watch.keeps("r", reading(0))
    watch.forget()
    jumped = reading(10_000)
    jumped = Reading(Instant(jumped.sent_at + 10**9), Instant(jumped.heard_at + 10**9), jumped.at_ms)
    assert watch.keeps("r", jumped)
    for t in range(0, 60_000, 10_000):
        watch.keeps("q", reading(t, ppm=50_000))
        watch.keeps("r", reading(10**7 + t, ppm=50_000))
    watch.forget()
    assert watch.drifts


def test_its_memory_is_bounded() -> None:
    watch = ClockWatch()
    for n in range(4 * CLOCKS_MAX):
        for t in range(0, 3 * KEPT_MS, 5_000):
            watch.keeps(f"r{n}", reading(t))
    assert len(watch.clocks) == CLOCKS_MAX
    assert max(len(c.readings) for c in watch.clocks.values()) <= KEPT_MS // SPACING_MS + 1


# --- in the node -----------------------------------------------------------------------------------------------------


def beaten(bench: Bench, *, minutes: int, ppm: int, name: str = "registry/0", zero: int | None = None) -> None:
    """A heartbeat every ten seconds of the node's, answered by a clock against which the node's is off by ``ppm``."""
    start = int(bench.now) if zero is None else zero
    for _ in range(minutes * 6):
        bench.advance(10_000)
        passed = (int(bench.now) - start) * 1_000_000 // (1_000_000 + ppm)
        bench.renew(clock=name, clock_ms=start + passed)


@pytest.mark.parametrize("ppm", [50_000, -50_000])
def test_a_node_that_drifts_takes_no_lease_and_what_it_had_is_void(ppm: int) -> None:
    bench = Bench().up()
    assert bench.may(Operation.UNWRAP).allowed
    beaten(bench, minutes=2, ppm=ppm)
    assert "clock-drifts" in bench.notes()
    assert bench.state.mesh.lease is None and bench.holding().lease is None and bench.holding().l1.until is None
    assert bench.mode() is Mode.CLOSED
    told = explain(bench.state, bench.now, TENANT)
    assert ("faster" if ppm > 0 else "slower") in told.why and "5 minutes" in told.ends


def test_within_the_assumption_it_serves_for_ever() -> None:
    bench = Bench().up()
    beaten(bench, minutes=12, ppm=ASSUMED_PPM - 100)
    assert bench.mode() is Mode.SYNCED


def test_it_serves_again_once_its_clock_keeps_time() -> None:
    bench = Bench().up()
    beaten(bench, minutes=2, ppm=50_000)
    assert bench.mode() is Mode.CLOSED
    beaten(bench, minutes=4, ppm=0)
    assert bench.mode() is Mode.CLOSED
    beaten(bench, minutes=3, ppm=0)
    assert bench.holding().lease is not None


def test_a_restart_is_no_fresh_start() -> None:
    bench = Bench().up()
    beaten(bench, minutes=2, ppm=50_000)
    bench.reboot()
    bench.renew(clock="registry/1", clock_ms=int(bench.now))
    assert bench.state.clock.drifts and bench.holding().lease is None
    beaten(bench, minutes=7, ppm=0, name="registry/1")
    assert bench.holding().lease is not None
    bench.reboot()
    bench.renew(clock="registry/1", clock_ms=int(bench.now))
    assert not bench.state.clock.drifts and bench.holding().lease is not None


def test_a_clock_of_ours_set_a_year_ahead_is_a_jump_and_no_drift() -> None:
    bench = Bench().up()
    year = 365 * 86_400_000
    start = int(bench.now)
    bench.advance(10_000)
    bench.renew(clock_ms=start + 10_000)
    bench.now = Instant(bench.now + year)
    bench.feed(ClockWentAhead(year))
    assert bench.mode() is Mode.CLOSED  # every lease is over by then
    bench.renew(clock_ms=start + 10_001)
    bench.advance(10_000)
    bench.renew(clock_ms=start + 20_001)
    assert "clock-drifts" not in bench.notes()
    assert bench.holding().lease is not None


def test_nor_is_one_that_was_set_back() -> None:
    bench = Bench().up()
    bench.feed(ClockWentBack())
    assert bench.mode() is Mode.CLOSED
    beaten(bench, minutes=1, ppm=0)
    assert bench.holding().lease is not None
