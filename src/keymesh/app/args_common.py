"""What the arguments of all commands share: durations, ``--dir`` and ``--json``, and functions named by place.

The modules ``args_*`` hold arguments and import nothing that costs time; what a command does lies elsewhere, and is
imported when that command runs.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final, cast

_DURATION: Final = re.compile(r"([0-9]{1,9})(ms|s|m|h|d)")
_UNIT_MS: Final = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


@dataclass(frozen=True, slots=True)
class Later:
    """The function of a command: ``function`` of ``keymesh.app.<module>``, imported when it is called."""

    module: str
    function: str

    def load(self) -> Callable[[argparse.Namespace], int]:
        found = getattr(importlib.import_module(f"keymesh.app.{self.module}"), self.function)
        return cast(Callable[[argparse.Namespace], int], found)

    def __call__(self, args: argparse.Namespace) -> int:
        return self.load()(args)


def duration_ms(text: str) -> int:
    """``500ms``, ``2s``, ``5m``, ``1h``, ``30d`` in ms."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r}: a whole number and one of ms, s, m, h, d, as in 90s")
    return int(match[1]) * _UNIT_MS[match[2]]


def show_ms(ms: int) -> str:
    """``ms`` for people: the largest unit that divides it, else one decimal of a second."""
    if ms < 1_000:
        return f"{ms}ms"
    for unit in ("d", "h", "m", "s"):
        if ms % _UNIT_MS[unit] == 0:
            return f"{ms // _UNIT_MS[unit]}{unit}"
    return f"{ms / 1_000:.1f}s"


JWT_FILE_ENV: Final = "KEYMESH_TOKEN_FILE"

chosen_token_file: ContextVar[str | None] = ContextVar("token file of the running command", default=None)


def choose_token_file(args: argparse.Namespace) -> None:
    """For the command that runs now: ``--token-file``, else $KEYMESH_TOKEN_FILE, where the command takes one."""
    takes_one = hasattr(args, "token_file")
    chosen_token_file.set((args.token_file or os.environ.get(JWT_FILE_ENV) or None) if takes_one else None)


def add_common(parser: argparse.ArgumentParser, *, token: bool = False) -> None:
    """``--dir`` and ``--json``; with ``token``, of commands to the Registry, ``--token-file``."""
    if token:
        parser.add_argument(
            "--token-file",
            metavar="F",
            help=f"a bearer token (JWT) in place of the operator's certificate (default: ${JWT_FILE_ENV})",
        )
    parser.add_argument("--dir", metavar="D", help="mesh directory (default: $KEYMESH_DIR, else .keymesh)")
    parser.add_argument("--json", action="store_true", help="print one JSON object for machines")
