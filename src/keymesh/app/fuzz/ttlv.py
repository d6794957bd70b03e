"""Fuzz target ``ttlv``: KMIP's wire form; the mutations know where its lengths, types and structures lie."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

from keymesh.app.fuzz.bytes import spoil
from keymesh.app.fuzz.target import Fault
from keymesh.kmip.ttlv import DEFAULT_LIMITS, HEADER_BYTES, Item, ItemType, decode, encode, message_bytes
from keymesh.model.errors import Refused

T = ItemType
LENGTHS: Final = (0, 1, 3, 4, 7, 8, 9, 16, 0xFFFF, 1 << 20, 1 << 31, (1 << 31) - 1, 0xFFFF_FFF8, 0xFFFF_FFFF)
NUMBERS: Final = (0, 1, 2, 255, 256, -1, 1 << 31, (1 << 31) - 1, -(1 << 31), (1 << 63) - 1, -(1 << 63), 1 << 200)
TEXTS: Final = ("", "*", "\0", "a" * 65_536, "\u202e", "💥" * 9, "x-" * 4, "../..")
DEPTHS: Final = (31, 32, 33, 100, 10_000)
ITEMS: Final = (1, 100, 16_383, 16_384, 16_385, 40_000)


def _structure(tag: int, *inner: Item) -> Item:
    return Item(tag, T.STRUCTURE, inner)


SEEDS: Final = (
    _structure(
        0x420078,
        _structure(
            0x420077,
            _structure(0x420069, Item(0x42006A, T.INTEGER, 2), Item(0x42006B, T.INTEGER, 1)),
            Item(0x420050, T.INTEGER, 4096),
            Item(0x42000D, T.INTEGER, 1),
        ),
        _structure(
            0x42000F,
            Item(0x42005C, T.ENUMERATION, 3),
            Item(0x420093, T.BYTE_STRING, b"\1"),
            _structure(
                0x420079,
                Item(0x420057, T.ENUMERATION, 2),
                _structure(0x420125, Item(0x42002C, T.INTEGER, 12), Item(0x420001, T.DATE_TIME, 1_700_000_000)),
                _structure(
                    0x42008F,
                    _structure(
                        0x420040,
                        Item(0x420042, T.ENUMERATION, 1),
                        _structure(0x420045, Item(0x420043, T.BYTE_STRING, bytes(range(32)))),
                        Item(0x420028, T.ENUMERATION, 3),
                        Item(0x42002A, T.INTEGER, 256),
                    ),
                ),
            ),
        ),
    ),
    _structure(
        0x42007B,
        Item(0x420052, T.BIG_INTEGER, -(1 << 130)),
        Item(0x420095, T.LONG_INTEGER, -5),
        Item(0x4200D7, T.BOOLEAN, True),
        Item(0x420049, T.INTERVAL, 3600),
        Item(0x420055, T.TEXT_STRING, "Grüße"),
        Item(0x54AAAA, T.BYTE_STRING, b""),
        _structure(0x42007C),
    ),
)


class TtlvTarget:
    """Whatever decodes encodes to the same bytes; nothing else comes out than a refusal."""

    def make(self, rng: random.Random) -> bytes:
        return made_of(rng, SEEDS)

    def run(self, data: bytes) -> None:
        head = data[:HEADER_BYTES]
        try:
            if not HEADER_BYTES <= message_bytes(head) <= DEFAULT_LIMITS.message_bytes:
                raise Fault("a reader would wait for more than the limit")
        except Refused:
            pass
        try:
            item = decode(data)
        except Refused:
            return
        if encode(item) != data:
            raise Fault("bytes that decode are not the encoding of what they decode to")


def made_of(rng: random.Random, seeds: Sequence[Item]) -> bytes:
    """A valid message, its tree changed, its bytes changed, both, or one of the shapes that are too much."""
    kind = rng.randrange(1024)
    if kind == 0:
        return nested(rng.choice(DEPTHS), rng.choice((1, 2)))
    if kind == 1:
        return _many(rng.choice(ITEMS))
    item = rng.choice(seeds)
    if kind % 2:
        item = grafted(rng, item, seeds)
    try:
        raw = encode(item)
    except Refused:  # a value that has no encoding: the bytes of the seed will do
        raw = encode(seeds[0])
    match kind % 8:
        case 0 | 1:
            return raw
        case 2 | 3 | 4:
            return lied(rng, raw)
        case _:
            return spoil(rng, raw)


def grafted(rng: random.Random, item: Item, seeds: Sequence[Item]) -> Item:
    """``item`` with one item in it dropped, doubled, moved, replaced, or given another tag, type or value."""
    if not isinstance(item.value, tuple) or not item.value or rng.random() < 0.15:
        return _changed(rng, item)
    inner, at = list(item.value), rng.randrange(len(item.value))
    match rng.randrange(8):
        case 0:
            del inner[at]
        case 1:
            inner[at:at] = [inner[at]] * rng.randint(1, 8)
        case 2:
            rng.shuffle(inner)
        case 3:
            inner.insert(at, rng.choice(seeds))
        case _:
            inner[at] = grafted(rng, inner[at], seeds)
    return Item(item.tag, item.type, tuple(inner))


def _changed(rng: random.Random, item: Item) -> Item:
    match rng.randrange(5):
        case 0:
            return Item(rng.choice((0x420000, 0x4200FF, 0x42FFFF, 0x540001, item.tag ^ 1)), item.type, item.value)
        case 1:
            return Item(item.tag, T.TEXT_STRING, rng.choice(TEXTS))
        case 2:
            return Item(item.tag, T.BYTE_STRING, rng.randbytes(rng.choice((0, 1, 7, 8, 9, 1_000, 70_000))))
        case 3:
            return Item(item.tag, T.STRUCTURE, ())
        case _:
            kind = rng.choice((T.INTEGER, T.LONG_INTEGER, T.BIG_INTEGER, T.ENUMERATION, T.DATE_TIME, T.INTERVAL))
            return Item(item.tag, kind, rng.choice(NUMBERS))


def lied(rng: random.Random, raw: bytes) -> bytes:
    """A valid encoding in which one header lies about its tag, type or length, or padding is not zeros."""
    spoilt, at = bytearray(raw), rng.choice(_headers(raw))
    length = int.from_bytes(raw[at + 4 : at + 8], "big")
    match rng.randrange(4):
        case 0:
            spoilt[at + 3] = rng.randrange(256)
        case 1:
            near = (length - 8, length - 1, length + 1, length + 8, length + -length % 8)
            told = rng.choice([*LENGTHS, *(n for n in near if n >= 0)])
            spoilt[at + 4 : at + 8] = told.to_bytes(4, "big")
        case 2:
            spoilt[at] = rng.choice((0x00, 0x41, 0x42, 0x54, 0xFF))
        case _:
            spoilt[min(at + HEADER_BYTES + length, len(spoilt) - 1)] ^= 0x80
    return bytes(spoilt)


def _headers(raw: bytes) -> list[int]:
    """Where the headers of a valid encoding lie."""
    found, at = [], 0
    while at < len(raw):
        found.append(at)
        length = int.from_bytes(raw[at + 4 : at + 8], "big")
        at += HEADER_BYTES if raw[at + 3] == T.STRUCTURE else HEADER_BYTES + length + -length % 8
    return found


def nested(depth: int, wide: int) -> bytes:
    """``depth`` structures in each other, the innermost holding ``wide`` empty ones."""
    inner = wide * HEADER_BYTES
    heads = [_head(inner + HEADER_BYTES * (depth - 1 - n)) for n in range(depth)]
    return b"".join(heads) + _head(0) * wide


def _many(count: int) -> bytes:
    return _head(count * HEADER_BYTES) + _head(0) * count


def _head(length: int) -> bytes:
    return bytes.fromhex("42007801") + length.to_bytes(4, "big")
