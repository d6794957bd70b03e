"""``keymesh registry migrate``."""

from __future__ import annotations

import argparse

from keymesh.adapters.sql_migrate import migrate
from keymesh.app.cli_common import emit, stdout


def run_migrate(args: argparse.Namespace) -> int:
    """Bring the database to this release's schema; a newer one is refused and left alone."""
    done = migrate(args.database)
    shown = {
        "ok": True,
        "database": done.database,
        "before": done.before,
        "after": done.after,
        "applied": list(done.applied),
    }
    steps = ", ".join(done.applied) or "nothing to do"
    emit(args, shown, lambda: stdout.print(f"{done.database}: schema {done.after} ({steps})", markup=False))
    return 0
