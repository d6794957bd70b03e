"""Get, Locate and Check.

A Get gives key bytes out: in the clear, or wrapped by another of the caller's keys; what is Sensitive only wrapped,
what is not Extractable never.  Source: KMIP 1.4, sections 2.1.5, 2.1.6, 4.9-4.11; KMIP 2.1, sections 6.1.5, 6.1.20,
6.1.29.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from keymesh.crypto.keywrap import kw_wrap, kwp_wrap
from keymesh.kmip import forms
from keymesh.kmip.attributes import known_in, valid
from keymesh.kmip.context import Context, Served, checked_uid
from keymesh.kmip.enums import (
    CryptographicUsageMask,
    ObjectGroupMember,
    ObjectType,
    Operation,
    ResultReason,
    State,
    StorageStatusMask,
)
from keymesh.kmip.enums_crypto import (
    BlockCipherMode,
    CryptographicAlgorithm,
    EncodingOption,
    KeyFormatType,
    KeyWrapType,
    WrappingMethod,
)
from keymesh.kmip.faults import Fault, bad_field
from keymesh.kmip.items import Fields, children_of, make, maybe, number_of, struct
from keymesh.kmip.keyblocks import as_registered, asked_form, key_value, written, written_opaque
from keymesh.kmip.objects import Attribute, ManagedObject, at, key_of
from keymesh.kmip.states import GONE
from keymesh.kmip.tables import TYPE_OF
from keymesh.kmip.tags import Tag
from keymesh.kmip.ttlv import Item, ItemType, encode
from keymesh.kmip.uses import parameters_of, spent, usable
from keymesh.model.errors import Refused

LOCATED_MAX: Final = 1_000  # identifiers in one answer
_DEFAULT_POLICY: Final = "default"
"""The operation policy (1.x) of an object that names none: the gate decides, whatever it is called."""


async def get(ctx: Context, fields: Fields) -> tuple[Item, ...]:
    """The object itself.  The first Get of a fresh object is also a change: it is fresh no longer."""
    held = await ctx.target(fields)
    asked = fields.number(Tag.KeyFormatType)
    wrap_type = fields.word(Tag.KeyWrapType, KeyWrapType)
    compression = fields.one(Tag.KeyCompressionType)
    wrapping = fields.inside(Tag.KeyWrappingSpecification)
    fields.done()
    if compression is not None:
        raise Fault(ResultReason.KeyCompressionTypeNotSupported, "KeyCompressionType: none")
    if wrap_type is not None and wrapping is not None:
        raise bad_field("KeyWrapType: not beside KeyWrappingSpecification")
    if held.number(Tag.Extractable) is False:
        raise Fault(ResultReason.NotExtractable, "the object is not extractable")
    if held.number(Tag.Sensitive) and wrapping is None and held.wrapping is None:
        raise Fault(ResultReason.Sensitive, "the object is given out wrapped only")
    if held.type is ObjectType.OpaqueObject:
        if asked is not None or wrapping is not None:
            raise Fault(ResultReason.KeyFormatTypeNotSupported, "an opaque object has no key format")
        answer = written_opaque(held, await ctx.material(held))
    elif held.wrapping is not None:
        if wrapping is not None or wrap_type is KeyWrapType.NotWrapped or asked not in (None, held.format):
            raise Fault(ResultReason.KeyWrapTypeNotSupported, "the key is given out as it was registered")
        answer = as_registered(held, await ctx.material(held))
    elif wrapping is not None:
        answer = await _wrapped(ctx, held, asked_form(held, asked), wrapping)
    else:
        form = asked_form(held, asked)
        answer = written(held, key_value(await ctx.material(held), form), form, None)
    if held.number(Tag.Fresh):
        ctx.work.put(held.with_(make(Tag.Fresh, False)), may_fail=True)
    ctx.named(held.uid)
    return make(Tag.ObjectType, held.type), make(Tag.UniqueIdentifier, held.uid), answer


async def _wrapped(ctx: Context, held: ManagedObject, form: KeyFormatType, asked: Fields) -> Item:
    """The key under another of the caller's keys, which must be Active and may wrap."""
    method = asked.need_word(Tag.WrappingMethod, WrappingMethod)
    if method is not WrappingMethod.Encrypt or asked.one(Tag.MACSignatureKeyInformation) is not None:
        raise Fault(ResultReason.FeatureNotSupported, "WrappingMethod: Encrypt")
    if asked.many(Tag.AttributeName) or asked.one(Tag.Attributes) is not None:
        raise Fault(ResultReason.FeatureNotSupported, "KeyWrappingSpecification: no attributes are wrapped")
    info_item = asked.need(Tag.EncryptionKeyInformation)
    option = asked.word(Tag.EncodingOption, EncodingOption) or EncodingOption.TTLVEncoding
    asked.done()
    info = Fields(info_item)
    uid = checked_uid(info.need(Tag.UniqueIdentifier))
    said = info.one(Tag.CryptographicParameters)
    info.done()
    if uid == held.uid:
        raise bad_field("EncryptionKeyInformation: a key other than the one that is wrapped")
    kek = await _wrapping_key(ctx, uid)
    mode = parameters_of(kek, said, ctx.version).mode or BlockCipherMode.NISTKeyWrap
    if mode not in (BlockCipherMode.NISTKeyWrap, BlockCipherMode.AESKeyWrapPadding):
        raise Fault(ResultReason.UnsupportedCryptographicParameters, "BlockCipherMode: NISTKeyWrap, AESKeyWrapPadding")
    material = await ctx.material(held)
    key = await ctx.material(kek)
    plain = material if option is EncodingOption.NoEncoding else encode(key_value(material, form))
    if option is EncodingOption.NoEncoding and form is not KeyFormatType.Raw and held.type is ObjectType.SymmetricKey:
        raise Fault(ResultReason.EncodingOptionError, "EncodingOption: NoEncoding with KeyFormatType Raw only")
    if mode is BlockCipherMode.NISTKeyWrap and (len(plain) < 16 or len(plain) % 8):
        raise Fault(ResultReason.BadCryptographicParameters, "NISTKeyWrap: 16 bytes or more, a multiple of 8")
    spent(ctx, kek, len(plain))
    octets = kw_wrap(key, plain) if mode is BlockCipherMode.NISTKeyWrap else kwp_wrap(key, plain)
    wrapping = struct(
        Tag.KeyWrappingData,
        make(Tag.WrappingMethod, method),
        struct(Tag.EncryptionKeyInformation, make(Tag.UniqueIdentifier, uid), said),
        make(Tag.EncodingOption, option) if option is EncodingOption.NoEncoding else None,
    )
    if option is EncodingOption.NoEncoding:  # the key material alone is wrapped, and stands where it stood
        return written(held, key_value(octets, KeyFormatType.Raw), form, wrapping)
    return written(held, Item(Tag.KeyValue, ItemType.BYTE_STRING, octets), form, wrapping)


