"""``keymesh fuzz``: its arguments."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from keymesh.app.args_common import Later


def register(commands: Any) -> None:
    """Add this module's commands to the parser."""
    fuzz: argparse.ArgumentParser = commands.add_parser("fuzz", help="feed a parser what strangers may send")
    which = fuzz.add_subparsers(dest="fuzz", metavar="WHAT", required=True)
    run = which.add_parser(
        "run",
        help="valid inputs, changed where their form says that it hurts, the same for the same seed",
        epilog="example: keymesh fuzz run ttlv --n 20000 --json",
    )
    run.add_argument("target", metavar="TARGET", help="aws, blob, http, kmip, transit or ttlv")
    run.add_argument("--n", type=int, default=20_000, metavar="N", help="so many inputs (default 20000)")
    run.add_argument("--seed", type=int, default=1, metavar="S", help="(default 1)")
    run.add_argument(
        "--input-seconds",
        type=float,
        default=5.0,
        metavar="T",
        help="computing at one input that is a hang (default 5)",
    )
    run.add_argument(
        "--keep", type=Path, default=Path("fuzz-failures"), metavar="DIR", help="for inputs that failed (fuzz-failures)"
    )
    run.add_argument("--json", action="store_true", help="print one JSON object for machines")
    run.set_defaults(run=Later("cli_fuzz", "run_fuzz"))
