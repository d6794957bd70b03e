"""TTLV, the wire form of KMIP: tag, type, length, value, padded to 8 bytes.

Decides whether bytes are one well-formed item within the limits; knows no tag's meaning, no enumeration and no rule
about which items a message must have.  Strict: there is one encoding of an item, and ``encode(decode(raw)) == raw``.
Neither direction recurses, so depth costs no stack.  Source: KMIP 1.4, section 9.1 (the same in 1.0-2.1).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from keymesh.model.errors import Refused
from keymesh.model.limits import KMIP_DEPTH_MAX, KMIP_ITEMS_MAX, KMIP_MESSAGE_MAX_BYTES

HEADER_BYTES: Final = 8
_STANDARD, _EXTENSION = 0x42, 0x54  # first byte of a tag
_HEADER: Final = struct.Struct(">II")  # tag and type, length


class ItemType(IntEnum):
    STRUCTURE = 0x01
    INTEGER = 0x02
    LONG_INTEGER = 0x03
    BIG_INTEGER = 0x04
    ENUMERATION = 0x05
    BOOLEAN = 0x06
    TEXT_STRING = 0x07
    BYTE_STRING = 0x08
    DATE_TIME = 0x09
    INTERVAL = 0x0A


_KINDS: Final = {int(kind): kind for kind in ItemType}
# type -> (bytes, signed) of the integers of fixed length
_FIXED: Final = {
    ItemType.INTEGER: (4, True),
    ItemType.LONG_INTEGER: (8, True),
    ItemType.ENUMERATION: (4, False),
    ItemType.BOOLEAN: (8, False),
    ItemType.DATE_TIME: (8, True),
    ItemType.INTERVAL: (4, False),
}


@dataclass(frozen=True, slots=True)
class Item:
    """One item.  ``value`` is a tuple of items, int, bool, str or bytes as the type says (instants: seconds since
    1970).  It may be key material, so it is in no ``repr``.
    """

    tag: int
    type: ItemType
    value: tuple[Item, ...] | int | str | bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a message may cost.  The outermost item has depth 1 and counts among the items."""

    message_bytes: int = KMIP_MESSAGE_MAX_BYTES
    depth: int = KMIP_DEPTH_MAX
    items: int = KMIP_ITEMS_MAX


DEFAULT_LIMITS: Final = Limits()


def message_bytes(header: bytes, *, limits: Limits = DEFAULT_LIMITS) -> int:
    """How many bytes the message has that begins with these 8, header and all: what a reader may wait for.

    Raises Refused before a byte more is read, where it is no structure or larger than the limit.
    """
    if len(header) != HEADER_BYTES:
        raise _bad(0, f"a header has {HEADER_BYTES} bytes, got {len(header)}")
    _, kind, length = _header(header, 0)
    if kind is not ItemType.STRUCTURE:
        raise _bad(0, "a message is a structure")
    total = HEADER_BYTES + length
    if total > limits.message_bytes:
        raise _bad(0, f"at most {limits.message_bytes} bytes, the header says {total}")
    return total


def decode(raw: bytes, *, limits: Limits = DEFAULT_LIMITS) -> Item:
    """The one item that ``raw`` is, to its last byte.  Raises Refused naming the place and the limit."""
    if len(raw) > limits.message_bytes:
        raise _bad(0, f"at most {limits.message_bytes} bytes, got {len(raw)}")
    outermost: list[Item] = []
    open_items: list[_Open] = [_Open(tag=0, end=len(raw), children=outermost)]
    at = count = 0
    while True:
        inner = open_items[-1]
        if len(open_items) > 1 and at == inner.end:
            open_items.pop()
            open_items[-1].children.append(Item(inner.tag, ItemType.STRUCTURE, tuple(inner.children)))
            continue
        if outermost:
            break
        if inner.end - at < HEADER_BYTES:
            raise _bad(at, f"a header of {HEADER_BYTES} bytes does not fit into what is left, {inner.end - at}")
        tag, kind, length = _header(raw, at)
        count += 1
        if count > limits.items:
            raise _bad(at, f"at most {limits.items} items")
        start, end = at + HEADER_BYTES, at + HEADER_BYTES + length
        padded_end = end + -length % 8
        if padded_end > inner.end:
            raise _bad(at, f"a value of {length} bytes, padded to 8, is longer than what holds it")
        if kind is ItemType.STRUCTURE:
            if length % 8:
                raise _bad(at, "the length of a structure is a multiple of 8")
            if len(open_items) > limits.depth:
                raise _bad(at, f"nested deeper than {limits.depth}")
            open_items.append(_Open(tag=tag, end=end, children=[]))
            at = start
            continue
        if any(raw[end:padded_end]):
            raise _bad(end, "padding is zeros")
        inner.children.append(Item(tag, kind, _read(kind, raw[start:end], at)))
        at = padded_end
    if at != len(raw):
        raise _bad(at, f"nothing may follow the item, got {len(raw) - at} bytes")
    return outermost[0]


