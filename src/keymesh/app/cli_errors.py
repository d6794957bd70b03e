"""Errors of a command turned into one line, or one JSON object, and an exit code."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from keymesh.model.errors import ExitCode, KeymeshError, Refused, Unavailable

INTERRUPTED: Final = 130  # as a shell counts SIGINT


class BadUsage(Refused):
    """What the command line asks for cannot be done from here; nothing was asked of anybody."""

    exit_code = ExitCode.USAGE


@contextmanager
def usage() -> Iterator[None]:
    """Around what reads the command line's own words: a malformed one is bad usage."""
    try:
        yield
    except BadUsage:
        raise
    except Refused as bad:
        raise BadUsage(bad.code, bad.message, field=bad.field) from bad


def guarded(run: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """Run a command; a user's mistake or the mesh's refusal becomes one line and an exit code, never a traceback."""
    try:
        return run(args)
    except KeymeshError as bad:
        report_error(args, bad)
        return int(bad.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        return int(ExitCode.REFUSED)
    except OSError as failed:
        told = of_system(failed)
        report_error(args, told)
        return int(told.exit_code)


def of_system(failed: OSError) -> KeymeshError:
    """What the operating system refused, as an error of a command."""
    match failed:
        case FileNotFoundError() | FileExistsError() | PermissionError() | IsADirectoryError() | NotADirectoryError():
            return Refused("file", f"{failed.strerror}: {failed.filename}", field="file")
    return Unavailable("system", str(failed.strerror or failed))


def report_error(args: argparse.Namespace, bad: KeymeshError, **more: Any) -> None:
    """One line for people, one object for machines, which has ``more`` beside the error."""
    if getattr(args, "json", False):
        print(json.dumps({"ok": False, "error": plain_error(bad), **more}))
    else:
        print(f"error: {_one_line(bad.message)} [{bad.code}]", file=sys.stderr)


def plain_error(bad: KeymeshError) -> dict[str, str | None]:
    """As it stands in JSON."""
    return {"code": bad.code, "message": bad.message, "field": bad.field}


def _one_line(text: str) -> str:
    """``text`` as it is, but for what would move the cursor: it may quote what came from elsewhere."""
    return "".join(c if c.isprintable() else "?" for c in text)
