"""``keymesh ceremony``: its arguments."""

from __future__ import annotations

from typing import Any

from keymesh.app.args_common import Later


def register(commands: Any) -> None:
    """Add this module's commands to the parser."""
    ceremony = commands.add_parser("ceremony", help="keys of roots and officers, made and rehearsed offline")
    which = ceremony.add_subparsers(dest="ceremony", metavar="WHAT", required=True)
    make = which.add_parser(
        "make",
        help="one key file for each root and officer, and ceremony.json, which is public",
        epilog="example: keymesh ceremony make /media/usb/keys --roots 2/3 --officers 2/3",
    )
    make.add_argument("directory", metavar="DIR", help="empty, or made; off every network")
    make.add_argument("--roots", default="2/3", metavar="M/N", help="N keys, any M of which are the root (default 2/3)")
    make.add_argument("--officers", default="2/3", metavar="M/N", help="the same of the officers (default 2/3)")
    make.add_argument("--json", action="store_true", help="print one JSON object for machines")
    make.set_defaults(run=Later("cli_ceremony", "run_make"))
    rehearse = which.add_parser(
        "rehearse",
        help="the loss of a key: whether the others still found, sign and open an epoch",
        epilog="example: keymesh ceremony rehearse /media/usb/keys --lost officer-1.pem",
    )
    rehearse.add_argument("directory", metavar="DIR", help="with ceremony.json")
    rehearse.add_argument(
        "--lost", action="append", default=[], metavar="NAME", help="these at once (default: each one in turn)"
    )
    rehearse.add_argument(
        "--key", action="append", default=[], metavar="FILE", help="a key that its holder brought, beside those in DIR"
    )
    rehearse.add_argument("--json", action="store_true", help="print one JSON object for machines")
    rehearse.set_defaults(run=Later("cli_ceremony", "run_rehearse"))
