"""Run every test and the simulator with their full counts, then print one JSON object.

Exit status 0 when all passed.  Everything but the object goes to standard error.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BIN = ROOT / ".venv" / "bin"


def pytest_part(name: str, *args: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        command = [str(BIN / "python"), "-m", "pytest", "-q", "--durations=10", f"--junitxml={report}", *args, "tests"]
        started = time.monotonic()
        code = subprocess.run(command, cwd=ROOT, stdout=sys.stderr, check=False).returncode
        part: dict[str, Any] = {"name": name, "wall_s": round(time.monotonic() - started, 1), "exit": code}
        if report.exists():
            suite = ET.parse(report).getroot().find("testsuite")
            if suite is not None:
                part |= {key: int(suite.get(key, "0")) for key in ("tests", "failures", "errors", "skipped")}
    return part | {"ok": code == 0}


def json_part(name: str, *args: str) -> dict[str, Any]:
    """A keymesh command that prints one JSON object on its last line or as its whole output."""
    started = time.monotonic()
    done = subprocess.run([str(BIN / "keymesh"), *args], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    try:
        result = json.loads(done.stdout)
    except ValueError:
        result = None
    wall_s = round(time.monotonic() - started, 1)
    ok = done.returncode == 0 and result is not None
    return {"name": name, "wall_s": wall_s, "exit": done.returncode, "result": result, "ok": ok}


def fuzz_part(target: str) -> dict[str, Any]:
    """Inputs of another seed than the tests'."""
    inputs = os.environ.get("SOAK_INPUTS", "1000000")
    return json_part(f"fuzz-{target}", "fuzz", "run", target, "--n", inputs, "--seed", "2", "--json")


def main() -> int:
    os.environ["KEYMESH_SOAK"] = "1"
    parts = [
        pytest_part("parallel", "-n", os.environ.get("JOBS", "2"), "-m", "not serial"),
        pytest_part("serial", "-m", "serial"),
        json_part("sim", "sim", "run", "--seeds", os.environ.get("SOAK_SEEDS", "10000"), "--json"),
        *(fuzz_part(target) for target in ("ttlv", "blob", "http", "kmip")),
        json_part("bench-edge", "bench", "edge", "--json"),
        json_part("bench-killswitch", "bench", "killswitch", "--json"),
        json_part("bench-control", "bench", "control", "--json"),
        json_part("bench-orbital", "bench", "orbital", "--json"),
    ]
    ok = all(part["ok"] for part in parts)
    print(json.dumps({"ok": ok, "parts": parts}))
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
