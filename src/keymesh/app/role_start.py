"""How every role starts: its configuration from a file or an embedded mesh's plan, then it serves until told to stop.

What stands against a start goes to the log, one line a fault, and into the exit code.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from keymesh.app.config_faults import BadConfig
from keymesh.app.config_identity import load_checked
from keymesh.app.layout import Layout, MeshPlan, load_plan
from keymesh.app.lifeline import die_with_parent
from keymesh.app.logs import setup_logging
from keymesh.model.errors import KeymeshError

log = logging.getLogger("keymesh.start")


def role_parser(role: str) -> argparse.ArgumentParser:
    """``--config FILE``, or an embedded mesh's ``--dir`` and ``--region``; for the Registry ``--node``, a replica."""
    parser = argparse.ArgumentParser(prog=f"keymesh {role}")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--config")
    which.add_argument("--dir")
    parser.add_argument("--region")
    parser.add_argument("--node")
    return parser


def start_role(
    args: argparse.Namespace,
    role: str,
    *,
    embedded: Callable[[Layout, MeshPlan, str | None], Any],
    serve: Callable[[Any], int],
) -> int:
    """Serve with the configuration that ``args`` name.  Returns the exit code."""
    die_with_parent()
    setup_logging(role)
    try:
        if args.config is not None:
            config = load_checked(Path(args.config), role).config
        else:
            layout = Layout(Path(args.dir))
            which = getattr(args, "node", None) if role == "registry" else args.region
            config = embedded(layout, load_plan(layout), which)
        if region := getattr(config, "region", None):
            setup_logging(f"{role}-{region}")
        return serve(config)
    except BadConfig as bad:
        for fault in bad.faults:
            said = {"code": bad.code, "field": fault.field, "line": fault.line, "reason": fault.reason}
            log.critical("start refused", extra={"fields": said})
        return int(bad.exit_code)
    except KeymeshError as refused:
        log.critical("start refused", extra={"fields": {"code": refused.code, "reason": refused.message}})
        return int(refused.exit_code)
