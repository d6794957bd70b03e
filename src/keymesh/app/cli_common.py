"""What all commands share: output for people and machines."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from keymesh.adapters.files import check_writable
from keymesh.app.cli_errors import BadUsage

_PIPE_COLUMNS: Final = 1_000  # what reads a pipe folds for itself

stderr = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
stdout = Console(highlight=False, soft_wrap=True, emoji=False)
_pipe = Console(highlight=False, soft_wrap=True, emoji=False, width=_PIPE_COLUMNS)


def emit(args: argparse.Namespace, value: Any, human: Callable[[], None]) -> None:
    """``value`` as JSON where ``--json`` was given, else what ``human`` prints."""
    if args.json:
        print(json.dumps(msgspec.to_builtins(value), indent=2, sort_keys=True))
    else:
        human()


def check_output(output: Path, what: str, *, otherwise: str) -> None:
    """That ``what`` will have a place, before anything is asked.  Raises BadUsage, which names ``otherwise``."""
    try:
        check_writable(output)
    except OSError as bad:
        raise BadUsage(
            "not-writable",
            f"{what} cannot be written to {output} ({bad.strerror}), and nothing was done: {otherwise}",
            field="output",
        ) from bad


def show_utc(unix_ms: int) -> str:
    """An instant for people."""
    return datetime.fromtimestamp(unix_ms / 1000, UTC).isoformat(timespec="milliseconds")


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """A table on standard output."""
    grid = Table(title=title, title_justify="left", title_style="bold", header_style="dim", box=None, pad_edge=False)
    for column in columns:
        grid.add_column(column, overflow="fold")
    for row in rows:
        grid.add_row(*(Text(_cell(cell)) for cell in row))
    (stdout if stdout.is_terminal else _pipe).print(grid)
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
