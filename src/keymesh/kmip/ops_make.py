"""Create, Register and Re-key: how an object comes to be.

What the client gives is checked first, then what the server sets is added; nothing is sealed before all of it is known
to be allowed.  Source: KMIP 1.4, sections 4.1, 4.3, 4.4; KMIP 2.1, sections 6.1.8, 6.1.46, 6.1.47.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from keymesh.kmip import forms
from keymesh.kmip.attributes import RULES
from keymesh.kmip.attributes import given as given_attributes
from keymesh.kmip.ciphers import digest
from keymesh.kmip.context import Context, Served
from keymesh.kmip.enums import (
    LinkType,
    ObjectType,
    Operation,
    ProtectionLevel,
    ProtectionStorageMask,
    ResultReason,
    State,
)
from keymesh.kmip.enums_crypto import CryptographicAlgorithm, HashingAlgorithm, KeyFormatType, RNGAlgorithm
from keymesh.kmip.faults import Fault, bad_message
from keymesh.kmip.items import Fields, children_of, make, number_of, struct
from keymesh.kmip.keyblocks import made, made_bytes, read
from keymesh.kmip.objects import Attribute, ManagedObject, digest_item, next_index
from keymesh.kmip.states import MOVES
from keymesh.kmip.tags import Tag
from keymesh.kmip.ttlv import Item
from keymesh.kmip.uses import opened

UID_BYTES: Final = 16
_A = CryptographicAlgorithm
_WIDE: Final = 256  # bits that a search with a quantum computer leaves at half of
_DATES: Final = (Tag.ActivationDate, Tag.ProcessStartDate, Tag.ProtectStopDate, Tag.DeactivationDate)
_OLDS_OWN: Final = (*_DATES, Tag.Link, Tag.Digest, Tag.Fresh)
"""What a replacement does not take over as it is."""


async def create(ctx: Context, fields: Fields) -> tuple[Item, ...]:
    """A symmetric key of the server's own chance."""
    kind = fields.need_word(Tag.ObjectType, ObjectType)
    if kind is not ObjectType.SymmetricKey:
        raise Fault(ResultReason.InvalidObjectType, "ObjectType: SymmetricKey")
    given = given_attributes(forms.read_given(fields, ctx.version), ctx.version)
    _storage(fields)
    fields.done()
    for tag in (Tag.CryptographicAlgorithm, Tag.CryptographicLength, Tag.CryptographicUsageMask):
        if _value(given, tag) is None:
            raise bad_message(f"{tag.name} is needed")
    algorithm = CryptographicAlgorithm(_value(given, Tag.CryptographicAlgorithm) or 0)
    form = _value(given, Tag.KeyFormatType) or KeyFormatType.Raw
    if form not in (KeyFormatType.Raw, KeyFormatType.TransparentSymmetricKey):
        raise Fault(ResultReason.KeyFormatTypeNotSupported, "KeyFormatType: Raw or TransparentSymmetricKey")
    length = made_bytes(algorithm, _value(given, Tag.CryptographicLength) or 0)
    material = made(algorithm, ctx.world.chance.token(length))
    rng = struct(Tag.RandomNumberGenerator, make(Tag.RNGAlgorithm, RNGAlgorithm.Unspecified))
    held = await _new(ctx, ObjectType.SymmetricKey, given, material, KeyFormatType(form), None, rng)
    ctx.work.put(held)
    ctx.named(held.uid)
    return make(Tag.ObjectType, kind), make(Tag.UniqueIdentifier, held.uid)


async def register(ctx: Context, fields: Fields) -> tuple[Item, ...]:
    """An object that the client brings."""
    kind = fields.need_word(Tag.ObjectType, ObjectType)
    brought = read(fields, kind)
    given = given_attributes(forms.read_given(fields, ctx.version), ctx.version)
    _storage(fields)
    fields.done()
    for tag, value in ((Tag.CryptographicAlgorithm, brought.algorithm), (Tag.CryptographicLength, brought.bits)):
        said = _value(given, tag)
        if value is not None and said is None:
            given.append(Attribute(make(tag, value)))
        elif value is not None and said != value:
            raise Fault(ResultReason.InvalidAttributeValue, f"{tag.name}: that of the key block")
    said = _value(given, Tag.KeyFormatType)
    if said is not None and said != brought.format:
        raise Fault(ResultReason.InvalidAttributeValue, "KeyFormatType: that of the key block")
    if kind is ObjectType.SymmetricKey and _value(given, Tag.CryptographicUsageMask) is None:
        given.append(Attribute(make(Tag.CryptographicUsageMask, 0)))
    held = await _new(ctx, kind, given, brought.material, brought.format, brought.subtype, None)
    if brought.wrapping is not None:  # a digest would be of the wrapped bytes
        held = replace(held.without(Tag.Digest), wrapping=brought.wrapping)
    ctx.work.put(held)
    ctx.named(held.uid)
    return (make(Tag.UniqueIdentifier, held.uid),)


