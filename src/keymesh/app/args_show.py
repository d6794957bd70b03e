"""``keymesh demo | bench | sim``: their arguments."""

from __future__ import annotations

import argparse
from typing import Any

from keymesh.app.args_common import Later, add_common


def register(commands: Any) -> None:
    """Add this module's commands to the parser."""
    demo = commands.add_parser(
        "demo",
        help="bring up a mesh, show and measure the product on real files, take it down",
        epilog="example: keymesh demo --json",
    )
    demo.add_argument("--path", metavar="DIR", help="directory to encrypt (default: keymesh's own docs, or its source)")
    demo.add_argument("--keep", action="store_true", help="keep the demo's directory")
    add_common(demo)
    demo.set_defaults(run=Later("demo", "run_demo"))

    bench = commands.add_parser("bench", help="measure, beside a reference in the same run")
    which = bench.add_subparsers(dest="bench", metavar="WHAT", required=True)
    edge = which.add_parser("edge", help="mint and open at the Edge", epilog="example: keymesh bench edge --json")
    edge.add_argument("--seconds", type=float, default=20.0, metavar="S", help="(default 20, at most 300)")
    add_common(edge)
    edge.set_defaults(run=Later("bench_edge", "run_bench"))
    kill = which.add_parser(
        "killswitch",
        help="from the log append to the last Edge refusing, idle and with 10 000 tasks queued",
        epilog="example: keymesh bench killswitch --json",
    )
    kill.add_argument("--seconds", type=float, default=50.0, metavar="S", help="(default 50, at most 600)")
    add_common(kill)
    kill.set_defaults(run=Later("bench_killswitch", "run_bench"))

    sim = commands.add_parser("sim", help="run the same state machines in virtual time, with faults")
    add_sim_arguments(sim)


def add_sim_arguments(parser: argparse.ArgumentParser) -> None:
    """``run``, ``replay`` and ``shrink`` under ``parser``, each with ``run`` set."""
    which = parser.add_subparsers(dest="sim", metavar="WHAT", required=True)

    run = which.add_parser(
        "run", help="one virtual hour per seed, with faults", epilog="example: keymesh sim run --seeds 200"
    )
    run.add_argument("--seeds", type=int, default=20, metavar="N", help="how many (default 20)")
    run.add_argument("--start", type=int, default=0, metavar="S", help="the first seed (default 0)")
    run.add_argument("--procs", type=int, default=2, metavar="P", help="processes (default 2)")
    run.add_argument("--json", action="store_true", help="print one JSON object for machines")
    run.set_defaults(run=Later("cli_sim", "run_sim"))

    replay = which.add_parser("replay", help="one seed again", epilog="example: keymesh sim replay 17 --explain")
    replay.add_argument("seed", type=int, metavar="SEED", help="its number")
    replay.add_argument("--until", type=int, metavar="T", help="stop at that true millisecond")
    replay.add_argument("--explain", action="store_true", help="print every event and what followed from it")
    replay.add_argument("--json", action="store_true", help="print one JSON object for machines")
    replay.set_defaults(run=Later("cli_sim", "run_sim"))

    small = which.add_parser(
        "shrink", help="the smallest plan that still fails", epilog="example: keymesh sim shrink 17"
    )
    small.add_argument("seed", type=int, metavar="SEED", help="its number")
    small.add_argument("--runs", type=int, default=400, metavar="N", help="at most so many runs (default 400)")
    small.add_argument("--json", action="store_true", help="print one JSON object for machines")
    small.set_defaults(run=Later("cli_sim", "run_sim"))
