"""TTLV, the wire form of KMIP: tag, type, length, value, padded to 8 bytes.

Decides whether bytes are one well-formed item within the limits; knows no tag's meaning, no enumeration and no rule
about which items a message must have.  Strict: there is one encoding of an item, and ``encode(decode(raw)) == raw``.
Neither direction recurses, so depth costs no stack.  Source: KMIP 1.4, section 9.1 (the same in 1.0-2.1).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import msgspec

from keymesh.model.errors import Refused
from keymesh.model.limits import KMIP_DEPTH_MAX, KMIP_ITEMS_MAX, KMIP_MESSAGE_MAX_BYTES

HEADER_BYTES: Final = 8
_STANDARD, _EXTENSION = 0x42, 0x54  # first byte of a tag
_HEADER: Final = struct.Struct(">II")  # tag and type, length
_HEADER_AND_8: Final = struct.Struct(">IIq")  # and the first 8 bytes of what follows
_LENGTH: Final = struct.Struct(">I")
_LOW: Final = 0xFFFF_FFFF
_PADDING: Final = tuple(bytes(-n % 8) for n in range(8))  # by the length that is padded, modulo 8


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


# Of the types by their numbers, of which 0 is none: plain tables and numbers are what ``decode`` has time for.
_KINDS: Final = (ItemType.STRUCTURE, *ItemType)
_TYPES_END: Final = len(_KINDS)
_STRUCTURE, _INTEGER, _BOOLEAN, _BYTE_STRING = 0x01, 0x02, 0x06, 0x08
_FIXED: Final = (0, 0, 4, 8, 0, 4, 8, 0, 0, 8, 4)  # bytes of a value, of the integers of fixed length
_WHOLE: Final = {  # their whole items
    ItemType.INTEGER: struct.Struct(">IIi4x"),
    ItemType.LONG_INTEGER: struct.Struct(">IIq"),
    ItemType.ENUMERATION: struct.Struct(">III4x"),
    ItemType.BOOLEAN: struct.Struct(">IIq"),
    ItemType.DATE_TIME: struct.Struct(">IIq"),
    ItemType.INTERVAL: struct.Struct(">III4x"),
}


class Item(msgspec.Struct, frozen=True, gc=False):
    """One item.  ``value`` is a tuple of items, int, bool, str or bytes as the type says (instants: seconds since
    1970).  It may be key material, so it is in no ``repr``.
    """

    tag: int
    type: ItemType
    value: tuple[Item, ...] | int | str | bytes

    def __repr__(self) -> str:
        return f"Item(tag={self.tag}, type={self.type!r})"


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
    word, length = _HEADER.unpack(header)
    if word >> 24 not in (_STANDARD, _EXTENSION):
        raise _bad_header(word, 0)
    if word & 0xFF != _STRUCTURE:
        raise _bad(0, "a message is a structure")
    total: int = HEADER_BYTES + length
    if total > limits.message_bytes:
        raise _bad(0, f"at most {limits.message_bytes} bytes, the header says {total}")
    return total


def decode(raw: bytes, *, limits: Limits = DEFAULT_LIMITS) -> Item:
    """The one item that ``raw`` is, to its last byte.  Raises Refused naming the place and the limit.

    This loop is where much of a request's time goes: numbers are unpacked together with their headers, and nothing is
    made for an item but the item.
    """
    size = len(raw)
    if size > limits.message_bytes:
        raise _bad(0, f"at most {limits.message_bytes} bytes, got {size}")
    around: list[tuple[int, int, list[Item]]] = []  # tag, end and children so far of the structures around
    tag, end = 0, size
    children: list[Item] = []
    at = count = 0
    while True:
        left = end - at
        if not left and around:
            whole = Item(tag, ItemType.STRUCTURE, tuple(children))
            tag, end, children = around.pop()
            children.append(whole)
            if around:
                continue
            break
        if left >= 16:
            word, length, first8 = _HEADER_AND_8.unpack_from(raw, at)
        elif left >= HEADER_BYTES:
            word, length = _HEADER.unpack_from(raw, at)
            first8 = 0
        else:
            raise _bad(at, f"a header of {HEADER_BYTES} bytes does not fit into what is left, {left}")
        number = word & 0xFF
        lead = word >> 24
        if (lead != _STANDARD and lead != _EXTENSION) or not 0 < number < _TYPES_END:
            raise _bad_header(word, at)
        count += 1
        if count > limits.items:
            raise _bad(at, f"at most {limits.items} items")
        padded_end = at + HEADER_BYTES + length + (-length & 7)
        if padded_end > end:
            raise _bad(at, f"a value of {length} bytes, padded to 8, is longer than what holds it")
        if number == _STRUCTURE:
            if length & 7:
                raise _bad(at, "the length of a structure is a multiple of 8")
            if len(around) >= limits.depth:
                raise _bad(at, f"nested deeper than {limits.depth}")
            around.append((tag, end, children))
            tag, end, children = word >> 8, padded_end, []
            at += HEADER_BYTES
            continue
        kind = _KINDS[number]
        value: int | str | bytes
        fixed = _FIXED[number]
        if fixed:
            if length != fixed:
                raise _bad(at, f"{kind.name.lower()} has {fixed} bytes, got {length}")
            if fixed == 8:
                value = first8 if number != _BOOLEAN else _flag(first8, at)
            elif first8 & _LOW:
                raise _bad(at + HEADER_BYTES + fixed, "padding is zeros")
            else:
                value = first8 >> 32 if number == _INTEGER else first8 >> 32 & _LOW
        else:
            start = at + HEADER_BYTES
            stop = start + length
            if length & 7 and raw[stop:padded_end] != _PADDING[length & 7]:
                raise _bad(stop, "padding is zeros")
            value = raw[start:stop] if number == _BYTE_STRING else _octets(kind, raw[start:stop], at)
        children.append(Item(word >> 8, kind, value))
        at = padded_end
        if not around:
            break
    if at != size:
        raise _bad(at, f"nothing may follow the item, got {size - at} bytes")
    return children[0]


def encode(item: Item) -> bytes:
    """The bytes of an item.  Raises Refused where a value is not what its type says, or out of its range."""
    out = bytearray()
    around: list[tuple[Iterator[Item], int]] = []  # what is left of the structures around, and where their lengths go
    children: Iterator[Item] = iter((item,))
    length_at = -1
    while True:
        for child in children:
            tag, value = child.tag, child.value
            if tag >> 16 != _STANDARD and tag >> 16 != _EXTENSION:
                raise _bad(len(out), "a tag is 0x42.... or 0x54....")
            if child.type is not ItemType.STRUCTURE:
                out += _written(child, len(out))
                continue
            if not isinstance(value, tuple):
                raise _bad(len(out), "the value of a structure is a tuple of items")
            around.append((children, length_at))
            children, length_at = iter(value), len(out) + 4
            out += _HEADER.pack(tag << 8 | ItemType.STRUCTURE, 0)
            break
        else:
            if length_at < 0:
                return bytes(out)
            _LENGTH.pack_into(out, length_at, len(out) - length_at - 4)
            children, length_at = around.pop()


def structure_header(tag: int, length: int) -> bytes:
    """The first 8 bytes of a structure whose ``length`` bytes of encoded items are at hand."""
    return _HEADER.pack(tag << 8 | ItemType.STRUCTURE, length)


def _bad(at: int, limit: str) -> Refused:
    return Refused.bad_field(f"ttlv byte {at}", limit)


def _bad_header(word: int, at: int) -> Refused:
    """What is wrong with the first four bytes of a header."""
    if word >> 24 not in (_STANDARD, _EXTENSION):
        return _bad(at, "a tag is 0x42.... or 0x54....")
    return _bad(at, f"a type is 0x01 to 0x0a, got 0x{word & 0xFF:02x}")


def _big_bytes(number: int) -> int:
    """Bytes of the shortest two's complement that is a multiple of 8."""
    bits = (number if number >= 0 else ~number).bit_length() + 1
    return -(-bits // 64) * 8


def _flag(first8: int, at: int) -> bool:
    if first8 not in (0, 1):
        raise _bad(at, "a boolean is 0 or 1")
    return first8 == 1


def _octets(kind: ItemType, value: bytes, at: int) -> int | str:
    """The value of a text or a big integer."""
    if kind is ItemType.TEXT_STRING:
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as bad:
            raise _bad(at, "a text string is UTF-8") from bad
    number = int.from_bytes(value, "big", signed=True)
    if len(value) != _big_bytes(number):
        raise _bad(at, "a big integer has the shortest length that is a multiple of 8")
    return number


def _written(item: Item, at: int) -> bytes:
    """The bytes of an item that is no structure."""
    kind, value = item.type, item.value
    whole = _WHOLE.get(kind)
    if whole is not None:
        if not isinstance(value, int) or isinstance(value, bool) is not (kind is ItemType.BOOLEAN):
            raise _bad(at, f"not a value of {kind.name.lower()}")
        try:
            return whole.pack(item.tag << 8 | kind, _FIXED[kind], value)
        except struct.error as bad:
            raise _bad(at, f"{kind.name.lower()} has {_FIXED[kind]} bytes") from bad
    if isinstance(value, bytes) and kind is ItemType.BYTE_STRING:
        octets = value
    elif isinstance(value, str) and kind is ItemType.TEXT_STRING:
        try:
            octets = value.encode("utf-8")
        except UnicodeEncodeError as bad:
            raise _bad(at, "a text string is UTF-8") from bad
    elif isinstance(value, int) and not isinstance(value, bool) and kind is ItemType.BIG_INTEGER:
        octets = value.to_bytes(_big_bytes(value), "big", signed=True)
    else:
        raise _bad(at, f"not a value of {kind.name.lower()}")
    return _HEADER.pack(item.tag << 8 | kind, len(octets)) + octets + _PADDING[len(octets) & 7]