async def rekey(ctx: Context, fields: Fields) -> tuple[Item, ...]:
    """A new key in place of one: it takes the names and attributes over, and each has a link to the other."""
    old = await ctx.target(fields)
    offset = fields.number(Tag.Offset)
    given = given_attributes(forms.read_given(fields, ctx.version), ctx.version)
    _storage(fields)
    fields.done()
    if old.type is not ObjectType.SymmetricKey:
        raise Fault(ResultReason.InvalidObjectType, "ObjectType: SymmetricKey")
    opened(old)
    if any(_links(item, LinkType.ReplacementObjectLink) for item in old.values(Tag.Link)):
        raise Fault(ResultReason.IllegalOperation, "the key has its replacement already")
    for each in given:
        tag = each.item.tag
        if tag in (Tag.CryptographicAlgorithm, Tag.CryptographicLength, Tag.CryptographicUsageMask, Tag.Name):
            raise Fault(ResultReason.InvalidAttribute, f"{Tag(tag).name}: the replaced key's")
    algorithm = CryptographicAlgorithm(old.number(Tag.CryptographicAlgorithm) or 0)
    length = made_bytes(algorithm, old.number(Tag.CryptographicLength) or 0)
    taken = [each for each in old.attributes if _is_clients(each) and each.item.tag not in _OLDS_OWN]
    taken += [each for each in _dates(old, ctx.now_s, offset) if _value(given, Tag(each.item.tag)) is None]
    tags = {each.key for each in given}
    attributes = [*(each for each in taken if each.key not in tags), *given]
    attributes.append(_link(attributes, LinkType.ReplacedObjectLink, old.uid))
    shorn = old.without(Tag.Name)
    ctx.work.put(shorn)  # its names are free for the new key
    material = made(algorithm, ctx.world.chance.token(length))
    rng = struct(Tag.RandomNumberGenerator, make(Tag.RNGAlgorithm, RNGAlgorithm.Unspecified))
    new = await _new(ctx, old.type, attributes, material, old.format or KeyFormatType.Raw, None, rng)
    link = _link(shorn.attributes, LinkType.ReplacementObjectLink, new.uid)
    changed = make(Tag.LastChangeDate, ctx.now_s)
    ctx.work.put(_plus(shorn, link).with_(changed))
    ctx.work.put(new)
    ctx.named(new.uid)
    return (make(Tag.UniqueIdentifier, new.uid),)


async def _new(
    ctx: Context,
    kind: ObjectType,
    given: list[Attribute],
    material: bytes,
    form: KeyFormatType | None,
    subtype: int | None,
    rng: Item | None,
) -> ManagedObject:
    """The object with what the server sets.  Raises Fault where it could not be kept as it is asked for."""
    uid = ctx.world.chance.token(UID_BYTES).hex()
    held = ManagedObject(uid, kind, tuple(given), None, form, subtype)
    _protected(held)
    for tag, operation in MOVES.items():
        if ctx.operation is not Operation.ReKey and held.value(tag) is not None:
            await ctx.world.gate.admit(ctx.caller, operation, None)
    for name in held.names():
        if await ctx.name_taken(name, uid):
            raise Fault(ResultReason.NonUniqueNameAttribute, "Name: another object has it")
    activation, deactivation = held.number(Tag.ActivationDate), held.number(Tag.DeactivationDate)
    if activation is not None and deactivation is not None and deactivation < activation:
        raise Fault(ResultReason.InvalidAttributeValue, "DeactivationDate: not before ActivationDate")
    sensitive, extractable = bool(held.number(Tag.Sensitive)), held.number(Tag.Extractable) is not False
    fresh = held.number(Tag.Fresh)
    now = ctx.now_s
    own = [
        make(Tag.UniqueIdentifier, uid),
        make(Tag.ShortUniqueIdentifier, bytes.fromhex(uid)),
        make(Tag.ObjectType, kind),
        make(Tag.State, State.PreActive),
        make(Tag.InitialDate, now),
        make(Tag.OriginalCreationDate, now),
        make(Tag.LastChangeDate, now),
        make(Tag.LeaseTime, ctx.world.lease_s),
        digest_item(digest(material), HashingAlgorithm.SHA_256, form),
        make(Tag.Fresh, rng is not None if fresh is None else bool(fresh)),
        make(Tag.Sensitive, sensitive),
        make(Tag.AlwaysSensitive, sensitive),
        make(Tag.Extractable, extractable),
        make(Tag.NeverExtractable, not extractable),
        make(Tag.ProtectionStorageMask, ProtectionStorageMask.Software),
    ]
    own += [make(Tag.KeyFormatType, form)] if form is not None else []
    own += [rng] if rng is not None else []
    limits = held.value(Tag.UsageLimits)
    own += [_full(limits)] if limits is not None else []
    held = held.with_(*own)
    sealed = await ctx.world.sealer.seal(ctx.caller.scope, uid, material)
    return ManagedObject(uid, kind, held.attributes, sealed, form, subtype)


