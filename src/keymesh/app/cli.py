"""The ``keymesh`` command: one parser of cheap modules; what a command does is imported when it runs."""

from __future__ import annotations

import argparse
import sys
from contextvars import ContextVar
from typing import Final, NoReturn

from keymesh import __version__
from keymesh.app import (
    args_backup,
    args_budget,
    args_ceremony,
    args_config,
    args_doctor,
    args_drill,
    args_files,
    args_fuzz,
    args_keys,
    args_killswitch,
    args_kmip,
    args_kms,
    args_mesh,
    args_pki,
    args_ready,
    args_registry,
    args_show,
    args_tenant,
    args_voters,
)
from keymesh.app.args_common import choose_token_file
from keymesh.app.cli_errors import INTERRUPTED, BadUsage, guarded, report_error

_EPILOG: Final = """\
exit codes: 0 done, 1 refused or check failed, 2 usage, 3 unavailable, 4 integrity

example:
  keymesh up
  keymesh tenant create acme --home us-east --regions us-east,us-west
  keymesh service create acme/files
  keymesh seal report.pdf --tenant acme --service files
  keymesh suspend tenant:acme
"""


_for_machines: ContextVar[bool] = ContextVar("whether --json is among the words", default=False)


class _Parser(argparse.ArgumentParser):
    """Of a command and those below it: a usage error is also an object for machines, where they asked for one."""

    def error(self, message: str) -> NoReturn:
        """Say it, and exit with code 2."""
        if _for_machines.get():
            report_error(argparse.Namespace(json=True), BadUsage("usage", message))
        super().error(message)


def build_parser() -> argparse.ArgumentParser:
    """Every command and its arguments."""
    parser = _Parser(
        prog="keymesh",
        description="A sovereign key-management mesh: customers hold the root key, and can end every use of it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"keymesh {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for group in (
        args_mesh,
        args_ceremony,
        args_pki,
        args_registry,
        args_config,
        args_backup,
        args_doctor,
        args_drill,
        args_ready,
        args_tenant,
        args_budget,
        args_keys,
        args_killswitch,
        args_voters,
        args_files,
        args_fuzz,
        args_kmip,
        args_kms,
        args_show,
    ):
        group.register(commands)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point of the console script.  Returns the exit code."""
    words = sys.argv[1:] if argv is None else argv
    _for_machines.set("--json" in words)
    try:
        args = build_parser().parse_args(words)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    choose_token_file(args)
    return guarded(args.run, args)


if __name__ == "__main__":
    sys.exit(main())
