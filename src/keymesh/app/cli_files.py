"""``keymesh seal`` and ``keymesh open``: the parser's part; the work is in ``cli_seal``."""

from __future__ import annotations

from typing import Any

from keymesh.app import cli_seal


def register(commands: Any) -> None:
    seal = commands.add_parser(
        "seal",
        help="encrypt files or a pipe through an Edge",
        epilog="example: keymesh seal report.pdf --tenant acme --service files",
    )
    cli_seal.add_seal_arguments(seal)
    seal.set_defaults(run=cli_seal.run_seal)
    opening = commands.add_parser(
        "open",
        help="decrypt sealed files or a pipe; with --offline through the customer's own L1 alone",
        epilog="example: keymesh open report.pdf.sealed",
    )
    cli_seal.add_open_arguments(opening)
    opening.set_defaults(run=cli_seal.run_open)
