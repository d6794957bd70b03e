"""``keymesh seal`` and ``keymesh open``: their arguments."""

from __future__ import annotations

import argparse
from typing import Any

from keymesh.app.args_common import Later, add_common


def register(commands: Any) -> None:
    seal = commands.add_parser(
        "seal",
        help="encrypt files or a pipe through an Edge",
        epilog="example: keymesh seal report.pdf --tenant acme --service files",
    )
    _add_seal_arguments(seal)
    seal.set_defaults(run=Later("cli_seal", "run_seal"))
    opening = commands.add_parser(
        "open",
        help="decrypt sealed files or a pipe; with --offline through the customer's own L1 alone",
        epilog="example: keymesh open report.pdf.sealed",
    )
    _add_open_arguments(opening)
    opening.set_defaults(run=Later("cli_seal", "run_open"))


def _add_seal_arguments(parser: argparse.ArgumentParser) -> None:
    """Of ``keymesh seal``."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="what to seal; - is standard input")
    parser.add_argument("--tenant", required=True, metavar="T", help="whose data it is")
    parser.add_argument("--service", required=True, metavar="S", help="which of the tenant's services keeps it")
    parser.add_argument(
        "--context", action="append", default=[], metavar="K=V", help="bound to the file, readable in it; may repeat"
    )
    _add_shared(parser, "FILE.sealed")


def _add_open_arguments(parser: argparse.ArgumentParser) -> None:
    """Of ``keymesh open``."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="sealed files; - is standard input")
    _add_shared(parser, "FILE without .sealed")
    offline = parser.add_argument_group("without any mesh, by the customer's own root key")
    offline.add_argument("--offline", action="store_true", help="ask no mesh; needs --chain and --l1")
    offline.add_argument("--chain", metavar="FILE", help="what `keymesh tenant export` wrote")
    offline.add_argument("--l1", metavar="URL", help="kms:DIR#KEY or https://HOST:PORT/keys/KEY")
    offline.add_argument("--l1-credentials", metavar="DIR", help="the customer KMS's directory, for an https URL")


def _add_shared(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        help=f"a file, a directory, or - for standard output (default: {default}); to a pipe, each chunk is released "
        "once it is verified, and a cut stream ends with exit code 4",
    )
    parser.add_argument("--force", action="store_true", help="replace what exists")
    parser.add_argument("--socket", metavar="PATH", help="use the Edge behind this socket; no mesh directory is needed")
    parser.add_argument("--region", metavar="R", help="use this region's Edge (default: the first that answers)")
    add_common(parser)
