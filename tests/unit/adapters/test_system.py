"""The machine's clock and generator."""

from __future__ import annotations

from keymesh.adapters.system import Stopwatch, SystemClock, SystemEntropy


class Hands(SystemClock):
    """A clock in the test's hands."""

    def __init__(self) -> None:
        self.boot = 1_000
        self.wall = 1_700_000_000_000

    def boottime_ms(self) -> int:
        return self.boot

    def wall_ms(self) -> int:
        return self.wall


def test_readings_are_ms_and_the_boot_has_one_name() -> None:
    clock = SystemClock()
    assert clock.boottime_ms() > 0
    assert clock.wall_ms() > 1_600_000_000_000
    assert clock.boot_id() == SystemClock().boot_id() != ""


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
