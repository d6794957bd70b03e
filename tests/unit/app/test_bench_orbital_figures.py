"""What the Orbital bench makes of what it saw, and when it says that a figure is missed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from keymesh.app.bench_killswitch_figures import BenchPlan, Seen
from keymesh.app.bench_killswitch_samples import Sample
from keymesh.app.bench_orbital_figures import Throughput, figures
from keymesh.model.errors import Unavailable

PLAN = BenchPlan(seconds=50)
GOOD = Throughput(tasks=6_000, taken=6_000, by_broker=5_900, generated_s=4.0, took_s=10.0)


def sample(ms: int, lower: int = 0) -> Sample:
    return Sample(
        append_started_ns=0,
        appended_ns=1,
        lane0_ns={"us-east": ms * 500_000},
        refused_ns={"us-east": ms * 1_000_000},
        lower_before=lower,
    )


def seen(*, idle: int = 100, loaded: int = 300, backlog_min: int = 10_000) -> Seen:
    return Seen(idle=[sample(idle)], loaded=[sample(loaded, lower=2)], backlog=10_500, backlog_min=backlog_min)


def test_figures_of_a_good_run() -> None:
    shown = figures(seen(), GOOD, PLAN, 55.0)
    assert shown["ok"]
    assert (shown["tasks_per_s"], shown["tasks_per_s_openbao"]) == (600.0, None)
    assert (shown["lane0_idle_p99_ms"], shown["lane0_loaded_p99_ms"]) == (100.0, 300.0)
    assert shown["lower_lane_before_lane0_max"] == 2
    assert shown["commands_per_s"] == 500


def test_the_openbao_figure_stands_beside_it_and_decides_nothing() -> None:
    slow = Throughput(tasks=6_000, taken=3_000, by_broker=2_900, generated_s=4.0, took_s=20.0)
    shown = figures(seen(), GOOD, PLAN, 55.0, slow)
    assert (shown["tasks_per_s_openbao"], shown["ok"]) == (150.0, True)
    shown = figures(seen(), GOOD, PLAN, 55.0, "no bao here")
    assert (shown["tasks_per_s_openbao"], shown["openbao_note"], shown["ok"]) == (None, "no bao here", True)


@pytest.mark.parametrize(
    ("what", "throughput"),
    [
        (seen(), replace(GOOD, took_s=12.5)),
        (seen(), replace(GOOD, taken=5_999)),
        (seen(), replace(GOOD, by_broker=5_000)),
        (seen(idle=250), GOOD),
        (seen(loaded=500), GOOD),
        (seen(backlog_min=9_999), GOOD),
    ],
)
def test_one_missed_figure_is_enough(what: Seen, throughput: Throughput) -> None:
    assert not figures(what, throughput, PLAN, 55.0)["ok"]


@pytest.mark.parametrize("what", [Seen(), Seen(idle=[sample(1)])])
def test_where_nothing_was_measured_nothing_is_shown(what: Seen) -> None:
    with pytest.raises(Unavailable):
        figures(what, GOOD, PLAN, 55.0)
