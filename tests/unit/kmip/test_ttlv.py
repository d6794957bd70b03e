"""TTLV: the published examples, one encoding of each item, and every lie that bytes can tell is refused."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keymesh.kmip.ttlv import HEADER_BYTES, Item, ItemType, Limits, decode, encode, message_bytes
from keymesh.model.errors import Refused
from keymesh.model.limits import KMIP_DEPTH_MAX, KMIP_ITEMS_MAX, KMIP_MESSAGE_MAX_BYTES

TAG = 0x420020
T = ItemType

# KMIP 1.4, section 9.1.2
EXAMPLES = [
    (Item(TAG, T.INTEGER, 8), "42002002000000040000000800000000"),
    (Item(TAG, T.LONG_INTEGER, 123456789000000000), "420020030000000801B69B4BA5749200"),
    (Item(TAG, T.BIG_INTEGER, 1234567890000000000000000000), "42002004000000100000000003FD35EB6BC2DF4618080000"),
    (Item(TAG, T.ENUMERATION, 255), "4200200500000004000000FF00000000"),
    (Item(TAG, T.BOOLEAN, True), "42002006000000080000000000000001"),
    (Item(TAG, T.TEXT_STRING, "Hello World"), "420020070000000B48656C6C6F20576F726C640000000000"),
    (Item(TAG, T.BYTE_STRING, b"\x01\x02\x03"), "42002008000000030102030000000000"),
    (Item(TAG, T.DATE_TIME, 0x47DA67F8), "42002009000000080000000047DA67F8"),
    (Item(TAG, T.INTERVAL, 864000), "4200200A00000004000D2F0000000000"),
    (
        Item(TAG, T.STRUCTURE, (Item(0x420004, T.ENUMERATION, 254), Item(0x420005, T.INTEGER, 255))),
        "42002001000000204200040500000004000000FE000000004200050200000004000000FF00000000",
    ),
]


@pytest.mark.parametrize(("item", "wire"), EXAMPLES)
def test_published_examples(item: Item, wire: str) -> None:
    assert encode(item) == bytes.fromhex(wire)
    assert decode(bytes.fromhex(wire)) == item


TAGS = st.integers(0x420000, 0x42FFFF) | st.integers(0x540000, 0x54FFFF)
LEAVES = st.one_of(
    st.builds(Item, TAGS, st.just(T.INTEGER), st.integers(-(2**31), 2**31 - 1)),
    st.builds(Item, TAGS, st.sampled_from([T.LONG_INTEGER, T.DATE_TIME]), st.integers(-(2**63), 2**63 - 1)),
    st.builds(Item, TAGS, st.just(T.BIG_INTEGER), st.integers(-(2**200), 2**200)),
    st.builds(Item, TAGS, st.sampled_from([T.ENUMERATION, T.INTERVAL]), st.integers(0, 2**32 - 1)),
    st.builds(Item, TAGS, st.just(T.BOOLEAN), st.booleans()),
    st.builds(Item, TAGS, st.just(T.TEXT_STRING), st.text(max_size=30)),
    st.builds(Item, TAGS, st.just(T.BYTE_STRING), st.binary(max_size=30)),
)
ITEMS = st.recursive(
    LEAVES,
    lambda kids: st.builds(Item, TAGS, st.just(T.STRUCTURE), st.lists(kids, max_size=4).map(tuple)),
    max_leaves=12,
)


@given(ITEMS)
def test_what_is_encoded_decodes_to_itself(item: Item) -> None:
    raw = encode(item)
    assert len(raw) % 8 == 0
    assert decode(raw) == item


@given(ITEMS, st.data())
def test_a_changed_message_is_refused_or_is_the_encoding_of_what_it_decodes_to(item: Item, data: st.DataObject) -> None:
    raw = bytearray(encode(item))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        read = decode(bytes(raw))
    except Refused:
        return
    assert encode(read) == bytes(raw)


@given(ITEMS)
def test_every_truncation_is_refused(item: Item) -> None:
    raw = encode(item)
    for size in range(len(raw)):
        with pytest.raises(Refused):
            decode(raw[:size])


HOSTILE = {
    "nothing": ("", "header"),
    "short header": ("42002001000000", "header"),
    "length of 2^32-1": ("42002008FFFFFFFF" + "00" * 8, "longer than what holds it"),
    "length of 2^31": ("4200200180000000" + "00" * 8, "longer than what holds it"),
    "type 0": ("42002000000000040000000800000000", "type"),
    "type 0x0b": ("4200200B000000080000000000000000", "type"),
    "tag of nobody": ("41002002000000040000000800000000", "tag"),
    "integer of 8 bytes": ("42002002000000080000000000000008", "integer has 4 bytes"),
    "long of 4 bytes": ("42002003000000040000000800000000", "long_integer has 8 bytes"),
    "enumeration of 0 bytes": ("4200200500000000", "enumeration has 4 bytes"),
    "boolean 2": ("42002006000000080000000000000002", "0 or 1"),
    "big integer of 0 bytes": ("4200200400000000", "shortest length"),
    "big integer of 4 bytes": ("42002004000000040000000800000000", "shortest length"),
    "big integer with 8 bytes too many": ("4200200400000010" + "00" * 15 + "01", "shortest length"),
    "negative with 8 bytes too many": ("4200200400000010" + "FF" * 16, "shortest length"),
    "padding not zero": ("42002007000000034142430000000001", "padding"),
    "padding missing": ("4200200700000003414243", "longer than what holds it"),
    "text not UTF-8": ("4200200700000002FFFE000000000000", "UTF-8"),
    "lone surrogate": ("4200200700000003EDA0800000000000", "UTF-8"),
    "structure of 4 bytes": ("420020010000000442002002" + "00" * 4, "multiple of 8"),
    "child over its parent's end": ("4200200100000010" + "4200040700000010" + "41" * 16, "longer than what holds it"),
    "half a header inside": ("4200200100000018" + "42000403000000080000000000000000" + "42000403", "longer than"),
    "something after it": ("42002002000000040000000800000000" + "00" * 8, "follow"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bytes_are_refused_by_the_right_rule(name: str) -> None:
    wire, rule = HOSTILE[name]
    with pytest.raises(Refused, match=rule) as refusal:
        decode(bytes.fromhex(wire))
    assert (refusal.value.field or "").startswith("ttlv byte ")


def nested(depth: int) -> bytes:
    raw = b""
    for _ in range(depth):
        raw = b"\x42\x00\x20\x01" + len(raw).to_bytes(4, "big") + raw
    return raw


def test_depth_has_a_limit_and_costs_no_stack() -> None:
    assert encode(decode(nested(KMIP_DEPTH_MAX))) == nested(KMIP_DEPTH_MAX)
    for depth in (KMIP_DEPTH_MAX + 1, 10_000):
        with pytest.raises(Refused, match=f"deeper than {KMIP_DEPTH_MAX}"):
            decode(nested(depth))
    deep = decode(nested(5_000), limits=Limits(depth=5_000))
    assert encode(deep) == nested(5_000)


def flat(items: int) -> bytes:
    return b"\x42\x00\x20\x01" + (8 * items).to_bytes(4, "big") + nested(1) * items


def test_count_has_a_limit_and_bounds_the_memory() -> None:
    children = decode(flat(KMIP_ITEMS_MAX - 1)).value
    assert isinstance(children, tuple)
    assert len(children) == KMIP_ITEMS_MAX - 1
    with pytest.raises(Refused, match=f"at most {KMIP_ITEMS_MAX} items"):
        decode(flat(KMIP_ITEMS_MAX))
    bomb = flat(KMIP_MESSAGE_MAX_BYTES // 8 - 1)
    tracemalloc.start()
    with pytest.raises(Refused, match=f"at most {KMIP_ITEMS_MAX} items"):
        decode(bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * 1024 * 1024


def test_size_has_a_limit_before_anything_is_read() -> None:
    def header(length: int) -> bytes:
        return b"\x42\x00\x78\x01" + length.to_bytes(4, "big")

    fits = KMIP_MESSAGE_MAX_BYTES - HEADER_BYTES
    assert message_bytes(header(fits)) == KMIP_MESSAGE_MAX_BYTES
    for length in (fits + 1, 2**31, 2**32 - 1):
        with pytest.raises(Refused, match=f"at most {KMIP_MESSAGE_MAX_BYTES} bytes"):
            message_bytes(header(length))
    with pytest.raises(Refused, match=f"at most {KMIP_MESSAGE_MAX_BYTES} bytes"):
        decode(bytes(KMIP_MESSAGE_MAX_BYTES + 1))
    with pytest.raises(Refused, match="structure"):
        message_bytes(bytes.fromhex("4200780200000004"))
    with pytest.raises(Refused, match="8 bytes"):
        message_bytes(b"GET / ")


@pytest.mark.parametrize(
    "item",
    [
        Item(0x410020, T.INTEGER, 1),
        Item(TAG, T.INTEGER, 2**31),
        Item(TAG, T.ENUMERATION, -1),
        Item(TAG, T.INTEGER, True),
        Item(TAG, T.BOOLEAN, 1),
        Item(TAG, T.TEXT_STRING, b"bytes"),
        Item(TAG, T.BYTE_STRING, "text"),
        Item(TAG, T.TEXT_STRING, "\ud800"),
        Item(TAG, T.STRUCTURE, 1),
        Item(TAG, T.INTEGER, ()),
    ],
)
def test_a_value_that_is_not_its_types_is_not_encoded(item: Item) -> None:
    with pytest.raises(Refused):
        encode(item)


def test_a_value_is_in_no_repr() -> None:
    assert "5ec7e7" not in repr(Item(TAG, T.BYTE_STRING, b"5ec7e7"))
