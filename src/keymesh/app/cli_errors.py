"""Errors of a command turned into one line, or one JSON object, and an exit code."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable

from keymesh.model.errors import ExitCode, KeymeshError, Refused, Unavailable


class BadUsage(Refused):
    """What the command line asks for cannot be done from here; nothing was asked of anybody."""

    exit_code = ExitCode.USAGE


def guarded(run: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """Run a command; a user's mistake or the mesh's refusal becomes one line and an exit code, never a traceback."""
    try:
        return run(args)
    except KeymeshError as bad:
        report_error(args, bad)
        return int(bad.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
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
    """One line for people, one object for machines."""
    if getattr(args, "json", False):
        print(json.dumps({"ok": False, "error": plain_error(bad)}))
    else:
        print(f"error: {_one_line(bad.message)} [{bad.code}]", file=sys.stderr)


def plain_error(bad: KeymeshError) -> dict[str, str | None]:
    """As it stands in JSON."""
    return {"code": bad.code, "message": bad.message, "field": bad.field}


def _one_line(text: str) -> str:
    """``text`` as it is, but for what would move the cursor: it may quote what came from elsewhere."""
    return "".join(c if c.isprintable() else "?" for c in text)
