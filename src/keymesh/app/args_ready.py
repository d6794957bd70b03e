"""``keymesh ready``: its arguments."""

from __future__ import annotations

from typing import Any

from keymesh.app.args_common import Later, add_common


def register(commands: Any) -> None:
    ready = commands.add_parser(
        "ready",
        help="whether every region that might have to take a tenant could: residency, L1, wrapped keys, room",
        epilog="example: keymesh ready --json",
    )
    ready.add_argument("--tenant", metavar="T", help="this tenant alone")
    which = ready.add_mutually_exclusive_group()
    which.add_argument(
        "--newest", action="store_true", help="what the Cores found last by their schedule, instead of a look now"
    )
    which.add_argument("--kept", action="store_true", help="earlier results that each Core has kept")
    add_common(ready)
    ready.set_defaults(run=Later("cli_ready", "run_ready"))
