"""``keymesh drill run``: each tier, live, on a mesh of its own."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from shutil import rmtree
from typing import Any

import pytest

from keymesh.app import cli
from keymesh.app.drill_report import CLOCKS
from keymesh.app.drill_tier2 import DECRYPT_LIMIT_MS, FENCED_S, NEAREST
from keymesh.app.layout import Layout
from keymesh.app.supervisor_client import take_lock

pytestmark = [pytest.mark.slow, pytest.mark.serial]


@pytest.fixture
def short_dir() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="kmd", dir="/tmp"))
    yield made
    rmtree(made, ignore_errors=True)


def rehearsed(capsys: pytest.CaptureFixture[str], directory: Path, *words: str) -> dict[str, Any]:
    code = cli.main(["drill", "run", *words, "--json", "--dir", str(directory / "m")])
    shown: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert shown.get("problems") == [], shown
    assert (code, shown["ok"], shown["lost"]) == (0, True, 0), shown
    assert set(shown["clocks"]) == set(CLOCKS) and shown["clocks"]["impact"] == 0
    take_lock(Layout(directory / "m")).close()  # the mesh is down
    return shown


def test_a_region_without_registry_and_customer_closes_at_the_ttl_and_takes_restrictions_first(
    short_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The order after the heal, and that only the newest state is applied, is among the drill's ``problems``."""
    shown = rehearsed(capsys, short_dir, "tier1", "--hide-l1")
    assert shown["mode_path"] == ["synced", "autonomous", "closed", "synced"]
    clocks = shown["clocks"]
    assert 0 < clocks["detected"] < clocks["frozen"] < clocks["resumed"] <= clocks["verified"]
    assert clocks["detected"] < shown["first_refusal_ms"]
    assert shown["missed"] > shown["taken"] > 0


def test_a_killed_region_is_taken_over_by_the_nearest_that_is_allowed_and_is_fenced_when_it_returns(
    short_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = rehearsed(capsys, short_dir, "tier2")
    assert shown["mode_path"] == ["synced", "unreachable", "closed", "synced"]
    assert 0 < shown["first_decrypt_ms"] <= DECRYPT_LIMIT_MS
    assert shown["taken_by"] == NEAREST
    assert shown["clocks"]["promoted"] < shown["clocks"]["frozen"] < shown["clocks"]["committed"]
    assert shown["fenced_ms"] >= FENCED_S * 1_000


def test_the_registry_dies_and_the_regions_go_on_by_their_voters_word(
    short_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = rehearsed(capsys, short_dir, "tier3")
    assert shown["mode_path"] == ["synced", "autonomous", "standby", "synced"]
    assert shown["clocks"]["promoted"] <= shown["first_decrypt_ms"]
    assert shown["clocks"]["detected"] < shown["first_refusal_ms"]
    assert shown["dead_ms"] > shown["ttl_ms"] + 2_000
