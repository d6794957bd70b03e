"""``keymesh ceremony``: its arguments."""

from __future__ import annotations

from typing import Any

from keymesh.app.args_common import Later, add_common


def register(commands: Any) -> None:
    """Add this module's commands to the parser."""
    ceremony = commands.add_parser("ceremony", help="keys of roots and officers, made, rehearsed and rotated offline")
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
    _register_rotate(which)
    _register_submit(which)


def _register_rotate(which: Any) -> None:
    rotate = which.add_parser(
        "rotate",
        help="new root and officer keys, or another for one that is lost or stolen; offline",
        epilog="example: keymesh ceremony rotate /media/usb/keys --trust trust.json --lost officer-2.pem "
        "--out /media/usb/keys-2",
    )
    rotate.add_argument("directory", metavar="DIR", help="with ceremony.json of the keys in force")
    rotate.add_argument("--trust", required=True, metavar="FILE", help="the mesh's trust.json, which is public")
    rotate.add_argument("--out", required=True, metavar="DIR", help="empty, or made: new key files, and what is public")
    rotate.add_argument(
        "--key", action="append", default=[], metavar="FILE", help="a key that its holder brought, beside those in DIR"
    )
    rotate.add_argument(
        "--lost",
        action="append",
        default=[],
        metavar="NAME",
        help="replace these alone, by file name or key id; they sign nothing here (default: replace every key)",
    )
    rotate.add_argument("--roots", metavar="M/N", help="another threshold or number of root keys (default: as before)")
    rotate.add_argument("--officers", metavar="M/N", help="the same of the officers")
    rotate.add_argument(
        "--days", type=int, default=30, metavar="N", help="until when the mesh can be told (1 to 365, default 30)"
    )
    rotate.add_argument("--json", action="store_true", help="print one JSON object for machines")
    rotate.set_defaults(run=Later("cli_ceremony", "run_rotate"))


def _register_submit(which: Any) -> None:
    submit = which.add_parser(
        "submit",
        help="tell the mesh of a rotation; needs no key",
        epilog="example: keymesh ceremony submit /media/usb/keys-2/rotation.json --dir mesh",
    )
    submit.add_argument("file", metavar="FILE", help="rotation.json")
    add_common(submit, token=True)
    submit.set_defaults(run=Later("cli_ceremony", "run_submit"))
