"""``keymesh bench killswitch`` on a mesh of its own: a small run, and what it leaves behind when it is stopped."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from keymesh.app import bench_killswitch as bench
from keymesh.app.bench_killswitch_figures import LOWER_LIMIT, BenchPlan
from keymesh.app.layout import Layout
from keymesh.app.supervisor_client import take_lock
from keymesh.model.errors import ExitCode, Refused

pytestmark = [pytest.mark.slow, pytest.mark.serial]
NAMED = ("p50_ms", "p99_ms", "p99_ms_loaded", "backlog", "lower_lane_before_lane0_max")
BOUNDS = ("push_p99_ms", "lease_margin_ms", "governance_margin_ms", "root_margin_ms", "edges")


@pytest.fixture
def short_dir() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="kmb", dir="/tmp"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


def bench_argv(directory: Path) -> list[str]:
    return [sys.executable, "-m", "keymesh.app.cli", "bench", "killswitch", "--json", "--dir", str(directory)]


def test_a_small_run_measures_what_it_names(short_dir: Path) -> None:
    plan = BenchPlan(seconds=10, backlog=400, turns=2, crowd=8)
    shown = bench.measure(plan, str(short_dir / "m"))
    assert all(isinstance(shown[name], int | float) for name in (*NAMED, *BOUNDS))
    assert (shown["edges"], shown["edge_processes"]) == (50, 5)
    assert shown["push_samples"] >= bench.SAMPLES_MIN
    assert shown["push_p99_ms"] > 0
    assert min(shown[f"{bound}_margin_ms"] for bound in ("lease", "governance", "root")) > 0
    assert all(shown[f"{name}_samples"] >= 8 for name in ("lease", "governance", "root_denied", "root_silent"))
    assert shown["samples"] >= bench.SAMPLES_MIN
    assert shown["samples_loaded"] >= 1
    assert shown["backlog"] >= shown["backlog_min"] >= plan.backlog
    assert shown["lower_lane_before_lane0_max"] <= LOWER_LIMIT
    assert 0 < shown["append_p50_ms"] < shown["lane0_p50_ms"] < shown["p50_ms"] <= shown["p99_ms"]
    assert shown["p99_ms_loaded"] > 0
    assert shown["reference_round_trip_p50_ms"] > 0
    assert shown["reference_sqlite_full_commit_p50_ms"] > 0
    take_lock(Layout(short_dir / "m")).close()  # the mesh is down
    with pytest.raises(Refused, match="without one"):
        bench.measure(plan, str(short_dir / "m"))


def test_sigterm_takes_the_mesh_down(short_dir: Path) -> None:
    layout = Layout(short_dir / "m")
    with subprocess.Popen(bench_argv(layout.root), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        try:
            await_file(layout.control_socket, child)
            child.send_signal(signal.SIGTERM)
            assert child.wait(60) == 130
        finally:
            child.kill()
    take_lock(layout).close()


def await_file(path: Path, child: subprocess.Popen[Any]) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_directory_with_a_mesh_is_left_alone(short_dir: Path) -> None:
    (short_dir / "mesh.json").write_text("{}")
    ended = subprocess.run(bench_argv(short_dir), capture_output=True, timeout=60, check=False)
    assert ended.returncode == ExitCode.REFUSED
    assert json.loads(ended.stdout)["error"]["field"] == "dir"
    assert [p.name for p in short_dir.iterdir()] == ["mesh.json"]
