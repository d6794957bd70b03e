"""Create, Register and Re-key: what comes to be, and what may not."""

from __future__ import annotations

import hashlib

import pytest

from keymesh.kmip.enums import (
    LinkType,
    ObjectType,
    Operation,
    ProtectionLevel,
    ProtectionStorageMask,
    ResultReason,
    State,
)
from keymesh.kmip.enums_crypto import (
    BlockCipherMode,
    CryptographicAlgorithm,
    EncodingOption,
    KeyFormatType,
    KeyWrapType,
    OpaqueDataType,
    SecretDataType,
    WrappingMethod,
)
from keymesh.kmip.items import make, struct
from keymesh.kmip.keyblocks import MADE_BITS
from keymesh.kmip.tags import Tag
from keymesh.kmip.ttlv import Item, ItemType
from tests.unit.kmip.support import ALICE, ALL_USES, NOW_S, Lab, aes, brought_key, named, new_key, template, vendors


def kind(algorithm: CryptographicAlgorithm, bits: int) -> tuple[Item, ...]:
    return (
        make(Tag.CryptographicAlgorithm, algorithm),
        make(Tag.CryptographicLength, bits),
        make(Tag.CryptographicUsageMask, 12),
    )


@pytest.mark.parametrize("algorithm", list(MADE_BITS), ids=lambda each: each.name)
async def test_every_key_that_is_made_has_its_length(algorithm: CryptographicAlgorithm) -> None:
    lab = Lab()
    lengths = MADE_BITS[algorithm]
    for bits in {lengths[0], lengths[-1]}:
        made = await lab.ask(Operation.Create, *new_key(*kind(algorithm, bits)))
        got = await lab.do(Operation.Get, made.uid)
        material = got.value(Tag.KeyMaterial)
        assert isinstance(material, bytes)
        parity = {112: 16, 168: 24} if algorithm is CryptographicAlgorithm.DES3 else {}
        assert len(material) == parity.get(bits, bits // 8)
        assert await lab.attribute(made.uid, Tag.Digest)
        if parity:
            assert all(each.bit_count() % 2 for each in material)
    for bits in (0, -128, 1, 127, 129, 2**31 - 1):
        refused = await lab.ask(Operation.Create, *new_key(*kind(algorithm, bits)))
        assert refused.reason in (ResultReason.InvalidField, ResultReason.InvalidAttributeValue)


async def test_what_the_server_sets() -> None:
    lab = Lab()
    uid = await lab.key(active=False)
    material = (await lab.do(Operation.Get, uid)).value(Tag.KeyMaterial)
    assert isinstance(material, bytes)
    assert await lab.attribute(uid, Tag.State) == State.PreActive
    for tag in (Tag.InitialDate, Tag.LastChangeDate, Tag.OriginalCreationDate):
        assert await lab.attribute(uid, tag) == NOW_S
    digest = await lab.attribute(uid, Tag.Digest)
    assert isinstance(digest, tuple)
    assert hashlib.sha256(material).digest() in {each.value for each in digest}
    assert await lab.attribute(uid, Tag.ProtectionStorageMask) == ProtectionStorageMask.Software
    assert await lab.attribute(uid, Tag.Fresh) is False  # it was given out above


@pytest.mark.parametrize("tag", [Tag.CryptographicAlgorithm, Tag.CryptographicLength, Tag.CryptographicUsageMask])
async def test_what_a_create_must_say(tag: Tag) -> None:
    lab = Lab()
    refused = await lab.ask(Operation.Create, *new_key(*(item for item in aes() if item.tag != tag)))
    assert refused.reason is ResultReason.InvalidMessage
    old = template(*(item for item in aes() if item.tag != tag))
    assert (await lab.ask(Operation.Create, new_key()[0], old, version=(1, 0))).reason is ResultReason.InvalidMessage


async def test_protection_that_is_not_there_is_not_promised() -> None:
    lab = Lab()
    for asked in (make(Tag.ProtectionLevel, ProtectionLevel.High),):
        assert (await lab.ask(Operation.Create, *new_key(*aes(), asked))).reason is ResultReason.GeneralFailure
    safe = make(Tag.QuantumSafe, True)
    assert (await lab.ask(Operation.Create, *new_key(*aes(bits=128), safe))).reason is ResultReason.GeneralFailure
    assert (await lab.ask(Operation.Create, *new_key(*aes(bits=256), safe))).reason is None
    hardware = make(Tag.ProtectionStorageMask, ProtectionStorageMask.Hardware)
    software = make(Tag.ProtectionStorageMask, ProtectionStorageMask.Software)
    for masks, told in (
        ((hardware,), ResultReason.ProtectionStorageUnavailable),
        ((hardware, software), None),
    ):
        asked = struct(Tag.ProtectionStorageMasks, *masks)
        assert (await lab.ask(Operation.Create, *new_key(*aes()), asked)).reason is told


@pytest.mark.parametrize("other", [each for each in ObjectType if each is not ObjectType.SymmetricKey])
async def test_only_symmetric_keys_are_made(other: ObjectType) -> None:
    lab = Lab()
    asked = make(Tag.ObjectType, other), struct(Tag.Attributes, *aes())
    assert (await lab.ask(Operation.Create, *asked)).reason is ResultReason.InvalidObjectType
    old = make(Tag.ObjectType, other), template(*aes())
    assert (await lab.ask(Operation.Create, *old, version=(1, 2))).reason is ResultReason.InvalidField


async def test_templates_are_not_kept() -> None:
    lab = Lab(version=(1, 2))
    asked = struct(Tag.TemplateAttribute, named("template"))
    assert (await lab.ask(Operation.Create, new_key()[0], asked)).reason is ResultReason.ItemNotFound


def block(*fields: Item | None, tag: Tag = Tag.SymmetricKey, first: Item | None = None) -> Item:
    return struct(tag, first, struct(Tag.KeyBlock, *fields))


RAW = make(Tag.KeyFormatType, KeyFormatType.Raw)
VALUE = struct(Tag.KeyValue, Item(Tag.KeyMaterial, ItemType.BYTE_STRING, bytes(16)))
AES128 = (
    make(Tag.CryptographicAlgorithm, CryptographicAlgorithm.AES),
    make(Tag.CryptographicLength, 128),
)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ((RAW, VALUE, *AES128), None),
        ((RAW, VALUE), ResultReason.InvalidField),
        ((RAW, VALUE, AES128[0], make(Tag.CryptographicLength, 256)), ResultReason.InvalidField),
        (
            (RAW, VALUE, make(Tag.CryptographicAlgorithm, CryptographicAlgorithm.RSA), AES128[1]),
            ResultReason.InvalidField,
        ),
        ((make(Tag.KeyFormatType, KeyFormatType.PKCS_8), VALUE, *AES128), ResultReason.KeyFormatTypeNotSupported),
        ((make(Tag.KeyFormatType, KeyFormatType.Opaque), VALUE, *AES128), ResultReason.KeyFormatTypeNotSupported),
        ((RAW, *AES128), ResultReason.InvalidMessage),
        ((RAW, struct(Tag.KeyValue), *AES128), ResultReason.InvalidMessage),
        ((RAW, Item(Tag.KeyValue, ItemType.BYTE_STRING, bytes(16)), *AES128), ResultReason.InvalidMessage),
        (
            (RAW, struct(Tag.KeyValue, Item(Tag.KeyMaterial, ItemType.TEXT_STRING, "k" * 16)), *AES128),
            ResultReason.InvalidDataType,
        ),
        ((RAW, VALUE, *AES128, struct(Tag.KeyWrappingData)), ResultReason.InvalidMessage),
        ((RAW, make(Tag.KeyCompressionType, 1), VALUE, *AES128), ResultReason.KeyCompressionTypeNotSupported),
        (
            (
                RAW,
                struct(Tag.KeyValue, Item(Tag.KeyMaterial, ItemType.BYTE_STRING, b"")),
                AES128[0],
                make(Tag.CryptographicLength, 0),
            ),
            ResultReason.InvalidField,
        ),
    ],
)
async def test_key_blocks(fields: tuple[Item, ...], reason: ResultReason | None) -> None:
    lab = Lab()
    asked = make(Tag.ObjectType, ObjectType.SymmetricKey), struct(Tag.Attributes), block(*fields)
    assert (await lab.ask(Operation.Register, *asked)).reason is reason


