"""``keymesh registry``: its arguments."""

from __future__ import annotations

from typing import Any

from keymesh.app.args_common import Later


def register(commands: Any) -> None:
    """Add this module's commands to the parser."""
    registry = commands.add_parser("registry", help="the Registry's own database")
    which = registry.add_subparsers(dest="registry", metavar="WHAT", required=True)
    migrate = which.add_parser(
        "migrate",
        help="bring the schema of the Registry's database to this release's",
        epilog="example: keymesh registry migrate --database "
        "'postgresql://keymesh@db.example/keymesh?sslrootcert=ca.pem&passfile=pgpass'",
    )
    migrate.add_argument(
        "--database",
        action="append",
        required=True,
        metavar="URL",
        help="postgresql://USER@HOST/NAME?sslrootcert=FILE (the first of several that takes writes) or sqlite:///FILE",
    )
    migrate.add_argument("--json", action="store_true", help="print one JSON object for machines")
    migrate.set_defaults(run=Later("cli_registry", "run_migrate"))