def _protected(held: ManagedObject) -> None:
    """Raises Fault where the protection that the client asks for is more than there is."""
    if held.number(Tag.ProtectionLevel) == ProtectionLevel.High:
        raise Fault(ResultReason.GeneralFailure, "ProtectionLevel: Low; keys are kept in software")
    bits = held.number(Tag.CryptographicLength) or 0
    weak = held.number(Tag.CryptographicAlgorithm) in (_A.DES3, _A.DES, _A.SKIPJACK)
    if held.number(Tag.QuantumSafe) and held.type is ObjectType.SymmetricKey and (weak or bits < _WIDE):
        raise Fault(ResultReason.GeneralFailure, f"QuantumSafe: {_WIDE} bits or more")


def _storage(fields: Fields) -> None:
    """Raises Fault where none of the storage that a client (2.x) would take is what there is."""
    masks = fields.inside(Tag.ProtectionStorageMasks)
    if masks is None:
        return
    found = [number_of(each) for each in masks.many(Tag.ProtectionStorageMask)]
    masks.done()
    if not any(mask & ~ProtectionStorageMask.Software == 0 for mask in found):
        raise Fault(ResultReason.ProtectionStorageUnavailable, "ProtectionStorageMasks: Software")


def _value(given: list[Attribute], tag: Tag) -> int | None:
    found = next((each.item.value for each in given if each.item.tag == tag), None)
    return found if isinstance(found, int) else None


def _full(limits: Item) -> Item:
    """Usage limits with the count of what is left, which at first is all."""
    parts = {child.tag: child for child in children_of(limits)}
    total = number_of(parts[Tag.UsageLimitsTotal])
    return struct(
        Tag.UsageLimits,
        parts[Tag.UsageLimitsTotal],
        make(Tag.UsageLimitsCount, total),
        parts[Tag.UsageLimitsUnit],
    )


def _is_clients(each: Attribute) -> bool:
    rule = RULES.get(each.item.tag)
    return rule is not None and rule.given


def _dates(old: ManagedObject, now_s: int, offset: int | None) -> list[Attribute]:
    """The replacement's dates: as the old ones, or with an offset moved as the activation is (section 4.4)."""
    held = {tag: old.number(tag) for tag in _DATES}
    if offset is None:
        return [Attribute(make(tag, at)) for tag, at in held.items() if at is not None]
    activation = held[Tag.ActivationDate]
    moved = now_s + offset - (activation if activation is not None else now_s + offset)
    later = {tag: at + moved for tag, at in held.items() if at is not None}
    later[Tag.ActivationDate] = now_s + offset
    return [Attribute(make(tag, at)) for tag, at in later.items()]


def _links(item: Item, kind: LinkType) -> bool:
    return any(child.tag == Tag.LinkType and child.value == kind for child in children_of(item))


def _link(beside: tuple[Attribute, ...] | list[Attribute], kind: LinkType, uid: str) -> Attribute:
    item = struct(Tag.Link, make(Tag.LinkType, kind), make(Tag.LinkedObjectIdentifier, uid))
    return Attribute(item, next_index(beside, (Tag.Link, "", "")))


def _plus(held: ManagedObject, each: Attribute) -> ManagedObject:
    return replace(held, attributes=(*held.attributes, each))


OPS: Final = {
    Operation.Create: Served((1, 0), create),
    Operation.Register: Served((1, 0), register),
    Operation.ReKey: Served((1, 0), rekey),
}
