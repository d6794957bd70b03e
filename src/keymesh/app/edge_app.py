"""The Edge process of a region in an embedded mesh: the sidecar, with its place in the mesh's directory."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from keymesh.app.layout import Layout, load_plan
from keymesh.app.lifeline import die_with_parent, say_ready
from keymesh.app.logs import setup_logging
from keymesh.edge import sidecar


def main(argv: list[str] | None = None) -> int:
    """Serve until told to stop; returns the exit code."""
    parser = argparse.ArgumentParser(prog="keymesh edge")
    parser.add_argument("--dir", required=True)
    parser.add_argument("--region", required=True)
    args = parser.parse_args(argv)
    die_with_parent()
    setup_logging(f"edge-{args.region}")
    layout = Layout(Path(args.dir))
    plan = load_plan(layout)
    inner = argparse.ArgumentParser()
    sidecar.add_arguments(inner)
    return sidecar.main(
        inner.parse_args(
            [
                "--dir",
                str(layout.edge(args.region)),
                "--socket",
                str(layout.edge_socket(args.region)),
                "--region",
                args.region,
                "--mesh",
                plan.mesh,
                "--core-url",
                f"https://127.0.0.1:{plan.regions[args.region].port}",
                "--ca",
                str(layout.ca),
                *(["--allow-unlocked-memory"] if plan.allow_unlocked_memory else []),
            ]
        ),
        on_ready=say_ready,
    )


if __name__ == "__main__":
    sys.exit(main())
