"""What a drill reports: clocks in ms from the impact, the path of modes, what was lost, and why it failed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

CLOCKS: Final = (
    "impact",
    "detected",
    "declared",
    "confirmed",
    "drained",
    "frozen",
    "promoted",
    "resumed",
    "verified",
    "committed",
)
"""As DESIGN section 10 names them.  A drill that has no such step leaves its clock out: null."""
HEARS_MS: Final = 1_000
"""An application that uses keys all the time hears of the end of a lease within this."""


@dataclass(slots=True)
class Report:
    """``impact``: monotonic seconds.  ``problems``: in words, whatever was not as it must be."""

    tier: str
    impact: float
    ttl_ms: int
    at: dict[str, float] = field(default_factory=dict)
    mode_path: list[str] = field(default_factory=list)
    first_refusal_ms: int | None = None
    first_decrypt_ms: int | None = None
    problems: list[str] = field(default_factory=list)
    lost: int = 0
    notes: dict[str, Any] = field(default_factory=dict)

    def mark(self, clock: str, at: float | None) -> None:
        """Note when that clock stopped; None: it never did, which is a problem."""
        assert clock in CLOCKS
        if at is None:
            self.problems.append(f"never {clock}")
        else:
            self.at[clock] = at

    def need(self, held: bool, otherwise: str) -> None:
        if not held:
            self.problems.append(otherwise)

    def closed_in_time(self, refused: float, served: float | None, ttl_ms: int) -> None:
        """Held: no use that began after ``ttl_ms`` was served, and the application heard no soon after it.

        ``refused`` and ``served`` are when the first refused and the last served use began. Uses are samples:
        the first after the end of the lease begins a moment later, and is not the lease's lateness.
        """
        self.need(self.ms(refused) <= ttl_ms + HEARS_MS, "the first refusal came long after the ttl")
        self.need(served is not None and self.ms(served) < ttl_ms, "something was served after the ttl")

    def ms(self, at: float) -> int:
        return round((at - self.impact) * 1_000)

    def plain(self) -> dict[str, Any]:
        """As ``keymesh drill run --json`` prints it."""
        clocks = {name: self.ms(self.at[name]) if name in self.at else None for name in CLOCKS}
        return {
            "ok": not self.problems and not self.lost,
            "tier": self.tier,
            "clocks": {**clocks, "impact": 0},
            "mode_path": self.mode_path,
            "first_refusal_ms": self.first_refusal_ms,
            "ttl_ms": self.ttl_ms,
            "first_decrypt_ms": self.first_decrypt_ms,
            "lost": self.lost,
            "problems": self.problems,
            **self.notes,
        }
