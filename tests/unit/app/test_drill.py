"""What a drill judges by: the order after a heal, its report, its arguments."""

from __future__ import annotations

import json
from typing import Any

import pytest

from keymesh.app import cli
from keymesh.app.drill_report import CLOCKS, Report
from keymesh.app.drill_tier1 import order_problems, record_problems
from keymesh.app.faults_record import Done


def row(namespace: str, seq: int, lane: int) -> dict[str, Any]:
    return {"task": f"{namespace}:1:{seq}:0123456789abcdef", "lane": lane}


RESTRICTIONS = [Done("a", "alder", "suspend", 5), Done("b", "birch", "suspend", 7)]
NEWEST = {"alder": 6, "birch": 9}


def test_restrictions_of_all_and_then_each_ones_newest_state() -> None:
    rows = [row("birch", 7, 0), row("alder", 5, 0), row("alder", 6, 2), row("birch", 9, 2), row("other", 3, 2)]
    assert order_problems(rows, RESTRICTIONS, NEWEST) == []


def test_what_comes_again_or_stands_for_less_than_is_held_does_not_count() -> None:
    rows = [row("birch", 8, 0), row("alder", 5, 0), row("birch", 7, 2), row("birch", 8, 2), row("alder", 6, 2)]
    assert order_problems([*rows, row("birch", 10, 2), row("alder", 6, 2)], RESTRICTIONS, NEWEST) == []


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([row("alder", 5, 0), row("alder", 6, 2), row("birch", 7, 0), row("birch", 9, 2)], "before 1 restrictions"),
        ([row("alder", 5, 0), row("birch", 7, 0), row("birch", 8, 2), row("birch", 9, 2)], "taken through [8]"),
        ([row("alder", 5, 0), row("birch", 7, 0), row("alder", 6, 2)], "birch stands at 7"),
        ([row("alder", 6, 2), row("birch", 9, 2)], "never taken"),
    ],
)
def test_another_order_is_a_problem(rows: list[dict[str, Any]], words: str) -> None:
    assert any(words in problem for problem in order_problems(rows, RESTRICTIONS, NEWEST))


def test_a_report_counts_from_the_impact_and_a_clock_that_never_stopped_is_a_problem() -> None:
    report = Report("tier1", 100.0, 6_000)
    report.mark("detected", 101.5)
    assert report.plain()["ok"] is True
    report.mark("frozen", None)
    plain = report.plain()
    assert plain["ok"] is False and plain["problems"] == ["never frozen"]
    assert plain["clocks"] == {**dict.fromkeys(CLOCKS), "impact": 0, "detected": 1_500}


def test_a_loss_is_no_success() -> None:
    assert Report("tier1", 0.0, 1, lost=1).plain()["ok"] is False


def test_what_does_not_fit_the_tier_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["drill", "run", "tier2", "--hide-l1", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["field"] == "hide-l1"
    with pytest.raises(SystemExit) as ended:
        cli.main(["drill", "run", "tier9"])
    assert ended.value.code == 2


def test_missed_entries_are_recorded_one_after_the_other() -> None:
    rows = [{"seq": seq, "place": 10 + seq} for seq in (4, 5, 6)]
    assert record_problems(rows, 4, 6, "alder") == []
    assert record_problems(rows, 4, 7, "alder") == ["alder has no record of [7]"]
    swapped = [*rows[:2], {"seq": 6, "place": 13}]
    assert any("another order" in problem for problem in record_problems(swapped, 4, 6, "alder"))


@pytest.mark.parametrize(
    ("refused", "served", "words"),
    [
        (6.0, 5.9, None),
        (6.01, 5.99, None),
        (6.5, 6.0, "served after the ttl"),
        (6.5, None, "served after the ttl"),
        (7.1, 5.9, "long after the ttl"),
    ],
)
def test_nothing_that_began_after_the_ttl_is_served(refused: float, served: float | None, words: str | None) -> None:
    report = Report("tier1", 100.0, 6_000)
    report.closed_in_time(100.0 + refused, None if served is None else 100.0 + served, 6_000)
    assert [words in p for p in report.problems if words] == ([] if words is None else [True])
    assert bool(report.problems) is (words is not None)
