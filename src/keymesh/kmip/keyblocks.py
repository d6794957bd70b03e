"""Key blocks and the objects around them: what a client registers, what a Get gives out.

Kept are bytes, a format and a type; nothing here decides who may have them.  Source: KMIP 1.4, sections 2.1.3-2.1.8.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from keymesh.kmip.enums import ObjectType, ResultReason
from keymesh.kmip.enums_crypto import (
    CryptographicAlgorithm,
    EncodingOption,
    KeyFormatType,
    OpaqueDataType,
    SecretDataType,
    WrappingMethod,
)
from keymesh.kmip.faults import Fault, bad_field
from keymesh.kmip.items import Fields, make, maybe, octets_of, size_of, struct, word_of
from keymesh.kmip.objects import ManagedObject
from keymesh.kmip.tags import Tag
from keymesh.kmip.ttlv import Item, ItemType

_A = CryptographicAlgorithm
_F = KeyFormatType

TYPES: Final = (ObjectType.SymmetricKey, ObjectType.SecretData, ObjectType.OpaqueObject)
"""What is kept here: Query says the same."""

_ASYMMETRIC: Final = {_A.RSA, _A.DSA, _A.ECDSA, _A.DH, _A.ECDH, _A.ECMQV, _A.EC, _A.SM2}
_DES3_BYTES: Final = {56: 8, 64: 8, 112: 16, 128: 16, 168: 24, 192: 24}  # with and without the bits of parity
_HMAC_BITS: Final = range(64, 4_096 + 1, 8)

MADE_BITS: Final[dict[CryptographicAlgorithm, tuple[int, ...] | range]] = {
    _A.AES: (128, 192, 256),
    _A.DES3: (112, 128, 168, 192),
    _A.SKIPJACK: (80,),
    _A.ARIA: (128, 192, 256),
    _A.Blowfish: range(32, 448 + 1, 8),
    _A.CAST5: range(40, 128 + 1, 8),
    _A.Camellia: (128, 192, 256),
    _A.IDEA: (128,),
    _A.RC4: range(40, 256 + 1, 8),
    _A.SEED: (128,),
    _A.SM4: (128,),
    _A.Twofish: (128, 192, 256),
    _A.ChaCha20: (256,),
    _A.ChaCha20Poly1305: (256,),
    **{each: _HMAC_BITS for each in _A if each.name.startswith("HMAC_")},
}
"""Algorithms and lengths in bits of keys that are made here.  Not all of them are also used here."""


@dataclass(frozen=True, slots=True)
class Given:
    """What a client registers."""

    material: bytes = field(repr=False)
    format: KeyFormatType | None = None
    subtype: int | None = None
    algorithm: CryptographicAlgorithm | None = None
    bits: int | None = None
    wrapping: Item | None = None


def key_bytes(algorithm: CryptographicAlgorithm, bits: int) -> int:
    """Bytes of a key of so many bits.  Raises Fault where there is none."""
    if algorithm in (_A.DES, _A.DES3):
        if bits not in _DES3_BYTES:
            raise bad_field("CryptographicLength: 56, 112 or 168 for DES and DES3, or with parity 64, 128 or 192")
        return _DES3_BYTES[bits]
    if bits <= 0 or bits % 8:
        raise bad_field("CryptographicLength: a multiple of 8")
    return bits // 8


def made_bytes(algorithm: CryptographicAlgorithm, bits: int) -> int:
    """Bytes of a key that is made here.  Raises Fault naming the limit."""
    lengths = MADE_BITS.get(algorithm)
    if lengths is None:
        raise bad_field(f"CryptographicAlgorithm: one of {', '.join(each.name for each in MADE_BITS)}")
    if bits not in lengths:
        shown = f"{lengths[0]} to {lengths[-1]}" if isinstance(lengths, range) else ", ".join(map(str, lengths))
        raise bad_field(f"CryptographicLength: {shown} bits for {algorithm.name}")
    return key_bytes(algorithm, bits)


def made(algorithm: CryptographicAlgorithm, chance: bytes) -> bytes:
    """The key that random bytes are: of DES3 with odd parity in each byte's lowest bit."""
    if algorithm is not _A.DES3:
        return chance
    return bytes(each & 0xFE | (each >> 1).bit_count() + 1 & 1 for each in chance)


def read(fields: Fields, kind: ObjectType) -> Given:
    """The object of a Register.  Raises Fault where it is not one that is kept here."""
    match kind:
        case ObjectType.SymmetricKey:
            inside = fields.need_inside(Tag.SymmetricKey)
            given = _block(inside, (_F.Raw, _F.TransparentSymmetricKey))
            if given.algorithm is None or given.bits is None:
                raise bad_field("KeyBlock: CryptographicAlgorithm and CryptographicLength are needed")
            if given.algorithm in _ASYMMETRIC:
                raise bad_field("CryptographicAlgorithm: a symmetric one")
            if given.wrapping is None and key_bytes(given.algorithm, given.bits) != len(given.material):
                raise bad_field("CryptographicLength: that of KeyMaterial")
        case ObjectType.SecretData:
            inside = fields.need_inside(Tag.SecretData)
            subtype = inside.need_word(Tag.SecretDataType, SecretDataType)
            block = _block(inside, (_F.Raw, _F.Opaque))
            given = Given(block.material, block.format, subtype, block.algorithm, block.bits, block.wrapping)
        case ObjectType.OpaqueObject:
            inside = fields.need_inside(Tag.OpaqueObject)
            number = inside.number(Tag.OpaqueDataType)
            if number is None or number < OpaqueDataType.None_:
                raise bad_field("OpaqueDataType: 0x80000000 or higher")
            given = Given(inside.need_octets(Tag.OpaqueDataValue), subtype=number)
        case _:
            raise Fault(ResultReason.InvalidObjectType, f"ObjectType: {', '.join(each.name for each in TYPES)}")
    inside.done()
    return given


