"""The kill-switch bench's figures, and whether they hold.  Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from keymesh.app.bench_bounds_samples import BoundsSeen, bounds_figures
from keymesh.app.bench_killswitch_samples import Sample, quantile
from keymesh.model.errors import Unavailable

BACKLOG: Final = 10_000
LIMIT_MS: Final = 1_000.0
LOWER_LIMIT: Final = 1
EDGES_MIN, PROCESSES_MIN = 50, 5


@dataclass(frozen=True, slots=True)
class BenchPlan:
    """``turns``: tenants that take turns.  ``crowd``: tenants whose labels make up the backlog."""

    seconds: float
    backlog: int = BACKLOG
    turns: int = 4
    crowd: int = 20


@dataclass(slots=True)
class Seen:
    """What the run has measured so far."""

    idle: list[Sample] = field(default_factory=list)
    loaded: list[Sample] = field(default_factory=list)
    backlog: int = 0
    backlog_min: int = 0
    discarded: int = 0
    filled_per_s: float = 0.0
    drained_per_s: float = 0.0
    round_trips_ms: list[float] = field(default_factory=list)
    round_trips_loaded_ms: list[float] = field(default_factory=list)
    commits_ms: list[float] = field(default_factory=list)
    bounds: BoundsSeen = field(default_factory=BoundsSeen)


def figures(seen: Seen, plan: BenchPlan, took_s: float) -> dict[str, Any]:
    """As ``keymesh bench killswitch --json`` prints them.  Raises Unavailable where there is nothing to show."""
    idle, loaded = [s.ms for s in seen.idle], [s.ms for s in seen.loaded]
    if not loaded:
        raise Unavailable("bench", f"the backlog of {plan.backlog} never lasted for a whole sample")
    shown: dict[str, Any] = {
        "seconds": plan.seconds,
        "took_s": round(took_s, 1),
        "samples": len(idle),
        "p50_ms": quantile(idle, 0.50),
        "p99_ms": quantile(idle, 0.99),
        "max_ms": quantile(idle, 1),
        "samples_loaded": len(loaded),
        "samples_discarded": seen.discarded,
        "p50_ms_loaded": quantile(loaded, 0.50),
        "p99_ms_loaded": quantile(loaded, 0.99),
        "max_ms_loaded": quantile(loaded, 1),
        "backlog": seen.backlog,
        "backlog_min": seen.backlog_min,
        "lower_lane_before_lane0_max": max(s.lower_before for s in seen.loaded),
        "append_p50_ms": quantile((s.append_ms for s in seen.idle), 0.50),
        "append_p50_ms_loaded": quantile((s.append_ms for s in seen.loaded), 0.50),
        "lane0_p50_ms": quantile((s.lane0_ms for s in seen.idle), 0.50),
        "lane0_p50_ms_loaded": quantile((s.lane0_ms for s in seen.loaded), 0.50),
        "commands_per_s": round(seen.filled_per_s),
        "lane2_tasks_per_s_meanwhile": round(seen.drained_per_s),
        "reference_round_trip_p50_ms": quantile(seen.round_trips_ms, 0.50),
        "reference_round_trip_p50_ms_loaded": quantile(seen.round_trips_loaded_ms, 0.50),
        "reference_round_trip_p99_ms_loaded": quantile(seen.round_trips_loaded_ms, 0.99),
        "reference_sqlite_full_commit_p50_ms": quantile(seen.commits_ms, 0.50),
    }
    shown |= bounds_figures(seen.bounds, LIMIT_MS)
    return shown | {"ok": is_met(shown, plan)}


def is_met(shown: dict[str, Any], plan: BenchPlan) -> bool:
    """p99 under a second, idle and with the whole backlog, and at most one lower-lane task ahead of Lane 0; and the
    four bounds, with fifty Edges in five processes."""
    return bool(
        shown["bounds_ok"]
        and shown["edges"] >= EDGES_MIN
        and shown["edge_processes"] >= PROCESSES_MIN
        and shown["p99_ms"] < LIMIT_MS
        and shown["p99_ms_loaded"] < LIMIT_MS
        and shown["backlog_min"] >= plan.backlog
        and shown["lower_lane_before_lane0_max"] <= LOWER_LIMIT
    )
