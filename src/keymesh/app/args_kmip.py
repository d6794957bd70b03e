"""``keymesh kmip``: its arguments."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from keymesh.app.args_common import Later, add_common
from keymesh.app.args_killswitch import add_certificate


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
    _register_client(which.add_parser("client", help="clients of a tenant that Cores serve, each for one service"))


def _register_client(client: argparse.ArgumentParser) -> None:
    actions = client.add_subparsers(dest="action", metavar="ACTION", required=True)
    add = actions.add_parser(
        "add",
        help="name a client, and write its key, certificate and CA; again, for a new certificate",
        epilog="example: keymesh kmip client add backup --tenant acme --service files --out backup",
    )
    _add_name(add)
    add.add_argument("--service", required=True, metavar="S", help="whose objects are the client's")
    add.add_argument("--region", metavar="R", help="whose Core it uses (default: the tenant's home)")
    add.add_argument("--out", type=Path, metavar="DIR", help="where the files go (default: a directory named NAME)")
    add.add_argument("--host", metavar="H", help="the Core's address, for the client's configuration (default: known)")
    add.add_argument("--port", type=int, metavar="N", help="its KMIP port (default: known, or 5696)")
    add_common(add, token=True)
    add.set_defaults(run=Later("cli_kmip_client", "run_add"))
    listing = actions.add_parser(
        "list", help="clients of a tenant", epilog="example: keymesh kmip client list --tenant acme"
    )
    listing.add_argument("--tenant", required=True, metavar="T", help="whose")
    add_common(listing, token=True)
    listing.set_defaults(run=Later("cli_kmip_client", "run_list"))
    remove = actions.add_parser(
        "remove",
        help="revoke a client everywhere, for good, its name too; prints a certificate",
        epilog="example: keymesh kmip client remove backup --tenant acme",
    )
    _add_name(remove)
    remove.add_argument("--reason", default="", metavar="TEXT", help="recorded with the entry")
    add_certificate(remove)
    add_common(remove, token=True)
    remove.set_defaults(run=Later("cli_kmip_client", "run_remove"))


def _add_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("client", metavar="NAME", help="the client's name within its tenant")
    parser.add_argument("--tenant", required=True, metavar="T", help="whose client it is")
