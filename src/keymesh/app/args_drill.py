"""``keymesh drill``: its arguments."""

from __future__ import annotations

from typing import Any, Final

from keymesh.app.args_common import Later, add_common

TIERS: Final = ("tier1", "tier2", "tier3")


def register(commands: Any) -> None:
    drill = commands.add_parser("drill", help="rehearse a disaster on a mesh of its own, and measure what happens")
    which = drill.add_subparsers(dest="drill", metavar="WHAT", required=True)
    run = which.add_parser(
        "run",
        help="tier1: a region loses the Registry; tier2: a region is killed under load; tier3: the Registry dies",
        epilog="example: keymesh drill run tier1 --json",
    )
    run.add_argument("tier", choices=TIERS, help="which disaster")
    run.add_argument(
        "--hide-l1", action="store_true", help="tier1: what cuts the region off hides the customer's KMS as well"
    )
    add_common(run)
    run.set_defaults(run=Later("drill", "run_drill"))
