"""A simulated host's clocks, and the Instants that a process on it sees.

True time is the world's, in ms from the start.  A host's clocks run at (1 + ``ppm``/10^6) of it; its wall clock may be
set, forwards and back.  The Instants come from the product's own ``Timekeeper``.
"""

from __future__ import annotations

from typing import Final

from keymesh.model.machine import BootMark
from keymesh.model.time import Instant, Timekeeper

WALL_EPOCH_MS: Final = 1_700_000_000_000


class HostClock:
    """Raw readings of one host.  ``ppm`` stays for the life of the host: rates are assumed within 0.1 %."""

    __slots__ = ("boot_started_at", "boots", "lead_ms", "name", "ppm")

    def __init__(self, name: str, ppm: int, lead_ms: int) -> None:
        self.name = name
        self.ppm = ppm
        self.lead_ms = lead_ms
        self.boots = 1
        self.boot_started_at = -1_000_000

    def scaled(self, t: int) -> int:
        return t + t * self.ppm // 1_000_000

    def boottime_ms(self, t: int) -> int:
        return self.scaled(t) - self.scaled(self.boot_started_at)

    def wall_ms(self, t: int) -> int:
        return WALL_EPOCH_MS + self.scaled(t) + self.lead_ms

    def mark(self, t: int) -> BootMark:
        return BootMark(boot_id=f"{self.name}-boot-{self.boots}", boottime_ms=self.boottime_ms(t))

    def reboot(self, t: int) -> None:
        self.boots += 1
        self.boot_started_at = t


class ProcessClock:
    """Instants of one life of a process: ``now(t) = scaled(t) + base``, ``base`` changing at jumps only."""

    __slots__ = ("base", "host", "keeper", "ppm")

    def __init__(self, host: HostClock, t: int) -> None:
        self.host = host
        self.ppm = host.ppm
        self.keeper = Timekeeper(boot_zero_ms=host.boottime_ms(t), wall_zero_ms=host.wall_ms(t))
        self.base = 0
        self.observe(t)

    def observe(self, t: int) -> bool:
        """Read the raw clocks; whether the wall clock went back."""
        now, back = self.keeper.observe(boottime_ms=self.host.boottime_ms(t), wall_ms=self.host.wall_ms(t))
        self.base = now - self.host.scaled(t)
        return back

    def now(self, t: int) -> Instant:
        return Instant(t + t * self.ppm // 1_000_000 + self.base)

    def true_time(self, instant: int) -> int:
        """The first true ms at which this clock shows ``instant`` or later, if nobody sets it meanwhile."""
        scaled = instant - self.base
        t = scaled * 1_000_000 // (1_000_000 + self.ppm)
        while t + t * self.ppm // 1_000_000 < scaled:
            t += 1
        while t - 1 + (t - 1) * self.ppm // 1_000_000 >= scaled:
            t -= 1
        return t
