"""``keymesh bench kmip --json``: a short run measures everything that is promised, and says what it lacks."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from keymesh.app.bench_kmip import RATIO, Phase, figures, find_pykmip
from keymesh.model.errors import Refused

SIDES = [f"{who}{what}" for who in ("", "pykmip_") for what in ("encrypt", "get")]
FIELDS = {f"{side}_{unit}" for side in SIDES for unit in ("per_s", "p50_ms", "p99_ms")}
RATIOS = {"encrypt_ratio", "get_ratio", "pykmip_ratio"}


def test_a_short_run_measures_everything() -> None:
    words = [sys.executable, "-m", "keymesh.app.cli", "bench", "kmip", "--json", "--seconds", "1"]
    done = subprocess.run(words, capture_output=True, check=False, timeout=300)
    assert done.returncode in (0, 1), done.stderr.decode()
    found = json.loads(done.stdout)
    assert found.keys() >= FIELDS | RATIOS | {"ok", "pinned", "rounds"}
    assert all(found[name] > 0 for name in FIELDS | RATIOS)
    assert found["ok"] is (found["pykmip_ratio"] >= RATIO) is (done.returncode == 0)


def test_the_lower_ratio_is_the_figure() -> None:
    def phase(per_s: float) -> Phase:
        return Phase(per_s, 1.0, 2.0, 0.1)

    found = figures(
        {
            "encrypt": [phase(100), phase(900), phase(500)],
            "get": [phase(800)],
            "pykmip_encrypt": [phase(10), phase(100), phase(100)],
            "pykmip_get": [phase(100)],
        }
    )
    assert (found["encrypt_per_s"], found["pykmip_encrypt_per_s"]) == (900, 100), "the best round of each"
    assert (found["encrypt_ratio"], found["get_ratio"], found["pykmip_ratio"]) == (9, 8, 8)


def test_without_pykmip_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Refused, match="pip install pykmip"):
        find_pykmip()