def _block(fields: Fields, formats: tuple[KeyFormatType, ...]) -> Given:
    block = fields.need_inside(Tag.KeyBlock)
    form = block.need_word(Tag.KeyFormatType, KeyFormatType)
    if form not in formats:
        raise Fault(ResultReason.KeyFormatTypeNotSupported, "KeyFormatType: " + " or ".join(f.name for f in formats))
    if block.one(Tag.KeyCompressionType) is not None:
        raise Fault(ResultReason.KeyCompressionTypeNotSupported, "KeyCompressionType: none")
    wrapping = block.one(Tag.KeyWrappingData)
    value = block.raw(Tag.KeyValue)
    algorithm = block.word(Tag.CryptographicAlgorithm, CryptographicAlgorithm)
    bits = block.number(Tag.CryptographicLength)
    block.done()
    if value is None:
        raise Fault(ResultReason.InvalidMessage, "KeyValue is needed")
    if wrapping is not None:
        octets = _wrapped_value(value, wrapping)
    else:
        octets = _plain_value(value, form)
    if not octets or len(octets) > KEY_MAX_BYTES:
        raise bad_field(f"KeyMaterial: 1 to {KEY_MAX_BYTES} bytes")
    return Given(octets, form, algorithm=algorithm, bits=bits, wrapping=wrapping)


def _plain_value(value: Item, form: KeyFormatType) -> bytes:
    if value.type is not ItemType.STRUCTURE:
        raise Fault(ResultReason.InvalidMessage, "KeyValue: a structure is needed")
    material = _material(value)
    if form is not _F.TransparentSymmetricKey:
        return octets_of(material)
    key = Fields(material)
    octets = key.need_octets(Tag.Key)
    key.done()
    return octets


def _material(value: Item) -> Item:
    inside = Fields(value)
    material = inside.raw(Tag.KeyMaterial)
    inside.done()
    if material is None:
        raise Fault(ResultReason.InvalidMessage, "KeyMaterial is needed")
    return material


def _wrapped_value(value: Item, wrapping: Item) -> bytes:
    """The wrapped bytes, as they came: nothing here opens them, and what wraps them need not be known."""
    if size_of(wrapping) > WRAPPING_MAX_BYTES:
        raise bad_field(f"KeyWrappingData: at most {WRAPPING_MAX_BYTES} bytes")
    if _encoding(wrapping) is EncodingOption.NoEncoding:
        return octets_of(_material(value))
    return octets_of(value)


def _encoding(wrapping: Item) -> EncodingOption:
    fields = Fields(wrapping)
    fields.need_word(Tag.WrappingMethod, WrappingMethod)
    return fields.word(Tag.EncodingOption, EncodingOption) or EncodingOption.TTLVEncoding


def as_registered(held: ManagedObject, material: bytes) -> Item:
    """A key that was registered wrapped, as it was."""
    assert held.format is not None and held.wrapping is not None
    if _encoding(held.wrapping) is EncodingOption.NoEncoding:
        value = key_value(material, _F.Raw)
    else:
        value = Item(Tag.KeyValue, ItemType.BYTE_STRING, material)
    return written(held, value, held.format, held.wrapping)


KEY_MAX_BYTES: Final = 64 * 1024

WRAPPING_MAX_BYTES: Final = 4_096


def key_value(material: bytes, form: KeyFormatType) -> Item:
    """The structure ``KeyValue`` of a key in the clear."""
    if form is _F.TransparentSymmetricKey:
        return struct(Tag.KeyValue, struct(Tag.KeyMaterial, make(Tag.Key, material)))
    return struct(Tag.KeyValue, Item(Tag.KeyMaterial, ItemType.BYTE_STRING, material))


def written(held: ManagedObject, value: Item, form: KeyFormatType, wrapping: Item | None) -> Item:
    """A key or secret data with ``value`` as its key value, in the clear or wrapped."""
    algorithm, bits = held.number(Tag.CryptographicAlgorithm), held.number(Tag.CryptographicLength)
    block = struct(
        Tag.KeyBlock,
        make(Tag.KeyFormatType, form),
        value,
        maybe(Tag.CryptographicAlgorithm, algorithm),
        maybe(Tag.CryptographicLength, bits),
        wrapping,
    )
    if held.type is ObjectType.SecretData:
        return struct(Tag.SecretData, make(Tag.SecretDataType, held.subtype or SecretDataType.Password), block)
    return struct(Tag.SymmetricKey, block)


def written_opaque(held: ManagedObject, material: bytes) -> Item:
    assert held.subtype is not None
    return struct(Tag.OpaqueObject, make(Tag.OpaqueDataType, held.subtype), make(Tag.OpaqueDataValue, material))


def asked_form(held: ManagedObject, asked: int | None) -> KeyFormatType:
    """The format of an answer.  Raises Fault where the object cannot be given in it."""
    assert held.format is not None
    if asked is None or asked == held.format:
        return held.format
    form = word_of(Tag.KeyFormatType, KeyFormatType, asked)
    if held.type is ObjectType.SymmetricKey and form in (_F.Raw, _F.TransparentSymmetricKey):
        return form
    raise Fault(ResultReason.KeyFormatTypeNotSupported, f"KeyFormatType: {held.format.name}")
