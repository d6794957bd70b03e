"""What one seed showed: samples with what they are judged by, and what was looked for and not seen."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Sample:
    """``value_ms`` is the figure; ``counted_ms`` is what the bound speaks of, where the bound counts from elsewhere.

    ``bound_ms`` None: nothing is promised of this one.  ``at_ms``: true time at which what is measured began.
    """

    value_ms: int
    at_ms: int
    what: str
    counted_ms: int = 0
    bound_ms: int | None = None

    @property
    def exceeds(self) -> bool:
        return self.bound_ms is not None and self.counted_ms > self.bound_ms


@dataclass(frozen=True, slots=True)
class Loss:
    """A region lost its disk: how many acknowledged writes went with it, and how old the oldest of them was."""

    at_ms: int
    what: str
    entries: int
    age_ms: int


@dataclass(slots=True)
class Asked:
    """Operations.  ``elsewhere``: of ``served``, those that another region served.

    ``by_order``: asked while an order forbade it; in none of the others.
    """

    asked: int = 0
    served: int = 0
    elsewhere: int = 0
    by_order: int = 0


FIGURES = ("revocation_lag", "commit_lag", "edge_lag", "proof", "root_lag", "time_to_closed", "rto")


@dataclass(slots=True)
class Seen:
    """Of one seed.  ``unseen``: figure -> why there is no sample -> how often.  ``hours``: of each tenant, by hour."""

    seed: int
    asked_ms: int
    samples: dict[str, list[Sample]] = field(default_factory=lambda: {name: [] for name in FIGURES})
    unseen: dict[str, Counter[str]] = field(default_factory=lambda: {name: Counter() for name in FIGURES})
    losses: list[Loss] = field(default_factory=list)
    operations: dict[str, Asked] = field(default_factory=lambda: {"decrypt": Asked(), "encrypt": Asked()})
    hours: dict[tuple[str, int], Asked] = field(default_factory=dict)
    faults: Counter[str] = field(default_factory=Counter)
    orders: int = 0
    violation: str | None = None
