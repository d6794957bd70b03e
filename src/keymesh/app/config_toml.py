"""A configuration as the TOML text that reads as it: for files that we write ourselves.  Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from keymesh.app.config_paths import is_path_field


def to_toml(config: Struct, base: Path, *, comment: str) -> str:
    """``config`` without what is as by default; paths under ``base``, where the file will lie, are relative to it."""
    lines = [f"# {line}" for line in comment.splitlines()]
    return "\n".join([*lines, "", *_table(_changed(config, base), "")]) + "\n"


def _changed(config: Struct, base: Path) -> dict[str, Any]:
    """Plain values of the fields that a reader could not do without; ``role`` first, since it says what follows."""
    plain: dict[str, Any] = {}
    for field in msgspec.structs.fields(type(config)):
        value = getattr(config, field.name)
        if field.required or field.name == "role" or value != _default(field):
            plain[field.name] = _plain(field.name, value, base)
    return {"role": plain.pop("role"), **plain} if "role" in plain else plain


def _default(field: Any) -> Any:
    return field.default_factory() if field.default is msgspec.NODEFAULT else field.default


def _plain(name: str, value: Any, base: Path) -> Any:
    if isinstance(value, Struct):
        return _changed(value, base)
    if isinstance(value, (list, tuple)):
        return [_plain(name, item, base) for item in value]
    if isinstance(value, dict):
        return {key: _plain(key, item, base) for key, item in value.items()}
    if is_path_field(name) and isinstance(value, str) and Path(value).is_relative_to(base):
        return str(Path(value).relative_to(base))
    return value


def _table(plain: dict[str, Any], path: str) -> Iterator[str]:
    """Single values first: what follows a header belongs to it."""
    inner = {key: value for key, value in plain.items() if _is_table(value) or _is_tables(value)}
    for key, value in plain.items():
        if key not in inner:
            yield f"{_key(key)} = {_value(value)}"
    for key, value in inner.items():
        header = f"{path}.{_key(key)}" if path else _key(key)
        for one in value if _is_tables(value) else [value]:
            yield from ("", f"[[{header}]]" if _is_tables(value) else f"[{header}]", *_table(one, header))


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _value(key)


def _is_table(value: Any) -> bool:
    return isinstance(value, dict)


def _is_tables(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _value(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str():
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case list():
            return f"[{', '.join(map(_value, value))}]"
    raise TypeError(f"no TOML for {type(value).__name__}")
