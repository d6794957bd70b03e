"""Encrypt, Decrypt, MAC, MAC Verify and Hash, whole or in parts.

Gate, state, usage mask and dates are asked at every part.  Source: KMIP 1.4, sections 4.29-4.34; KMIP 2.1, sections
6.1.11, 6.1.15, 6.1.23, 6.1.33, 6.1.34.
"""

from __future__ import annotations

from typing import Final

from keymesh.kmip.ciphers import Part, Plan, begin, begin_hash, begin_mac, plan_of, same
from keymesh.kmip.context import Context, Served
from keymesh.kmip.enums import CryptographicUsageMask, ObjectType, Operation, ResultReason, ValidityIndicator
from keymesh.kmip.enums_crypto import CryptographicAlgorithm
from keymesh.kmip.faults import Fault, bad_field, bad_message
from keymesh.kmip.items import Fields, make, maybe
from keymesh.kmip.objects import ManagedObject
from keymesh.kmip.states import PROTECT
from keymesh.kmip.tags import Tag
from keymesh.kmip.ttlv import Item
from keymesh.kmip.uses import Parameters, parameters_of, spent, usable

CORRELATION_BYTES: Final = 16
_MASKS: Final = {
    Operation.Encrypt: CryptographicUsageMask.Encrypt,
    Operation.Decrypt: CryptographicUsageMask.Decrypt,
    Operation.MAC: CryptographicUsageMask.MACGenerate,
    Operation.MACVerify: CryptographicUsageMask.MACVerify,
}


class _Parts:
    """The fields that say where in a use this request stands."""

    def __init__(self, ctx: Context, fields: Fields) -> None:
        self._ctx = ctx
        self._value = fields.octets(Tag.CorrelationValue)
        self.first = bool(fields.flag(Tag.InitIndicator))
        self.last = bool(fields.flag(Tag.FinalIndicator))
        self.whole = not self.first and self._value is None
        if self.whole and self.last:
            raise bad_message("FinalIndicator: only with CorrelationValue")
        if self.first and (self._value is not None or self.last):
            raise bad_message("InitIndicator: without CorrelationValue and FinalIndicator")

    @property
    def begins(self) -> bool:
        return self.whole or self.first

    @property
    def ends(self) -> bool:
        return self.whole or self.last

    def take(self, uid: str | None) -> Part:
        """The use that goes on."""
        ctx = self._ctx
        assert self._value is not None
        return ctx.world.streams.take(self._value, caller=ctx.caller, operation=ctx.operation, uid=uid, now_s=ctx.now_s)

    def keep(self, part: Part, uid: str | None) -> bytes:
        """The correlation value of what goes on later."""
        ctx = self._ctx
        value = self._value or ctx.world.chance.token(CORRELATION_BYTES)
        ctx.world.streams.add(value, part, caller=ctx.caller, operation=ctx.operation, uid=uid, now_s=ctx.now_s)
        return value


async def cipher(ctx: Context, fields: Fields) -> tuple[Item, ...]:
    """Encrypt or Decrypt."""
    held = await _key(ctx, fields)
    params = parameters_of(held, fields.one(Tag.CryptographicParameters), ctx.version)
    data = fields.octets(Tag.Data)
    iv = fields.octets(Tag.IVCounterNonce)
    aad = fields.octets(Tag.AuthenticatedEncryptionAdditionalData)
    tag = fields.octets(Tag.AuthenticatedEncryptionTag)
    parts = _Parts(ctx, fields)
    fields.done()
    protects = ctx.operation is Operation.Encrypt
    if data is None and not parts.last:
        raise bad_message("Data is needed")
    if tag is not None and protects:
        raise bad_message("AuthenticatedEncryptionTag: only of a Decrypt")
    data = data or b""
    key = await ctx.material(held)
    if protects:
        spent(ctx, held, len(data))
    chosen = None
    if parts.begins:
        plan = _plan(ctx, held, params)
        if iv is None and protects and params.random_iv and plan.iv_bytes:
            iv = chosen = ctx.world.chance.token(plan.iv_bytes)
        part = begin(plan, key, iv=iv, aad=aad or b"", tag=tag, protect=protects)
    else:
        if iv is not None or aad is not None or tag is not None:
            raise bad_message("IVCounterNonce, additional data and tag: with the first part")
        part = parts.take(held.uid)
    out = part.update(data)
    made_tag = correlation = None
    if parts.ends:
        last, made_tag = part.finish()
        out += last
    else:
        correlation = parts.keep(part, held.uid)
    ctx.named(held.uid)
    return _some(
        make(Tag.UniqueIdentifier, held.uid),
        make(Tag.Data, out),
        maybe(Tag.IVCounterNonce, chosen),
        maybe(Tag.CorrelationValue, correlation),
        maybe(Tag.AuthenticatedEncryptionTag, made_tag),
    )


