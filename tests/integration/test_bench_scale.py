"""``keymesh bench scale --json``: a small run on servers that it starts and ends itself."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.serial]
WORDS = [sys.executable, "-m", "keymesh.app.cli", "bench", "scale", "--json"]


def test_a_small_run_measures_what_it_names() -> None:
    small = ["--regions", "60", "--entries", "5000", "--seconds", "5"]
    done = subprocess.run([*WORDS, *small], capture_output=True, check=False, timeout=150)
    assert done.returncode in (0, 1), done.stderr
    shown = json.loads(done.stdout)
    assert (shown["regions"], shown["entries"], shown["regions_in_log"]) == (60, 5_000, 3)
    assert shown["heartbeats"] >= 25
    assert not shown["heartbeats_lost"], shown["lost_because"]
    assert 0 < shown["heartbeat_p50_ms"] <= shown["heartbeat_p99_ms"]
    assert 0 < shown["cpu_cores"] < 1
    assert done.returncode == (0 if shown["ok"] else 1)
