"""How many data keys of a service were opened at this Core in the last minute, and when that is worth an alarm.

One number to compare with: above ``alarm_opens`` in any minute.  An alarm stands until a whole minute was below half of
it, and is raised once.  Pure; in memory only: a restart begins to count anew.  Edges report what they opened, so one
that lies hides from the alarm what it opens of its own slice, and no more.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from keymesh.model.time import Instant

WINDOW_MS: Final = 60_000
STEP_MS: Final = 1_000
SERVICES_MAX: Final = 65_536


@dataclass(slots=True)
class Rate:
    """Of one service: opens by second.  ``raised_at``: since when an alarm stands."""

    steps: deque[list[int]] = field(default_factory=deque)
    total: int = 0
    raised_at: Instant | None = None

    def add(self, now: Instant, opens: int) -> None:
        """Opens that were reported now."""
        self._forget(now)
        step = now - now % STEP_MS
        if self.steps and self.steps[-1][0] >= step:
            self.steps[-1][1] += opens
        else:
            self.steps.append([step, opens])
        self.total += opens

    def per_minute(self, now: Instant) -> int:
        self._forget(now)
        return self.total

    def _forget(self, now: Instant) -> None:
        while self.steps and self.steps[0][0] <= now - WINDOW_MS:
            self.total -= self.steps.popleft()[1]

    def judge(self, now: Instant, limit: int | None) -> bool:
        """Whether an alarm is to be raised now."""
        rate = self.per_minute(now)
        if limit is None or 2 * rate < limit:
            self.raised_at = None
        if limit is None or rate <= limit or self.raised_at is not None:
            return False
        self.raised_at = now
        return True


@dataclass(slots=True)
class OpenRates:
    """By (tenant, service)."""

    rates: dict[tuple[str, str], Rate] = field(default_factory=dict)

    def opened(self, now: Instant, tenant: str, service: str, opens: int, limit: int | None) -> bool:
        """Count, and say whether an alarm is to be raised.  Without a limit nothing is kept."""
        key = (tenant, service)
        if limit is None:
            self.rates.pop(key, None)
            return False
        if key not in self.rates and len(self.rates) >= SERVICES_MAX:
            del self.rates[next(iter(self.rates))]
        rate = self.rates.setdefault(key, Rate())
        rate.add(now, opens)
        return rate.judge(now, limit)

    def per_minute(self, now: Instant, tenant: str, service: str) -> int:
        rate = self.rates.get((tenant, service))
        return 0 if rate is None else rate.per_minute(now)

    def standing(self, now: Instant) -> dict[tuple[str, str], Instant]:
        """Alarms that stand, by service, with when they were raised."""
        return {key: rate.raised_at for key, rate in sorted(self.rates.items()) if rate.raised_at is not None}
