"""Items made and read by tag, so that the type of a value is decided in ``tables.py`` alone.

Reading is strict: a field is there once, has its type, and one that nobody asked for is refused: what it would have
meant is not known here.  The order of fields is not looked at.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, TypeVar

from keymesh.kmip.enums import ResultReason
from keymesh.kmip.faults import Fault, bad_field, bad_message
from keymesh.kmip.tables import MASK_OF, TYPE_OF
from keymesh.kmip.tags import Tag
from keymesh.kmip.ttlv import HEADER_BYTES, Item, ItemType

E = TypeVar("E", bound=IntEnum)

BYTES_MAX: Final = 512 * 1024
"""Of one byte string that a client sends: data, a key, an opaque object."""

TEXT_MAX_CHARS: Final = 4_096

_TYPES: Final[dict[int, ItemType]] = {int(tag): kind for tag, kind in TYPE_OF.items()}
_BITS: Final[dict[int, int]] = {tag: sum(mask) for tag, mask in MASK_OF.items()}


def make(tag: Tag, value: int | str | bytes) -> Item:
    """The item of a tag whose type ``tables.py`` knows."""
    return Item(tag, TYPE_OF[tag], value)


def struct(tag: Tag, *children: Item | None) -> Item:
    """A structure of those children that are there."""
    return Item(tag, ItemType.STRUCTURE, tuple(child for child in children if child is not None))


def maybe(tag: Tag, value: int | str | bytes | None) -> Item | None:
    """The item, or none where there is no value."""
    return None if value is None else make(tag, value)


def tag_name(tag: int) -> str:
    """How an answer names a tag, also one that no table has."""
    try:
        return Tag(tag).name
    except ValueError:
        return f"0x{tag:06X}"


def children_of(item: Item) -> tuple[Item, ...]:
    """Of a structure.  Raises Fault where it is none."""
    if not isinstance(item.value, tuple):
        raise bad_message(f"{tag_name(item.tag)}: a structure")
    return item.value


def checked(item: Item) -> Item:
    """``item``, if its value is what its tag says: type, known enumeration, known bits, length of text and bytes."""
    kind = _TYPES.get(item.tag)
    if kind is not None and item.type is not kind:
        wanted, got = kind.name.lower(), item.type.name.lower()
        raise Fault(ResultReason.InvalidDataType, f"{tag_name(item.tag)}: {wanted}, got {got}")
    value = item.value
    if isinstance(value, int):
        if value & ~_BITS.get(item.tag, -1):
            raise bad_field(f"{tag_name(item.tag)}: bits that the specification names")
    elif not isinstance(value, tuple):
        within(item)
    return item


def within(item: Item) -> None:
    """Raises Fault where text or bytes are longer than is served."""
    if isinstance(item.value, str) and len(item.value) > TEXT_MAX_CHARS:
        raise bad_field(f"{tag_name(item.tag)}: at most {TEXT_MAX_CHARS} characters")
    if isinstance(item.value, str) and "\0" in item.value:
        raise bad_field(f"{tag_name(item.tag)}: no NUL")
    if isinstance(item.value, bytes) and len(item.value) > BYTES_MAX:
        raise bad_field(f"{tag_name(item.tag)}: at most {BYTES_MAX} bytes")


class Fields:
    """The fields of one structure.  ``done`` at the end refuses what was not read."""

    __slots__ = ("_left", "_where")

    def __init__(self, item: Item) -> None:
        self._where = item.tag
        self._left: dict[int, list[Item]] = {}
        for child in children_of(item):
            same = self._left.get(child.tag)
            if same is None:
                self._left[child.tag] = [child]
            else:
                same.append(child)

    def many(self, tag: Tag) -> tuple[Item, ...]:
        """All fields of a tag, in their order, as they came: the caller checks them."""
        return tuple(self._left.pop(tag, ()))

    def raw(self, tag: Tag) -> Item | None:
        """The one field of a tag, of whatever type."""
        found = self._left.pop(tag, None)
        if found is None:
            return None
        if len(found) > 1:
            raise bad_message(f"{tag_name(self._where)}: one {tag.name}, got {len(found)}")
        return found[0]

    def one(self, tag: Tag) -> Item | None:
        """The one field of a tag, if there is one, of its type and within limits."""
        return checked(item) if tag in self._left and (item := self.raw(tag)) is not None else None

    def need(self, tag: Tag) -> Item:
        item = self.one(tag)
        if item is None:
            raise bad_message(f"{tag_name(self._where)}: {tag.name} is needed")
        return item

    def text(self, tag: Tag) -> str | None:
        item = self.one(tag)
        return item.value if item is not None and isinstance(item.value, str) else None

    def octets(self, tag: Tag) -> bytes | None:
        item = self.one(tag)
        return item.value if item is not None and isinstance(item.value, bytes) else None

    def number(self, tag: Tag) -> int | None:
        """Integer, long integer, interval or instant."""
        item = self.one(tag)
        return item.value if item is not None and isinstance(item.value, int) else None

    def flag(self, tag: Tag) -> bool | None:
        item = self.one(tag)
        return bool(item.value) if item is not None else None

    def word(self, tag: Tag, words: type[E]) -> E | None:
        """An enumeration's member.  Raises Fault where the number is none."""
        number = self.number(tag)
        return None if number is None else word_of(tag, words, number)

    def need_word(self, tag: Tag, words: type[E]) -> E:
        return word_of(tag, words, number_of(self.need(tag)))

    def need_text(self, tag: Tag) -> str:
        return text_of(self.need(tag))

    def need_octets(self, tag: Tag) -> bytes:
        return octets_of(self.need(tag))

    def inside(self, tag: Tag) -> Fields | None:
        """The fields of a structure among the fields."""
        item = self.one(tag)
        return None if item is None else Fields(item)

    def need_inside(self, tag: Tag) -> Fields:
        return Fields(self.need(tag))

    def rest(self) -> tuple[Item, ...]:
        """All that was not read yet."""
        found = tuple(item for same in self._left.values() for item in same)
        self._left = {}
        return found

    @property
    def is_empty(self) -> bool:
        """Whether everything has been read."""
        return not self._left

    def done(self) -> None:
        for tag in self._left:
            raise bad_message(f"{tag_name(self._where)}: {tag_name(tag)} is not served here")


def word_of(tag: Tag, words: type[E], number: int) -> E:
    """The member of an enumeration that a number is.  Raises Fault naming the tag."""
    try:
        return words(number)
    except ValueError as unknown:
        raise Fault(ResultReason.UnknownEnumeration, f"{tag.name}: a value of the specification") from unknown


def text_of(item: Item) -> str:
    if not isinstance(item.value, str):
        raise Fault(ResultReason.InvalidDataType, f"{tag_name(item.tag)}: text")
    return item.value


def octets_of(item: Item) -> bytes:
    if not isinstance(item.value, bytes):
        raise Fault(ResultReason.InvalidDataType, f"{tag_name(item.tag)}: bytes")
    return item.value


def number_of(item: Item) -> int:
    if not isinstance(item.value, int):
        raise Fault(ResultReason.InvalidDataType, f"{tag_name(item.tag)}: a number")
    return item.value


def size_of(item: Item) -> int:
    """Bytes of an item's encoding.  For answers, which are shallow: it recurses."""
    if isinstance(item.value, tuple):
        return HEADER_BYTES + sum(size_of(child) for child in item.value)
    if isinstance(item.value, bytes):
        length = len(item.value)
    elif isinstance(item.value, str):
        length = len(item.value.encode())
    else:
        length = 8 * (item.value.bit_length() // 64 + 1)
    return HEADER_BYTES + length + -length % 8
