"""Which of its Cores an Edge asks: the nearest by measured latency that is ready, and no other every moment.

Cores are measured by short questions that carry nothing (``Measured``) and by the requests themselves.  A Core that
fails, or says that it cannot serve, rests, each time for longer; the next best is asked at once.  An Edge *moves* to a
nearer one only when that has answered several times in a row, is nearer by a good part, and the last move is a while
ago, each time for longer: no storm, however the measurements swing.  Pure; a lease that is held is never touched here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from keymesh.model.machine import Address
from keymesh.model.time import Instant

EWMA_SHARE: Final = 4
"""A new measurement counts for one part in so many."""
SETTLED: Final = 3
NEARER_BY_MS: Final = 5
NEARER_PERCENT: Final = 70
REST_MS: Final = 1_000
REST_MAX_MS: Final = 60_000
DWELL_MS: Final = 5_000
DWELL_MAX_MS: Final = 600_000
HEDGE_MIN_MS: Final = 1_000
HEDGE_TIMES: Final = 8


@dataclass(slots=True)
class Seen:
    """What is known of one Core.  ``rtt_ms``: smoothed; ``in_a_row``: good answers since the last bad one."""

    rtt_ms: float | None = None
    in_a_row: int = 0
    failures: int = 0
    rests_until: Instant | None = None

    def rests(self, now: Instant) -> bool:
        return self.rests_until is not None and now < self.rests_until


@dataclass(slots=True)
class Moves:
    """Moves to a nearer Core, not away from one that fails: how many lately, and when the last was."""

    count: int = 0
    at: Instant | None = None


def answered(seen: Seen, rtt_ms: int) -> None:
    """It answered, and can serve."""
    known = seen.rtt_ms
    seen.rtt_ms = float(rtt_ms) if known is None else known + (rtt_ms - known) / EWMA_SHARE
    seen.in_a_row += 1
    seen.failures = 0
    seen.rests_until = None


def said_ready(seen: Seen) -> None:
    """It said by itself that it would serve: worth a question, however it was measured."""
    seen.in_a_row = max(1, seen.in_a_row)
    seen.rests_until = None


def failed(seen: Seen, now: Instant) -> None:
    """It did not answer, or cannot serve."""
    seen.failures += 1
    seen.in_a_row = 0
    rest = min(REST_MAX_MS, REST_MS << min(seen.failures - 1, 8))
    seen.rests_until = Instant(now + rest)


def is_good(seen: Seen | None, now: Instant) -> bool:
    """Known to be there and to serve."""
    return seen is not None and seen.in_a_row > 0 and not seen.rests(now)


def after_failure(cores: Sequence[Address], seen: Mapping[Address, Seen], current: int, now: Instant) -> int:
    """Where to ask next: the nearest good one; else the next in the list that does not rest; else whoever rests the
    shortest; never the one that just failed, where there is another."""
    others = [(current + step) % len(cores) for step in range(1, len(cores))]
    if not others:
        return current
    good = [n for n in others if is_good(seen.get(cores[n]), now)]
    if good:
        return min(good, key=lambda n: (seen[cores[n]].rtt_ms or 0.0, n))
    awake = [n for n in others if not _rests(seen.get(cores[n]), now)]
    if awake:
        return awake[0]
    return min(others, key=lambda n: seen[cores[n]].rests_until or now)


def _rests(seen: Seen | None, now: Instant) -> bool:
    return seen is not None and seen.rests(now)


def dwell_ms(moves: int) -> int:
    """How long an Edge stays after so many moves."""
    return min(DWELL_MAX_MS, DWELL_MS << min(moves, 8))


def is_nearer(candidate: Seen, current: Seen | None) -> bool:
    """Whether it is worth a move: measured several times in a row, and nearer by a good part.

    Nothing is known to be nearer than a Core that was never measured.
    """
    if candidate.rtt_ms is None or candidate.in_a_row < SETTLED or current is None or current.rtt_ms is None:
        return False
    gain_ms = current.rtt_ms - candidate.rtt_ms
    return gain_ms >= NEARER_BY_MS and candidate.rtt_ms * 100 <= current.rtt_ms * NEARER_PERCENT


def nearer(
    cores: Sequence[Address], seen: Mapping[Address, Seen], current: int, moves: Moves, now: Instant
) -> int | None:
    """The Core to move to before the next request, or None to stay."""
    if moves.at is not None and now < moves.at + dwell_ms(moves.count):
        return None
    held = seen.get(cores[current])
    found = [
        (known.rtt_ms or 0.0, n)
        for n, core in enumerate(cores)
        if n != current and (known := seen.get(core)) is not None and not known.rests(now) and is_nearer(known, held)
    ]
    return min(found)[1] if found else None


def moved(moves: Moves, now: Instant) -> None:
    """Count a move; after a long quiet they count anew."""
    quiet = moves.at is None or now >= moves.at + DWELL_MAX_MS
    moves.count = 1 if quiet else moves.count + 1
    moves.at = now


def hedge_ms(cores: Sequence[Address], seen: Mapping[Address, Seen], current: int, now: Instant) -> int | None:
    """How long the asked Core may take before another is asked in its place; None where none is known to be good."""
    asked = seen.get(cores[current])
    if asked is None or asked.rtt_ms is None:
        return None
    if not any(is_good(seen.get(core), now) for n, core in enumerate(cores) if n != current):
        return None
    return max(HEDGE_MIN_MS, round(asked.rtt_ms * HEDGE_TIMES))
