"""``keymesh sim``: run seeds, replay one, shrink one; the same machines as in production, in virtual time."""

from __future__ import annotations

import argparse
import json
from typing import Final

from keymesh.model.errors import ExitCode, Refused
from keymesh.sim.options import HOUR_MS
from keymesh.sim.run import Report, run_seed, run_seeds
from keymesh.sim.shrink import shrink

_SEEDS_MAX: Final = 1_000_000
_SEED_MAX: Final = 2**48


def run_sim(args: argparse.Namespace) -> int:
    """Exit code 1 where an invariant was violated, or where of many seeds none reached a fault or a transition."""
    if args.sim == "run":
        return _run(args)
    if args.sim == "replay":
        return _replay(args)
    return _shrink(args)


def _seed(name: str, value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise Refused.bad_field(name, f"{low} to {high}")
    return value


def _run(args: argparse.Namespace) -> int:
    count = _seed("seeds", args.seeds, 1, _SEEDS_MAX)
    start = _seed("start", args.start, 0, _SEED_MAX)
    report = run_seeds(range(start, start + count), procs=_seed("procs", args.procs, 1, 64))
    if args.json:
        print(json.dumps(report.plain(), indent=2, sort_keys=True))
    else:
        _show(report)
    return int(ExitCode.DONE if report.is_right() else ExitCode.REFUSED)


def _show(report: Report) -> None:
    plain = report.plain()
    hours = plain["virtual_hours"]
    print(f"{report.seeds} seeds, {hours} virtual hours in {plain['wall_s']} s, {report.steps} steps")
    print(f"{report.commands} commands, {sum(report.faults.values())} faults")
    print(f"{plain['transitions_covered']} of {plain['transitions_total']} transitions covered")
    for missed in (*plain["faults_missed"], *plain["transitions_missed"]):
        print(f"  never: {missed}")
    for failure in report.failures:
        print(failure.line)
    print(f"{report.violations} violations")


def _replay(args: argparse.Namespace) -> int:
    outcome = run_seed(_seed("seed", args.seed, 0, _SEED_MAX), until=args.until, explain=args.explain)
    failure = outcome.failure
    if args.json:
        value = {
            "seed": outcome.seed,
            "trace": outcome.trace,
            "steps": outcome.steps,
            "virtual_hours": round(outcome.virtual_ms / HOUR_MS, 3),
            "violation": None if failure is None else failure.line,
            "explained": outcome.explained,
        }
        print(json.dumps(value, indent=2, sort_keys=True))
    else:
        for line in outcome.explained:
            print(line)
        print(f"seed {outcome.seed}: {outcome.steps} steps, trace {outcome.trace}")
        print("no violation" if failure is None else failure.line)
    return int(ExitCode.DONE if failure is None else ExitCode.REFUSED)


def _shrink(args: argparse.Namespace) -> int:
    found = shrink(_seed("seed", args.seed, 0, _SEED_MAX), runs_max=_seed("runs", args.runs, 1, 100_000))
    if found is None:
        print(json.dumps({"seed": args.seed, "violation": None}) if args.json else f"seed {args.seed} does not fail")
        return int(ExitCode.DONE)
    failure, plan = found
    if args.json:
        print(json.dumps({"seed": args.seed, "violation": failure.line, "plan": [str(i) for i in plan]}, indent=2))
    else:
        for item in plan:
            print(item)
        print(failure.line)
    return int(ExitCode.REFUSED)
