"""What all commands share: durations, output for people and machines, and errors turned into exit codes."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from keymesh.model.errors import ExitCode, KeymeshError, Refused, Unavailable

_DURATION: Final = re.compile(r"([0-9]{1,9})(ms|s|m|h|d)")
_UNIT_MS: Final = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}

_PIPE_COLUMNS: Final = 1_000  # what reads a pipe folds for itself

stderr = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
stdout = Console(highlight=False, soft_wrap=True, emoji=False)


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


def add_common(parser: argparse.ArgumentParser) -> None:
    """``--dir`` and ``--json``."""
    parser.add_argument("--dir", metavar="D", help="mesh directory (default: $KEYMESH_DIR, else .keymesh)")
    parser.add_argument("--json", action="store_true", help="print one JSON object for machines")


def emit(args: argparse.Namespace, value: Any, human: Callable[[], None]) -> None:
    """``value`` as JSON where ``--json`` was given, else what ``human`` prints."""
    if args.json:
        print(json.dumps(msgspec.to_builtins(value), indent=2, sort_keys=True))
    else:
        human()


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """A table on standard output."""
    grid = Table(title=title, title_justify="left", title_style="bold", header_style="dim", box=None, pad_edge=False)
    for column in columns:
        grid.add_column(column, overflow="fold")
    for row in rows:
        grid.add_row(*(Text(_cell(cell)) for cell in row))
    stdout.print(grid, width=None if stdout.is_terminal else _PIPE_COLUMNS)
    stdout.print()


def _cell(value: Any) -> str:
    """``value`` in a few characters: a hash by its start, a truth as a word."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = str(value)
    return text[:12] if len(text) in (32, 64) and all(c in "0123456789abcdef" for c in text) else text


def facts(title: str, values: Mapping[str, Any]) -> None:
    """``values`` one a line, aligned."""
    stdout.print(f"[bold]{title}[/bold]")
    width = max((len(k) for k in values), default=0)
    for key, value in values.items():
        stdout.print(f"  {key:<{width}}  {_fact(value)}", markup=False)


def _fact(value: Any) -> str:
    """``value`` in words; nothing is a dash."""
    match value:
        case bool():
            return "yes" if value else "no"
        case list() | tuple():
            return ", ".join(map(_fact, value)) or "-"
        case dict():
            return ", ".join(f"{key}: {_fact(one)}" for key, one in value.items()) or "-"
        case None | "":
            return "-"
    return str(value)


def guarded(run: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """Run a command; a user's mistake or the mesh's refusal becomes one line and an exit code, never a traceback."""
    try:
        return run(args)
    except KeymeshError as bad:
        report_error(args, bad)
        return int(bad.exit_code)
    except KeyboardInterrupt:
        stderr.print("interrupted")
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return int(ExitCode.REFUSED)
    except (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError) as bad:
        report_error(args, Refused("file", f"{bad.strerror}: {bad.filename}", field="file"))
        return int(ExitCode.REFUSED)
    except OSError as bad:
        report_error(args, Unavailable("system", str(bad.strerror or bad)))
        return int(ExitCode.UNAVAILABLE)


def report_error(args: argparse.Namespace, bad: KeymeshError) -> None:
    if getattr(args, "json", False):
        print(json.dumps({"ok": False, "error": {"code": bad.code, "message": bad.message, "field": bad.field}}))
    else:
        stderr.print(f"error: {bad.message} [{bad.code}]", markup=False)
