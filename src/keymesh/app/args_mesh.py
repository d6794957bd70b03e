"""``keymesh up | down | status``: their arguments."""

from __future__ import annotations

from typing import Any

from keymesh.app.args_common import Later, add_common, duration_ms


def add_timing(timing: Any) -> None:
    """The flags that ``cli_mesh.timing_of`` reads."""
    for flag, what in (
        ("--ttl", "how long a cut-off region goes on, 2s to 1d (default 1h)"),
        ("--heartbeat", "how often regions ask for their leases, 100ms to ttl/2 (default 2s)"),
        ("--edge-ttl", "lease of an Edge where the service names none, 1s to 60m (default 5m)"),
        ("--l1-probe", "how often the customer's L1 is asked, 500ms to 1d (default 5m)"),
        ("--l1-ttl", "how long an unreachable L1 is tolerated, 500ms to 1d (default: the ttl)"),
        ("--snapshot", "how often a region re-reads what it holds, 500ms to 1d (default 5m)"),
    ):
        timing.add_argument(flag, type=duration_ms, metavar="TIME", help=what)


def register(commands: Any) -> None:
    """Add this module's commands to the parser."""
    up = commands.add_parser(
        "up",
        help="start a mesh (made on first use) and leave it running",
        epilog="example: keymesh up --regions us-east,us-west,eu-central,eu-west --ttl 1h",
    )
    up.add_argument("--regions", metavar="R,...", help="name or name=domain; the first holds the Registry")
    up.add_argument(
        "--shares", metavar="M/N", help="seal the regions of a mesh made now by N shares, any M of which open one"
    )
    up.add_argument(
        "--full",
        action="store_true",
        help="a mesh made now stands on PostgreSQL, etcd and OpenBao, started from what is installed",
    )
    up.add_argument("--links", action="store_true", help="relay cross-region links so that they can be cut")
    up.add_argument(
        "--elsewhere",
        action="store_true",
        help="let the Edges of a mesh made now go to the nearest other region that a tenant allows, where theirs fails",
    )
    up.add_argument(
        "--allow-unlocked-memory",
        action="store_true",
        help="run even where key memory cannot be locked (mlock); this mesh remembers it",
    )
    up.add_argument(
        "--ceremony",
        metavar="DIR",
        help="found a mesh made now by the root and officers of `keymesh ceremony make`; their keys are not copied",
    )
    add_timing(up.add_argument_group("timing", "of a mesh that is made now; one that exists keeps its own"))
    add_common(up)
    up.set_defaults(run=Later("cli_mesh", "run_up"))
    down = commands.add_parser("down", help="stop the mesh; nothing is deleted", epilog="example: keymesh down")
    add_common(down)
    down.set_defaults(run=Later("cli_status", "run_down"))
    status = commands.add_parser(
        "status",
        help="regions, modes per tenant, lease ages, applied heads, drift",
        epilog="example: keymesh status --json",
    )
    add_common(status)
    status.set_defaults(run=Later("cli_status", "run_status"))
