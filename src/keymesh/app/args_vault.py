"""``keymesh edge vault-transit`` and ``vault-login``: their arguments."""

from __future__ import annotations

from typing import Any

from keymesh.app.args_common import Later
from keymesh.app.args_face import add_face
from keymesh.compat.vault_limits import RIGHTS, TTL_DEFAULT_S, TTL_MAX_S


def register(actions: Any) -> None:
    """Add this module's commands to those of ``keymesh edge``."""
    serve = actions.add_parser(
        "vault-transit",
        help="serve Vault's transit API (hvac, the vault command line) over keymesh services",
        epilog="example: keymesh edge vault-transit --listen 127.0.0.1:8200 --region us-east --state vault"
        " --logins vault-logins.json",
    )
    add_face(serve)
    serve.add_argument(
        "--logins", required=True, metavar="FILE", help="of `keymesh edge vault-login`; read anew as it changes"
    )
    serve.set_defaults(run=Later("cli_vault", "run_vault_transit"))

    login = actions.add_parser("vault-login", help="who may use the face of `keymesh edge vault-transit`")
    which = login.add_subparsers(dest="login_command", metavar="WHAT", required=True)
    approle = which.add_parser(
        "approle",
        help="a role id and a secret id; both are shown, the secret id this once",
        epilog="example: keymesh edge vault-login approle billing --file vault-logins.json --tenant acme",
    )
    approle.set_defaults(run=Later("cli_vault", "run_approle"))
    token = which.add_parser(
        "token",
        help="a token, shown this once; it ends when it is removed",
        epilog="example: keymesh edge vault-login token billing --file vault-logins.json --tenant acme --service files",
    )
    token.add_argument("--valid-s", type=int, metavar="S", help="or after so many seconds")
    token.set_defaults(run=Later("cli_vault", "run_token"))
    certificate = which.add_parser(
        "certificate",
        help="whose certificate of this mesh logs in",
        epilog="example: keymesh edge vault-login certificate billing --file vault-logins.json --tenant acme"
        " --edge orders",
    )
    who = certificate.add_mutually_exclusive_group(required=True)
    who.add_argument("--edge", metavar="S", help="an Edge's, of this service of the tenant")
    who.add_argument("--client", metavar="NAME", help="the tenant's client of that name")
    certificate.set_defaults(run=Later("cli_vault", "run_certificate"))
    for parser in (approle, token, certificate):
        parser.add_argument("name", metavar="NAME", help="a name for it, shown as the token's policy")
        parser.add_argument("--tenant", required=True, metavar="T", help="whose keys it may name")
        parser.add_argument(
            "--service", action="append", default=[], metavar="S", help="only this one; repeat (default: all)"
        )
        parser.add_argument(
            "--right", action="append", choices=RIGHTS, help="repeat (default: all but create and rotate)"
        )
    for parser in (approle, certificate):
        parser.add_argument("--ttl-s", type=int, default=TTL_DEFAULT_S, metavar="S", help="of a token (%(default)s)")
        parser.add_argument(
            "--max-ttl-s", type=int, default=TTL_MAX_S, metavar="S", help="renewed or not (%(default)s)"
        )
    listing = which.add_parser(
        "list", help="logins, without secrets", epilog="example: keymesh edge vault-login list --file vault-logins.json"
    )
    listing.set_defaults(run=Later("cli_vault", "run_login_list"))
    remove = which.add_parser(
        "remove",
        help="end a login and its tokens; a running face hears of it within a second",
        epilog="example: keymesh edge vault-login remove approle billing --file vault-logins.json",
    )
    remove.add_argument("kind", choices=("approle", "token", "certificate"))
    remove.add_argument("name", metavar="NAME")
    remove.set_defaults(run=Later("cli_vault", "run_login_remove"))
    for parser in (approle, token, certificate, listing, remove):
        parser.add_argument("--file", required=True, metavar="FILE", help="its mode is 0600; made by the first login")
        parser.add_argument("--json", action="store_true", help="print one JSON object for machines")
