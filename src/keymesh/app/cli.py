"""The ``keymesh`` command: one parser, each group of commands in its own module."""

from __future__ import annotations

import argparse
import importlib
import sys
from typing import Final

from keymesh import __version__
from keymesh.app.cli_common import guarded

_EPILOG: Final = """\
exit codes: 0 done, 1 refused or check failed, 2 usage, 3 unavailable, 4 integrity

example:
  keymesh up
  keymesh tenant create acme --home us-east --regions us-east,us-west
  keymesh service create acme/files
  keymesh seal report.pdf --tenant acme --service files
  keymesh suspend tenant:acme
"""

# Modules with ``register(subparsers)``; imported only when the command line needs them.
_GROUPS: Final = {
    "up": "cli_mesh",
    "down": "cli_mesh",
    "status": "cli_mesh",
    "pki": "cli_pki",
    "tenant": "cli_tenant",
    "service": "cli_tenant",
    "key": "cli_keys",
    "region": "cli_keys",
    "suspend": "cli_killswitch",
    "resume": "cli_killswitch",
    "revoke": "cli_killswitch",
    "verify": "cli_killswitch",
    "seal": "cli_files",
    "open": "cli_files",
    "customer-kms": "cli_kms",
    "demo": "cli_show",
    "bench": "cli_show",
    "sim": "cli_show",
}


def build_parser(only: str | None = None) -> argparse.ArgumentParser:
    """The whole parser, or just what ``only`` (a command's name) needs."""
    parser = argparse.ArgumentParser(
        prog="keymesh",
        description="A sovereign key-management mesh: customers hold the root key, and can end every use of it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"keymesh {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    modules = [_GROUPS[only]] if only in _GROUPS else list(dict.fromkeys(_GROUPS.values()))
    for module in modules:
        importlib.import_module(f"keymesh.app.{module}").register(commands)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point of the console script.  Returns the exit code."""
    words = sys.argv[1:] if argv is None else argv
    first = next((word for word in words if not word.startswith("-")), None)
    args = build_parser(first).parse_args(words)
    return guarded(args.run, args)


if __name__ == "__main__":
    sys.exit(main())
