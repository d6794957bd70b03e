"""``keymesh registry``: its arguments."""

from __future__ import annotations

from typing import Any

from keymesh.app.args_common import Later, add_common
from keymesh.app.args_config import add_run


def register(commands: Any) -> None:
    """Add this module's commands to the parser."""
    registry = commands.add_parser("registry", help="the Registry, and its database")
    which = registry.add_subparsers(dest="registry", metavar="WHAT", required=True)
    add_run(which, "registry")
    init = which.add_parser(
        "init",
        help="begin the control log with the mesh's first entry; safe to repeat",
        epilog="example: keymesh registry init --config registry.toml --genesis genesis.json",
    )
    init.add_argument("--config", required=True, metavar="FILE", help="of any of the Registry's replicas")
    init.add_argument("--genesis", required=True, metavar="FILE", help="the first entry, as the ceremony signed it")
    init.add_argument("--json", action="store_true", help="print one JSON object for machines")
    init.set_defaults(run=Later("cli_registry", "run_init"))
    restore = which.add_parser(
        "restore",
        help="a lost log again, in a new epoch: from a backup and from what the regions hold",
        description="The control log is gone.  Recovery officers open a new epoch, a majority of the "
        "voters stores it, and the log is grown from the backup and from the regions.  See docs/restore.md.",
        epilog="example: keymesh registry restore --from /mnt/backups/registry "
        "--approve-key officer-1.pem --approve-key officer-2.pem",
    )
    restore.add_argument(
        "--from", dest="source", required=True, metavar="BACKUP", help="the Registry's store: a directory"
    )
    restore.add_argument(
        "--approve-key",
        action="append",
        default=[],
        metavar="FILE",
        help="a recovery officer's signing key; once for each of the threshold",
    )
    restore.add_argument(
        "--key", metavar="FILE", help="the recovery key that opens the backup (default in a development mesh: its own)"
    )
    restore.add_argument(
        "--at-least", type=int, default=0, metavar="INDEX", help="refuse a backup that ends before this log index"
    )
    restore.add_argument(
        "--without",
        action="append",
        default=[],
        metavar="REGION",
        help="do not wait for what that region holds: it answers, and cannot hand it in",
    )
    restore.add_argument(
        "--config",
        action="append",
        default=[],
        metavar="FILE",
        help="of a Registry that has a configuration file; once for each replica on this host",
    )
    add_common(restore)
    restore.set_defaults(run=Later("cli_restore", "run_restore"))
    migrate = which.add_parser(
        "migrate",
        help="bring the schema of the Registry's database to this release's",
        epilog="example: keymesh registry migrate --database "
        "'postgresql://keymesh@db.example/keymesh?sslrootcert=ca.pem&passfile=pgpass'",
    )
    which_database = migrate.add_mutually_exclusive_group(required=True)
    which_database.add_argument("--config", metavar="FILE", help="of any of the Registry's replicas")
    which_database.add_argument(
        "--database",
        action="append",
        metavar="URL",
        help="postgresql://USER@HOST/NAME?sslrootcert=FILE (the first of several that takes writes) or sqlite:///FILE",
    )
    migrate.add_argument("--json", action="store_true", help="print one JSON object for machines")
    migrate.set_defaults(run=Later("cli_registry", "run_migrate"))