def _plan(ctx: Context, held: ManagedObject, params: Parameters) -> Plan:
    algorithm = CryptographicAlgorithm(held.number(Tag.CryptographicAlgorithm) or 0)
    if params.algorithm not in (None, algorithm):
        raise bad_field("CryptographicAlgorithm: the key's")
    plan = plan_of(algorithm, mode=params.mode, pad=params.pad, tag_bytes=params.tag_bytes)
    if plan.authenticates and ctx.version < (1, 4):
        raise Fault(ResultReason.UnsupportedCryptographicParameters, "BlockCipherMode: this one has a tag, from 1.4 on")
    return plan


async def mac(ctx: Context, fields: Fields) -> tuple[Item, ...]:
    """MAC or MAC Verify."""
    held = await _key(ctx, fields)
    params = parameters_of(held, fields.one(Tag.CryptographicParameters), ctx.version)
    data = fields.octets(Tag.Data)
    given = fields.octets(Tag.MACData)
    parts = _Parts(ctx, fields)
    fields.done()
    if data is None and not parts.last:
        raise bad_message("Data is needed")
    verifies = ctx.operation is Operation.MACVerify
    if (given is not None) != (verifies and parts.ends):
        raise bad_message("MACData: with the whole or the last part of a MACVerify, and only there")
    if not verifies:
        spent(ctx, held, len(data or b""))
    if parts.begins:
        algorithm = params.algorithm or CryptographicAlgorithm(held.number(Tag.CryptographicAlgorithm) or 0)
        part: Part = begin_mac(algorithm, params.mode, await ctx.material(held))
    else:
        part = parts.take(held.uid)
    part.update(data or b"")
    ctx.named(held.uid)
    uid = make(Tag.UniqueIdentifier, held.uid)
    if not parts.ends:
        return uid, make(Tag.CorrelationValue, parts.keep(part, held.uid))
    made, _ = part.finish()
    if given is None:
        return uid, make(Tag.MACData, made)
    valid = ValidityIndicator.Valid if same(made, given) else ValidityIndicator.Invalid
    return uid, make(Tag.ValidityIndicator, valid)


async def hash_(ctx: Context, fields: Fields) -> tuple[Item, ...]:
    params = parameters_of(None, fields.one(Tag.CryptographicParameters), ctx.version)
    data = fields.octets(Tag.Data)
    parts = _Parts(ctx, fields)
    fields.done()
    if data is None and not parts.last:
        raise bad_message("Data is needed")
    part: Part = begin_hash(params.hashing) if parts.begins else parts.take(None)
    part.update(data or b"")
    if not parts.ends:
        return (make(Tag.CorrelationValue, parts.keep(part, None)),)
    return (make(Tag.Data, part.finish()[0]),)


async def _key(ctx: Context, fields: Fields) -> ManagedObject:
    """The key of a use, allowed by its state, mask and dates."""
    held = await ctx.target(fields)
    if held.type is not ObjectType.SymmetricKey:
        raise Fault(ResultReason.InvalidObjectType, "ObjectType: SymmetricKey")
    usable(ctx, held, _MASKS[ctx.operation], protects=ctx.operation in PROTECT)
    return held


def _some(*items: Item | None) -> tuple[Item, ...]:
    return tuple(item for item in items if item is not None)


OPS: Final = {
    Operation.Encrypt: Served((1, 2), cipher),
    Operation.Decrypt: Served((1, 2), cipher),
    Operation.MAC: Served((1, 2), mac),
    Operation.MACVerify: Served((1, 2), mac),
    Operation.Hash: Served((1, 2), hash_),
}
