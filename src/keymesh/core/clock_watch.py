"""Whether this node's clock runs at the Registry's rate (DESIGN section 3): one that drifts takes no lease.

Each answer of the Registry names its clock and what that showed at an instant between the heartbeat's sending and the
answer's arrival.  So two answers bound the rate between the clocks from both sides, net of round trips, and only what
lies beyond a limit for certain counts against the node.  The limit is 2 % at once, and 0.1 % over five minutes.

A clock of the Registry's that was found to differ stays so until it has been within 0.1 % for five minutes, also over
restarts.  A round trip of r over a window of w hides a difference of about 2r/w.  Each
life and each jump of a Registry's clock is a clock of its own; readings from before a jump of ours are void.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from keymesh.model.time import Instant

MILLION: Final = 1_000_000
AT_ONCE_PPM: Final = 20_000
ASSUMED_PPM: Final = 1_000
WATCHED_MS: Final = 300_000
"""Over how long the assumed bound is watched, at least."""
KEPT_MS: Final = 2 * WATCHED_MS
SPACING_MS: Final = KEPT_MS // 30
ROUNDING_MS: Final = 2
"""Both instants of a difference are cut to whole ms."""
CLOCKS_MAX: Final = 8
_EARLIER: Final = ""
"""In place of a clock: that an earlier life of this node found a difference."""


@dataclass(frozen=True, slots=True)
class Reading:
    """``at_ms`` of the Registry's clock lies between our ``sent_at`` and ``heard_at``."""

    sent_at: Instant
    heard_at: Instant
    at_ms: int


@dataclass(slots=True)
class Clock:
    """One clock of a Registry's: the readings kept, the newest last, and what they came to."""

    readings: list[Reading] = field(default_factory=list)
    differs: bool = False
    ppm: int = 0  # ours against it, at the middle of the bounds, when it was found to differ


@dataclass(slots=True)
class ClockWatch:
    """What a node knows of its clock; of this life."""

    clocks: dict[str, Clock] = field(default_factory=dict)  # the one heard last is the last

    @property
    def drifts(self) -> bool:
        """Whether our clock differs from every one that we know."""
        return bool(self.clocks) and all(clock.differs for clock in self.clocks.values())

    @property
    def ppm(self) -> int:
        """By how much our clock differs from the one that was heard last; 0 where it does not."""
        last = next(reversed(self.clocks.values()), None)
        return last.ppm if last is not None and last.differs else 0

    def remember(self, ppm: int) -> None:
        """What an earlier life found, and nobody has disproved: a restart is no fresh start."""
        self.clocks[_EARLIER] = Clock(differs=True, ppm=ppm)

    def forget(self) -> None:
        """Our clock jumped: how long anything took by it is not known any more.  What was found still holds."""
        for clock in self.clocks.values():
            clock.readings.clear()

    def keeps(self, name: str, new: Reading) -> bool:
        """Whether our clock keeps the rate of the clock ``name``, as far as can be told with one more reading.

        A clock that is new to us is taken to differ where all others do: the fault is ours.
        """
        clock = self.clocks.pop(name, None) or Clock(differs=self.drifts, ppm=self.ppm)
        while len(self.clocks) >= CLOCKS_MAX:
            del self.clocks[next(iter(self.clocks))]
        self.clocks[name] = clock
        beyond = [old for old in clock.readings if differs(old, new)]
        if beyond:
            clock.differs, clock.ppm = True, rate_ppm(beyond[0], new)
            clock.readings = [new]
            return False
        if any(new.at_ms - old.at_ms >= WATCHED_MS for old in clock.readings):
            clock.differs, clock.ppm = False, 0
            self.clocks.pop(_EARLIER, None)
        _keep(clock.readings, new)
        return not clock.differs


def bounds_ms(old: Reading, new: Reading) -> tuple[int, int]:
    """How long our clock says that passed between the two readings of the Registry's: at least, at most."""
    return new.sent_at - old.heard_at - ROUNDING_MS, new.heard_at - old.sent_at + ROUNDING_MS


def differs(old: Reading, new: Reading) -> bool:
    """Whether our rate lies beyond the limit for certain."""
    theirs = new.at_ms - old.at_ms
    least, most = bounds_ms(old, new)
    limit = ASSUMED_PPM if theirs >= WATCHED_MS else AT_ONCE_PPM
    return least * MILLION > theirs * (MILLION + limit) or most * MILLION < theirs * (MILLION - limit)


def rate_ppm(old: Reading, new: Reading) -> int:
    """Our rate against theirs, less one, in parts in a million: at the middle of the bounds."""
    theirs = max(1, new.at_ms - old.at_ms)
    return (sum(bounds_ms(old, new)) - 2 * theirs) * MILLION // (2 * theirs)


def _keep(readings: list[Reading], new: Reading) -> None:
    """Not every reading: enough of them, and none that is too old."""
    if not readings or new.heard_at - readings[-1].heard_at >= SPACING_MS:
        readings.append(new)
    while new.heard_at - readings[0].heard_at > KEPT_MS:
        del readings[0]
