"""The wire and disk form of every message, task and record: tagged, strict JSON.

``{"t": "<type name>", "v": {...}}``; a signed entry travels as its DSSE envelope alone and is parsed anew, so that
nobody's idea of its content is trusted.  Unknown tags and fields are refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from keymesh.control import messages as control_messages
from keymesh.control import purge_messages
from keymesh.control.entry import SignedEntry, parse_entry
from keymesh.control.signing import from_plain, to_plain
from keymesh.model import strict_json
from keymesh.model.errors import Integrity, Refused
from keymesh.orbital import edge_messages
from keymesh.orbital import messages as orbital_messages


def _enc(value: Any) -> Any:
    if isinstance(value, SignedEntry):
        return to_plain(value.envelope)
    raise TypeError(f"{type(value).__name__} has no wire form")


def _dec(shape: type, value: Any) -> Any:
    if shape is SignedEntry:
        return parse_entry(from_plain(value))
    raise Integrity("wire", f"{shape.__name__} has no wire form")


def _check_fields(made: Any, plain: Any) -> None:
    """Structs refuse unknown fields themselves; in dataclasses msgspec passes over them, so they are refused here."""
    if isinstance(made, tuple):
        for one, plain_one in zip(made, plain, strict=True):
            _check_fields(one, plain_one)
    elif dataclasses.is_dataclass(made):
        known = made.__dataclass_fields__
        for unknown in plain.keys() - known.keys():
            raise Refused.bad_field(unknown[:64], f"is not a field of {type(made).__name__}")
        for name in plain:
            _check_fields(getattr(made, name), plain[name])


def _message_types(module: Any) -> Iterable[type]:
    base = control_messages.Message
    for name in sorted(vars(module)):
        value = getattr(module, name)
        if isinstance(value, type) and issubclass(value, base) and value is not base:
            yield value


class Codec:
    """Encodes and decodes the types it was given, by their names."""

    def __init__(self, types: Iterable[type]) -> None:
        self._types: Final = {shape.__name__: shape for shape in types}

    def encode(self, value: Any) -> bytes:
        """``value`` tagged with its type's name."""
        name = type(value).__name__
        if self._types.get(name) is not type(value):
            raise TypeError(f"{name} is not registered with this codec")
        body = msgspec.to_builtins(value, enc_hook=_enc)
        return strict_json.dumps({"t": name, "v": body})

    def decode(self, raw: bytes, *, max_bytes: int) -> Any:
        """Raises Refused (malformed, unknown tag or field) or Integrity (a signed entry that is not in its form)."""
        return self.from_plain(strict_json.loads(raw, max_bytes=max_bytes))

    def from_plain(self, value: Any) -> Any:
        if not isinstance(value, dict) or set(value) != {"t", "v"} or not isinstance(value["t"], str):
            raise Refused.bad_field("message", "an object with exactly the members t and v")
        shape = self._types.get(value["t"])
        if shape is None:
            raise Refused.bad_field("t", f"{value['t'][:64]!r} is not a known message type")
        try:
            made: Any = msgspec.convert(value["v"], shape, strict=True, dec_hook=_dec)
        except msgspec.ValidationError as bad:
            raise Refused("bad-field", str(bad), field=value["t"]) from bad
        _check_fields(made, value["v"])
        return made


MESSAGE_TYPES: Final = (
    *_message_types(control_messages),
    *_message_types(purge_messages),
    *_message_types(edge_messages),
    *_message_types(orbital_messages),
    orbital_messages.Tail,
    orbital_messages.Task,
)

MESSAGES: Final = Codec(MESSAGE_TYPES)
