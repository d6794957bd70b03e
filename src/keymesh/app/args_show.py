"""``keymesh demo | bench | faults | sim``: their arguments."""

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
    demo.add_argument("--full", action="store_true", help="on a mesh as `up --full` makes it")
    demo.add_argument("--keep", action="store_true", help="keep the demo's directory")
    add_common(demo)
    demo.set_defaults(run=Later("demo", "run_demo"))

    bench = commands.add_parser("bench", help="measure, beside a reference in the same run")
    which = bench.add_subparsers(dest="bench", metavar="WHAT", required=True)
    edge = which.add_parser("edge", help="mint and open at the Edge", epilog="example: keymesh bench edge --json")
    edge.add_argument("--seconds", type=float, default=20.0, metavar="S", help="(default 20, at most 300)")
    add_common(edge)
    edge.set_defaults(run=Later("bench_edge", "run_bench"))
    sidecar = which.add_parser(
        "sidecar",
        help="mint through the sidecar, beside a handler that answers a constant and OpenBao's datakey",
        epilog="example: keymesh bench sidecar --json",
    )
    sidecar.add_argument("--seconds", type=float, default=50.0, metavar="S", help="(default 50, at most 600)")
    add_common(sidecar)
    sidecar.set_defaults(run=Later("bench_sidecar", "run_bench"))
    kmip = which.add_parser(
        "kmip",
        help="Encrypt and Get over one mTLS connection, beside PyKMIP's server",
        epilog="example: keymesh bench kmip --json",
    )
    kmip.add_argument("--seconds", type=float, default=20.0, metavar="S", help="(default 20, at most 300)")
    add_common(kmip)
    kmip.set_defaults(run=Later("bench_kmip", "run_bench"))
    held = which.add_parser(
        "held",
        help="batches of 100 under core-held custody, in a running mesh",
        epilog="example: keymesh bench held acme/vault --json",
    )
    held.add_argument("scope", metavar="T/S", help="a service under core-held custody")
    held.add_argument("--region", metavar="R", help="whose Edge and Core (default: the tenant's home)")
    held.add_argument("--seconds", type=float, default=10.0, metavar="S", help="(default 10, at most 300)")
    add_common(held)
    held.set_defaults(run=Later("bench_held", "run_bench"))
    kill = which.add_parser(
        "killswitch",
        help="from the log append to the last Edge refusing, idle and with 10 000 tasks queued",
        epilog="example: keymesh bench killswitch --json",
    )
    kill.add_argument("--seconds", type=float, default=50.0, metavar="S", help="(default 50, at most 600)")
    add_common(kill)
    kill.set_defaults(run=Later("bench_killswitch", "run_bench"))
    orbital = which.add_parser(
        "orbital",
        help="tasks through RabbitMQ to three regions, and Lane 0 beside them",
        epilog="example: keymesh bench orbital --json",
    )
    orbital.add_argument("--seconds", type=float, default=50.0, metavar="S", help="(default 50, at most 600)")
    orbital.add_argument(
        "--no-openbao",
        action="store_false",
        dest="openbao",
        help="only the first mesh (the one with OpenBao takes half a minute or so more)",
    )
    add_common(orbital)
    orbital.set_defaults(run=Later("bench_orbital", "run_bench"))

    control = which.add_parser(
        "control",
        help="commands through etcd into PostgreSQL, beside bare etcd puts; starts its own servers",
        epilog="example: keymesh bench control --json",
    )
    control.add_argument("--seconds", type=float, default=30.0, metavar="S", help="of measuring (default 30)")
    add_common(control)
    control.set_defaults(run=Later("bench_control", "run_bench"))

    manifest = which.add_parser(
        "manifest",
        help="a difference of a few entries among a million, found by the walk of manifests and put right",
        epilog="example: keymesh bench manifest --json",
    )
    manifest.add_argument("--entries", type=int, default=1_000_000, metavar="N", help="(default 1000000)")
    manifest.add_argument("--diff", type=int, default=10, metavar="N", help="entries that differ (default 10)")
    add_common(manifest)
    manifest.set_defaults(run=Later("bench_manifest", "run_bench"))

    scale = which.add_parser(
        "scale",
        help="one Registry and PostgreSQL under the heartbeats of thousands of simulated regions",
        epilog="example: keymesh bench scale --json",
    )
    scale.add_argument("--regions", type=int, default=2_000, metavar="N", help="(default 2000)")
    scale.add_argument("--entries", type=int, default=1_000_000, metavar="N", help="key entries (default 1000000)")
    scale.add_argument("--seconds", type=float, default=20.0, metavar="S", help="of measuring (default 20)")
    add_common(scale)
    scale.set_defaults(run=Later("bench_scale", "run_bench"))

    faults = commands.add_parser("faults", help="kill every component of a mesh of its own under load")
    of_faults = faults.add_subparsers(dest="faults", metavar="WHAT", required=True)
    run = of_faults.add_parser(
        "run",
        help="kill -9 of each component in each round; then what was acknowledged is looked up",
        epilog="example: keymesh faults run --rounds 3 --json",
    )
    run.add_argument(
        "--embedded", action="store_true", help="on an embedded mesh, not on one with the servers of `up --full`"
    )
    run.add_argument("--rounds", type=int, default=1, metavar="N", help="(default 1, at most 1000)")
    run.add_argument(
        "--seed", type=int, default=0, metavar="S", help="of the choice of victims and moments (default 0)"
    )
    add_common(run)
    run.set_defaults(run=Later("faults", "run_faults"))

    sim = commands.add_parser("sim", help="run the same state machines in virtual time, with faults")
    add_sim_arguments(sim)


