"""The one JSON reader and writer for anything signed or received: strict, bounded, one form.

Reader: UTF-8 without BOM, no duplicate keys, no floats, no NaN, integers within 64 bits, bounded size and depth,
nothing after the value.  Writer: keys sorted by code point, no spaces, UTF-8: the RFC 8785 form for the value types
that we allow, but for keys beyond the Basic Multilingual Plane, which RFC 8785 sorts by UTF-16 unit.
"""

from __future__ import annotations

import json
from typing import Any, Final, TypeVar

import msgspec

from keymesh.model.errors import Refused

MAX_DEPTH: Final = 32
_INT_LIMIT: Final = 2**63

T = TypeVar("T")


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise Refused.bad_field("json", "duplicate keys are refused")
    return out


def _no_float(text: str) -> Any:
    raise Refused.bad_field("json", f"only integers are accepted as numbers, got {text[:16]!r}")


def _int(text: str) -> int:
    if len(text) > 20 or not -_INT_LIMIT <= int(text) < _INT_LIMIT:
        raise Refused.bad_field("json", "integers must fit 64 bits")
    return int(text)


def _check_depth(raw: bytes) -> None:
    depth = 0
    in_string = escaped = False
    for byte in raw:
        if in_string:
            if escaped:
                escaped = False
            elif byte == 0x5C:
                escaped = True
            elif byte == 0x22:
                in_string = False
        elif byte == 0x22:
            in_string = True
        elif byte in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise Refused.bad_field("json", f"nested deeper than {MAX_DEPTH}")
        elif byte in b"]}":
            depth -= 1


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_pairs, parse_float=_no_float, parse_constant=_no_float, parse_int=_int
)
_ENCODER: Final = msgspec.json.Encoder(order="sorted")


def loads(raw: bytes, *, max_bytes: int) -> Any:
    """The value in ``raw``.  Raises Refused naming the limit that was broken."""
    if len(raw) > max_bytes:
        raise Refused.bad_field("json", f"at most {max_bytes} bytes, got {len(raw)}")
    if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH:
        _check_depth(raw)
    try:
        value = _DECODER.decode(raw.decode("utf-8"))
        if b"\\u" in raw:
            json.dumps(value, ensure_ascii=False).encode("utf-8")  # lone surrogates
    except (UnicodeError, json.JSONDecodeError, RecursionError) as bad:
        raise Refused.bad_field("json", "not well-formed UTF-8 JSON") from bad
    return value


def dumps(value: Any) -> bytes:
    """The one encoding of ``value``: sorted keys, no spaces, UTF-8.  Structs are turned to built-ins first."""
    raw = _ENCODER.encode(value)
    if b"null" in raw:  # the encoder's word for NaN, which is nothing that a reader takes
        json.dumps(msgspec.to_builtins(value), allow_nan=False)
    return raw


def decode(raw: bytes, shape: type[T], *, max_bytes: int) -> T:
    """``raw`` as a ``shape`` (a msgspec Struct that forbids unknown fields).  Raises Refused naming the field."""
    return convert(loads(raw, max_bytes=max_bytes), shape)


def convert(value: Any, shape: type[T]) -> T:
    try:
        return msgspec.convert(value, shape, strict=True)
    except msgspec.ValidationError as bad:
        raise refused(bad) from bad


def refused(bad: msgspec.ValidationError) -> Refused:
    """What is told of it: the field, by its path."""
    return Refused("bad-field", str(bad), field=_field_of(str(bad)))


def _field_of(message: str) -> str:
    """The path that msgspec prints after ``at``: ``$.body.scope`` becomes ``body.scope``."""
    _, found, path = message.rpartition("`$")
    return path.rstrip("`").lstrip(".") if found and path.rstrip("`") else "json"
