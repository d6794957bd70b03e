"""``keymesh kmip``: its arguments."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from keymesh.app.args_common import Later


def register(commands: Any) -> None:
    """Add this module's commands to the parser."""
    kmip: argparse.ArgumentParser = commands.add_parser("kmip", help="KMIP for existing clients")
    which = kmip.add_subparsers(dest="kmip", metavar="WHAT", required=True)
    conformance = which.add_parser(
        "conformance",
        help="play published cases (XML) against this server, over mutual TLS on loopback",
        epilog="example: keymesh kmip conformance vectors/kmip --json",
    )
    conformance.add_argument("dir", type=Path, metavar="DIR", help="searched for .xml files, also below it")
    conformance.add_argument("--json", action="store_true", help="print one JSON object for machines")
    conformance.set_defaults(run=Later("cli_kmip", "run_conformance"))
