"""``keymesh bench manifest --json``: few entries among many, found and put right over the real transport."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from keymesh.app.cli import main

pytestmark = pytest.mark.serial

WORDS = [sys.executable, "-m", "keymesh.app.cli", "bench", "manifest", "--json"]


def test_the_bench_finds_and_repairs_what_differs() -> None:
    done = subprocess.run([*WORDS, "--entries", "5000", "--diff", "4"], capture_output=True, check=False, timeout=120)
    assert done.returncode in (0, 1), done.stderr
    figures = json.loads(done.stdout)
    assert figures["entries"] == 5_000
    assert figures["diff"] == 4
    assert figures["ms"] > 0
    assert 10 <= figures["rounds"] <= 40, "a bit of the path a round, log2(5000) of them and some"
    assert 1_000 < figures["walk_bytes"] < 4 * 40 * 250, "what the paths of four entries take, of five thousand"
    assert 1_000 < figures["bytes"] < figures["walk_bytes"] + 4 * 10_000
    assert done.returncode == (0 if figures["ok"] else 1)


@pytest.mark.parametrize("words", [["--entries", "100"], ["--entries", "9000000"], ["--diff", "0"], ["--diff", "501"]])
def test_what_is_no_bench_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "manifest", "--json", *words]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["error"]["field"] == words[0].strip("-")
