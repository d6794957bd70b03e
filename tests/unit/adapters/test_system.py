"""The machine's clock and generator."""

from __future__ import annotations

import time

import pytest

from keymesh.adapters.system import Stopwatch, SystemClock, SystemEntropy


class Hands(SystemClock):
    """A clock in the test's hands."""

    def __init__(self) -> None:
        self.boot = 1_000
        self.wall = 1_700_000_000_000

    def readings_ms(self) -> tuple[int, int]:
        return self.boot, self.wall


def test_readings_are_ms_and_the_boot_has_one_name() -> None:
    clock = SystemClock()
    assert clock.boottime_ms() > 0
    assert clock.wall_ms() > 1_600_000_000_000
    assert clock.boot_id() == SystemClock().boot_id() != ""


def test_the_two_clocks_keep_their_distance_within_a_ms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the fractions of a ms at which they are looked at."""
    at_ns = 5_000_000_000
    monkeypatch.setattr(time, "clock_gettime_ns", lambda clock: at_ns)
    monkeypatch.setattr(time, "time_ns", lambda: at_ns + 1_700_000_000_700_300)
    distances = set()
    for _ in range(40):
        at_ns += 70_001
        boot_ms, wall_ms = SystemClock().readings_ms()
        distances.add(wall_ms - boot_ms)
    assert len(distances) == 1


def test_entropy_is_fresh() -> None:
    made = {SystemEntropy().token(32) for _ in range(100)}
    assert len(made) == 100
    assert {len(token) for token in made} == {32}


def test_the_stopwatch_starts_at_the_wall_and_moves_with_either_clock() -> None:
    hands = Hands()
    watch = Stopwatch(hands)
    assert watch.observe() == (1_700_000_000_000, False)
    hands.boot += 500
    hands.wall += 500
    assert watch.observe() == (1_700_000_000_500, False)
    hands.wall += 60_000
    assert watch.observe() == (1_700_000_060_500, False)
    assert watch.ahead_ms == 60_000
    hands.wall -= 90_000
    now, back = watch.observe()
    assert back
    assert now >= 1_700_000_060_500
    assert watch.observe() == (now, False)