def add_sim_arguments(parser: argparse.ArgumentParser) -> None:
    """``run``, ``replay``, ``ask``, ``shrink`` and ``exhaust`` under ``parser``, each with ``run`` set."""
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

    ask = which.add_parser(
        "ask",
        help="what bounds a mesh of your own shape keeps, under fault rates that you name",
        epilog="example: keymesh sim ask --config mesh.toml --faults 'cut=0.5/h:10m,region-death=0.1/h' --json",
    )
    ask.add_argument("--config", metavar="FILE", help="TOML: regions, tenants, timings, load, fault rates")
    ask.add_argument("--example", action="store_true", help="print such a file, and do nothing else")
    ask.add_argument(
        "--faults", metavar="RATES", help="over the file's: KIND=RATE/h[:DURATION], or KIND=SHARE%% of the messages"
    )
    ask.add_argument("--hours", type=float, metavar="H", help="virtual hours of each seed, over the file's")
    ask.add_argument("--seeds", type=int, metavar="N", help="how many, over the file's")
    ask.add_argument("--start", type=int, default=0, metavar="S", help="the first seed (default 0)")
    ask.add_argument("--procs", type=int, default=2, metavar="P", help="processes (default 2)")
    ask.add_argument("--plot", metavar="FILE", help="a picture of the distributions: .png or .svg")
    ask.add_argument("--json", action="store_true", help="print one JSON object for machines")
    ask.set_defaults(run=Later("cli_ask", "run_ask"))

    small = which.add_parser(
        "shrink", help="the smallest plan that still fails", epilog="example: keymesh sim shrink 17"
    )
    small.add_argument("seed", type=int, metavar="SEED", help="its number")
    small.add_argument("--runs", type=int, default=400, metavar="N", help="at most so many runs (default 400)")
    small.add_argument("--json", action="store_true", help="print one JSON object for machines")
    small.set_defaults(run=Later("cli_sim", "run_sim"))

    every = which.add_parser(
        "exhaust",
        help="every state that a small mesh can reach, and every mutant found",
        epilog="example: keymesh sim exhaust --mutant lease-from-receipt",
    )
    every.add_argument("--mutant", metavar="NAME", help="only look for this one, and tell the way to what it breaks")
    every.add_argument("--deep", action="store_true", help="more ticks (minutes, and some GB of memory)")
    every.add_argument("--json", action="store_true", help="print one JSON object for machines")
    every.set_defaults(run=Later("cli_exhaust", "run_exhaust"))
