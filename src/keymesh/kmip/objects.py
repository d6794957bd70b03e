"""The one object of KMIP here: a type, attributes, sealed bytes, a version.  And its states in time.

Attributes are kept as 2.x writes them, each with the index that 1.x gives it.  An instance is never changed.
Source: KMIP 1.4, sections 2 and 3.22; KMIP 2.1, sections 2 and 4.57.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import msgspec

from keymesh.kmip.enums import ObjectType, State
from keymesh.kmip.enums_crypto import KeyFormatType
from keymesh.kmip.items import make, struct
from keymesh.kmip.tags import Tag
from keymesh.kmip.ttlv import Item, ItemType


class Attribute(msgspec.Struct, frozen=True, gc=False):
    """A value of an attribute.  ``item`` is as in 2.x; a vendor's is the structure ``Attribute``."""

    item: Item
    index: int = 0

    @property
    def key(self) -> tuple[int, str, str]:
        """What the attribute is: its tag, and of a vendor's its names."""
        return key_of(self.item)


def key_of(item: Item) -> tuple[int, str, str]:
    """(tag, vendor, name); the latter two are empty but for a vendor's attribute."""
    if item.tag != Tag.Attribute or not isinstance(item.value, tuple):
        return item.tag, "", ""
    parts = {child.tag: child.value for child in item.value}
    return item.tag, str(parts.get(Tag.VendorIdentification, "")), str(parts.get(Tag.AttributeName, ""))


@dataclass(frozen=True, slots=True)
class ManagedObject:
    uid: str
    type: ObjectType
    attributes: tuple[Attribute, ...]
    sealed: bytes | None = field(repr=False)  # none once destroyed
    format: KeyFormatType | None = None  # of the key block; none for an opaque object
    subtype: int | None = None  # SecretDataType or OpaqueDataType
    wrapping: Item | None = None  # KeyWrappingData of a key that was registered wrapped; its bytes are wrapped ones
    version: int = 0
    _first: dict[int, Item] = field(init=False, repr=False, compare=False)
    """The first value of each attribute, by its tag: rules ask for a dozen in each request."""

    def __post_init__(self) -> None:
        first: dict[int, Item] = {}
        for each in self.attributes:
            first.setdefault(each.item.tag, each.item)
        object.__setattr__(self, "_first", first)

    def values(self, tag: Tag) -> Iterator[Item]:
        return (each.item for each in self.attributes if each.item.tag == tag)

    def value(self, tag: Tag) -> Item | None:
        return self._first.get(tag)

    def number(self, tag: Tag) -> int | None:
        """Of an attribute that is a number or an instant."""
        item = self._first.get(tag)
        return item.value if item is not None and isinstance(item.value, int) else None

    def names(self) -> tuple[str, ...]:
        """The values of Name: what must be one object's alone."""
        found = []
        for item in self.values(Tag.Name):
            assert isinstance(item.value, tuple)
            found += [str(child.value) for child in item.value if child.tag == Tag.NameValue]
        return tuple(found)

    def with_(self, *items: Item) -> ManagedObject:
        """Each item in place of all values of its tag."""
        tags = {item.tag for item in items}
        kept = tuple(each for each in self.attributes if each.item.tag not in tags)
        return replace(self, attributes=kept + tuple(Attribute(item) for item in items))

    def without(self, *tags: Tag) -> ManagedObject:
        return replace(self, attributes=tuple(each for each in self.attributes if each.item.tag not in tags))


def state_at(held: ManagedObject, now_s: int) -> State:
    """The state at an instant: dates move Pre-Active to Active and Active to Deactivated by themselves."""
    state = State(held.number(Tag.State) or State.PreActive)
    activation, deactivation = held.number(Tag.ActivationDate), held.number(Tag.DeactivationDate)
    if state is State.PreActive and activation is not None and activation <= now_s:
        state = State.Active
    if state is State.Active and deactivation is not None and deactivation <= now_s:
        state = State.Deactivated
    return state


def at(held: ManagedObject, now_s: int) -> ManagedObject:
    """The object with the state that it has at an instant."""
    return in_state(held, state_at(held, now_s))


def in_state(held: ManagedObject, state: State) -> ManagedObject:
    """The object with that state among its attributes."""
    return held if held.number(Tag.State) == state else held.with_(make(Tag.State, state))


def digest_item(digest: bytes, algorithm: int, form: KeyFormatType | None) -> Item:
    """The attribute Digest; of an opaque object without a format."""
    return struct(
        Tag.Digest,
        make(Tag.HashingAlgorithm, algorithm),
        make(Tag.DigestValue, digest),
        None if form is None else make(Tag.KeyFormatType, form),
    )


def next_index(attributes: Iterable[Attribute], key: tuple[int, str, str]) -> int:
    """The index of one value more: never one that is in use."""
    return max((each.index for each in attributes if each.key == key), default=-1) + 1


def packed(held: ManagedObject) -> Item:
    """The object as one item: what a store at rest encrypts.  The version is the store's own to keep.

    Its attributes stand in one structure, each after its index, which is left out where it is 0.
    """
    return struct(
        Tag.Objects,
        make(Tag.UniqueIdentifier, held.uid),
        make(Tag.ObjectType, held.type),
        struct(Tag.Attributes, *_indexed(held.attributes)),
        None if held.sealed is None else make(Tag.Data, held.sealed),
        None if held.format is None else make(Tag.KeyFormatType, held.format),
        None if held.subtype is None else Item(Tag.SecretDataType, ItemType.ENUMERATION, held.subtype),
        held.wrapping,
    )


def _indexed(attributes: Iterable[Attribute]) -> Iterator[Item]:
    for each in attributes:
        if each.index:
            yield Item(Tag.AttributeIndex, ItemType.INTEGER, each.index)
        yield each.item


def unpacked(item: Item, version: int) -> ManagedObject:
    """The object that ``packed`` made an item of."""
    assert isinstance(item.value, tuple)
    one = {child.tag: child.value for child in item.value}
    attributes = []
    index = 0
    held = one[Tag.Attributes]
    assert isinstance(held, tuple)
    for each in held:
        if each.tag == Tag.AttributeIndex:
            assert isinstance(each.value, int)
            index = each.value
        else:
            attributes.append(Attribute(each, index))
            index = 0
    sealed, form, subtype = one.get(Tag.Data), one.get(Tag.KeyFormatType), one.get(Tag.SecretDataType)
    kind = one[Tag.ObjectType]
    assert isinstance(kind, int)
    return ManagedObject(
        uid=str(one[Tag.UniqueIdentifier]),
        type=ObjectType(kind),
        attributes=tuple(attributes),
        sealed=sealed if isinstance(sealed, bytes) else None,
        format=KeyFormatType(form) if isinstance(form, int) else None,
        subtype=subtype if isinstance(subtype, int) else None,
        wrapping=next((child for child in item.value if child.tag == Tag.KeyWrappingData), None),
        version=version,
    )
