"""``keymesh bench edge --json``: the promised fields, and no socket while it measures."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.serial

FIELDS = {"mint_per_s", "mint_context_per_s", "mint_ratio", "open_per_s", "open_ratio", "p50_us", "p99_us"}


def test_the_bench_prints_its_fields_and_opens_no_socket() -> None:
    words = [sys.executable, "-m", "keymesh.app.cli", "bench", "edge", "--json", "--seconds", "1"]
    done = subprocess.run(words, capture_output=True, check=False, timeout=60)
    figures = json.loads(done.stdout)
    assert figures.keys() >= FIELDS
    assert (figures["sockets_open"], figures["socket_events"]) == (0, 0)
    assert figures["mint_ratio"] > 0.4, "far from the promised half: the hot path has grown"
    assert figures["open_ratio"] > 0.4
    assert done.returncode == (0 if figures["ok"] else 1)
