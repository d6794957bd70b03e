"""``keymesh sim``: what it prints, and its exit codes."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from keymesh.app.args_show import add_sim_arguments
from keymesh.app.cli_sim import run_sim
from keymesh.model.errors import Refused
from keymesh.sim.bugs import BUGS
from keymesh.sim.coverage import TRANSITIONS
from keymesh.sim.options import FAULT_CLASSES
from keymesh.sim.run import SEEDS_FOR_ALL, Report


def _run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    parser = argparse.ArgumentParser()
    add_sim_arguments(parser)
    code = run_sim(parser.parse_args(words))
    return code, capsys.readouterr().out


def test_run_prints_one_object_with_the_figures(capsys: pytest.CaptureFixture[str]) -> None:
    code, out = _run(capsys, "run", "--seeds", "2", "--start", "3", "--procs", "1", "--json")
    value: dict[str, Any] = json.loads(out)
    assert code == 0
    assert (value["seeds"], value["violations"], value["virtual_hours"]) == (2, 0, 2.0)
    assert value["commands"] >= 200
    assert value["wall_s"] > 0
    assert 0 < value["transitions_covered"] <= value["transitions_total"]
    assert all(isinstance(n, int) for n in value["faults"].values())


def test_many_seeds_that_reach_not_everything_are_no_success() -> None:
    seen = Report(seeds=SEEDS_FOR_ALL, faults=Counter(FAULT_CLASSES), transitions=set(TRANSITIONS))
    assert seen.is_right()
    assert not replace(seen, violations=1).is_right()
    few = replace(seen, faults=Counter(FAULT_CLASSES[1:]))
    assert few.plain()["faults_missed"] == [FAULT_CLASSES[0]]
    assert not few.is_right()
    assert not replace(seen, transitions=set(sorted(TRANSITIONS)[1:])).is_right()
    assert replace(few, seeds=SEEDS_FOR_ALL - 1).is_right()


def test_a_violation_is_one_line_that_replays_it(capsys: pytest.CaptureFixture[str]) -> None:
    bug = next(b for b in BUGS if b.name == "residency-leak")
    with bug.planted():
        code, out = _run(capsys, "run", "--seeds", "1", "--procs", "1")
        assert code == 1
        line = next(x for x in out.splitlines() if "I5" in x)
        assert line.endswith("keymesh sim replay 0 --explain")
        code, out = _run(capsys, "replay", "0", "--explain")
        assert code == 1
        assert "LOG mesh:1 mesh.genesis" in out


def test_replay_is_reproducible_and_can_stop_early(capsys: pytest.CaptureFixture[str]) -> None:
    first = _run(capsys, "replay", "9", "--until", "90000", "--json")
    assert first == _run(capsys, "replay", "9", "--until", "90000", "--json")
    assert first[0] == 0
    assert json.loads(first[1])["violation"] is None


@pytest.mark.parametrize("words", [("run", "--seeds", "0"), ("run", "--procs", "0"), ("replay", "-1")])
def test_numbers_out_of_range_are_refused(capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    with pytest.raises((Refused, SystemExit)):
        _run(capsys, *words)
