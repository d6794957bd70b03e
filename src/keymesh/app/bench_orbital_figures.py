"""The Orbital bench's figures, and whether they hold.  Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from keymesh.app.bench_killswitch_figures import BenchPlan, Seen
from keymesh.app.bench_killswitch_samples import quantile
from keymesh.model.errors import Unavailable

TASKS_PER_S: Final = 500.0
IDLE_LIMIT_MS: Final = 250.0
LOADED_LIMIT_MS: Final = 500.0
BROKER_SHARE: Final = 0.9
"""Of the tasks; where fewer came by the broker, the figure would be the pull's."""
NOT_ASKED: Final = "not asked for"
ON_A_FULL_MESH: Final = (
    "tasks taken on a mesh with OpenBao in each region, etcd and PostgreSQL; the newest state of a tenant may stand "
    "for older ones that waited"
)


@dataclass(frozen=True, slots=True)
class Throughput:
    """One run of the throughput phase: ``tasks`` to be taken, those taken, those of them that the broker brought; how
    long the commands took, and everything until the last was reported."""

    tasks: int = 0
    taken: int = 0
    by_broker: int = 0
    generated_s: float = 0.0
    took_s: float = 0.0


def figures(
    seen: Seen, throughput: Throughput, plan: BenchPlan, took_s: float, on_openbao: Throughput | str = NOT_ASKED
) -> dict[str, Any]:
    """As ``keymesh bench orbital --json`` prints them; ``on_openbao``: or why there is none.

    Raises Unavailable where there is nothing to show.
    """
    if not throughput.took_s or not seen.idle:
        raise Unavailable("bench", "nothing was measured")
    if not seen.loaded:
        raise Unavailable("bench", f"the backlog of {plan.backlog} never lasted for a whole sample")
    shown: dict[str, Any] = {
        "seconds": plan.seconds,
        "took_s": round(took_s, 1),
        "tasks": throughput.tasks,
        "tasks_by_broker": throughput.by_broker,
        "tasks_per_s": round(throughput.tasks / throughput.took_s, 1),
        "tasks_per_s_openbao": rate_of(on_openbao),
        "openbao_note": on_openbao if isinstance(on_openbao, str) else ON_A_FULL_MESH,
        "commands_per_s": round(throughput.tasks / 3 / throughput.generated_s),
        "samples_idle": len(seen.idle),
        "lane0_idle_p50_ms": quantile((s.ms for s in seen.idle), 0.50),
        "lane0_idle_p99_ms": quantile((s.ms for s in seen.idle), 0.99),
        "lane0_idle_region_p99_ms": quantile((s.lane0_ms for s in seen.idle), 0.99),
        "samples_loaded": len(seen.loaded),
        "samples_discarded": seen.discarded,
        "lane0_loaded_p50_ms": quantile((s.ms for s in seen.loaded), 0.50),
        "lane0_loaded_p99_ms": quantile((s.ms for s in seen.loaded), 0.99),
        "lane0_loaded_region_p99_ms": quantile((s.lane0_ms for s in seen.loaded), 0.99),
        "backlog": seen.backlog,
        "backlog_min": seen.backlog_min,
        "lower_lane_before_lane0_max": max(s.lower_before for s in seen.loaded),
        "lane2_tasks_per_s_meanwhile": round(seen.drained_per_s),
        "reference_round_trip_p50_ms": quantile(seen.round_trips_ms, 0.50),
        "reference_round_trip_p50_ms_loaded": quantile(seen.round_trips_loaded_ms, 0.50),
    }
    return shown | {"ok": is_met(shown, throughput, plan)}


def rate_of(seen: Throughput | str) -> float | None:
    """Tasks taken per second; None where it was not measured."""
    return None if isinstance(seen, str) or not seen.took_s else round(seen.taken / seen.took_s, 1)


def is_met(shown: dict[str, Any], throughput: Throughput, plan: BenchPlan) -> bool:
    """Every task taken, most of them by the broker, at the rate that is asked for; Lane 0 within its bounds."""
    return bool(
        throughput.taken >= throughput.tasks
        and throughput.by_broker >= BROKER_SHARE * throughput.tasks
        and shown["tasks_per_s"] >= TASKS_PER_S
        and shown["lane0_idle_p99_ms"] < IDLE_LIMIT_MS
        and shown["lane0_loaded_p99_ms"] < LOADED_LIMIT_MS
        and shown["backlog_min"] >= plan.backlog
    )
