"""``keymesh bench sidecar --json``: a short run measures everything that is promised."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from keymesh.app.bench_revocation import DOCUMENTED, judged
from keymesh.app.bench_sidecar import is_met
from keymesh.model.errors import Unavailable

pytestmark = pytest.mark.serial

FIELDS = {
    "tcp_c16_per_s", "constant_per_s", "ratio", "uds_c1_p50_us", "uds_c1_p99_us", "rate_10k_p50_us", "rate_10k_p99_us",
    "rate_10k_p999_us", "rate_10k_constant_p99_us", "rate_10k_p99_ratio", "rate_10k_p999_ratio", "batch_keys_per_s",
    "rss_mb", "cold_start_ms", "openbao_per_s", "openbao_ratio", "mtls_c1_p50_us", "mtls_c1_per_s", "ok",
}  # fmt: skip


def test_a_short_run_measures_everything() -> None:
    words = [sys.executable, "-m", "keymesh.app.cli", "bench", "sidecar", "--json", "--seconds", "1"]
    done = subprocess.run(words, capture_output=True, check=False, timeout=120)
    assert done.returncode in (0, 1), done.stderr.decode()
    figures = json.loads(done.stdout)
    assert figures.keys() >= FIELDS
    assert all(figures[name] > 0 for name in FIELDS - {"ok"})
    assert figures["revoke_last_open_ms"] >= 0
    assert figures["revoke_opens_before"] > 0
    assert "restricted" in figures["revoke_refusals"]
    assert DOCUMENTED.issuperset(figures["revoke_refusals"])
    assert figures["ok"] is is_met(figures) is (done.returncode == 0)


def test_a_revocation_that_nobody_saw_is_no_figure() -> None:
    with pytest.raises(Unavailable):
        judged([(1, 200, ""), (2, 200, "")], event=1)
    with pytest.raises(Unavailable):
        judged([(5, 403, "restricted")], event=1)
    shown = judged([(1, 200, ""), (5_000_000, 200, ""), (6_000_000, 503, "busy"), (7_000_000, 403, "restricted")], 2)
    assert shown == {"revoke_last_open_ms": 5.0, "revoke_opens_before": 1, "revoke_refusals": ["busy", "restricted"]}
