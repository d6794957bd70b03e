"""``keymesh demo | bench | sim``: the product shown, measured and simulated."""

from __future__ import annotations

import argparse
from typing import Any

from keymesh.app.cli_common import add_common


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
    demo.set_defaults(run=_run_demo)

    bench = commands.add_parser("bench", help="measure, beside a reference in the same run")
    which = bench.add_subparsers(dest="bench", metavar="WHAT", required=True)
    edge = which.add_parser("edge", help="mint and open at the Edge", epilog="example: keymesh bench edge --json")
    edge.add_argument("--seconds", type=float, default=20.0, metavar="S", help="(default 20, at most 300)")
    add_common(edge)
    edge.set_defaults(run=_run_bench_edge)
    kill = which.add_parser(
        "killswitch",
        help="from the log append to the last Edge refusing, idle and with 10 000 tasks queued",
        epilog="example: keymesh bench killswitch --json",
    )
    kill.add_argument("--seconds", type=float, default=50.0, metavar="S", help="(default 50, at most 600)")
    add_common(kill)
    kill.set_defaults(run=_run_bench_killswitch)

    sim = commands.add_parser("sim", help="run the same state machines in virtual time, with faults")
    from keymesh.app.cli_sim import add_sim_arguments

    add_sim_arguments(sim)


def _run_demo(args: argparse.Namespace) -> int:
    from keymesh.app.demo import run_demo

    return run_demo(args)


def _run_bench_edge(args: argparse.Namespace) -> int:
    from keymesh.app.bench_edge import run_bench

    return run_bench(args)


def _run_bench_killswitch(args: argparse.Namespace) -> int:
    from keymesh.app.bench_killswitch import run_bench

    return run_bench(args)
