"""``keymesh sim exhaust``: every state that a small mesh of the product's own machines can reach, judged."""

from __future__ import annotations

import argparse
import json
import time

from keymesh.model.errors import ExitCode, Refused
from keymesh.sim.exhaust.mutants import MUTANTS, mutant
from keymesh.sim.exhaust.run import Found, everything, hunt, is_right, summary


def run_exhaust(args: argparse.Namespace) -> int:
    """Exit code 1 where a state is wrong, or a mutant is not found."""
    began = time.perf_counter()
    found: list[Found] = []
    for one in _only(args.mutant) if args.mutant is not None else everything(deep=args.deep):
        found.append(one)
        if not args.json:
            _show(one, traced=args.mutant is not None or not one.mutant)
    figures = summary(found, time.perf_counter() - began)
    if args.json:
        print(json.dumps(figures, indent=2, sort_keys=True))
    else:
        print(
            f"{figures['scenarios']} scenarios, {figures['states']} states, {figures['violations']} violations,"
            f" {figures['mutants_caught']} of {figures['mutants']} mutants caught, {figures['wall_s']} s"
        )
    return int(ExitCode.DONE if is_right(found) else ExitCode.REFUSED)


def _only(name: str) -> list[Found]:
    wanted = mutant(name)
    if wanted is None:
        raise Refused.bad_field("mutant", "one of " + ", ".join(m.name for m in MUTANTS))
    return [hunt(wanted)]


def _show(one: Found, *, traced: bool) -> None:
    print(one.line, flush=True)
    if traced:
        for step in one.result.trace:
            print(f"  {step}")
