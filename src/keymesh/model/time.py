"""Instants, the Clock and Entropy ports, and the elapsed-time rule of DESIGN section 3.

An ``Instant`` is milliseconds, anchored at the wall clock when the process started and moved on by at least
max(CLOCK_BOOTTIME, wall clock); it never goes back, nor stands still, within a process.  A deadline's own instant is
expired.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NewType, Protocol

Instant = NewType("Instant", int)

NEVER: Final = Instant(2**62)
WALL_BACK_LIMIT_MS: Final = 1_000


class Clock(Protocol):
    """Raw readings.  Adapters implement it; rules take ``now`` instead."""

    def boottime_ms(self) -> int: ...

    def wall_ms(self) -> int: ...

    def boot_id(self) -> str: ...


class Entropy(Protocol):
    def token(self, n_bytes: int) -> bytes:
        """``n_bytes`` from the operating system's generator."""
        ...


@dataclass(slots=True)
class Timekeeper:
    """Turns raw readings into Instants, and notices a wall clock that went back (DESIGN section 3).

    ``lead`` is how far the wall clock has run ahead of boot time since the start.  Every rise of it counts as time
    that passed (a suspend that boot time missed); a fall never gives time back, and time goes on at boot time's rate
    afterwards, so that no deadline can freeze.
    """

    boot_zero_ms: int
    wall_zero_ms: int
    lead_ms: int = 0
    ahead_ms: int = 0

    def observe(self, *, boottime_ms: int, wall_ms: int) -> tuple[Instant, bool]:
        """(now, clock_went_back).

        ``clock_went_back`` is true once for each fall of the wall clock by more than 1 s against boot time; the
        caller then drops keys and leases.
        """
        boot = boottime_ms - self.boot_zero_ms
        lead = wall_ms - self.wall_zero_ms - boot
        back = lead < self.lead_ms - WALL_BACK_LIMIT_MS
        if lead > self.lead_ms:
            self.ahead_ms += lead - self.lead_ms
        if back or lead > self.lead_ms:
            self.lead_ms = lead
        return Instant(self.wall_zero_ms + boot + self.ahead_ms), back


def is_live(deadline: Instant, now: Instant) -> bool:
    """Half-open: dead *at* the deadline."""
    return now < deadline