async def _wrapping_key(ctx: Context, uid: str) -> ManagedObject:
    try:
        kek = await ctx.use(uid, Operation.Encrypt)
    except Fault as fault:
        if fault.reason is ResultReason.ObjectNotFound:
            raise Fault(ResultReason.WrappingObjectNotFound, "no such wrapping key") from fault
        if fault.reason is ResultReason.ObjectDestroyed:
            raise Fault(ResultReason.WrappingObjectDestroyed, "the wrapping key is destroyed") from fault
        raise
    usable(ctx, kek, CryptographicUsageMask.WrapKey, protects=True)
    if kek.number(Tag.CryptographicAlgorithm) != CryptographicAlgorithm.AES:
        raise Fault(ResultReason.UnsupportedCryptographicParameters, "the wrapping key is an AES key")
    return kek


async def locate(ctx: Context, fields: Fields) -> tuple[Item, ...]:
    """Identifiers of objects that have all that is asked for; the ID placeholder where it is exactly one."""
    most, skip = fields.number(Tag.MaximumItems), fields.number(Tag.OffsetItems) or 0
    storage = fields.number(Tag.StorageStatusMask)
    member = fields.word(Tag.ObjectGroupMember, ObjectGroupMember)
    filters = forms.read_filters(fields, ctx.version)
    fields.done()
    if (most is not None and most < 0) or skip < 0:
        raise bad_field("MaximumItems, OffsetItems: 0 or more")
    for item in filters:
        if not known_in(item.tag, ctx.version):
            raise Fault(ResultReason.UnsupportedAttribute, "Locate: an attribute that is served")
        if item.tag in TYPE_OF and item.tag != Tag.UniqueIdentifier:
            valid(item, ctx.version)
    found = []
    for candidate in reversed(await ctx.work.find(name=_name(filters))):  # the newest first
        held = at(candidate, ctx.now_s)
        if _stored(held, storage) and _matches(held, filters, member):
            found.append(held)
    admitted = [held for held in found if await _admitted(ctx, held)]
    limit = LOCATED_MAX if most is None else min(most, LOCATED_MAX)
    shown = admitted[skip : skip + limit]
    if len(shown) == 1:
        ctx.named(shown[0].uid)
    else:
        ctx.placeholders.current = None
    count = len(admitted) if (most is not None or skip) and ctx.version >= (1, 3) else None
    return *(item for item in (maybe(Tag.LocatedItems, count),) if item is not None), *(
        make(Tag.UniqueIdentifier, held.uid) for held in shown
    )


