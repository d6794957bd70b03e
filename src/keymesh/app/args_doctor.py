"""``keymesh doctor``: its arguments."""

from __future__ import annotations

from typing import Any

from keymesh.app.args_common import Later, add_common


def register(commands: Any) -> None:
    """Add this module's command to the parser."""
    doctor = commands.add_parser(
        "doctor",
        help="what this host lacks and the one line that installs it; how a mesh's dependencies are",
        epilog="example: keymesh doctor --json",
    )
    doctor.add_argument("--config", metavar="FILE", help="the dependencies of the role that this file configures")
    doctor.add_argument("--role", metavar="R", help="whose file that is, where it does not say so itself")
    add_common(doctor)
    doctor.set_defaults(run=Later("cli_doctor", "run_doctor"))