def encode(item: Item) -> bytes:
    """The bytes of an item.  Raises Refused where a value is not what its type says, or out of its range."""
    out = bytearray()
    open_items: list[tuple[Iterator[Item], int]] = [(iter((item,)), -1)]
    while open_items:
        children, length_at = open_items[-1]
        child = next(children, None)
        if child is None:
            open_items.pop()
            if length_at >= 0:
                out[length_at : length_at + 4] = (len(out) - length_at - 4).to_bytes(4, "big")
            continue
        if child.tag >> 16 not in (_STANDARD, _EXTENSION):
            raise _bad(len(out), "a tag is 0x42.... or 0x54....")
        out += child.tag.to_bytes(3, "big") + bytes((child.type,))
        if child.type is ItemType.STRUCTURE:
            if not isinstance(child.value, tuple):
                raise _bad(len(out), "the value of a structure is a tuple of items")
            open_items.append((iter(child.value), len(out)))
            out += bytes(4)
            continue
        value = _written(child, len(out))
        out += len(value).to_bytes(4, "big") + value + bytes(-len(value) % 8)
    return bytes(out)


@dataclass(slots=True)
class _Open:
    """A structure whose end is not reached yet."""

    tag: int
    end: int
    children: list[Item]


def _bad(at: int, limit: str) -> Refused:
    return Refused.bad_field(f"ttlv byte {at}", limit)


def _header(raw: bytes, at: int) -> tuple[int, ItemType, int]:
    word, length = _HEADER.unpack_from(raw, at)
    if word >> 24 not in (_STANDARD, _EXTENSION):
        raise _bad(at, "a tag is 0x42.... or 0x54....")
    kind = _KINDS.get(word & 0xFF)
    if kind is None:
        raise _bad(at, f"a type is 0x01 to 0x0a, got 0x{word & 0xFF:02x}")
    return word >> 8, kind, length


def _big_bytes(number: int) -> int:
    """Bytes of the shortest two's complement that is a multiple of 8."""
    bits = (number if number >= 0 else ~number).bit_length() + 1
    return -(-bits // 64) * 8


def _read(kind: ItemType, value: bytes, at: int) -> int | str | bytes:
    match kind:
        case ItemType.BYTE_STRING:
            return value
        case ItemType.TEXT_STRING:
            try:
                return value.decode("utf-8")
            except UnicodeDecodeError as bad:
                raise _bad(at, "a text string is UTF-8") from bad
        case ItemType.BIG_INTEGER:
            number = int.from_bytes(value, "big", signed=True)
            if len(value) != _big_bytes(number):
                raise _bad(at, "a big integer has the shortest length that is a multiple of 8")
            return number
        case _:
            size, signed = _FIXED[kind]
            if len(value) != size:
                raise _bad(at, f"{kind.name.lower()} has {size} bytes, got {len(value)}")
            number = int.from_bytes(value, "big", signed=signed)
            if kind is not ItemType.BOOLEAN:
                return number
            if number > 1:
                raise _bad(at, "a boolean is 0 or 1")
            return bool(number)


def _written(item: Item, at: int) -> bytes:
    value = item.value
    if isinstance(value, str) and item.type is ItemType.TEXT_STRING:
        try:
            return value.encode("utf-8")
        except UnicodeEncodeError as bad:
            raise _bad(at, "a text string is UTF-8") from bad
    if isinstance(value, bytes) and item.type is ItemType.BYTE_STRING:
        return value
    if isinstance(value, int) and isinstance(value, bool) == (item.type is ItemType.BOOLEAN):
        if item.type is ItemType.BIG_INTEGER:
            return value.to_bytes(_big_bytes(value), "big", signed=True)
        if item.type in _FIXED:
            size, signed = _FIXED[item.type]
            try:
                return value.to_bytes(size, "big", signed=signed)
            except OverflowError as bad:
                raise _bad(at, f"{item.type.name.lower()} has {size} bytes") from bad
    raise _bad(at, f"not a value of {item.type.name.lower()}")
