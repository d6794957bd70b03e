"""The XML form of KMIP messages: text to elements, and elements to and from TTLV items.

Decides whether text is such a form within the limits, and what each value means; knows neither what a message must
hold nor what a placeholder stands for (whoever asks says so).  No document type, entity or processing instruction is
taken.  Source: KMIP 2.1 profiles, section 5.4.1 (XML encoding).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from typing import Final
from xml.parsers import expat

from keymesh.kmip import tables
from keymesh.kmip.tags import Tag
from keymesh.kmip.ttlv import Item, ItemType
from keymesh.model.errors import Refused
from keymesh.model.limits import KMIP_DEPTH_MAX

XML_MAX_BYTES: Final = 8 * 1024 * 1024
ELEMENTS_MAX: Final = 100_000

KINDS: Final = {
    "Structure": ItemType.STRUCTURE,
    "Integer": ItemType.INTEGER,
    "LongInteger": ItemType.LONG_INTEGER,
    "BigInteger": ItemType.BIG_INTEGER,
    "Enumeration": ItemType.ENUMERATION,
    "Boolean": ItemType.BOOLEAN,
    "TextString": ItemType.TEXT_STRING,
    "ByteString": ItemType.BYTE_STRING,
    "DateTime": ItemType.DATE_TIME,
    "Interval": ItemType.INTERVAL,
}
_NUMBER: Final = re.compile(r"[+-]?[0-9]{1,20}|0x[0-9A-Fa-f]{1,16}")
_SPACES: Final = re.compile(r"\s+")

Value = int | str | bytes
Look = Callable[["Element"], Value | None]
"""What an element's value stands for, or None where it stands for itself."""


@dataclass(frozen=True, slots=True)
class Element:
    """One element.  ``kind`` is a word of KINDS; ``value`` its text, "" of a structure.

    ``attribute``: what 1.x calls the attribute whose value this is, "" of everything else.
    """

    name: str
    kind: str
    value: str
    inner: tuple[Element, ...] = ()
    attribute: str = ""

    def all(self) -> Iterator[Element]:
        """This one and all in it, from the outside in, in order."""
        waiting = [self]
        while waiting:
            one = waiting.pop()
            yield one
            waiting.extend(reversed(one.inner))

    def find(self, name: str) -> Element | None:
        """The first one directly in it of that name."""
        return next((one for one in self.inner if one.name == name), None)

    def text(self, name: str) -> str:
        """The value of the first one directly in it of that name, "" where there is none."""
        found = self.find(name)
        return "" if found is None else found.value


# --- text to elements -----------------------------------------------------------------------------------------------


def parse(raw: bytes) -> Element:
    """The outermost element of a document.  Text between elements is ignored, as the published cases have it.

    Raises Refused naming the line and the limit.
    """
    if len(raw) > XML_MAX_BYTES:
        raise Refused.bad_field("xml", f"at most {XML_MAX_BYTES} bytes, got {len(raw)}")
    return _Reader().read(raw)


@dataclass(slots=True)
class _Open:
    name: str
    attributes: dict[str, str]
    inner: list[Element]


class _Reader:
    def __init__(self) -> None:
        self._open: list[_Open] = [_Open("", {}, [])]
        self._count = 0
        self._parser = parser = expat.ParserCreate()
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.StartDoctypeDeclHandler = self._none
        parser.EntityDeclHandler = self._none
        parser.ProcessingInstructionHandler = self._none
        parser.ExternalEntityRefHandler = self._none

    def read(self, raw: bytes) -> Element:
        try:
            self._parser.Parse(raw, True)
        except expat.ExpatError as bad:
            raise self._bad(expat.ErrorString(bad.code)) from bad
        (outermost,) = self._open[0].inner
        return outermost

    def _bad(self, limit: str) -> Refused:
        return Refused.bad_field(f"xml line {self._parser.CurrentLineNumber}", limit)

    def _none(self, *_: object) -> int:
        raise self._bad("no document type, entity or processing instruction")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._count += 1
        if self._count > ELEMENTS_MAX:
            raise self._bad(f"at most {ELEMENTS_MAX} elements")
        if len(self._open) > KMIP_DEPTH_MAX + 2:  # two that hold messages
            raise self._bad(f"nested deeper than {KMIP_DEPTH_MAX + 2}")
        self._open.append(_Open(attributes.get("tag", name) if name == "TTLV" else name, attributes, []))

    def _end(self, _: str) -> None:
        one = self._open.pop()
        kind = one.attributes.get("type", "Structure")
        if kind not in KINDS:
            raise self._bad(f"{one.name}: a type is one of {', '.join(KINDS)}, got {kind[:40]!r}")
        if kind != "Structure" and (one.inner or "value" not in one.attributes):
            raise self._bad(f"{one.name}: a {kind} has a value and nothing in it")
        holder = self._open[-1]
        attribute = ""
        if one.name == "AttributeValue":
            named = next((e.value for e in reversed(holder.inner) if e.name == "AttributeName"), "")
            attribute = tidy(named)
        value = one.attributes.get("value", "")
        holder.inner.append(Element(one.name, kind, value, tuple(one.inner), attribute))


def tidy(text: str) -> str:
    """``text`` with single spaces: the published cases break names of attributes in the middle."""
    return _SPACES.sub(" ", text).strip()