async def _admitted(ctx: Context, held: ManagedObject) -> bool:
    """An object that the caller may not see is not there."""
    try:
        await ctx.world.gate.admit(ctx.caller, ctx.operation, held)
    except Refused:
        return False
    return True


def _name(filters: Sequence[Item]) -> str | None:
    for item in filters:
        if item.tag == Tag.Name:
            return next((str(child.value) for child in children_of(item) if child.tag == Tag.NameValue), None)
    return None


def _stored(held: ManagedObject, storage: int | None) -> bool:
    """Without a mask what is destroyed is not found."""
    gone = State(held.number(Tag.State) or State.PreActive) in GONE
    mask = StorageStatusMask.OnlineStorage if storage is None else storage
    return bool(mask & (StorageStatusMask.DestroyedStorage if gone else StorageStatusMask.OnlineStorage))


def _matches(held: ManagedObject, filters: Sequence[Item], member: ObjectGroupMember | None) -> bool:
    """All filters; one instant is that instant, two of the same date are a range; a mask is the bits it has."""
    if member is not None:
        fresh = bool(held.number(Tag.Fresh)) and held.value(Tag.ObjectGroup) is not None
        if fresh != (member is ObjectGroupMember.GroupMemberFresh):
            return False
    dates: dict[int, list[int]] = {}
    for item in filters:
        if item.type is ItemType.DATE_TIME and item.tag != Tag.Attribute:
            dates.setdefault(item.tag, []).append(number_of(item))
        elif item.tag in (Tag.CryptographicUsageMask, Tag.ProtectionStorageMask):
            if number_of(item) & ~(held.number(Tag(item.tag)) or 0):
                return False
        elif item.tag == Tag.OperationPolicyName and held.value(Tag.OperationPolicyName) is None:
            if item.value != _DEFAULT_POLICY:
                return False
        elif not any(_same(each, item) for each in held.attributes):
            return False
    return all(_within(held.number(Tag(tag)), asked) for tag, asked in dates.items())


def _same(each: Attribute, item: Item) -> bool:
    if each.key != key_of(item):
        return False
    if item.tag == Tag.UsageLimits:
        return set(children_of(item)) <= set(children_of(each.item))
    return each.item == item


def _within(date: int | None, asked: list[int]) -> bool:
    if len(asked) > 2:
        raise bad_field("Locate: one instant, or two for a range")
    return date is not None and min(asked) <= date <= max(asked)


async def check(ctx: Context, fields: Fields) -> tuple[Item, ...]:
    """Whether a use would be within what the object allows; nothing is reserved by asking."""
    held = await ctx.target(fields)
    mask = fields.number(Tag.CryptographicUsageMask)
    count = fields.number(Tag.UsageLimitsCount)
    lease = fields.number(Tag.LeaseTime)
    fields.done()
    if mask is not None and mask & ~(held.number(Tag.CryptographicUsageMask) or 0):
        raise Fault(ResultReason.IncompatibleCryptographicUsageMask, "CryptographicUsageMask: not all of these")
    limits = held.value(Tag.UsageLimits)
    if count is not None and limits is not None:
        left = next(number_of(each) for each in children_of(limits) if each.tag == Tag.UsageLimitsCount)
        if count > left:
            raise Fault(ResultReason.UsageLimitExceeded, "UsageLimitsCount: more than is left")
    if lease is not None and lease > (held.number(Tag.LeaseTime) or 0):
        raise Fault(ResultReason.IllegalOperation, "LeaseTime: longer than is given")
    ctx.named(held.uid)
    return (make(Tag.UniqueIdentifier, held.uid),)


OPS: Final = {
    Operation.Get: Served((1, 0), get),
    Operation.Locate: Served((1, 0), locate),
    Operation.Check: Served((1, 0), check),
}
