"""Get with wrapping and formats, Locate, Check; and what the server says of itself."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap, aes_key_unwrap_with_padding

from keymesh.kmip.engine import OPERATIONS
from keymesh.kmip.enums import CryptographicUsageMask as Mask
from keymesh.kmip.enums import (
    InteropFunction,
    ObjectGroupMember,
    ObjectType,
    Operation,
    QueryFunction,
    ResultReason,
    RevocationReasonCode,
    StorageStatusMask,
    UsageLimitsUnit,
)
from keymesh.kmip.enums_crypto import BlockCipherMode, EncodingOption, KeyFormatType, WrappingMethod
from keymesh.kmip.faults import VERSIONS, Version
from keymesh.kmip.items import make, struct
from keymesh.kmip.keyblocks import TYPES
from keymesh.kmip.tags import Tag
from keymesh.kmip.ttlv import Item, ItemType, decode
from tests.unit.kmip.support import (
    ALL_USES,
    MALLORY,
    NOW_S,
    Answer,
    CountedChance,
    Lab,
    brought_key,
    named,
    reason,
    template,
    vendors,
)

KEK = bytes(range(32))
KEY = bytes(range(16))


async def pair(lab: Lab, *, mask: int = ALL_USES, more: tuple[Item, ...] = ()) -> tuple[str, str]:
    """(a key, a wrapping key)."""
    active = make(Tag.ActivationDate, NOW_S)
    kek = await lab.ask(Operation.Register, *brought_key(KEK, make(Tag.CryptographicUsageMask, mask), active, *more))
    key = await lab.ask(Operation.Register, *brought_key(KEY, active))
    return key.uid, kek.uid


def wrapped_by(
    kek: str,
    *,
    mode: BlockCipherMode | None = BlockCipherMode.NISTKeyWrap,
    option: EncodingOption | None = EncodingOption.NoEncoding,
    method: WrappingMethod = WrappingMethod.Encrypt,
    more: tuple[Item, ...] = (),
) -> Item:
    params = None if mode is None else struct(Tag.CryptographicParameters, make(Tag.BlockCipherMode, mode))
    return struct(
        Tag.KeyWrappingSpecification,
        make(Tag.WrappingMethod, method),
        struct(Tag.EncryptionKeyInformation, make(Tag.UniqueIdentifier, kek), params),
        *more,
        None if option is None else make(Tag.EncodingOption, option),
    )


async def test_a_wrapped_key_opens_with_the_wrapping_key() -> None:
    lab = Lab()
    key, kek = await pair(lab)
    got = await lab.do(Operation.Get, key, wrapped_by(kek))
    octets = got.value(Tag.KeyMaterial)
    assert isinstance(octets, bytes)
    assert aes_key_unwrap(KEK, octets) == KEY
    assert got.value(Tag.EncodingOption) == EncodingOption.NoEncoding
    for option in (None, EncodingOption.TTLVEncoding):
        got = await lab.do(Operation.Get, key, wrapped_by(kek, option=option))
        octets = got.value(Tag.KeyValue)
        assert isinstance(octets, bytes)
        value = decode(aes_key_unwrap(KEK, octets))
        assert value == struct(Tag.KeyValue, Item(Tag.KeyMaterial, ItemType.BYTE_STRING, KEY))
    got = await lab.do(Operation.Get, key, wrapped_by(kek, mode=BlockCipherMode.AESKeyWrapPadding))
    octets = got.value(Tag.KeyMaterial)
    assert isinstance(octets, bytes)
    assert aes_key_unwrap_with_padding(KEK, octets) == KEY


async def test_what_is_sensitive_is_given_out_wrapped_only() -> None:
    lab = Lab()
    _, kek = await pair(lab)
    key = await lab.key(make(Tag.Sensitive, True))
    assert (await lab.do(Operation.Get, key)).reason is ResultReason.Sensitive
    assert (await lab.do(Operation.Get, key, wrapped_by(kek))).reason is None
    shut = await lab.key(make(Tag.Extractable, False))
    assert (await lab.do(Operation.Get, shut, wrapped_by(kek))).reason is ResultReason.NotExtractable
    old = await lab.ask(Operation.Get, make(Tag.UniqueIdentifier, key), version=(1, 2))
    assert old.reason is ResultReason.PermissionDenied


async def test_wrapping_keys_that_are_none() -> None:
    lab = Lab()
    key, kek = await pair(lab)
    _, weak = await pair(lab, mask=ALL_USES & ~Mask.WrapKey)
    foreign = await lab.key(caller=MALLORY)
    idle = await lab.key(active=False)
    gone = await lab.key(active=False)
    await lab.do(Operation.Destroy, gone)
    lost = await lab.key()
    await lab.do(Operation.Revoke, lost, reason(RevocationReasonCode.KeyCompromise))
    for uid, told in (
        ("absent", ResultReason.WrappingObjectNotFound),
        (foreign, ResultReason.WrappingObjectNotFound),
        (gone, ResultReason.WrappingObjectDestroyed),
        (idle, ResultReason.WrongKeyLifecycleState),
        (lost, ResultReason.WrongKeyLifecycleState),
        (weak, ResultReason.IncompatibleCryptographicUsageMask),
        (key, ResultReason.InvalidField),
    ):
        assert (await lab.do(Operation.Get, key, wrapped_by(uid))).reason is told
    for bad, told in (
        (wrapped_by(kek, method=WrappingMethod.MACSign), ResultReason.FeatureNotSupported),
        (wrapped_by(kek, mode=BlockCipherMode.ECB), ResultReason.UnsupportedCryptographicParameters),
        (wrapped_by(kek, more=(make(Tag.AttributeName, "Name"),)), ResultReason.FeatureNotSupported),
    ):
        assert (await lab.do(Operation.Get, key, bad)).reason is told


async def test_a_key_that_the_wrap_cannot_hold() -> None:
    lab = Lab()
    _, kek = await pair(lab)
    short = (await lab.ask(Operation.Register, *brought_key(bytes(10)))).uid
    refused = await lab.do(Operation.Get, short, wrapped_by(kek))
    assert refused.reason is ResultReason.BadCryptographicParameters
    padded = wrapped_by(kek, mode=BlockCipherMode.AESKeyWrapPadding)
    assert (await lab.do(Operation.Get, short, padded)).reason is None


async def test_wrapping_counts_against_the_wrapping_keys_limits() -> None:
    lab = Lab()
    limits = struct(Tag.UsageLimits, make(Tag.UsageLimitsTotal, 1), make(Tag.UsageLimitsUnit, UsageLimitsUnit.Object))
    key, kek = await pair(lab, more=(limits,))
    assert (await lab.do(Operation.Get, key, wrapped_by(kek))).reason is None
    assert (await lab.do(Operation.Get, key, wrapped_by(kek))).reason is ResultReason.PermissionDenied


async def test_formats_of_a_symmetric_key() -> None:
    lab = Lab()
    key, _ = await pair(lab)
    got = await lab.do(Operation.Get, key, make(Tag.KeyFormatType, KeyFormatType.TransparentSymmetricKey))
    assert got.value(Tag.Key) == KEY
    refused = await lab.do(Operation.Get, key, make(Tag.KeyFormatType, KeyFormatType.PKCS_8))
    assert refused.reason is ResultReason.KeyFormatTypeNotSupported


def found(answer: Answer) -> list[object]:
    assert answer.reason is None
    return [item.value for item in answer.all(Tag.UniqueIdentifier)]


async def locate(lab: Lab, *attributes: Item, more: tuple[Item, ...] = ()) -> list[object]:
    return found(await lab.ask(Operation.Locate, *more, struct(Tag.Attributes, *attributes)))


async def test_locate_wants_all_that_is_asked() -> None:
    lab = Lab()
    one = await lab.key(named("one"), vendors("a", "1"), make(Tag.ObjectGroup, "g"))
    two = await lab.key(named("two"), vendors("a", "1"), active=False, mask=Mask.Encrypt)
    assert await locate(lab) == [two, one]
    assert await locate(lab, vendors("a", "1")) == [two, one]
    assert await locate(lab, vendors("a", "1"), named("two")) == [two]
    assert await locate(lab, vendors("a", "2")) == await locate(lab, named("three")) == []
    assert await locate(lab, make(Tag.State, 2)) == [one]
    assert await locate(lab, make(Tag.CryptographicUsageMask, Mask.Decrypt)) == [one]
    assert await locate(lab, make(Tag.CryptographicUsageMask, Mask.Encrypt)) == [two, one]
    assert await locate(lab, make(Tag.UniqueIdentifier, two)) == [two]
    assert await locate(lab, make(Tag.ObjectType, ObjectType.SecretData)) == []
    fresh = (make(Tag.ObjectGroupMember, ObjectGroupMember.GroupMemberFresh),)
    assert await locate(lab, make(Tag.ObjectGroup, "g"), more=fresh) == [one]
    await lab.do(Operation.Get, one)
    assert await locate(lab, make(Tag.ObjectGroup, "g"), more=fresh) == []


async def test_the_policy_of_an_object_that_names_none() -> None:
    lab = Lab(version=(1, 2))
    uid = await lab.key()

    async def under(name: str) -> list[object]:
        asked = template(make(Tag.OperationPolicyName, name)).value
        assert isinstance(asked, tuple)
        return found(await lab.ask(Operation.Locate, *asked))

    assert await under("default") == [uid]
    assert await under("other") == []


async def test_locate_by_dates() -> None:
    lab = Lab()
    uid = await lab.key(make(Tag.ProtectStopDate, NOW_S + 100))

    def stop(at: int) -> Item:
        return make(Tag.ProtectStopDate, NOW_S + at)

    assert await locate(lab, stop(100)) == [uid]
    assert await locate(lab, stop(99)) == []
    assert await locate(lab, stop(0), stop(200)) == await locate(lab, stop(200), stop(0)) == [uid]
    assert await locate(lab, stop(101), stop(200)) == []
    many = struct(Tag.Attributes, *(vendors("a", str(at)) for at in range(65)))
    assert (await lab.ask(Operation.Locate, many)).reason is ResultReason.InvalidField
    answer = await lab.ask(Operation.Locate, struct(Tag.Attributes, stop(1), stop(2), stop(3)))
    assert answer.reason is ResultReason.InvalidField


async def test_locate_in_pages() -> None:
    lab = Lab()
    uids = [await lab.key() for _ in range(5)]
    seen: list[object] = []
    for skip in (0, 2, 4):
        answer = await lab.ask(Operation.Locate, make(Tag.MaximumItems, 2), make(Tag.OffsetItems, skip))
        assert answer.value(Tag.LocatedItems) == 5
        seen += found(answer)
    assert seen == uids[::-1]
    assert found(await lab.ask(Operation.Locate, make(Tag.MaximumItems, 0))) == []
    refused = await lab.ask(Operation.Locate, make(Tag.MaximumItems, -1))
    assert refused.reason is ResultReason.InvalidField


async def test_what_is_destroyed_is_found_only_by_who_asks_for_it() -> None:
    lab = Lab()
    kept, gone = await lab.key(), await lab.key(active=False)
    await lab.do(Operation.Destroy, gone)

    async def stored(mask: int) -> list[object]:
        return found(await lab.ask(Operation.Locate, make(Tag.StorageStatusMask, mask)))

    assert await locate(lab) == await stored(StorageStatusMask.OnlineStorage) == [kept]
    assert await stored(StorageStatusMask.DestroyedStorage) == [gone]
    assert await stored(StorageStatusMask.ArchivalStorage) == []


async def test_check_reserves_nothing() -> None:
    lab = Lab()
    limits = struct(Tag.UsageLimits, make(Tag.UsageLimitsTotal, 10), make(Tag.UsageLimitsUnit, UsageLimitsUnit.Byte))
    uid = await lab.key(limits, mask=Mask.Encrypt)
    for _ in range(3):
        assert (await lab.do(Operation.Check, uid, make(Tag.UsageLimitsCount, 10))).reason is None
    for field, told in (
        (make(Tag.UsageLimitsCount, 11), ResultReason.UsageLimitExceeded),
        (make(Tag.CryptographicUsageMask, Mask.Decrypt), ResultReason.IncompatibleCryptographicUsageMask),
        (make(Tag.LeaseTime, 2**32 - 1), ResultReason.IllegalOperation),
    ):
        assert (await lab.do(Operation.Check, uid, field)).reason is told


async def query(lab: Lab, function: QueryFunction, version: Version) -> Answer:
    return await lab.ask(Operation.Query, make(Tag.QueryFunction, function), version=version)


@pytest.mark.parametrize("version", VERSIONS)
async def test_query_lists_what_is_served_and_nothing_else(version: Version) -> None:
    lab = Lab()
    answer = await query(lab, QueryFunction.QueryOperations, version)
    listed = [Operation(int(str(item.value))) for item in answer.all(Tag.Operation)[1:]]
    for operation in Operation:
        tried = await lab.ask(operation, version=version)
        assert (tried.reason is ResultReason.OperationNotSupported) == (operation not in listed), operation
    kinds = (await query(lab, QueryFunction.QueryObjects, version)).all(Tag.ObjectType)
    assert [item.value for item in kinds] == list(TYPES)


async def test_every_question_has_an_answer_or_came_later() -> None:
    lab = Lab()
    for function in QueryFunction:
        for version in VERSIONS:
            told = (await query(lab, function, version)).reason
            assert told in (None, ResultReason.InvalidField)
            assert told is None or version < (2, 0)
    assert (await lab.ask(Operation.Query)).reason is ResultReason.InvalidMessage
    assert (await lab.ask(Operation.Query, make(Tag.QueryFunction, 99))).reason is ResultReason.UnknownEnumeration


async def test_interop_is_for_test_servers() -> None:
    begin = make(Tag.InteropFunction, InteropFunction.Begin), make(Tag.InteropIdentifier, "case")
    assert Operation.Interop not in OPERATIONS
    assert (await Lab().ask(Operation.Interop, *begin)).reason is ResultReason.OperationNotSupported
    lab = Lab(interop=True)
    assert (await lab.ask(Operation.Interop, *begin)).reason is None
    reset = make(Tag.InteropFunction, InteropFunction.Reset), make(Tag.InteropIdentifier, "case")
    assert (await lab.ask(Operation.Interop, *reset)).reason is ResultReason.FeatureNotSupported


async def test_discover_versions() -> None:
    lab = Lab()

    def spoken(*pairs: Version) -> tuple[Item, ...]:
        return tuple(
            struct(
                Tag.ProtocolVersion,
                make(Tag.ProtocolVersionMajor, major),
                make(Tag.ProtocolVersionMinor, minor),
            )
            for major, minor in pairs
        )

    async def told(*pairs: Version) -> list[Item]:
        answer = await lab.ask(Operation.DiscoverVersions, *spoken(*pairs), version=(1, 1))
        return answer.all(Tag.ProtocolVersion)

    assert await told() == list(spoken(*VERSIONS))
    assert await told((9, 9), (1, 0), (2, 0)) == list(spoken((2, 0), (1, 0)))
    assert await told((9, 9)) == []


async def test_random_bytes_seeds_and_notes() -> None:
    lab = Lab()
    for length, there in ((1, True), (65_536, True), (0, False), (-1, False), (65_537, False)):
        answer = await lab.ask(Operation.RNGRetrieve, make(Tag.DataLength, length))
        octets = answer.value(Tag.Data)
        assert (isinstance(octets, bytes) and len(octets) == length) == there
    for taken, told in ((0, 0), (4, 4)):
        lab = Lab(chance=CountedChance(taken=taken))
        assert (await lab.ask(Operation.RNGSeed, make(Tag.Data, b"seed"))).value(Tag.DataLength) == told
    lab = Lab(chance=CountedChance(taken=None))
    assert (await lab.ask(Operation.RNGSeed, make(Tag.Data, b"seed"))).reason is ResultReason.PermissionDenied
    assert (await lab.ask(Operation.Log, make(Tag.LogMessage, "hello"))).reason is None
    assert lab.journal.notes == [("alice", "hello")]
