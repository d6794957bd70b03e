"""``keymesh bench sidecar --json``: a short run measures everything that is promised."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from keymesh.app.bench_sidecar import is_met

pytestmark = pytest.mark.serial

FIELDS = {
    "mint_per_s", "constant_per_s", "ratio", "batch_keys_per_s", "single_p50_ms", "single_p99_ms", "offered_per_s",
    "offered_p50_ms", "offered_p99_ms", "offered_p999_ms", "constant_p99_ms", "constant_p999_ms", "cold_start_ms",
    "rss_mb", "openbao_datakey_per_s", "openbao_ratio", "mtls_single_p50_ms", "mtls_single_per_s", "ok",
}  # fmt: skip


def test_a_short_run_measures_everything() -> None:
    words = [sys.executable, "-m", "keymesh.app.cli", "bench", "sidecar", "--json", "--seconds", "1"]
    done = subprocess.run(words, capture_output=True, check=False, timeout=120)
    assert done.returncode in (0, 1), done.stderr.decode()
    figures = json.loads(done.stdout)
    assert figures.keys() >= FIELDS
    assert all(figures[name] > 0 for name in FIELDS - {"ok"})
    assert figures["ok"] is is_met(figures) is (done.returncode == 0)
