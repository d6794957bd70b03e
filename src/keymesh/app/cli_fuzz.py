"""``keymesh fuzz run``: one target, many inputs, what they did to it."""

from __future__ import annotations

import argparse
import json
from typing import Final

from keymesh.app.cli_errors import BadUsage, usage
from keymesh.app.fuzz.run import RSS_GROWTH_MAX_MB, Plan, run
from keymesh.app.fuzz.target import place_of
from keymesh.model.errors import ExitCode

_INPUTS_MAX: Final = 100_000_000
_SEED_MAX: Final = 2**48
_INPUT_S_MIN, _INPUT_S_MAX = 0.1, 600.0


def run_fuzz(args: argparse.Namespace) -> int:
    """Exit code 1 where an input crashed or hung the target, or its memory grew."""
    with usage():
        place = place_of(args.target)
    if not 1 <= args.n <= _INPUTS_MAX:
        raise BadUsage.bad_field("n", f"1 to {_INPUTS_MAX}")
    if not 0 <= args.seed <= _SEED_MAX:
        raise BadUsage.bad_field("seed", f"0 to {_SEED_MAX}")
    if not _INPUT_S_MIN <= args.input_seconds <= _INPUT_S_MAX:
        raise BadUsage.bad_field("input-seconds", f"{_INPUT_S_MIN:g} to {_INPUT_S_MAX:g}")
    report = run(Plan(args.target, place, args.seed, args.n, args.input_seconds, args.keep))
    plain = report.plain()
    if args.json:
        print(json.dumps(plain, indent=2))
    else:
        print(f"{report.inputs} inputs of seed {report.seed} in {plain['wall_s']} s")
        print(f"{plain['crashes']} crashes, {plain['hangs']} hangs")
        print(f"memory grew by {plain['rss_growth_mb']} MB (at most {RSS_GROWTH_MAX_MB:g} is none)")
        for failure in report.failures:
            print(f"  {failure.kind} at input {failure.input}: {failure.error}; {failure.file}")
    return int(ExitCode.DONE if report.ok else ExitCode.REFUSED)
