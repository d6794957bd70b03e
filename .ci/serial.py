"""Run the tests that want the machine for themselves, and meanwhile, on what time they leave idle, simulator seeds.

Usage: ``.ci/serial.py SEEDS [pytest arguments...]``.  Exit status 0 when both passed; the simulator's JSON comes last.

These tests kill real processes under real servers, and a busy machine can be slower than any patience they have.  So
where a few of them fail, their files run once more, alone; what failed and then passed is named as unstable in the
output, what fails twice fails the run.  A soak gives no second chance.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = ROOT / ".venv" / "bin"
PLACES = ("tests/contract", "tests/integration")
SECOND_CHANCES = 3
"""Tests: more than this that fail is no accident."""


def idle() -> list[str]:
    """Words before a command that is to run on idle time only."""
    chrt = ["chrt", "--idle", "0"]
    if shutil.which("chrt") and subprocess.run([*chrt, "true"], capture_output=True, check=False).returncode == 0:
        return chrt
    return ["nice", "-n", "19"]


def run_tests(report: Path, *words: str) -> tuple[int, list[tuple[str, str]]]:
    """The exit status of pytest, and what failed: file and name of each."""
    command = [
        BIN / "python",
        "-m",
        "pytest",
        "-q",
        "-m",
        "serial",
        f"--junitxml={report}",
        "-o",
        "junit_family=xunit1",
    ]
    code = subprocess.run([*command, *words], cwd=ROOT, check=False).returncode
    failed = []
    for case in ET.parse(report).getroot().iter("testcase") if report.exists() else ():
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append((case.get("file", ""), case.get("name", "")))
    return code, failed


def main(argv: list[str]) -> int:
    seeds, *words = argv
    with tempfile.TemporaryDirectory() as scratch, (Path(scratch) / "seeds.json").open("w+") as shown:
        simulator = subprocess.Popen(
            [*idle(), BIN / "keymesh", "sim", "run", "--seeds", seeds, "--json"], cwd=ROOT, stdout=shown
        )
        try:
            code, failed = run_tests(Path(scratch) / "first.xml", *words, *PLACES)
            seeds_failed = simulator.wait()
            if code == 1 and 0 < len(failed) <= SECOND_CHANCES and all(file for file, _ in failed):
                files = sorted({file for file, _ in failed})
                print("FAILED ONCE, run again alone:", *files, flush=True)
                code, again = run_tests(Path(scratch) / "second.xml", *files)
                for file, name in failed:
                    verdict = "FAILED TWICE" if code and (file, name) in again else "UNSTABLE (failed, then passed)"
                    print(f"{verdict}: {file}::{name}", flush=True)
        finally:
            if simulator.poll() is None:
                simulator.kill()
                simulator.wait()
        shown.seek(0)
        print(shown.read(), flush=True)
    return 1 if code or seeds_failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
