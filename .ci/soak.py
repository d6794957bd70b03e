"""Run every test and the simulator with their full counts, then print one JSON object.

Exit status 0 when all passed.  Everything but the object goes to standard error.  Simulator and fuzzing need no clock:
they run beside the tests, on what time those leave idle; the benches come last, alone.  ``SOAK_PARTS`` names the parts
to run, with commas between them, for a soak in several sittings; the object then says which it left out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from live import ALONE, BIN, LANES, ROOT, idle

from keymesh.app.fuzz.target import TARGETS

JOBS = os.environ.get("JOBS", "2")
SEEDS = os.environ.get("SOAK_SEEDS", "10000")
INPUTS = os.environ.get("SOAK_INPUTS", "1000000")
FUZZ_SEED = "2"  # another than the tests'

Part = dict[str, Any]


def pytest_part(*args: str) -> Part:
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        command = [str(BIN / "python"), "-m", "pytest", "-q", "--durations=10", f"--junitxml={report}", *args, "tests"]
        code = subprocess.run(command, cwd=ROOT, stdout=sys.stderr, check=False).returncode
        part: Part = {"exit": code, "ok": code == 0}
        if report.exists():
            suite = ET.parse(report).getroot().find("testsuite")
            if suite is not None:
                part |= {key: int(suite.get(key, "0")) for key in ("tests", "failures", "errors", "skipped")}
    return part


def json_part(*args: str, before: tuple[str, ...] = ()) -> Part:
    """A keymesh command that prints one JSON object as its whole output."""
    command = [*before, str(BIN / "keymesh"), *args, "--json"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    try:
        result = json.loads(done.stdout)
    except ValueError:
        result = None
    return {"exit": done.returncode, "result": result, "ok": done.returncode == 0 and result is not None}


def parts() -> tuple[dict[str, Callable[[], Part]], ...]:
    """What runs one after the other; what runs beside it; what runs when all of that is done."""
    quiet = tuple(idle())
    tests = {
        "parallel": lambda: pytest_part("-n", JOBS, "-m", "not live and not serial"),
        "live": lambda: pytest_part(*LANES),
        "alone": lambda: pytest_part(*ALONE),
    }
    beside = {"sim": lambda: json_part("sim", "run", "--seeds", SEEDS, before=quiet)} | {
        f"fuzz-{target}": lambda target=target: json_part(
            "fuzz", "run", target, "--n", INPUTS, "--seed", FUZZ_SEED, before=quiet
        )
        for target in sorted(TARGETS)
    }
    benches = {
        f"bench-{name}": lambda name=name: json_part("bench", name)
        for name in ("edge", "sidecar", "kmip", "killswitch", "control", "orbital", "manifest", "scale")
    }
    return tests, beside, benches


def run_all(of: dict[str, Callable[[], Part]]) -> list[Part]:
    done = []
    for name, run in of.items():
        started = time.monotonic()
        part = run()
        done.append({"name": name, "wall_s": round(time.monotonic() - started, 1), **part})
        print(json.dumps(done[-1]), file=sys.stderr, flush=True)
    return done


def main() -> int:
    os.environ["KEYMESH_SOAK"] = "1"
    tests, beside, benches = parts()
    known = [*tests, *beside, *benches]
    wanted = (os.environ.get("SOAK_PARTS") or ",".join(known)).split(",")
    if unknown := sorted(set(wanted) - set(known)):
        print(f"SOAK_PARTS: no part {', '.join(unknown)}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    tests, beside, benches = ({k: v for k, v in of.items() if k in wanted} for of in (tests, beside, benches))
    with ThreadPoolExecutor(1) as other:
        late = other.submit(run_all, beside)
        done = run_all(tests) + late.result()
    done += run_all(benches)
    ok = all(part["ok"] for part in done)
    print(json.dumps({"ok": ok, "parts": done, "left_out": [name for name in known if name not in wanted]}))
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
