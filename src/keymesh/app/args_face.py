"""``keymesh edge aws-kms`` and ``aws-credential``, and what every face of another key service takes."""

from __future__ import annotations

from typing import Any

from keymesh.app.args_common import Later, add_common


def add_face(parser: Any) -> None:
    """What every face needs: where it serves, what it shows, whose Edge it is, and the mesh."""
    parser.add_argument("--listen", required=True, metavar="HOST:PORT", help="serve there, over TLS")
    parser.add_argument("--region", required=True, metavar="R", help="whose Core this face's Edge leases from")
    parser.add_argument("--state", required=True, metavar="D", help="made for this process alone: identities, records")
    parser.add_argument(
        "--tls", metavar="FILE", help="key and certificates to show, PEM (default: of a CA of its own, D/tls/ca.pem)"
    )
    parser.add_argument(
        "--name", action="append", default=[], metavar="HOST", help="a name that the own certificate is for; repeat"
    )
    parser.add_argument("--health", metavar="HOST:PORT", help="/healthz and /metrics there, without TLS")
    parser.add_argument(
        "--no-admin", action="store_true", help="serve the keys that --state holds, and ask the Registry for nothing"
    )
    parser.add_argument("--allow-unlocked-memory", action="store_true", help="start though memory cannot be locked")
    add_common(parser, token=True)


def register(actions: Any) -> None:
    """Add this module's commands to those of ``keymesh edge``."""
    serve = actions.add_parser(
        "aws-kms",
        help="serve AWS's KMS API (boto3, the AWS Encryption SDK) over keymesh services",
        epilog="example: keymesh edge aws-kms --listen 127.0.0.1:8443 --region us-east --state aws"
        " --credentials aws-credentials.json",
    )
    add_face(serve)
    serve.add_argument(
        "--credentials",
        required=True,
        metavar="FILE",
        help="of `keymesh edge aws-credential add`; read anew as it changes",
    )
    serve.add_argument("--aws-region", metavar="NAME", help="as clients call this region (default: R)")
    serve.set_defaults(run=Later("cli_aws", "run_aws_kms"))

    credential = actions.add_parser("aws-credential", help="who may use the face of `keymesh edge aws-kms`")
    which = credential.add_subparsers(dest="credential_command", metavar="WHAT", required=True)
    add = which.add_parser(
        "add",
        help="a new access key; its secret is shown this once, and kept in the file",
        epilog="example: keymesh edge aws-credential add --file aws-credentials.json --tenant acme --service files",
    )
    add.add_argument("--tenant", required=True, metavar="T", help="whose keys it may name")
    add.add_argument("--service", action="append", default=[], metavar="S", help="only this one; repeat (default: all)")
    add.add_argument(
        "--role", action="append", choices=("use", "admin"), help="use keys, make and restrict them (default: use)"
    )
    add.set_defaults(run=Later("cli_aws", "run_credential_add"))
    listing = which.add_parser(
        "list",
        help="access keys, without their secrets",
        epilog="example: keymesh edge aws-credential list --file aws-credentials.json",
    )
    listing.set_defaults(run=Later("cli_aws", "run_credential_list"))
    remove = which.add_parser(
        "remove",
        help="end an access key; a running face hears of it within a second",
        epilog="example: keymesh edge aws-credential remove KMAAAAAAAAAAAAAAAAAA --file aws-credentials.json",
    )
    remove.add_argument("access_key_id", metavar="ID")
    remove.set_defaults(run=Later("cli_aws", "run_credential_remove"))
    for parser in (add, listing, remove):
        parser.add_argument("--file", required=True, metavar="FILE", help="its mode is 0600; made by the first `add`")
        parser.add_argument("--json", action="store_true", help="print one JSON object for machines")
