"""``keymesh backup``: its arguments."""

from __future__ import annotations

import argparse
from typing import Any

from keymesh.app.args_common import Later, add_common


def register(commands: Any) -> None:
    """Add this module's commands to the parser."""
    backup = commands.add_parser("backup", help="encrypted backups: make one now, list them, verify all of them")
    which = backup.add_subparsers(dest="backup", metavar="WHAT", required=True)

    create = which.add_parser(
        "create", help="have the Registry and every Core back up now", epilog="example: keymesh backup create --full"
    )
    create.add_argument("--full", action="store_true", help="full backups, whenever the last ones were")
    add_common(create)
    create.set_defaults(run=Later("cli_backup", "run_create"))

    shown = which.add_parser(
        "list", help="the manifests in the stores; needs no key", epilog="example: keymesh backup list --json"
    )
    _add_stores(shown)
    add_common(shown)
    shown.set_defaults(run=Later("cli_backup", "run_list"))

    verify = which.add_parser(
        "verify",
        help="open everything in the stores and judge it by the pinned root; needs no running mesh",
        epilog="example: keymesh backup verify --key recovery.pem --root trust.json --store /mnt/backups/registry",
    )
    verify.add_argument(
        "--key", metavar="FILE", help="a recovery officer's private key (default in a development mesh: its own)"
    )
    verify.add_argument("--root", metavar="FILE", help="trust.json with the root keys (default: the mesh directory's)")
    verify.add_argument(
        "--at-least",
        type=int,
        default=0,
        metavar="INDEX",
        help="refuse a backup that ends before this log index: an older one, or one whose end was taken away",
    )
    verify.add_argument(
        "--newest", action="store_true", help="only the newest full backup of each line and what came after it"
    )
    _add_stores(verify)
    add_common(verify)
    verify.set_defaults(run=Later("cli_backup", "run_verify"))

    keygen = which.add_parser(
        "keygen",
        help="make a recovery officer's key; prints the public one for the configuration",
        epilog="example: keymesh backup keygen recovery.pem",
    )
    keygen.add_argument("file", metavar="FILE", help="where the private key goes; keep it away from every server")
    keygen.add_argument("--json", action="store_true", help="print one JSON object for machines")
    keygen.set_defaults(run=Later("cli_backup", "run_keygen"))


def _add_stores(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--store",
        action="append",
        default=[],
        metavar="DIR",
        help="a store in a directory; the Registry's, and any number of domains' (default: the mesh directory's)",
    )
    parser.add_argument(
        "--config",
        action="append",
        default=[],
        metavar="FILE",
        help="a role's configuration, whose [backup] section names a store",
    )
