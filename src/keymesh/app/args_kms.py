"""``keymesh customer-kms``: its arguments."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from keymesh.app.args_common import Later


def register(commands: Any) -> None:
    """Add this module's commands to the parser."""
    parser = commands.add_parser("customer-kms", help="play the customer's KMS: an own process, directory and CA")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    run = actions.add_parser(
        "run",
        help="serve, in the foreground",
        epilog="example: keymesh customer-kms run --dir acme-kms --replicas us-east,us-west",
    )
    add_run_arguments(run)
    run.set_defaults(run=Later("customer_kms", "main"))
    for name, what in (
        ("create", "make a key"),
        ("disable", "refuse every use of a key from now on"),
        ("enable", "end a disabling"),
        ("status", "show a key"),
    ):
        one = actions.add_parser(name, help=what, epilog=f"example: keymesh customer-kms {name} root --dir acme-kms")
        one.add_argument("key", metavar="KEY", help="its name")
        one.add_argument("--dir", required=True, metavar="D", help="the KMS's directory")
        if name in ("disable", "enable"):
            one.add_argument("--replica", metavar="R", help="at one replica only")
        one.add_argument("--json", action="store_true", help="print one JSON object for machines")
        one.set_defaults(run=Later("cli_kms", "run_key"), action=name)
    allow = actions.add_parser(
        "allow",
        help="let a mesh's Cores wrap and unwrap",
        epilog="example: keymesh customer-kms allow --dir acme-kms --mesh-ca .keymesh/pki/ca.pem",
    )
    allow.add_argument("--dir", required=True, metavar="D", help="the KMS's directory")
    allow.add_argument("--mesh-ca", required=True, metavar="FILE", help="the mesh's root certificate")
    allow.add_argument("--deny", action="store_true", help="tell them no from now on")
    allow.add_argument("--json", action="store_true", help="print one JSON object for machines")
    allow.set_defaults(run=Later("cli_kms", "run_allow"))


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Of ``run``, and of the process by itself."""
    parser.add_argument("--dir", required=True, type=Path, help="the KMS's own directory; made where it is missing")
    parser.add_argument("--replicas", default="local", help="NAME[=PORT],...: one listener for each (default: local)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="this host's address, as Cores reach it (default: 127.0.0.1)"
    )
    parser.add_argument("--name", help="its trust domain (default: customer-kms-dev)")
    parser.add_argument(
        "--allow-ca", action="append", default=[], type=Path, metavar="PEM", help="a mesh root whose Cores may use keys"
    )
