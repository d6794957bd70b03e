"""Run the tests that start real processes, and meanwhile, on what time they leave idle, simulator seeds.

Usage: ``.ci/live.py SEEDS [pytest arguments...]``.  Exit status 0 when all passed; the simulator's JSON comes last.

Most of these tests wait for something most of the time, so they run in lanes, a file at a time in each; those that
measure, or look at the whole machine, come after them, one by one.  A busy machine can still be slower than any
patience they have.  So where a few fail, their files run once more, alone; what failed and then passed is named as
unstable in the output, what fails twice fails the run.  A soak gives no second chance.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = ROOT / ".venv" / "bin"
PLACES = ("tests/contract", "tests/integration")
LANES = ("-n", os.environ.get("LANES", "2"), "--dist", "loadfile", "-m", "live and not serial")
ALONE = ("-m", "serial")
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
    command = [BIN / "python", "-m", "pytest", "-q", f"--junitxml={report}", "-o", "junit_family=xunit1", *words]
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    failed = []
    for case in ET.parse(report).getroot().iter("testcase") if report.exists() else ():
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append((case.get("file", ""), case.get("name", "")))
    return code, failed


def run_live(scratch: Path, words: list[str]) -> bool:
    """Whether all passed, at the second time where that is allowed."""
    codes, failed = set(), []
    for number, phase in enumerate((LANES, ALONE)):
        code, missed = run_tests(scratch / f"{number}.xml", *phase, *words, *PLACES)
        codes.add(code)
        failed += missed
    if codes == {0}:
        return True
    if not codes <= {0, 1} or not 0 < len(failed) <= SECOND_CHANCES or not all(file for file, _ in failed):
        return False
    files = sorted({file for file, _ in failed})
    print("FAILED ONCE, run again alone:", *files, flush=True)
    code, again = run_tests(scratch / "again.xml", *files)
    for file, name in failed:
        verdict = "FAILED TWICE" if code and (file, name) in again else "UNSTABLE (failed, then passed)"
        print(f"{verdict}: {file}::{name}", flush=True)
    return code == 0


def main(argv: list[str]) -> int:
    seeds, *words = argv
    with tempfile.TemporaryDirectory() as scratch, (Path(scratch) / "seeds.json").open("w+") as shown:
        simulator = subprocess.Popen(
            [*idle(), BIN / "keymesh", "sim", "run", "--seeds", seeds, "--json"], cwd=ROOT, stdout=shown
        )
        try:
            passed = run_live(Path(scratch), words)
            seeds_failed = simulator.wait()
        finally:
            if simulator.poll() is None:
                simulator.kill()
                simulator.wait()
        shown.seek(0)
        print(shown.read(), flush=True)
    return 0 if passed and not seeds_failed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