async def test_attributes_and_key_block_agree() -> None:
    lab = Lab()
    for said in (make(Tag.CryptographicLength, 256), make(Tag.CryptographicAlgorithm, CryptographicAlgorithm.DES)):
        refused = await lab.ask(Operation.Register, *brought_key(bytes(16), said))
        assert refused.reason is ResultReason.InvalidAttributeValue


async def test_a_key_without_a_mask_may_do_nothing() -> None:
    lab = Lab()
    uid = (await lab.ask(Operation.Register, *brought_key(bytes(16), make(Tag.ActivationDate, NOW_S)))).uid
    refused = await lab.do(Operation.Encrypt, uid, make(Tag.Data, bytes(16)))
    assert refused.reason is ResultReason.IncompatibleCryptographicUsageMask


async def test_secret_data_and_opaque_objects_come_back_as_they_went() -> None:
    lab = Lab(version=(1, 0))
    secret = block(
        make(Tag.KeyFormatType, KeyFormatType.Opaque),
        VALUE,
        make(Tag.CryptographicLength, 128),
        tag=Tag.SecretData,
        first=make(Tag.SecretDataType, SecretDataType.Seed),
    )
    vendor = Item(Tag.OpaqueDataType, ItemType.ENUMERATION, OpaqueDataType.None_ + 7)
    opaque = struct(Tag.OpaqueObject, vendor, make(Tag.OpaqueDataValue, b"\0bytes"))
    for which, brought in ((ObjectType.SecretData, secret), (ObjectType.OpaqueObject, opaque)):
        made = await lab.ask(Operation.Register, make(Tag.ObjectType, which), struct(Tag.TemplateAttribute), brought)
        got = await lab.do(Operation.Get, made.uid)
        assert got.all(Tag(brought.tag)) == [brought]
        for operation in (Operation.Encrypt, Operation.MAC):
            refused = await lab.ask(
                operation, make(Tag.UniqueIdentifier, made.uid), make(Tag.Data, b""), version=(2, 1)
            )
            assert refused.reason is ResultReason.WrongKeyLifecycleState
    low = struct(Tag.OpaqueObject, make(Tag.OpaqueDataType, 1), make(Tag.OpaqueDataValue, b""))
    asked = make(Tag.ObjectType, ObjectType.OpaqueObject), struct(Tag.TemplateAttribute), low
    assert (await lab.ask(Operation.Register, *asked)).reason is ResultReason.InvalidField


