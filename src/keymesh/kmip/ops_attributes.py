"""Get Attributes, Get Attribute List; Add, Modify, Delete and Set Attribute.

An edit touches attributes alone: the object's sealed bytes stay as they are and are not opened.  Source: KMIP 1.4,
sections 4.12-4.16; KMIP 2.1, sections 6.1.2, 6.1.13, 6.1.21, 6.1.22, 6.1.35, 6.1.52.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from keymesh.kmip import forms
from keymesh.kmip.attributes import Edit, added, known_in, settable, valid
from keymesh.kmip.context import Context, Served
from keymesh.kmip.enums import Operation, ResultReason, State
from keymesh.kmip.faults import Fault, bad_field, bad_message, wrong_state
from keymesh.kmip.items import Fields, children_of, make, number_of, struct, tag_name
from keymesh.kmip.objects import Attribute, ManagedObject, key_of, state_at
from keymesh.kmip.states import MOVES
from keymesh.kmip.tags import Tag
from keymesh.kmip.ttlv import Item, ItemType

_BEFORE_ACTIVE: Final = (Tag.ActivationDate,)
_LAXER: Final = ((Tag.Sensitive, True, False), (Tag.Extractable, False, True))
_BEFORE_END: Final = (Tag.ProcessStartDate, Tag.ProtectStopDate, Tag.DeactivationDate)


async def get_attributes(ctx: Context, fields: Fields) -> tuple[Item, ...]:
    """The named attributes that the object has; without names, all."""
    held = await ctx.target(fields)
    keys = forms.read_keys(fields, ctx.version)
    fields.done()
    shown: tuple[Attribute, ...] = held.attributes
    if keys is not None:
        by_key: dict[forms.Key, list[Attribute]] = {}
        for each in held.attributes:
            by_key.setdefault(each.key, []).append(each)
        shown = tuple(each for key in keys for each in by_key.get(key, ()))
    ctx.named(held.uid)
    return make(Tag.UniqueIdentifier, held.uid), *forms.written(shown, ctx.version)


async def get_attribute_list(ctx: Context, fields: Fields) -> tuple[Item, ...]:
    held = await ctx.target(fields)
    fields.done()
    keys = dict.fromkeys(each.key for each in held.attributes if known_in(each.item.tag, ctx.version))
    ctx.named(held.uid)
    return make(Tag.UniqueIdentifier, held.uid), *forms.written_keys(keys, ctx.version)


async def add(ctx: Context, fields: Fields) -> tuple[Item, ...]:
    held = await ctx.target(fields)
    item, index = _edited(ctx, fields)
    fields.done()
    if index:
        raise bad_field("AttributeIndex: none, the server gives one")
    rule = settable(item, ctx.version)
    valid(item, ctx.version)
    present = any(each.key == key_of(item) for each in held.attributes)
    if present and not rule.many:
        raise Fault(ResultReason.AttributeSingleValued, f"{tag_name(item.tag)}: has its one value")
    await _allowed(ctx, held, item)
    after = replace(held, attributes=added(held, _kept(item)))
    return _done(ctx, after, after.attributes[-1])


async def modify(ctx: Context, fields: Fields) -> tuple[Item, ...]:
    """The value that the index, or in 2.x the current value, names; without either the first."""
    held = await ctx.target(fields)
    current = None
    if ctx.version >= (2, 0):
        current_fields = fields.inside(Tag.CurrentAttribute)
        current = _only(current_fields) if current_fields is not None else None
    item, index = _edited(ctx, fields)
    fields.done()
    settable(item, ctx.version)
    valid(item, ctx.version)
    if current is not None and key_of(current) != key_of(item):
        raise bad_field("CurrentAttribute: the same attribute as NewAttribute")
    at = _place(held, key_of(item), index, current)
    if any(each.item == item and place != at for place, each in enumerate(held.attributes)):
        raise Fault(ResultReason.InvalidAttributeValue, f"{tag_name(item.tag)}: the object has this value")
    await _allowed(ctx, held, item)
    each = Attribute(_kept(item), held.attributes[at].index)
    after = replace(held, attributes=(*held.attributes[:at], each, *held.attributes[at + 1 :]))
    return _done(ctx, after, each, indexed=index is not None)


async def set_(ctx: Context, fields: Fields) -> tuple[Item, ...]:
    """The one value of an attribute that has one, there before or not."""
    held = await ctx.target(fields)
    item, _ = _edited(ctx, fields)
    fields.done()
    rule = settable(item, ctx.version)
    valid(item, ctx.version)
    if rule.many and item.tag != Tag.Attribute:
        raise Fault(ResultReason.MultiValuedAttribute, f"{tag_name(item.tag)}: may have many values")
    await _allowed(ctx, held, item)
    rest = replace(held, attributes=tuple(each for each in held.attributes if each.key != key_of(item)))
    after = replace(rest, attributes=added(rest, _kept(item)))
    return _done(ctx, after, after.attributes[-1])


async def delete(ctx: Context, fields: Fields) -> tuple[Item, ...]:
    """One value, or in 2.x by a reference all values of an attribute."""
    held = await ctx.target(fields)
    current, index = None, None
    if ctx.version < (2, 0):
        key = forms.key_of_name(fields.need_text(Tag.AttributeName))
        index = fields.number(Tag.AttributeIndex)
    else:
        reference, inside = fields.raw(Tag.AttributeReference), fields.inside(Tag.CurrentAttribute)
        if (reference is None) == (inside is None):
            raise bad_message("AttributeReference or CurrentAttribute is needed")
        if inside is not None:
            current = _only(inside)
            key = key_of(current)
        else:
            assert reference is not None
            key = forms.reference(reference)
    fields.done()
    # the type of the value is not looked at: a rule is the tag's, and a vendor's is its names'
    probe = current or (_named(key) if key[0] == Tag.Attribute else Item(key[0], ItemType.STRUCTURE, ()))
    rule = settable(probe, ctx.version)
    if rule.edit is not Edit.FREE:
        raise Fault(ResultReason.AttributeReadOnly, f"{tag_name(key[0])}: cannot be deleted")
    at = _place(held, key, index, current)
    gone = held.attributes[at]
    if ctx.version >= (2, 0) and current is None:  # a reference names all values
        rest = tuple(each for each in held.attributes if each.key != key)
    else:
        rest = (*held.attributes[:at], *held.attributes[at + 1 :])
    return _done(ctx, replace(held, attributes=rest), gone, indexed=index is not None)


def _edited(ctx: Context, fields: Fields) -> tuple[Item, int | None]:
    """(the attribute as in 2.x, the index that 1.x gives) of an edit."""
    if ctx.version < (2, 0):
        return forms.read_1(fields.need(Tag.Attribute))
    return _only(fields.need_inside(Tag.NewAttribute)), None


def _only(fields: Fields) -> Item:
    """The one attribute inside NewAttribute or CurrentAttribute."""
    found = fields.rest()
    if len(found) != 1:
        raise bad_message(f"one attribute, got {len(found)}")
    return found[0]


def _named(key: forms.Key) -> Item:
    return struct(Tag.Attribute, make(Tag.VendorIdentification, key[1]), make(Tag.AttributeName, key[2]))


def _place(held: ManagedObject, key: forms.Key, index: int | None, current: Item | None) -> int:
    """Where the value stands that an edit names.  Raises Fault where there is none."""
    found = [(place, each) for place, each in enumerate(held.attributes) if each.key == key]
    if not found:
        raise Fault(ResultReason.AttributeNotFound, f"{tag_name(key[0])}: the object has none")
    for place, each in found:
        if (current is None or each.item == current) and (index is None or each.index == index):
            return place
    raise Fault(ResultReason.AttributeInstanceNotFound, f"{tag_name(key[0])}: no such value")


def _kept(item: Item) -> Item:
    """The value as it is kept: usage limits begin anew with all of their total."""
    if item.tag != Tag.UsageLimits:
        return item
    parts = {child.tag: child for child in children_of(item)}
    total = parts[Tag.UsageLimitsTotal]
    left = make(Tag.UsageLimitsCount, number_of(total))
    return struct(Tag.UsageLimits, total, left, parts[Tag.UsageLimitsUnit])


async def _allowed(ctx: Context, held: ManagedObject, item: Item) -> None:
    """What the object's life forbids: dates that have passed, names that are taken, secrecy that only grows."""
    state = state_at(held, ctx.now_s)
    if (item.tag, held.number(Tag(item.tag)), item.value) in _LAXER:
        raise Fault(ResultReason.AttributeReadOnly, f"{tag_name(item.tag)}: secrecy only grows")
    if item.tag in MOVES:
        await ctx.world.gate.admit(ctx.caller, MOVES[Tag(item.tag)], held)
    if item.tag in _BEFORE_ACTIVE and state is not State.PreActive:
        raise wrong_state(f"{tag_name(item.tag)}: only in state PreActive")
    if item.tag in _BEFORE_END and state not in (State.PreActive, State.Active):
        raise wrong_state(f"{tag_name(item.tag)}: only in state PreActive or Active")
    if item.tag == Tag.UsageLimits and state is not State.PreActive:
        raise wrong_state("UsageLimits: only in state PreActive")
    if item.tag == Tag.Name:
        name = next(str(child.value) for child in children_of(item) if child.tag == Tag.NameValue)
        if await ctx.name_taken(name, held.uid):
            raise Fault(ResultReason.NonUniqueNameAttribute, "Name: another object has it")


