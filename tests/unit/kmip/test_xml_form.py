"""The XML form: every kind of value both ways, and text that is refused."""

from __future__ import annotations

import pytest

from keymesh.kmip.tags import Tag
from keymesh.kmip.ttlv import Item, ItemType, encode
from keymesh.kmip.xml_form import ELEMENTS_MAX, XML_MAX_BYTES, Element, element_of, item_of, parse
from keymesh.model.errors import Refused

T = ItemType

VALUES = [
    ('<BatchCount type="Integer" value="-3"/>', Item(Tag.BatchCount, T.INTEGER, -3)),
    ('<UsageLimitsTotal type="LongInteger" value="16"/>', Item(Tag.UsageLimitsTotal, T.LONG_INTEGER, 16)),
    ('<P type="BigInteger" value="ffffffffffffff00"/>', Item(Tag.P, T.BIG_INTEGER, -256)),
    ('<P type="BigInteger" value="00000000000000ff"/>', Item(Tag.P, T.BIG_INTEGER, 255)),
    ('<State type="Enumeration" value="PreActive"/>', Item(Tag.State, T.ENUMERATION, 1)),
    ('<OpaqueDataType type="Enumeration" value="0x80000001"/>', Item(Tag.OpaqueDataType, T.ENUMERATION, 0x80000001)),
    ('<AttributeReference type="Enumeration" value="State"/>', Item(Tag.AttributeReference, T.ENUMERATION, Tag.State)),
    ('<Fresh type="Boolean" value="true"/>', Item(Tag.Fresh, T.BOOLEAN, True)),
    ('<NameValue type="TextString" value=" a  b "/>', Item(Tag.NameValue, T.TEXT_STRING, " a  b ")),
    ('<Data type="ByteString" value="00ff"/>', Item(Tag.Data, T.BYTE_STRING, b"\0\xff")),
    ('<TimeStamp type="DateTime" value="1970-01-01T00:01:40+00:00"/>', Item(Tag.TimeStamp, T.DATE_TIME, 100)),
    ('<LeaseTime type="Interval" value="3600"/>', Item(Tag.LeaseTime, T.INTERVAL, 3600)),
    (
        '<CryptographicUsageMask type="Integer" value="Decrypt   Encrypt"/>',
        Item(Tag.CryptographicUsageMask, T.INTEGER, 12),
    ),
    ('<TTLV tag="0x540001" type="Integer" value="7"/>', Item(0x540001, T.INTEGER, 7)),
    ("<ResponsePayload/>", Item(Tag.ResponsePayload, T.STRUCTURE, ())),
]


@pytest.mark.parametrize(("text", "item"), VALUES)
def test_a_value_means_the_item_and_is_its_form(text: str, item: Item) -> None:
    assert item_of(parse(text.encode())) == item
    encode(item)
    again = item_of(element_of(item))
    assert again == item


def attribute(name: str, value: str) -> bytes:
    named = f'<AttributeName type="TextString" value="{name}"/>'
    return f"<Attribute>{named}<AttributeValue {value}/></Attribute>".encode()


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (attribute("Cryptographic   Usage\n Mask", 'type="Integer" value="Encrypt"'), 4),
        (attribute("State", 'type="Enumeration" value="Active"'), 2),
        (attribute("Cryptographic Length", 'type="Integer" value="256"'), 256),
        (attribute("x-own", 'type="Enumeration" value="0x5"'), 5),
    ],
)
def test_an_attribute_s_value_is_in_the_attribute_s_words(raw: bytes, value: int) -> None:
    item = item_of(parse(raw))
    assert isinstance(item.value, tuple)
    assert item.value[1].value == value
    assert item_of(element_of(item)) == item


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("<!DOCTYPE a [<!ENTITY e 'x'>]><a>&e;</a>", "no document type"),
        ("<!DOCTYPE a SYSTEM 'file:///etc/passwd'><a/>", "no document type"),
        ("<?run it?><a/>", "processing instruction"),
        ("<a>", "no element found"),
        ("<a/><b/>", "junk"),
        ("<a>" * 40 + "</a>" * 40, "nested deeper"),
        ("<a>" + "<b/>" * ELEMENTS_MAX + "</a>", f"at most {ELEMENTS_MAX}"),
        ('<a type="Integer"/>', "has a value"),
        ('<a type="Integer" value="1"><b/></a>', "nothing in it"),
        ('<a type="Number" value="1"/>', "a type is one of"),
        ('<NoSuchTag type="Integer" value="1"/>', "no tag"),
        ('<State type="Enumeration" value="Asleep"/>', "a word of State"),
        ('<NameValue type="Enumeration" value="Word"/>', "so a number"),
        ('<BatchCount type="Integer" value="many"/>', "a number"),
        ('<Fresh type="Boolean" value="1"/>', "true or false"),
        ('<Data type="ByteString" value="0"/>', "hexadecimal"),
        ('<TimeStamp type="DateTime" value="yesterday"/>', "an instant"),
        ('<CryptographicUsageMask type="Integer" value="Encrypt Fly"/>', "CryptographicUsageMask"),
    ],
)
def test_what_is_no_such_form_is_refused(text: str, told: str) -> None:
    with pytest.raises(Refused, match=told):
        item_of(parse(text.encode()))


def test_a_document_has_a_limit() -> None:
    with pytest.raises(Refused, match="at most"):
        parse(b"<a>" + b" " * XML_MAX_BYTES + b"</a>")


def test_unknown_tags_and_bits_are_shown_by_number() -> None:
    assert element_of(Item(0x54BEEF, T.ENUMERATION, 9)) == Element("0x54beef", "Enumeration", "0x00000009")
    mask = Item(Tag.CryptographicUsageMask, T.INTEGER, (1 << 30) | 4)
    assert item_of(element_of(mask)) == mask