@pytest.mark.parametrize("other", [ObjectType.Certificate, ObjectType.PrivateKey, ObjectType.Template])
async def test_what_is_not_kept_is_not_registered(other: ObjectType) -> None:
    lab = Lab()
    asked = make(Tag.ObjectType, other), struct(Tag.Attributes)
    assert (await lab.ask(Operation.Register, *asked)).reason is ResultReason.InvalidObjectType


async def links(lab: Lab, uid: str) -> dict[object, object]:
    held = await lab.store.get(ALICE.scope, uid)
    assert held is not None
    found: dict[object, object] = {}
    for item in held.values(Tag.Link):
        assert isinstance(item.value, tuple)
        found[item.value[0].value] = item.value[1].value
    return found


async def test_a_replacement_takes_the_name_and_each_knows_the_other() -> None:
    lab = Lab()
    old = await lab.key(named("n"), vendors("a", "b"), make(Tag.Comment, "c"), make(Tag.ProtectStopDate, NOW_S + 50))
    limits = make(Tag.Comment, "new")
    new = (await lab.do(Operation.ReKey, old, struct(Tag.Attributes, limits))).uid
    assert await links(lab, old) == {LinkType.ReplacementObjectLink: new}
    assert await links(lab, new) == {LinkType.ReplacedObjectLink: old}
    located = await lab.ask(Operation.Locate, struct(Tag.Attributes, named("n")))
    assert [item.value for item in located.all(Tag.UniqueIdentifier)] == [new]
    assert await lab.attribute(old, Tag.Name) is None
    assert await lab.attribute(new, Tag.Comment) == "new"
    assert await lab.attribute(new, Tag.State) == State.Active
    assert await lab.attribute(new, Tag.ProtectStopDate) == NOW_S + 50
    held = await lab.store.get(ALICE.scope, new)
    assert held is not None and vendors("a", "b") in {each.item for each in held.attributes}
    keys = [(await lab.do(Operation.Get, uid)).value(Tag.KeyMaterial) for uid in (old, new)]
    assert keys[0] != keys[1]
    assert (await lab.do(Operation.ReKey, old)).reason is ResultReason.IllegalOperation
    assert (await lab.do(Operation.ReKey, new)).reason is None


