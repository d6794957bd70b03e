"""Runs a fuzz target in a process of its own, and tells what happened to it: faults, crashes, hangs, memory.

A worker that dies or hangs costs its one input: the next worker goes on behind it.  A hang is counted by the time
that the worker computed at one input, so that a busy machine makes none; where it only waits, by ten times as much.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from keymesh.app.fuzz.target import input_of, load

POLL_S: Final = 0.05
START_S: Final = 120.0
WAIT_FACTOR: Final = 10
FAILURES_MAX: Final = 20
RSS_GROWTH_MAX_MB: Final = 16.0
_TICKS: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Failure:
    """``kind``: crash or hang.  ``input``: its number, from which, with the seed, its bytes follow."""

    kind: str
    input: int
    error: str
    file: str = ""


@dataclass(slots=True)
class Report:
    """What a run found.  ``inputs``: how many were fed."""

    target: str
    seed: int
    inputs: int = 0
    rss_growth_mb: float = 0.0
    wall_s: float = 0.0
    failures: list[Failure] = field(default_factory=list)

    def count(self, kind: str) -> int:
        return sum(failure.kind == kind for failure in self.failures)

    @property
    def ok(self) -> bool:
        return not self.failures and self.rss_growth_mb <= RSS_GROWTH_MAX_MB

    def plain(self) -> dict[str, Any]:
        """As it stands in JSON."""
        return {
            "ok": self.ok,
            "target": self.target,
            "seed": self.seed,
            "inputs": self.inputs,
            "crashes": self.count("crash"),
            "hangs": self.count("hang"),
            "rss_growth_mb": round(self.rss_growth_mb, 1),
            "rss_growth_max_mb": RSS_GROWTH_MAX_MB,
            "wall_s": round(self.wall_s, 1),
            "failures": [
                {"kind": one.kind, "input": one.input, "error": one.error, "file": one.file} for one in self.failures
            ],
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """Inputs 0 to ``count`` - 1 of ``seed``, for the target ``name`` at ``place`` (MODULE:CLASS)."""

    name: str
    place: str
    seed: int
    count: int
    input_s: float
    keep: Path
    """Directory for what failed; made when something does."""


def run(plan: Plan) -> Report:
    """Feed all inputs, or as many as it takes to find FAILURES_MAX failures."""
    started, report, at = time.monotonic(), Report(plan.name, plan.seed), 0
    with tempfile.TemporaryDirectory(prefix="keymesh-fuzz-") as scratch:
        while at < plan.count and len(report.failures) < FAILURES_MAX:
            at = _one_worker(plan, at, Path(scratch), report)
    report.inputs = at
    report.failures[FAILURES_MAX:] = []
    report.failures = [_kept(plan, failure) for failure in report.failures]
    report.wall_s = time.monotonic() - started
    return report


def _one_worker(plan: Plan, start: int, scratch: Path, report: Report) -> int:
    """Feed from ``start`` on until the end or the worker's; the first input that was not fed."""
    progress = scratch / "progress"
    progress.write_bytes(bytes(8))
    numbers = [str(n) for n in (plan.seed, start, plan.count)]
    command = [sys.executable, "-m", "keymesh.app.fuzz.worker", str(os.getpid()), plan.place, *numbers, str(progress)]
    with (scratch / "said").open("w+b") as said, (scratch / "errors").open("w+b") as errors:
        worker = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=errors)
        try:
            hung = _watch(worker, progress, plan.input_s)
        finally:
            worker.kill()
            code = worker.wait()
        said.seek(0)
        last = int.from_bytes(progress.read_bytes(), "big") - 1
        _read(said.read(), report)
        errors.seek(0)
        told = errors.read().decode("utf-8", "replace").strip().splitlines()[-1:]
    if hung:
        took = f"more than {plan.input_s:g} s of computing, or {plan.input_s * WAIT_FACTOR:g} s of waiting"
        report.failures.append(Failure("hang", max(last, start), took))
    elif code != 0:
        error = f"the process ended with {code}" + "".join(f": {line[:300]}" for line in told)
        report.failures.append(Failure("crash", max(last, start), error))
    return max(last, start) + 1


def _watch(worker: subprocess.Popen[bytes], progress: Path, input_s: float) -> bool:
    """Wait for the worker's end; True where it stays at one input for too long."""
    seen, since, computed = 0, time.monotonic(), 0.0
    while True:
        try:
            worker.wait(POLL_S)
            return False
        except subprocess.TimeoutExpired:
            pass
        now, at = time.monotonic(), int.from_bytes(progress.read_bytes(), "big")
        if at != seen:
            seen, since, computed = at, now, _computed_s(worker.pid)
        elif at == 0:
            if now - since > START_S:
                return True
        elif _computed_s(worker.pid) - computed > input_s or now - since > input_s * WAIT_FACTOR:
            return True


def _computed_s(pid: int) -> float:
    """Seconds that process ``pid``, our child, has computed."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _read(said: bytes, report: Report) -> None:
    for value in _lines(said):
        if "rss_growth_bytes" in value:
            report.rss_growth_mb = max(report.rss_growth_mb, value["rss_growth_bytes"] / 1e6)
        else:
            report.failures.append(Failure("crash", value["input"], value["error"]))


def _lines(said: bytes) -> Iterator[dict[str, Any]]:
    for line in said.splitlines():
        try:
            yield json.loads(line)
        except ValueError:  # cut off: the worker was ended in the middle of it
            return


def _kept(plan: Plan, failure: Failure) -> Failure:
    """The same, its input in a file."""
    plan.keep.mkdir(parents=True, exist_ok=True)
    file = plan.keep / f"{plan.name}-{plan.seed}-{failure.input}.bin"
    file.write_bytes(input_of(load(plan.place), plan.seed, failure.input))
    return Failure(failure.kind, failure.input, failure.error, str(file))
