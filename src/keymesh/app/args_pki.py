"""``keymesh pki``: its arguments."""

from __future__ import annotations

from typing import Any

from keymesh.app.args_common import Later, add_common


def register(commands: Any) -> None:
    """Add this module's commands to the parser."""
    parser = commands.add_parser("pki", help="show and renew the mesh's certificates")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    show = actions.add_parser("show", help="every certificate of the mesh", epilog="example: keymesh pki show")
    show.add_argument("file", nargs="?", metavar="FILE", help="one PEM file instead")
    add_common(show)
    show.set_defaults(run=Later("cli_pki", "run_show"))
    enrol = actions.add_parser(
        "enrol",
        help="an Edge identity for a program of yours: key, certificate and what else the library needs, in one folder",
        epilog="example: keymesh pki enrol acme/files --region us-east -o edge-identity",
    )
    enrol.add_argument("service", metavar="T/S", help="what it may mint and open for")
    enrol.add_argument("--region", metavar="R", help="whose Core it uses (default: the tenant's home)")
    enrol.add_argument("--instance", metavar="NAME", help="name of this instance (default: app)", default="app")
    enrol.add_argument("-o", "--output", metavar="DIR", required=True, help="made where it does not exist")
    add_common(enrol)
    enrol.set_defaults(run=Later("cli_pki", "run_enrol"))
    issue = actions.add_parser(
        "issue",
        help="the certificate for an Edge's request, from its region's Core",
        epilog="example: keymesh pki issue acme-files.request -o acme-files.certificate",
    )
    issue.add_argument("request", metavar="FILE", help="what `keymesh edge request` wrote")
    issue.add_argument("-o", "--output", metavar="FILE", required=True, help="for `keymesh edge install`")
    add_common(issue)
    issue.set_defaults(run=Later("cli_edge", "run_issue"))
    again = actions.add_parser(
        "renew",
        help="renew a role's certificate now (processes renew their own at half life)",
        epilog="example: keymesh pki renew operator",
    )
    again.add_argument("role", metavar="ROLE", help="operator, registry, or core-REGION")
    add_common(again)
    again.set_defaults(run=Later("cli_pki", "run_renew"))
