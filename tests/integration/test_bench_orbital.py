"""The Orbital bench on a small scale: its figures are there, and it leaves nothing behind."""

from __future__ import annotations

import json

import pytest

from keymesh.app import bench_orbital
from keymesh.app.bench_killswitch_figures import BenchPlan

pytestmark = pytest.mark.serial

FIELDS = {
    "tasks_per_s",
    "tasks_per_s_openbao",
    "lane0_idle_p99_ms",
    "lane0_loaded_p99_ms",
    "lower_lane_before_lane0_max",
}


def test_a_short_run_measures_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_orbital, "COMMANDS", 96)
    monkeypatch.setattr(bench_orbital, "COMMANDS_OPENBAO", 32)
    shown = bench_orbital.measure(BenchPlan(seconds=12, backlog=300, turns=2, crowd=4))
    assert shown.keys() >= FIELDS
    assert shown["tasks"] == 96 * 3
    assert shown["tasks_by_broker"] > 0.5 * shown["tasks"]
    assert shown["tasks_per_s"] > 0
    assert shown["tasks_per_s_openbao"] > 0
    assert 0 < shown["lane0_idle_p99_ms"] < 30_000
    assert 0 < shown["lane0_loaded_p99_ms"] < 30_000
    json.dumps(shown)
