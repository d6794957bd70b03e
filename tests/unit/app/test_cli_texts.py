"""What the command line says: why a start failed, values for people, warnings of flags that cannot count."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from keymesh.app import cli_common, cli_mesh
from keymesh.app.bootstrap import make_plan
from keymesh.app.layout import Layout


def line(level: str, **fields: str) -> str:
    return json.dumps({"level": level, "message": "start refused", "fields": fields})


def test_a_failed_start_is_told_by_the_roles_last_words(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.logs.mkdir()
    log = layout.logs / "core-a.log"
    assert cli_mesh._last_words(layout, "core-a") == f"see {log}"
    for content in ("", "no json\n", line("info") + "\n", '{"level": "critical"}\n', "[]\n"):
        log.write_text(content)
        assert cli_mesh._last_words(layout, "core-a") == f"see {log}", content
    log.write_text("\n".join((line("critical", code="x", reason="old"), line("critical", code="y", reason="bad disk"))))
    assert cli_mesh._last_words(layout, "core-a") == "bad disk [y]"
    log.write_text(line("critical", code="memory-lock", reason="a page cannot be locked"))
    assert "--allow-unlocked-memory" in cli_mesh._last_words(layout, "core-a")


@dataclass(frozen=True)
class Case:
    value: object
    shown: str


@pytest.mark.parametrize(
    "case",
    [
        Case(None, "-"),
        Case("", "-"),
        Case([], "-"),
        Case(True, "yes"),
        Case(0, "0"),
        Case(["a", "b"], "a, b"),
        Case({"0": 0, "1": 2}, "0: 0, 1: 2"),
    ],
    ids=lambda case: repr(case.value),
)
def test_values_are_shown_in_words(case: Case) -> None:
    assert cli_common._fact(case.value) == case.shown


def test_flags_that_cannot_count_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    plan = make_plan({"a": "a"}, cli_mesh.DEFAULT_TIMING, links=False, allow_unlocked_memory=False)
    cli_mesh._warn_of_what_stays(plan, cli_mesh.DEFAULT_TIMING, links=False)
    assert capsys.readouterr().err == ""
    cli_mesh._warn_of_what_stays(plan, cli_mesh.DEFAULT_TIMING, links=True)
    assert "--links" in capsys.readouterr().err
