"""What the kill-switch bench makes of what it saw: latencies, lane order, quantiles.  Pure.

The latency of one suspension runs from the start of its log append to the first refusal after the last success at the
Edge where that came last; a refusal counts from when its caller had it.  Instants are ns of one machine's wall clock.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from keymesh.model.errors import Unavailable
from keymesh.model.states import Lane

REFUSALS_WANTED: Final = 3
"""An Edge has refused once so many uses in a row were refused."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One use of an Edge."""

    started_ns: int
    ended_ns: int
    served: bool


@dataclass(frozen=True, slots=True)
class Sample:
    """One suspension: when it was appended, when each region took its task and each Edge refused."""

    append_started_ns: int
    appended_ns: int
    lane0_ns: Mapping[str, int]
    refused_ns: Mapping[str, int]
    lower_before: int
    """The most lower-lane tasks that any one region took between the commit and its Lane 0 task."""

    @property
    def ms(self) -> float:
        return (max(self.refused_ns.values()) - self.append_started_ns) / 1e6

    @property
    def append_ms(self) -> float:
        return (self.appended_ns - self.append_started_ns) / 1e6

    @property
    def lane0_ms(self) -> float:
        return (max(self.lane0_ns.values()) - self.append_started_ns) / 1e6


def first_refusal_ns(probes: Sequence[Probe]) -> int | None:
    """When the first refusal after the last success was known; None until ``REFUSALS_WANTED`` have followed it."""
    refused: list[Probe] = []
    for probe in probes:
        if probe.served:
            refused.clear()
        else:
            refused.append(probe)
    return refused[0].ended_ns if len(refused) >= REFUSALS_WANTED else None


def lane0_taken_ns(rows: Sequence[Mapping[str, Any]], command_id: str) -> int:
    """When a region first took the Lane 0 task of ``command_id``.  Raises Unavailable where it did not."""
    taken = [r["at_ns"] for r in rows if r["command_id"] == command_id and r["lane"] == Lane.RESTRICTION]
    if not taken:
        raise Unavailable("bench", "an Edge refused, but its region took no Lane 0 task of that command")
    return int(min(taken))


def lower_lane_before(rows: Sequence[Mapping[str, Any]], *, since_ns: int, until_ns: int) -> int:
    """How many tasks of Lanes 1 and 2 a region took after ``since_ns`` and before ``until_ns``."""
    return sum(r["lane"] != Lane.RESTRICTION and since_ns < r["at_ns"] < until_ns for r in rows)


def sample_of(
    command_id: str, record: Mapping[str, Any], applied: Mapping[str, Any], refused_ns: Mapping[str, int]
) -> Sample:
    """Put together what the Registry (its kill-switch record), the regions and the Edges saw of one suspension."""
    lane0 = {region: lane0_taken_ns(rows, command_id) for region, rows in applied.items()}
    appended_ns = record["appended_ns"]
    return Sample(
        append_started_ns=record["append_started_ns"],
        appended_ns=appended_ns,
        lane0_ns=lane0,
        refused_ns=refused_ns,
        lower_before=max(
            lower_lane_before(rows, since_ns=appended_ns, until_ns=lane0[region]) for region, rows in applied.items()
        ),
    )


def quantile(values: Iterable[float], q: float) -> float | None:
    """The smallest value that at least ``q`` of them do not exceed, to a hundredth; None of none.

    Of fewer than 100 the 99th percentile is their maximum.
    """
    ordered = sorted(values)
    if not ordered:
        return None
    return round(ordered[max(0, math.ceil(q * len(ordered)) - 1)], 2)
