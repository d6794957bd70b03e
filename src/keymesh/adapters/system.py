"""The machine's own clock and generator behind the ports of ``model.time``."""

from __future__ import annotations

import os
import time
from functools import cache
from pathlib import Path

from keymesh.model.time import Instant, Timekeeper

_FIRST_LOOKS = 3


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
        return self.readings_ms()[0]

    def wall_ms(self) -> int:
        return self.readings_ms()[1]

    def readings_ms(self) -> tuple[int, int]:
        """(boottime, wall), whose difference moves only where one clock was set or they drift by a whole ms.

        Each cut to ms by itself would let the difference flicker by one; and the wall clock is read first, so that a
        pause between the two reads never looks like a wall clock that ran ahead.
        """
        wall_ns = time.time_ns()
        boot_ns = time.clock_gettime_ns(self._clock)
        boot_ms = boot_ns // 1_000_000
        return boot_ms, boot_ms + (wall_ns - boot_ns) // 1_000_000

    def boot_id(self) -> str:
        return _boot_id()


class SystemEntropy:
    def token(self, n_bytes: int) -> bytes:
        return os.urandom(n_bytes)


class Stopwatch:
    """A ``Timekeeper`` over the system clock: ``now()`` and whether the wall clock went back since last asked."""

    def __init__(self, clock: SystemClock | None = None) -> None:
        self.clock = clock or SystemClock()
        # of a few looks the one with the least pause in it
        boot_ms, wall_ms = max((self.clock.readings_ms() for _ in range(_FIRST_LOOKS)), key=lambda r: r[1] - r[0])
        self._keeper = Timekeeper(boot_zero_ms=boot_ms, wall_zero_ms=wall_ms)

    @property
    def ahead_ms(self) -> int:
        """By how much the wall clock has gained on CLOCK_BOOTTIME, as of the last look."""
        return self._keeper.ahead_ms

    def observe(self) -> tuple[Instant, bool]:
        boot_ms, wall_ms = self.clock.readings_ms()
        return self._keeper.observe(boottime_ms=boot_ms, wall_ms=wall_ms)
