"""The machine's own clock and generator behind the ports of ``model.time``."""

from __future__ import annotations

import os
import time
from functools import cache
from pathlib import Path

from keymesh.model.time import Instant, Timekeeper


@cache
def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown-" + os.urandom(8).hex()  # no such file: every process counts as a new boot


class SystemClock:
    """CLOCK_BOOTTIME where the platform has it (it counts suspend), else CLOCK_MONOTONIC."""

    _clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

    def boottime_ms(self) -> int:
        return time.clock_gettime_ns(self._clock) // 1_000_000

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def boot_id(self) -> str:
        return _boot_id()


class SystemEntropy:
    def token(self, n_bytes: int) -> bytes:
        return os.urandom(n_bytes)


class Stopwatch:
    """A ``Timekeeper`` over the system clock: ``now()`` and whether the wall clock went back since last asked."""

    def __init__(self, clock: SystemClock | None = None) -> None:
        self.clock = clock or SystemClock()
        self._keeper = Timekeeper(boot_zero_ms=self.clock.boottime_ms(), wall_zero_ms=self.clock.wall_ms())

    @property
    def ahead_ms(self) -> int:
        """By how much the wall clock has gained on CLOCK_BOOTTIME, as of the last look."""
        return self._keeper.ahead_ms

    def observe(self) -> tuple[Instant, bool]:
        return self._keeper.observe(boottime_ms=self.clock.boottime_ms(), wall_ms=self.clock.wall_ms())
