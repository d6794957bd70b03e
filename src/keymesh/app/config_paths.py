"""The paths in a configuration, known by their fields' names: made absolute, and looked for.

``*_file`` must be there and be readable; ``*_dir`` and ``*_path`` may be made later; a ``*_socket``'s name must be
short enough for the kernel.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from keymesh.app.config_lines import join
from keymesh.app.config_shape import Report

UNIX_PATH_MAX: Final = 100
_SUFFIXES: Final = ("_file", "_dir", "_path", "_socket")


def resolve_paths(value: Any, base: Path) -> Any:
    """A copy of ``value`` (tables, lists, plain values) in which relative paths start at ``base``.  Pure."""
    if isinstance(value, list):
        return [resolve_paths(item, base) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: str(base / item) if is_path_field(key) and isinstance(item, str) and item else resolve_paths(item, base)
        for key, item in value.items()
    }


def observe_paths(value: Any, report: Report) -> None:
    """Report every path of ``value`` that cannot be what its name says."""
    for field, key, text in _paths(value, ""):
        if reason := _fault_of(key, text):
            report(field, reason)


def is_path_field(key: str) -> bool:
    """Whether the field of that name holds a path."""
    return key.endswith(_SUFFIXES)


def _paths(value: Any, path: str) -> Iterator[tuple[str, str, str]]:
    """(place, field's name, path) of each."""
    if isinstance(value, list):
        for n, item in enumerate(value):
            yield from _paths(item, join(path, n))
    elif isinstance(value, dict):
        for key, item in value.items():
            if is_path_field(key) and isinstance(item, str):
                yield join(path, key), key, item
            else:
                yield from _paths(item, join(path, key))


def _fault_of(key: str, text: str) -> str | None:
    if not text or "\0" in text:
        return "expected a path"
    if key.endswith("_socket") and len(os.fsencode(text)) > UNIX_PATH_MAX:
        return f"too long for a Unix socket (at most {UNIX_PATH_MAX} bytes in all)"
    try:
        mode = Path(text).stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "there is no such file" if key.endswith("_file") else None
    except OSError as bad:
        return f"cannot be looked at: {bad.strerror}"
    if key.endswith("_dir") and not stat.S_ISDIR(mode):
        return "there is something else than a directory"
    if key.endswith("_file") and not stat.S_ISREG(mode):
        return "not a regular file"
    if key.endswith("_file") and not os.access(text, os.R_OK):
        return "this user may not read it"
    return None
