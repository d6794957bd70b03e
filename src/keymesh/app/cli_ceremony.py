"""``keymesh ceremony make | rehearse``: keys of roots and officers, offline."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from keymesh.app.ceremony import FILE, keys_in, load, make, parse_quorum, rehearse
from keymesh.app.cli_common import emit, facts, table
from keymesh.model.errors import ExitCode


def run_make(args: argparse.Namespace) -> int:
    """Key files, and the public file that founds a mesh."""
    directory = Path(args.directory)
    made = make(directory, roots=parse_quorum("roots", args.roots), officers=parse_quorum("officers", args.officers))
    shown = {
        "ok": True,
        "public": str(directory / FILE),
        "files": sorted(path.name for path in directory.glob("*.pem")),
        "root": {"keys": sorted(made.root.keys), "threshold": made.root.threshold},
        "officers": {"keys": sorted(made.officers.keys), "threshold": made.officers.threshold},
    }
    told = {"public": shown["public"], "files": shown["files"]}
    emit(args, shown, lambda: facts("ceremony: give each file to one person, and keep none", told))
    return 0


def run_rehearse(args: argparse.Namespace) -> int:
    """Exit code 1 where a role could not sign any more."""
    directory = Path(args.directory)
    done = rehearse(load(directory), keys_in(directory, [Path(f) for f in args.key]), args.lost)
    ok = all(one.signs for one in done)
    emit(
        args,
        {"ok": ok, "rehearsed": [asdict(one) for one in done]},
        lambda: table(
            "rehearsal",
            ("role", "without", "keys left", "threshold", "still signs"),
            ((one.role, one.lost, one.left, one.threshold, one.signs) for one in done),
        ),
    )
    return int(ExitCode.DONE if ok else ExitCode.REFUSED)
