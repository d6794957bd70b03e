"""What the kill-switch bench makes of what it saw."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keymesh.app import bench_killswitch_figures as bench
from keymesh.app.bench_killswitch_samples import (
    REFUSALS_WANTED,
    Probe,
    first_refusal_ns,
    lane0_taken_ns,
    lower_lane_before,
    quantile,
    sample_of,
)
from keymesh.model.errors import Unavailable

MS = 1_000_000


def probes(served: str) -> list[Probe]:
    """``+`` served, ``-`` refused: one every ms, each taking half of one."""
    return [Probe(n * MS, n * MS + MS // 2, served=mark == "+") for n, mark in enumerate(served)]


@pytest.mark.parametrize(
    ("served", "at"),
    [
        ("", None),
        ("+", None),
        ("++--", None),
        ("++---", 2),
        ("+-+---", 3),
        ("---", 0),
        ("---+", None),
        ("+----+", None),
        ("+-----", 1),
    ],
)
def test_a_refusal_counts_only_after_the_last_success_and_when_it_was_known(served: str, at: int | None) -> None:
    assert first_refusal_ns(probes(served)) == (None if at is None else at * MS + MS // 2)


@settings(max_examples=50)
@given(st.text("+-", max_size=30))
def test_no_success_ends_after_the_refusal_that_is_named(served: str) -> None:
    found = first_refusal_ns(probes(served))
    after = [p for p in probes(served) if found is not None and p.ended_ns >= found]
    assert all(not p.served for p in after)
    assert found is None or len(after) >= REFUSALS_WANTED


def row(lane: int, at_ms: int, command_id: str = "other") -> dict[str, Any]:
    return {"lane": lane, "task": "t", "command_id": command_id, "at_ns": at_ms * MS}


ROWS = [
    row(2, 5),
    row(1, 9),
    row(2, 11),
    row(1, 12),
    row(0, 13, "older"),
    row(0, 14, "c1"),
    row(0, 15, "c1"),
    row(2, 16),
]


def test_lower_lanes_are_counted_between_the_commit_and_lane_0() -> None:
    assert lane0_taken_ns(ROWS, "c1") == 14 * MS
    assert lower_lane_before(ROWS, since_ns=10 * MS, until_ns=14 * MS) == 2
    assert lower_lane_before(ROWS, since_ns=12 * MS, until_ns=14 * MS) == 0


def test_a_lower_lane_task_of_the_same_command_is_no_lane_0_task() -> None:
    with pytest.raises(Unavailable):
        lane0_taken_ns([row(2, 5, "c1"), row(0, 6, "c2")], "c1")


def test_a_sample_is_judged_by_its_slowest_edge_and_its_worst_region() -> None:
    sample = sample_of(
        "c1",
        {"append_started_ns": 8 * MS, "appended_ns": 10 * MS},
        {"us": ROWS, "eu": [row(0, 30, "c1")]},
        {"us": 20 * MS, "eu": 43 * MS},
    )
    assert (sample.ms, sample.append_ms, sample.lane0_ms, sample.lower_before) == (35.0, 2.0, 22.0, 2)


@pytest.mark.parametrize(
    ("values", "q", "expected"),
    [([], 0.5, None), ([3.0], 0.99, 3.0), ([3.0, 1.0, 2.0], 0.5, 2.0), ([1.0, 2.0], 0.5, 1.0), ([1.0, 2.0], 1, 2.0)],
)
def test_quantiles_are_values_that_were_seen(values: list[float], q: float, expected: float | None) -> None:
    assert quantile(values, q) == expected


def test_the_99th_percentile_of_200_leaves_two_out() -> None:
    assert quantile((float(n) for n in range(1, 201)), 0.99) == 198.0


MET = {
    "p99_ms": 999.0,
    "p99_ms_loaded": 999.0,
    "backlog_min": 10_000,
    "lower_lane_before_lane0_max": 1,
    "bounds_ok": True,
    "edges": 50,
    "edge_processes": 5,
}


@pytest.mark.parametrize(
    "missed",
    [
        {"p99_ms": 1_000.0},
        {"p99_ms_loaded": 1_000.0},
        {"backlog_min": 9_999},
        {"lower_lane_before_lane0_max": 2},
        {"bounds_ok": False},
        {"edges": 49},
        {"edge_processes": 4},
    ],
)
def test_every_figure_must_hold(missed: dict[str, Any]) -> None:
    plan = bench.BenchPlan(seconds=50)
    assert bench.is_met(MET, plan)
    assert not bench.is_met({**MET, **missed}, plan)


def test_a_run_without_a_loaded_sample_shows_nothing() -> None:
    with pytest.raises(Unavailable):
        bench.figures(bench.Seen(), bench.BenchPlan(seconds=50), 1.0)