# --- elements to items ----------------------------------------------------------------------------------------------


def tag_of(element: Element) -> int:
    """The tag that an element's name stands for.  Raises Refused."""
    name = element.name
    if name in Tag.__members__:
        return Tag[name]
    if _NUMBER.fullmatch(name) and name.startswith("0x"):
        return int(name, 16)
    raise Refused.bad_field(name[:80], "no tag of KMIP 1.0 to 2.1")


def item_of(element: Element, look: Look = lambda _: None) -> Item:
    """The item that an element is the form of.  Raises Refused naming the element."""
    kind = KINDS[element.kind]
    if kind is ItemType.STRUCTURE:
        return Item(tag_of(element), kind, tuple(item_of(one, look) for one in element.inner))
    found = look(element)
    return Item(tag_of(element), kind, meant(element) if found is None else found)


def meant(element: Element) -> Value:
    """The value of an element that is no structure.  Raises Refused naming it."""
    text = element.value
    match KINDS[element.kind]:
        case ItemType.TEXT_STRING:
            return tidy(text) if element.name == "AttributeName" else text
        case ItemType.BYTE_STRING:
            return _octets(element)
        case ItemType.BIG_INTEGER:
            return int.from_bytes(_octets(element), "big", signed=True)
        case ItemType.BOOLEAN:
            if text not in ("true", "false"):
                raise _bad(element, "true or false")
            return text == "true"
        case ItemType.DATE_TIME:
            return _instant(element)
        case ItemType.ENUMERATION:
            return _number(text) if _NUMBER.fullmatch(text) else _word(element, _words(element), text)
        case ItemType.INTEGER:
            mask = _mask(element)
            if mask is None or _NUMBER.fullmatch(text):
                return _checked_number(element)
            return sum({_word(element, mask, word) for word in re.split(r"[\s|]+", text.strip()) if word})
        case _:
            return _checked_number(element)


def _bad(element: Element, limit: str) -> Refused:
    return Refused.bad_field(element.name, f"{limit}, got {element.value[:80]!r}")


def _octets(element: Element) -> bytes:
    try:
        return bytes.fromhex(element.value)
    except ValueError as bad:
        raise _bad(element, "pairs of hexadecimal digits") from bad


def _instant(element: Element) -> int:
    if _NUMBER.fullmatch(element.value):
        return _number(element.value)
    try:
        return int(datetime.fromisoformat(element.value).timestamp())
    except (ValueError, OverflowError) as bad:
        raise _bad(element, "an instant as in 2012-04-27T08:12:24+00:00") from bad


def _number(text: str) -> int:
    return int(text, 16) if text.startswith("0x") else int(text)


def _checked_number(element: Element) -> int:
    if not _NUMBER.fullmatch(element.value):
        raise _bad(element, "a number")
    return _number(element.value)


def _subject(element: Element) -> Tag | None:
    """The tag whose words an element's value is in: its own, or that of the attribute whose value it is."""
    if element.attribute:
        return tables.ATTRIBUTE_TAG.get(element.attribute)
    return Tag.__members__.get(element.name)


def _words(element: Element) -> type[IntEnum] | None:
    subject = _subject(element)
    return None if subject is None else tables.ENUM_OF.get(subject)


def _mask(element: Element) -> type[IntEnum] | None:
    subject = _subject(element)
    return None if subject is None else tables.MASK_OF.get(subject)  # type: ignore[return-value]


def _word(element: Element, words: type[IntEnum] | None, word: str) -> int:
    if words is None:
        raise _bad(element, "no words are known here, so a number")
    try:
        return int(tables.named(words, word))
    except KeyError as bad:
        raise _bad(element, f"a word of {words.__name__}") from bad


# --- items to elements ----------------------------------------------------------------------------------------------


def element_of(item: Item, attribute: str = "") -> Element:
    """The form of an item; what has no name in the tables is shown by its number."""
    name = Tag(item.tag).name if item.tag in Tag._value2member_map_ else f"0x{item.tag:06x}"
    kind = next(word for word, known in KINDS.items() if known is item.type)
    if isinstance(item.value, tuple):
        inner: list[Element] = []
        for one in item.value:
            named = next((e.value for e in reversed(inner) if e.name == "AttributeName"), "")
            inner.append(element_of(one, named if one.tag == Tag.AttributeValue else ""))
        return Element(name, kind, "", tuple(inner))
    return Element(name, kind, _shown(item, Element(name, kind, "", (), attribute)), (), attribute)


def _shown(item: Item, bare: Element) -> str:
    value = item.value
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        if item.type is ItemType.BIG_INTEGER:
            return value.to_bytes(value.bit_length() // 64 * 8 + 8, "big", signed=True).hex()
        if item.type is ItemType.ENUMERATION:
            words = _words(bare)
            known = words is not None and value in words._value2member_map_
            return tables.name_of(words(value)) if known and words is not None else f"0x{value:08x}"
        mask = _mask(bare) if item.type is ItemType.INTEGER else None
        if mask is not None and value > 0:
            names = [tables.name_of(bit) for bit in mask if bit & value]
            return " ".join(names) if sum(bit for bit in mask if bit & value) == value else str(value)
        return str(value)
    return str(value)