async def test_an_offset_moves_the_dates() -> None:
    lab = Lab()
    old = await lab.key(make(Tag.ProcessStartDate, NOW_S + 1), make(Tag.DeactivationDate, NOW_S + 100))
    lab.clock.now_s += 10
    new = (await lab.do(Operation.ReKey, old, make(Tag.Offset, 40))).uid
    assert await lab.attribute(new, Tag.ActivationDate) == NOW_S + 50
    assert await lab.attribute(new, Tag.ProcessStartDate) == NOW_S + 51
    assert await lab.attribute(new, Tag.DeactivationDate) == NOW_S + 150
    assert await lab.attribute(new, Tag.State) == State.PreActive


async def test_what_a_replacement_cannot_change() -> None:
    lab = Lab()
    old = await lab.key()
    for item in (make(Tag.CryptographicLength, 128), make(Tag.CryptographicUsageMask, 0), named("m")):
        refused = await lab.do(Operation.ReKey, old, struct(Tag.Attributes, item))
        assert refused.reason is ResultReason.InvalidAttribute


async def test_a_deactivation_before_the_activation() -> None:
    lab = Lab()
    dates = make(Tag.ActivationDate, NOW_S), make(Tag.DeactivationDate, NOW_S - 1)
    refused = await lab.ask(Operation.Create, *new_key(*aes(), *dates))
    assert refused.reason is ResultReason.InvalidAttributeValue


@pytest.mark.parametrize("option", [None, *EncodingOption])
async def test_a_key_that_was_registered_wrapped_is_kept_wrapped(option: EncodingOption | None) -> None:
    lab = Lab()
    wrapping = struct(
        Tag.KeyWrappingData,
        make(Tag.WrappingMethod, WrappingMethod.Encrypt),
        struct(Tag.EncryptionKeyInformation, make(Tag.UniqueIdentifier, "42")),
        None if option is None else make(Tag.EncodingOption, option),
    )
    octets = bytes(range(24))
    value = Item(Tag.KeyValue, ItemType.BYTE_STRING, octets)
    if option is EncodingOption.NoEncoding:
        value = struct(Tag.KeyValue, Item(Tag.KeyMaterial, ItemType.BYTE_STRING, octets))
    brought = block(RAW, value, *AES128, wrapping)
    attributes = make(Tag.CryptographicUsageMask, ALL_USES), make(Tag.ActivationDate, NOW_S), make(Tag.Sensitive, True)
    asked = make(Tag.ObjectType, ObjectType.SymmetricKey), struct(Tag.Attributes, *attributes), brought
    uid = (await lab.ask(Operation.Register, *asked)).uid
    assert (await lab.do(Operation.Get, uid)).all(Tag.SymmetricKey) == [brought]
    assert await lab.attribute(uid, Tag.Digest) is None
    ecb = struct(Tag.CryptographicParameters, make(Tag.BlockCipherMode, BlockCipherMode.ECB))
    for operation, more in (
        (Operation.Encrypt, (ecb, make(Tag.Data, bytes(16)))),
        (Operation.ReKey, ()),
    ):
        assert (await lab.do(operation, uid, *more)).reason is ResultReason.IllegalOperation
    plain = await lab.do(Operation.Get, uid, make(Tag.KeyWrapType, KeyWrapType.NotWrapped))
    assert plain.reason is ResultReason.KeyWrapTypeNotSupported
    info = struct(Tag.EncryptionKeyInformation, make(Tag.UniqueIdentifier, await lab.key()))
    twice = struct(Tag.KeyWrappingSpecification, make(Tag.WrappingMethod, 1), info)
    assert (await lab.do(Operation.Get, uid, twice)).reason is ResultReason.KeyWrapTypeNotSupported
    info = struct(Tag.EncryptionKeyInformation, make(Tag.UniqueIdentifier, uid))
    by_it = struct(Tag.KeyWrappingSpecification, make(Tag.WrappingMethod, 1), info)
    assert (await lab.do(Operation.Get, await lab.key(), by_it)).reason is ResultReason.IllegalOperation
