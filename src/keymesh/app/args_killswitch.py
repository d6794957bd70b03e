"""``keymesh suspend | resume | revoke | certificate | verify``: their arguments."""

from __future__ import annotations

import argparse
from typing import Any, Final

from keymesh.app.args_common import Later, add_common, duration_ms

_SCOPES: Final = "tenant:T, service:T/S, key:T/S@V, client:T/C, region:R or mesh (the last two want --approve-key)"
_WHAT: Final = {
    "suspend": "end every use under SCOPE at once; `resume` ends the suspension; prints a certificate",
    "revoke": "end every use under SCOPE for ever; prints a certificate",
    "resume": "end a suspension of SCOPE",
}


def register(commands: Any) -> None:
    """Add this module's commands to the parser."""
    for action, what in _WHAT.items():
        parser = commands.add_parser(action, help=what, epilog=f"example: keymesh {action} tenant:acme")
        parser.add_argument("scope", metavar="SCOPE", help=_SCOPES)
        _add_kill(parser, action)
        function = "run_resume" if action == "resume" else "run_kill"
        parser.set_defaults(run=Later("cli_killswitch", function), action=action)
    certificate = commands.add_parser("certificate", help="how far a kill switch is, and its certificate")
    which = certificate.add_subparsers(dest="certificate", metavar="WHAT", required=True)
    show = which.add_parser(
        "show",
        help="what is still open and by when it closes at the latest; the certificate once it is there",
        epilog="example: keymesh certificate show 7c1f0a2e -o acme.cert.json",
    )
    show.add_argument("command_id", metavar="COMMAND_ID", help="as suspend and revoke print it")
    show.add_argument("--namespace", metavar="T", help="whose command: a tenant, or mesh (where several used that id)")
    show.add_argument("-o", "--output", metavar="FILE", help="write the certificate there")
    add_common(show, token=True)
    show.set_defaults(run=Later("cli_certificate", "run_show"))
    verify = commands.add_parser(
        "verify",
        help="check a certificate offline, against the mesh's root keys",
        epilog="example: keymesh verify tenant-acme.cert.json --root trust.json",
    )
    verify.add_argument("file", metavar="FILE", help="what suspend or revoke wrote")
    verify.add_argument("--root", metavar="FILE", help="trust.json with the root keys (default: the mesh directory's)")
    add_common(verify)
    verify.set_defaults(run=Later("cli_verify", "run_verify"))


def _add_kill(parser: argparse.ArgumentParser, action: str) -> None:
    parser.add_argument("--reason", default="", metavar="TEXT", help="recorded with the entry")
    parser.add_argument(
        "--approve-key",
        action="append",
        default=[],
        metavar="FILE",
        help="an officer's key file; region and mesh scopes want two different officers (the first one may be "
        "left out in a development mesh, where it is officer-1)",
    )
    if action == "revoke":
        parser.add_argument(
            "--abandon-children", action="store_true", help="revoke a key though others are wrapped under it"
        )
    if action != "resume":
        add_certificate(parser)
    add_common(parser, token=True)


def add_certificate(parser: argparse.ArgumentParser) -> None:
    """What becomes of the certificate of a restriction."""
    parser.add_argument("-o", "--output", metavar="FILE", help="write the certificate there")
    parser.add_argument("--no-wait", action="store_true", help="return once committed, without a certificate")
    parser.add_argument(
        "--wait",
        type=duration_ms,
        default=360_000,
        metavar="TIME",
        help="for the certificate (default 6m: an Edge that ended without a word counts until its lease ends)",
    )
    parser.add_argument("--command-id", metavar="ID", help="of an earlier call: commit nothing, fetch its certificate")
