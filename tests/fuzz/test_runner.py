"""The fuzz runner can fail: each planted fault is found, told by its input, and the rest is still fed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from keymesh.app import cli
from keymesh.app.fuzz import target as targets
from keymesh.app.fuzz.run import FAILURES_MAX, Plan, Report, run
from keymesh.app.fuzz.target import input_of, load

COUNT = 100
PLANTED = "tests.fuzz.planted"


def report_of(name: str, keep: Path, *, count: int = COUNT, input_s: float = 30.0) -> Report:
    return run(Plan(name, f"{PLANTED}:{name}", 5, count, input_s, keep))


@pytest.fixture(autouse=True)
def _workers_see_the_tests(monkeypatch: pytest.MonkeyPatch, repo_root: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", str(repo_root))


def test_nothing_is_found_where_nothing_is_wrong(tmp_path: Path) -> None:
    report = report_of("Sound", tmp_path / "kept")
    assert report.ok
    assert (report.inputs, report.failures) == (COUNT, [])
    assert not (tmp_path / "kept").exists()


def test_an_exception_is_a_crash_and_its_input_is_kept(tmp_path: Path) -> None:
    report = report_of("Numbered", tmp_path)
    assert not report.ok
    assert report.inputs == COUNT
    (failure,) = report.failures
    assert (failure.kind, failure.input) == ("crash", 37)
    assert failure.error.startswith("ValueError: planted (planted.py:")
    assert Path(failure.file).read_bytes() == input_of(load(f"{PLANTED}:Sound"), 5, 37)


def test_the_end_of_the_process_is_a_crash(tmp_path: Path) -> None:
    report = report_of("Killed", tmp_path)
    # The next worker counts from nought again: inputs 37 and 75.
    assert [(one.kind, one.input) for one in report.failures] == [("crash", 37), ("crash", 75)]
    assert "-11" in report.failures[0].error
    assert report.inputs == COUNT


@pytest.mark.parametrize("name", ["Computing", "Waiting"])
def test_what_does_not_end_is_a_hang(tmp_path: Path, name: str) -> None:
    report = report_of(name, tmp_path, count=40, input_s=0.3)
    assert [(one.kind, one.input) for one in report.failures] == [("hang", 37)]
    assert (report.inputs, report.count("hang"), report.count("crash")) == (40, 1, 0)


def test_memory_that_grows_is_no_success(tmp_path: Path) -> None:
    report = report_of("Leaking", tmp_path)
    assert report.failures == []
    assert report.rss_growth_mb > 50
    assert not report.ok


def test_a_target_that_fails_always_ends_the_run(tmp_path: Path) -> None:
    report = report_of("Broken", tmp_path)
    assert [one.input for one in report.failures] == list(range(FAILURES_MAX))
    assert report.inputs == FAILURES_MAX < COUNT


def test_the_command_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(targets.TARGETS, "numbered", f"{PLANTED}:Numbered")
    words = ["fuzz", "run", "numbered", "--n", str(COUNT), "--keep", str(tmp_path), "--json"]
    assert cli.main(words) == 1
    said = json.loads(capsys.readouterr().out)
    assert (said["ok"], said["inputs"], said["crashes"], said["hangs"]) == (False, COUNT, 1, 0)
    assert Path(said["failures"][0]["file"]).is_file()
    assert cli.main(["fuzz", "run", "nothing", "--json"]) == 2
    assert "ttlv" in json.loads(capsys.readouterr().out)["error"]["message"]
    assert cli.main(["fuzz", "run", "ttlv", "--n", "0", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["field"] == "n"
