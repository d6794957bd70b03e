"""``keymesh demo`` as a person runs it: one JSON object, every step true, nothing left behind however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from keymesh.app.demo import STEPS

pytestmark = pytest.mark.serial

DEMO_S = 400
END_S = 40


@pytest.fixture
def place() -> Iterator[Path]:
    """A short directory of this test's own."""
    with tempfile.TemporaryDirectory(prefix="km", dir="/tmp") as directory:
        yield Path(directory)


def demo(*args: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "keymesh.app.cli", "demo", "--json", *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
    )


def processes_of(directory: Path) -> list[str]:
    """Command lines of whatever still works in ``directory``."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue
        if str(directory) in line and "keymesh.app.cli demo" not in line:
            found.append(line)
    return found


def wait_until(check: object, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not check():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("on", [(), ("--full",)], ids=["embedded", "full"])
def test_the_demo_shows_what_it_says(place: Path, on: tuple[str, ...]) -> None:
    place.chmod(0o755)  # servers may run as users of their own
    source, directory = place / "files", place / "d"
    (source / "deep").mkdir(parents=True)
    (source / "empty").touch()
    (source / "large").write_bytes(os.urandom(3 * 1024 * 1024 + 17))
    (source / "deep" / "note.txt").write_text("grüezi")
    with demo("--path", source, "--dir", directory, *on) as running:
        out, told = running.communicate(timeout=DEMO_S)
    shown = json.loads(out)
    failed = [step for step in shown["steps"] if not step["ok"]]
    assert (running.returncode, shown["ok"], failed) == (0, True, []), told
    assert [step["name"] for step in shown["steps"]] == [step.name for step in STEPS]
    assert all(isinstance(step["ms"], int) and step["ms"] > 0 for step in shown["steps"])
    assert shown["certificate_verified"] is True
    assert shown["kill_switch_ms"] > 0
    assert shown["l1_pull_ms"] > 0
    figures = {step["name"]: step["figures"] for step in shown["steps"]}
    assert figures["seal"]["files"] == figures["open-elsewhere"]["files_equal"] == 3
    assert figures["seal"]["bytes"] == 3 * 1024 * 1024 + 17 + len("grüezi".encode())
    assert figures["residency"]["found_us-west"] == 0 < figures["residency"]["found_eu-central"]
    assert figures["cut-off"]["decrypts_while_cut"] > 0
    assert figures["crash"]["lost"] == 0 < figures["crash"]["sealed_after"]
    assert "Traceback" not in told
    assert processes_of(directory) == []
    assert not directory.exists()


def test_sigterm_takes_everything_down(place: Path) -> None:
    directory = place / "d"
    with demo("--dir", directory) as running:
        wait_until(lambda: (directory / "globex-kms" / "kms.json").exists(), 60)
        running.send_signal(signal.SIGTERM)
        _, told = running.communicate(timeout=END_S)
    assert running.returncode == 128 + signal.SIGTERM, told
    assert "Traceback" not in told
    assert processes_of(directory) == []
    assert not directory.exists()


def test_kill_9_of_the_demo_ends_its_processes_too(place: Path) -> None:
    directory = place / "d"
    with demo("--dir", directory) as running:
        wait_until(lambda: (directory / "globex-kms" / "kms.json").exists(), 60)
        assert len(processes_of(directory)) >= 11
        running.kill()
        running.wait(END_S)
    wait_until(lambda: processes_of(directory) == [], END_S)


def test_bad_arguments_start_nothing(place: Path) -> None:
    for args, field in ((("--path", place / "none"), "path"), (("--dir", place), "dir")):
        (place / "mine").touch()
        with demo(*args) as running:
            out, _ = running.communicate(timeout=END_S)
        assert running.returncode == 1
        assert json.loads(out)["error"]["field"] == field
    assert processes_of(place) == []
