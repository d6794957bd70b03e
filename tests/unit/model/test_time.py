"""The elapsed-time rule: never back, never frozen, never slower than either clock."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from keymesh.model.time import Instant, Timekeeper, is_live

HOUR = 3_600_000


def test_a_deadline_is_dead_at_its_own_instant() -> None:
    assert is_live(Instant(5), Instant(4))
    assert not is_live(Instant(5), Instant(5))


def test_time_does_not_freeze_after_the_wall_clock_jumped_forward_and_back() -> None:
    keeper = Timekeeper(boot_zero_ms=0, wall_zero_ms=1000)
    jumped, back = keeper.observe(boottime_ms=10, wall_ms=1010 + 24 * HOUR)
    assert (jumped, back) == (1010 + 24 * HOUR, False)
    fixed, back = keeper.observe(boottime_ms=20, wall_ms=1020)
    assert back and fixed >= jumped
    later, back = keeper.observe(boottime_ms=20 + HOUR, wall_ms=1020 + HOUR)
    assert not back and later - fixed == HOUR


def test_a_suspend_that_boot_time_missed_still_counts_after_a_fall() -> None:
    keeper = Timekeeper(boot_zero_ms=0, wall_zero_ms=0)
    keeper.observe(boottime_ms=0, wall_ms=24 * HOUR)
    before, _ = keeper.observe(boottime_ms=0, wall_ms=0)
    after, _ = keeper.observe(boottime_ms=5, wall_ms=HOUR)
    assert after - before >= HOUR


@given(st.lists(st.tuples(st.integers(0, HOUR), st.integers(-HOUR, 2 * HOUR)), max_size=30))
def test_elapsed_is_at_least_each_clock_and_never_back(steps: list[tuple[int, int]]) -> None:
    keeper = Timekeeper(boot_zero_ms=7, wall_zero_ms=9)
    boot, wall, last = 7, 9, 9
    for d_boot, d_wall in steps:
        boot, wall = boot + d_boot, wall + d_wall
        now, back = keeper.observe(boottime_ms=boot, wall_ms=wall)
        assert now >= last + d_boot
        assert not (back and d_wall >= d_boot)
        last = now


@given(st.lists(st.integers(0, 3), max_size=200))
def test_rounding_of_two_clocks_does_not_add_up(steps: list[int]) -> None:
    keeper = Timekeeper(boot_zero_ms=0, wall_zero_ms=0)
    micros = 0
    for step in steps:
        micros += step * 333
        now, back = keeper.observe(boottime_ms=micros // 1000, wall_ms=(micros + 500) // 1000)
        assert not back and 0 <= now - micros // 1000 <= 1
