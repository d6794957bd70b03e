"""Plain values against a configuration's Struct: every fault at once, and the typed configuration where there is none.

Unknown fields are refused with the nearest known name, wrong types by what was expected, then each Struct is asked
for what its types cannot say: ``CHECKS`` (field -> check) field by field, ``check()`` for the whole.  A password in an
address is refused here for all.  Pure.
"""

from __future__ import annotations

import difflib
import math
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

import msgspec
from msgspec import Struct

from keymesh.app.config_lines import join
from keymesh.model.errors import Refused

_BAD: Final = object()
_WITH_PASSWORD: Final = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@]*:[^/?#@]*@|[?&][a-z_]*(password|secret|token)=", re.I)
_WORDS: Final = {str: "text", int: "a whole number", bool: "true or false", float: "a number"}

Report = Callable[[str, str], None]
"""Takes the field and the reason."""


def struct_of(shape: Any) -> type[Struct] | None:
    """The Struct that ``shape`` is, or is optionally."""
    inner = without_none(shape)
    return inner if isinstance(inner, type) and issubclass(inner, Struct) else None


def without_none(shape: Any) -> Any:
    """``X`` of ``X | None`` and of ``Annotated[X, ...]``; all else as it is."""
    if get_origin(shape) is Annotated:
        return without_none(get_args(shape)[0])
    if get_origin(shape) in (Union, types.UnionType):
        rest = [arg for arg in get_args(shape) if arg is not types.NoneType]
        return without_none(rest[0]) if len(rest) == 1 else shape
    return shape


def fields_of(shape: type[Struct]) -> dict[str, Any]:
    """Field -> its type."""
    hints = typing.get_type_hints(shape, include_extras=True)
    return {name: hints[name] for name in shape.__struct_fields__}


def expected(shape: Any) -> str:
    """``shape`` in words."""
    shape = without_none(shape)
    if struct_of(shape) is not None or get_origin(shape) is dict:
        return "a table"
    if get_origin(shape) in (tuple, list):
        return f"a list ({expected(get_args(shape)[0])} each)"
    if get_origin(shape) is Literal:
        choices = [str(choice) for choice in get_args(shape)]
        return choices[0] if len(choices) == 1 else f"one of {', '.join(choices)}"
    return _WORDS.get(shape, "another type")


def shaped(value: Any, shape: type[Any], report: Report) -> Any:
    """``value`` as a ``shape``, or None where anything was reported."""
    made = _Shaper(report).struct(value, shape, "")
    return None if made is _BAD else made


class _Shaper:
    def __init__(self, report: Report) -> None:
        self._report = report

    def _bad(self, path: str, reason: str) -> Any:
        self._report(path, reason)
        return _BAD

    def _any(self, value: Any, shape: Any, path: str) -> Any:
        inner = without_none(shape)
        if struct := struct_of(inner):
            return self.struct(value, struct, path)
        if get_origin(inner) in (tuple, list):
            return self._list(value, inner, path)
        if get_origin(inner) is dict:
            return self._dict(value, inner, path)
        return self._leaf(value, inner, path, limits=shape)

    def _list(self, value: Any, shape: Any, path: str) -> Any:
        if not isinstance(value, list):
            return self._bad(path, f"expected {expected(shape)}, got {_kind(value)}")
        items = [self._any(item, get_args(shape)[0], join(path, n)) for n, item in enumerate(value)]
        return _BAD if any(item is _BAD for item in items) else get_origin(shape)(items)

    def _dict(self, value: Any, shape: Any, path: str) -> Any:
        if not isinstance(value, dict):
            return self._bad(path, f"expected a table, got {_kind(value)}")
        made = {key: self._any(item, get_args(shape)[1], join(path, key)) for key, item in value.items()}
        return _BAD if any(item is _BAD for item in made.values()) else made

    def _leaf(self, value: Any, shape: Any, path: str, *, limits: Any) -> Any:
        """``limits``: the type with what it says of its values, as in ``Annotated[int, Meta(ge=1)]``."""
        try:
            made = msgspec.convert(value, shape, strict=True)
        except msgspec.ValidationError:
            if get_origin(shape) is Literal and isinstance(value, str):
                return self._bad(path, f"must be {expected(shape)}")
            return self._bad(path, f"expected {expected(shape)}, got {_kind(value)}")
        try:
            msgspec.convert(value, limits, strict=True)
        except msgspec.ValidationError as bad:  # says the limit, never the value
            return self._bad(path, _limit_of(str(bad)))
        if isinstance(made, float) and not math.isfinite(made):
            return self._bad(path, "expected a finite number")
        if isinstance(made, str) and _WITH_PASSWORD.search(made):
            return self._bad(path, "a password does not belong in an address; a field that names a file takes it")
        if isinstance(made, str) and "\0" in made:
            return self._bad(path, "text without NUL")
        return made

    def struct(self, value: Any, shape: type[Any], path: str) -> Any:
        """``value`` as that Struct, or ``_BAD``."""
        if not isinstance(value, dict):
            return self._bad(path, f"expected a table, got {_kind(value)}")
        known = fields_of(shape)
        made: dict[str, Any] = {}
        for key in value:
            if key not in known:
                made[key] = self._bad(join(path, key), unknown(key, known))
        required = [field.name for field in msgspec.structs.fields(shape) if field.required]
        for name in required:
            if name not in value:
                made[name] = self._bad(join(path, name), f"missing; expected {expected(known[name])}")
        for name in known.keys() & value.keys():
            made[name] = self._field(shape, name, self._any(value[name], known[name], join(path, name)), path)
        if any(item is _BAD for item in made.values()):
            return _BAD
        return self._checked(shape(**made), path)

    def _field(self, shape: type[Any], name: str, made: Any, path: str) -> Any:
        checks: Mapping[str, Callable[[str, Any], object]] = getattr(shape, "CHECKS", {})
        if made is _BAD or name not in checks:
            return made
        try:
            checks[name](name, made)
        except Refused as bad:
            return self._refused(bad, path)
        return made

    def _checked(self, made: Any, path: str) -> Any:
        check = getattr(made, "check", None)
        if check is not None:
            try:
                check()
            except Refused as bad:
                return self._refused(bad, path)
        return made

    def _refused(self, bad: Refused, path: str) -> Any:
        field = bad.field or ""
        reason = bad.message.removeprefix(f"{field}: ")
        return self._bad(f"{path}.{field}" if path and field else path or field, reason)


def _limit_of(said: str) -> str:
    """``Expected `int` >= 1`` in our words."""
    for kind, word in _WORDS.items():
        said = said.replace(f"`{kind.__name__}`", word)
    return said.replace("Expected", "expected")


def _kind(value: Any) -> str:
    """What was given, in words, never the value."""
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "a list"
    return _WORDS.get(type(value), "a date or time")


def unknown(key: str, known: Mapping[str, Any]) -> str:
    """Why a field is refused that is not among ``known``."""
    near = difflib.get_close_matches(key[:64].lower().replace("-", "_"), known, n=1, cutoff=0.6)
    return f"no such field; did you mean {near[0]}?" if near else f"no such field; there are {', '.join(known)}"
