"""Calendar periods in UTC, by their numbers: which one an instant is in, and when that ends.

An Instant counts from the wall clock of its process's start, so numbers of different nodes agree as far as their
clocks do.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import Enum
from typing import Final

from keymesh.model.time import Instant

_MINUTE_MS: Final = 60_000


class Period(Enum):
    """A calendar period."""

    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"
    MONTH = "month"


_FIXED_MS: Final = {Period.MINUTE: _MINUTE_MS, Period.HOUR: 60 * _MINUTE_MS, Period.DAY: 24 * 60 * _MINUTE_MS}
_EPOCH_YEAR: Final = 1970


def number_at(period: Period, now: Instant) -> int:
    """Which period ``now`` is in, counted from 1970; a later one has a higher number."""
    if period is not Period.MONTH:
        return now // _FIXED_MS[period]
    at = datetime.fromtimestamp(now // 1_000, UTC)
    return (at.year - _EPOCH_YEAR) * 12 + at.month - 1


def end_of(period: Period, number: int) -> Instant:
    """The first instant after it."""
    if period is not Period.MONTH:
        return Instant((number + 1) * _FIXED_MS[period])
    year, month = divmod(number + 1, 12)
    return Instant(int(datetime(_EPOCH_YEAR + year, month + 1, 1, tzinfo=UTC).timestamp()) * 1_000)
