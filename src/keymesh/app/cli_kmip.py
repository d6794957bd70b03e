"""``keymesh kmip conformance``: published cases against this server, over mutual TLS on loopback."""

from __future__ import annotations

import argparse
import asyncio
import json

from keymesh.app.kmip_conformance import find_cases, run_cases
from keymesh.app.kmip_loopback import fresh, loopback, seconds
from keymesh.model.errors import ExitCode


def run_conformance(args: argparse.Namespace) -> int:
    """Exit code 1 where an answer is not the one that a case expects."""
    files = find_cases(args.dir)
    with loopback() as ends:
        report = asyncio.run(run_cases(files, lambda: fresh(ends), seconds))
    if args.json:
        print(json.dumps(report.plain(), indent=2))
    else:
        for file, reason in report.skipped:
            print(f"skipped {file}: {reason}")
        for failure in report.failures:
            print(f"FAILED {failure.file}" + ("" if failure.step is None else f" at step {failure.step}"))
            for difference in failure.differences:
                print(f"  {difference}")
        print(f"{len(report.passed)} passed, {len(report.failures)} failed, {len(report.skipped)} skipped")
    return int(ExitCode.REFUSED if report.failures else ExitCode.DONE)
