"""Reading a role's configuration: its file, the environment over it, defaults under it; where each value came from.

Steps: 1. bytes, bounded; 2. UTF-8 without a byte-order mark; 3. TOML; 4. environment variables; 5. relative paths from
the file's directory; 6. the Struct's types and checks; 7. the files that it names.  3 and before end at the first
fault, all else is told at once.
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from keymesh.app.config import ROLES, Config
from keymesh.app.config_env import overlay
from keymesh.app.config_faults import BadConfig, Fault
from keymesh.app.config_lines import join, lines_of
from keymesh.app.config_paths import observe_paths, resolve_paths
from keymesh.app.config_shape import shaped
from keymesh.model.errors import Refused

FILE_MAX_BYTES: Final = 64 * 1024
LINE_MAX_CHARS: Final = 4 * 1024  # the reader takes time in the square of a key's length
DEPTH_MAX: Final = 16
_AT_LINE: Final = re.compile(r" \(at line ([0-9]+), column [0-9]+\)$")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value came from: a ``line`` of the file, a ``variable``, or neither: the default."""

    source: Literal["file", "environment", "default"]
    line: int | None = None
    variable: str | None = None

    def __str__(self) -> str:
        return f"line {self.line}" if self.line else f"${self.variable}" if self.variable else "default"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration without faults.  ``fields``: each place, its value as plain data, and its origin, in order."""

    config: Config
    fields: tuple[tuple[str, Any, Origin], ...]


def role_in_file(path: Path) -> str:
    """What the file's own ``role`` line says.  Raises BadConfig."""
    plain, lines = parsed(path)
    role = plain.get("role")
    if not isinstance(role, str) or role not in ROLES:
        reason = f"one of {', '.join(ROLES)}" if "role" in plain else "missing; or say it with --role"
        raise BadConfig(str(path), [Fault("role", lines.get("role"), reason)])
    return role


def load_config(path: Path, role: str, environ: Mapping[str, str] = os.environ) -> Loaded:
    """The effective configuration of ``role``.  Raises BadConfig with every fault."""
    path = path.absolute()
    shape = ROLES[role]
    plain, lines = parsed(path)
    faults: list[Fault] = []
    placed: dict[str, str] = {}

    def report(field: str, reason: str) -> None:
        faults.append(Fault(field, None if nearest(field, placed) else nearest(field, lines), reason))

    placed |= overlay(plain, shape, role, environ, lambda field, reason: faults.append(Fault(field, None, reason)))
    plain = resolve_paths(plain, path.parent)
    config = shaped(plain, shape, report)
    known = {fault.field for fault in faults}
    observe_paths(plain, lambda field, reason: None if field in known else report(field, reason))
    if faults or config is None:
        raise BadConfig(str(path), faults)
    return Loaded(config, tuple(_fields(config, lines, placed)))


def parsed(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """The file's plain value, and where what stands."""
    text = _text(path)
    try:
        plain = tomllib.loads(text)
        _check_depth(plain)
        return plain, lines_of(text)
    except tomllib.TOMLDecodeError as bad:
        found = _AT_LINE.search(str(bad))
        line = int(found[1]) if found else text.count("\n") + 1
        reason = f"not TOML: {_AT_LINE.sub('', str(bad)).removesuffix(' (at end of document)')}"
        raise BadConfig(str(path), [Fault("", line, reason)]) from bad
    except RecursionError as deep:
        raise BadConfig(str(path), [Fault("", None, "nested too deeply")]) from deep


def _check_depth(plain: Any) -> None:
    """Raises RecursionError beyond ``DEPTH_MAX``, before anything walks that way."""
    level = [plain]
    for _ in range(DEPTH_MAX):
        inner = [list(node.values()) if isinstance(node, dict) else node for node in level]
        level = [item for items in inner for item in items if isinstance(item, (dict, list))]
        if not level:
            return
    raise RecursionError


def _text(path: Path) -> str:
    def refused(reason: str, line: int | None = None) -> BadConfig:
        return BadConfig(str(path), [Fault("", line, reason)])

    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            raw = file.read(FILE_MAX_BYTES + 1)
    except OSError as bad:
        raise refused(f"the file cannot be read: {bad.strerror}") from bad
    if stat.S_ISREG(mode) and mode & stat.S_IWOTH:
        raise refused("everybody may write this file: it says whom this process believes")
    if len(raw) > FILE_MAX_BYTES:
        raise refused(f"at most {FILE_MAX_BYTES} bytes")
    if raw.startswith(b"\xef\xbb\xbf"):
        raise refused("begins with a byte-order mark; UTF-8 has none here", 1)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as bad:
        raise refused("not UTF-8", raw.count(b"\n", 0, bad.start) + 1) from bad
    for n, line in enumerate(text.split("\n"), start=1):
        if len(line) > LINE_MAX_CHARS:
            raise refused(f"at most {LINE_MAX_CHARS} characters in a line", n)
    return text


def nearest(field: str, places: Mapping[str, Any]) -> Any:
    """What ``places`` has for ``field``, or for the closest table or list around it."""
    while field:
        if field in places:
            return places[field]
        cut = max(field.rfind("."), field.rfind("["))
        field = field[:cut] if cut > 0 else ""
    return None


def _fields(config: Any, lines: Mapping[str, int], placed: Mapping[str, str]) -> Iterator[tuple[str, Any, Origin]]:
    for field, value in _leaves(msgspec.to_builtins(config), ""):
        if variable := nearest(field, placed):
            yield field, value, Origin("environment", variable=variable)
        elif line := lines.get(field):
            yield field, value, Origin("file", line=line)
        else:
            yield field, value, Origin("default")


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, join(path, key))
    elif isinstance(value, (list, tuple)) and value:
        for n, item in enumerate(value):
            yield from _leaves(item, join(path, n))
    else:
        yield path, value


def require_role(role: str) -> str:
    """Raises Refused for none of ours."""
    if role not in ROLES:
        raise Refused.bad_field("role", f"one of {', '.join(ROLES)}")
    return role