def _done(ctx: Context, after: ManagedObject, shown: Attribute, *, indexed: bool = False) -> tuple[Item, ...]:
    """Keeps the edit; 1.x is told the value that was added, changed or deleted."""
    sensitive, extractable = bool(after.number(Tag.Sensitive)), bool(after.number(Tag.Extractable))
    after = after.with_(
        make(Tag.LastChangeDate, ctx.now_s),
        make(Tag.AlwaysSensitive, sensitive and bool(after.number(Tag.AlwaysSensitive))),
        make(Tag.NeverExtractable, not extractable and bool(after.number(Tag.NeverExtractable))),
    )
    ctx.work.put(after)
    ctx.named(after.uid)
    uid = make(Tag.UniqueIdentifier, after.uid)
    told = forms.write_1(shown, ctx.version, indexed=indexed) if ctx.version < (2, 0) else None
    return (uid,) if told is None else (uid, told)


OPS: Final = {
    Operation.GetAttributes: Served((1, 0), get_attributes),
    Operation.GetAttributeList: Served((1, 0), get_attribute_list),
    Operation.AddAttribute: Served((1, 0), add),
    Operation.ModifyAttribute: Served((1, 0), modify),
    Operation.DeleteAttribute: Served((1, 0), delete),
    Operation.SetAttribute: Served((2, 0), set_),
}
