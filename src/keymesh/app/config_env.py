"""Fields from the environment: ``KEYMESH_CORE__LISTEN__PORT=7601`` is ``listen.port`` of a Core.

``KEYMESH_<ROLE>__`` and the field's path in capitals, two underscores between steps; a position in a list is its
number, a name in a table of names its capitals with ``_`` for ``-``.  Text is taken as it is; whole tables and lists
are JSON.  A variable that begins so and names no field is refused: a misspelt one would be lost unseen.  Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, get_args, get_origin

from keymesh.app.config_lines import join
from keymesh.app.config_shape import Report, expected, fields_of, struct_of, unknown, without_none
from keymesh.model import strict_json
from keymesh.model.errors import Refused

VALUE_MAX_BYTES: Final = 64 * 1024
_INTEGER: Final = re.compile(r"-?[0-9]{1,18}")
_NUMBER: Final = re.compile(r"-?[0-9]{1,18}(\.[0-9]{1,18})?")
_TRUTHS: Final = {"true": True, "false": False}


def prefix_of(role: str) -> str:
    """What the variables of a role begin with."""
    return f"KEYMESH_{role.upper()}__"


def variable_of(role: str, field: str) -> str:
    """The variable of a field as messages and documents write it."""
    steps = re.sub(r"\[([0-9]+)\]", r".\1", field).split(".")
    return prefix_of(role) + "__".join(step.upper().replace("-", "_") for step in steps)


def overlay(
    value: dict[str, Any], shape: type[Any], role: str, environ: Mapping[str, str], report: Report
) -> dict[str, str]:
    """Put into ``value`` what ``environ`` says.  Returns place -> variable of all that was put there."""
    prefix = prefix_of(role)
    given = {tuple(name.removeprefix(prefix).split("__")): name for name in environ if name.startswith(prefix)}
    placed: dict[str, str] = {}
    for steps in sorted(given, key=_order):
        name = given[steps]
        try:
            placed[_put(value, shape, steps, environ[name])] = name
        except Refused as bad:
            report(bad.field or "", f"${name[:128]}: {bad.message.removeprefix(f'{bad.field}: ')}")
    return placed


def _order(steps: tuple[str, ...]) -> list[tuple[int, str]]:
    """A list before its items, and those by number."""
    return [(int(step), "") if _is_position(step) else (-1, step) for step in steps]


def _is_position(step: str) -> bool:
    return len(step) <= 4 and step.isascii() and step.isdigit()


def _put(node: Any, shape: Any, steps: tuple[str, ...], text: str) -> str:
    """Set the place that ``steps`` name; returns it.  Raises Refused naming it, or as much of it as there is."""
    path = ""
    for n, step in enumerate(steps):
        key, inner = _step(node, shape, step, path)
        path = join(path, key)
        if n == len(steps) - 1:
            _set(node, key, _parsed(text, inner, path))
            return path
        if not _is_container(inner):
            raise Refused.bad_field(path, "has no fields of its own")
        shape, node = inner, _inner(node, key, inner, path)
    raise AssertionError("no steps")


def _step(node: Any, shape: Any, step: str, path: str) -> tuple[str | int, Any]:
    """(key, the type there) of one step."""
    if struct := struct_of(shape):
        known = fields_of(struct)
        if not step:
            raise Refused.bad_field(path, "no such field: a step without a name")
        if step.lower() not in known or step != step.upper():
            raise Refused.bad_field(join(path, step.lower()[:64]), unknown(step, known))
        return step.lower(), known[step.lower()]
    inner = without_none(shape)
    if get_origin(inner) is dict:
        if not re.fullmatch(r"[A-Z0-9_]{1,64}", step):
            raise Refused.bad_field(path, "names are capitals, digits and underscores")
        return step.lower().replace("_", "-"), get_args(inner)[1]
    if not _is_position(step) or int(step) > len(node):
        raise Refused.bad_field(path, f"a position from 0 to {len(node)}")
    return int(step), get_args(inner)[0]


def _is_container(shape: Any) -> bool:
    return struct_of(shape) is not None or get_origin(without_none(shape)) in (dict, tuple, list)


def _inner(node: Any, key: str | int, shape: Any, path: str) -> Any:
    """What stands at ``key``, made where there is nothing."""
    is_list = get_origin(without_none(shape)) in (tuple, list)
    there = node.get(key) if isinstance(node, dict) else node[key] if int(key) < len(node) else None
    if there is None:
        there = [] if is_list else {}
        _set(node, key, there)
    if not isinstance(there, list if is_list else dict):
        raise Refused.bad_field(path, f"expected {expected(shape)} there")
    return there


def _set(node: Any, key: str | int, value: Any) -> None:
    if isinstance(node, list) and key == len(node):
        node.append(value)
    else:
        node[key] = value


def _parsed(text: str, shape: Any, path: str) -> Any:
    inner = without_none(shape)
    if _is_container(inner):
        try:
            return strict_json.loads(text.encode("utf-8", "surrogateescape"), max_bytes=VALUE_MAX_BYTES)
        except Refused as bad:
            raise Refused.bad_field(path, f"expected {expected(inner)}, as JSON") from bad
    if inner is bool and text in _TRUTHS:
        return _TRUTHS[text]
    if inner is int and _INTEGER.fullmatch(text):
        return int(text)
    if inner is float and _NUMBER.fullmatch(text):
        return float(text)
    if inner in (bool, int, float):
        raise Refused.bad_field(path, f"expected {expected(inner)}")
    if not text.isprintable():
        raise Refused.bad_field(path, "expected printable text")
    return text
