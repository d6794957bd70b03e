"""Attributes as a version writes them: 1.x by name, index and value; 2.x as fields of a structure ``Attributes``.

Decides nothing about what an attribute may be (``attributes.py``).  A vendor's attribute ``v``, ``n`` is ``v-n`` in 1.x
where v is ``x`` or ``y``; one of another vendor has no form there and is not shown.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from keymesh.kmip.attributes import known_in
from keymesh.kmip.enums import ResultReason
from keymesh.kmip.faults import Fault, Version, bad_field, bad_message
from keymesh.kmip.items import Fields, checked, children_of, make, struct, text_of
from keymesh.kmip.objects import Attribute
from keymesh.kmip.tables import ATTRIBUTE_NAME, ATTRIBUTE_TAG
from keymesh.kmip.tags import Tag
from keymesh.kmip.ttlv import Item, ItemType

Key = tuple[int, str, str]

FILTERS_MAX: Final = 64
_PREFIXES: Final = ("x", "y")


def key_of_name(name: str) -> Key:
    """Of an attribute that 1.x names.  Raises Fault where there is none."""
    if not _is_name(name):
        raise Fault(ResultReason.UnsupportedAttribute, "AttributeName: an attribute of the specification, or x-...")
    tag = ATTRIBUTE_TAG.get(name)
    return (tag, "", "") if tag is not None else (Tag.Attribute, name[0], name[2:])


def read_1(item: Item) -> tuple[Item, int | None]:
    """(the attribute as in 2.x, its index if one is given) of a 1.x ``Attribute``."""
    fields = Fields(item)
    tag, vendor, name = key_of_name(fields.need_text(Tag.AttributeName))
    index = fields.number(Tag.AttributeIndex)
    value = fields.raw(Tag.AttributeValue)
    fields.done()
    if value is None:
        raise bad_message("Attribute: AttributeValue is needed")
    if index is not None and index < 0:
        raise Fault(ResultReason.IndexOutOfBounds, "AttributeIndex: 0 or more")
    if tag == Tag.Attribute:
        return _vendors(vendor, name, value), index
    return Item(tag, value.type, value.value), index


def _vendors(vendor: str, name: str, value: Item) -> Item:
    return struct(Tag.Attribute, make(Tag.VendorIdentification, vendor), make(Tag.AttributeName, name), value)


def name_of_key(key: Key) -> str | None:
    """What 1.x calls an attribute, if it can."""
    tag, vendor, name = key
    if tag == Tag.Attribute:
        return f"{vendor}-{name}" if vendor in _PREFIXES else None
    return ATTRIBUTE_NAME.get(Tag(tag))


def write_1(entry: Attribute, version: Version, *, indexed: bool = False) -> Item | None:
    """The 1.x ``Attribute`` of a value, if that version can say it; the index 0 only where it is asked for."""
    item, name = entry.item, name_of_key(entry.key)
    if name is None:
        return None
    if item.tag == Tag.Attribute:
        value = next(child for child in children_of(item) if child.tag == Tag.AttributeValue)
    else:
        value = Item(Tag.AttributeValue, item.type, item.value)
    if item.tag == Tag.Digest and version < (1, 1):
        kept = tuple(child for child in children_of(item) if child.tag != Tag.KeyFormatType)
        value = Item(Tag.AttributeValue, ItemType.STRUCTURE, kept)
    index = make(Tag.AttributeIndex, entry.index) if entry.index or indexed else None
    return struct(Tag.Attribute, make(Tag.AttributeName, name), index, value)


def written(entries: Iterable[Attribute], version: Version) -> tuple[Item, ...]:
    """Attributes as they stand in an answer: of a version only those that it has."""
    shown = [each for each in entries if known_in(each.item.tag, version)]
    if version >= (2, 0):
        return (struct(Tag.Attributes, *(each.item for each in shown)),)
    forms = (write_1(each, version) for each in shown)
    return tuple(form for form in forms if form is not None)


def read_given(fields: Fields, version: Version) -> list[Item]:
    """The attributes of a Create, Register or ReKey: of ``TemplateAttribute`` or ``Attributes``."""
    if version >= (2, 0):
        item = fields.one(Tag.Attributes)
        return [] if item is None else list(children_of(item))
    inside = fields.inside(Tag.TemplateAttribute)
    if inside is None:
        return []
    if inside.many(Tag.Name):
        raise Fault(ResultReason.ItemNotFound, "TemplateAttribute: no templates are kept")
    found = []
    for each in inside.many(Tag.Attribute):
        item, index = read_1(each)
        if index:
            raise Fault(ResultReason.InvalidField, "AttributeIndex: none for a new object, or 0")
        found.append(item)
    inside.done()
    return found


def read_filters(fields: Fields, version: Version) -> list[Item]:
    """The attributes that a Locate asks for.  Each is compared with all values of all objects, so they are few."""
    if version >= (2, 0):
        item = fields.one(Tag.Attributes)
        asked = () if item is None else children_of(item)
    else:
        asked = fields.many(Tag.Attribute)
    if len(asked) > FILTERS_MAX:
        raise bad_field(f"Locate: at most {FILTERS_MAX} attributes")
    return list(asked) if version >= (2, 0) else [read_1(each)[0] for each in asked]


def read_keys(fields: Fields, version: Version) -> list[Key] | None:
    """The attributes that a Get Attributes names, each once; none where it asks for all.

    A name that no attribute has is one that the object does not have.
    """
    asked = fields.many(Tag.AttributeReference if version >= (2, 0) else Tag.AttributeName)
    if not asked:
        return None
    if version >= (2, 0):
        return list(dict.fromkeys(reference(item) for item in asked))
    names = [text_of(checked(item)) for item in asked]
    return list(dict.fromkeys(key_of_name(name) for name in names if _is_name(name)))


def _is_name(name: str) -> bool:
    return name in ATTRIBUTE_TAG or (name[1:2] == "-" and name[0] in _PREFIXES and len(name) > 2)


def reference(item: Item) -> Key:
    """Of a 2.x ``AttributeReference``: a tag, or a vendor's names."""
    if item.type is ItemType.ENUMERATION and isinstance(item.value, int):
        return item.value, "", ""
    fields = Fields(item)
    key = Tag.Attribute, fields.need_text(Tag.VendorIdentification), fields.need_text(Tag.AttributeName)
    fields.done()
    return key


def written_keys(keys: Iterable[Key], version: Version) -> tuple[Item, ...]:
    """Names of attributes as they stand in the answer to Get Attribute List."""
    if version < (2, 0):
        names = (name_of_key(key) for key in keys)
        return tuple(make(Tag.AttributeName, name) for name in names if name is not None)
    return tuple(_reference(key) for key in keys)


def _reference(key: Key) -> Item:
    tag, vendor, name = key
    if tag != Tag.Attribute:
        return Item(Tag.AttributeReference, ItemType.ENUMERATION, tag)
    return struct(Tag.AttributeReference, make(Tag.VendorIdentification, vendor), make(Tag.AttributeName, name))
