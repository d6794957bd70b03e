"""The product's machines survive their seeds; a seed is an hour with enough going on; two runs are one."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from keymesh.sim.options import HOUR_MS, options_of
from keymesh.sim.plan import COMMANDS, plan_of
from keymesh.sim.run import run_seed, run_seeds

SOAK = os.environ.get("KEYMESH_SOAK") == "1"


def test_a_seed_is_an_hour_without_violations_and_its_faults_happen() -> None:
    outcome = run_seed(7)
    assert outcome.failure is None, outcome.failure.line
    assert outcome.virtual_ms == HOUR_MS
    assert outcome.commands >= 100
    assert sum(n for name, n in outcome.faults.items() if name not in ("loss", "duplicate", "reorder")) >= 20
    assert outcome.transitions


@pytest.mark.slow
def test_seeds_run_clean() -> None:
    report = run_seeds(range(2_000 if SOAK else 30), procs=2)
    assert not report.failures, "\n".join(f.line for f in report.failures)


def test_every_plan_has_enough_commands_and_faults() -> None:
    for seed in range(200):
        plan = plan_of(options_of(seed))
        commands = sum(i.what in COMMANDS for i in plan)
        assert commands >= 100, seed
        assert len(plan) - commands >= 20, seed
        assert [i.at_ms for i in plan] == sorted(i.at_ms for i in plan)


_TRACE = "from keymesh.sim.run import run_seed; o = run_seed({seed}); print(o.trace, o.steps, sorted(o.faults.items()))"


def _trace(seed: int, hash_seed: str) -> str:
    env = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": "src"}
    done = subprocess.run(
        [sys.executable, "-c", _TRACE.format(seed=seed)],
        env=env,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    return done.stdout


def test_a_seed_has_one_trace_whatever_the_hash_seed() -> None:
    first = _trace(11, "1")
    assert first == _trace(11, "4242")
    assert str(run_seed(11).trace) in first


def test_another_seed_has_another_trace() -> None:
    assert run_seed(3, until=200_000).trace != run_seed(4, until=200_000).trace


def test_a_plan_item_can_be_deleted_and_the_rest_stays_meaningful() -> None:
    plan = plan_of(options_of(5))
    for i in range(0, len(plan), 40):
        outcome = run_seed(5, plan=plan[:i] + plan[i + 1 :], until=400_000)
        assert outcome.failure is None, outcome.failure.line
