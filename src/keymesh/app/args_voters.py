"""``keymesh voters``: its arguments."""

from __future__ import annotations

from typing import Any

from keymesh.app.args_common import Later, add_common


def register(commands: Any) -> None:
    """Add this module's commands to the parser."""
    voters = commands.add_parser("voters", help="the regions that countersign restrictions and can grant Standby")
    actions = voters.add_subparsers(dest="action", metavar="ACTION", required=True)
    show = actions.add_parser(
        "show",
        help="seats, what each has stored, which answer, and whether they could stand in for the Registry",
        epilog="example: keymesh voters show --json",
    )
    add_common(show)
    change = actions.add_parser(
        "change",
        help="seat other regions: a majority of the old voters seals their set, then the new one comes into force",
        description="Repeat it where it stopped half-way.  See docs/standby.md.",
        epilog="example: keymesh voters change --seats us-east,us-west,eu-west --approve-key officer-2.pem",
    )
    change.add_argument(
        "--seats", required=True, metavar="R,R,R", help="3, 5 or 7 regions, in distinct failure domains"
    )
    change.add_argument(
        "--approve-key",
        action="append",
        default=[],
        metavar="FILE",
        help="an officer's key file; two different officers (the first one may be left out in a development mesh, "
        "where it is officer-1)",
    )
    add_common(change)
    change.set_defaults(run=Later("cli_voter_change", "run_change"))
    show.set_defaults(run=Later("cli_voters", "run_show"))
