"""Hostile messages: the KMIP list of the reliability notes, and whatever hypothesis thinks of.  Always an answer."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keymesh.kmip.enums import CredentialType, CryptographicUsageMask, Operation, ResultReason, ResultStatus
from keymesh.kmip.faults import VERSIONS, Version
from keymesh.kmip.items import make, struct
from keymesh.kmip.tables import TYPE_OF
from keymesh.kmip.tags import Tag
from keymesh.kmip.ttlv import Item, ItemType, decode, encode
from keymesh.model.limits import KMIP_BATCH_MAX
from tests.unit.kmip.support import (
    ALICE,
    MALLORY,
    NOW_S,
    Lab,
    aes,
    batch_item,
    brought_key,
    header,
    message,
    named,
    new_key,
    parsed,
    template,
    vendors,
)

QUERY = batch_item(Operation.Query, make(Tag.QueryFunction, 1))


async def refused(raw: bytes) -> tuple[Version, ResultReason | None]:
    """(version, reason) of the one failure that answers ``raw``."""
    version, answers = parsed(await Lab().engine.handle(raw, ALICE))
    assert [each.status for each in answers] == [ResultStatus.OperationFailed]
    return version, answers[0].reason


GOOD = message((1, 4), QUERY)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\0",
        GOOD[:7],
        GOOD[:8],
        GOOD[:-1],
        GOOD + b"\0",
        GOOD[:4] + b"\xff\xff\xff\xff" + GOOD[8:],
        GOOD[:4] + b"\x80\0\0\0" + GOOD[8:],
        GOOD[:3] + b"\x0b" + GOOD[4:],
        GOOD[:3] + b"\x00" + GOOD[4:],
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
        bytes(4096),
        b"\x42\x00\x78\x01" * 100,
    ],
)
async def test_bytes_that_are_no_item_get_an_answer_that_every_client_reads(raw: bytes) -> None:
    assert await refused(raw) == ((1, 0), ResultReason.InvalidMessage)


async def test_padding_counted_into_the_length_of_a_text() -> None:
    raw = bytearray(message((1, 2), batch_item(Operation.Get, make(Tag.UniqueIdentifier, "abc"))))
    at = raw.index(b"\x42\x00\x94\x07") + 4
    raw[at : at + 4] = (8).to_bytes(4, "big")  # the NULs of the padding become part of the text
    version, answers = parsed(await Lab().engine.handle(bytes(raw), ALICE))
    assert (version, answers[0].reason) == ((1, 2), ResultReason.InvalidField)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ((0, 0), (1, 0)),
        ((0, 9), (1, 0)),
        ((1, 5), (1, 4)),
        ((2, 2), (2, 1)),
        ((3, 0), (2, 1)),
        ((99, 9), (2, 1)),
        ((2**31 - 1, -1), (2, 1)),
        ((-1, 0), (1, 0)),
    ],
)
async def test_versions_that_are_not_spoken(asked: Version, told: Version) -> None:
    version, reason = await refused(message(asked, QUERY))
    assert version == told
    before_2 = told < (2, 0)
    assert reason is (ResultReason.InvalidMessage if before_2 else ResultReason.UnsupportedProtocolVersion)


@pytest.mark.parametrize("version", VERSIONS)
async def test_every_version_is_answered_in_itself(version: Version) -> None:
    answer = await Lab().ask(Operation.Query, make(Tag.QueryFunction, 1), version=version)
    assert answer.status is ResultStatus.Success


@pytest.mark.parametrize("count", [0, 2, -1, 2**31 - 1])
async def test_batch_count_is_the_count(count: int) -> None:
    raw = encode(struct(Tag.RequestMessage, header((1, 4), count), QUERY))
    assert await refused(raw) == ((1, 4), ResultReason.InvalidMessage)


async def test_no_items_and_too_many() -> None:
    assert await refused(encode(struct(Tag.RequestMessage, header((2, 1), 0)))) == (
        (2, 1),
        ResultReason.InvalidMessage,
    )
    items = [
        batch_item(Operation.Query, make(Tag.QueryFunction, 1), batch_id=at.to_bytes(2, "big"))
        for at in range(KMIP_BATCH_MAX + 1)
    ]
    assert await refused(message((2, 1), *items)) == ((2, 1), ResultReason.InvalidMessage)


async def test_batch_ids_are_there_and_differ() -> None:
    twice = [batch_item(Operation.Query, batch_id=b"1")] * 2
    assert (await refused(message((2, 1), *twice)))[1] is ResultReason.InvalidMessage
    assert (await refused(message((2, 1), QUERY, QUERY)))[1] is ResultReason.InvalidMessage


def without(raw: bytes, tag: Tag) -> bytes:
    def strip(item: Item) -> Item:
        if not isinstance(item.value, tuple):
            return item
        return Item(item.tag, item.type, tuple(strip(child) for child in item.value if child.tag != tag))

    return encode(strip(decode(raw)))


@pytest.mark.parametrize(
    "tag", [Tag.ProtocolVersion, Tag.ProtocolVersionMinor, Tag.BatchCount, Tag.RequestHeader, Tag.Operation]
)
async def test_what_is_mandatory_is_missed(tag: Tag) -> None:
    assert (await refused(without(GOOD, tag)))[1] is ResultReason.InvalidMessage


async def test_a_missing_payload_fails_its_item_alone() -> None:
    version, answers = parsed(await Lab().engine.handle(without(GOOD, Tag.RequestPayload), ALICE))
    assert version == (1, 4)
    assert answers[0].value(Tag.Operation) == Operation.Query
    assert answers[0].reason is ResultReason.InvalidMessage


async def test_duplicates_and_unknown_fields_are_refused() -> None:
    lab = Lab()
    uid = make(Tag.UniqueIdentifier, await lab.key())
    assert (await lab.ask(Operation.Get, uid, uid)).reason is ResultReason.InvalidMessage
    stray = Item(0x540001, ItemType.INTEGER, 1)
    assert (await lab.ask(Operation.Get, uid, stray)).reason is ResultReason.InvalidMessage
    version = header((1, 4), 1).value
    assert isinstance(version, tuple)
    doubled = struct(Tag.RequestMessage, struct(Tag.RequestHeader, *version, version[0]), QUERY)
    assert (await refused(encode(doubled)))[1] is ResultReason.InvalidMessage


async def test_fields_may_come_in_any_order() -> None:
    lab = Lab()
    first, second = new_key(*aes())
    assert (await lab.ask(Operation.Create, second, first)).status is ResultStatus.Success


@pytest.mark.parametrize("uid", ["", "*", "%", "../x", "a" * 129, "é" * 64, "0" * 32, "x' OR '1'='1"])
async def test_identifiers_that_name_nothing(uid: str) -> None:
    assert (await Lab().ask(Operation.Get, make(Tag.UniqueIdentifier, uid))).reason is ResultReason.ObjectNotFound


async def test_identifiers_beyond_the_limits() -> None:
    lab = Lab()
    for uid in ("a" * 5_000, "a\0b"):
        assert (await lab.ask(Operation.Get, make(Tag.UniqueIdentifier, uid))).reason is ResultReason.InvalidField
    huge = message((2, 1), batch_item(Operation.Get, make(Tag.UniqueIdentifier, "a" * 2**20)))
    assert (await refused(huge))[1] is ResultReason.InvalidMessage
    raw = bytearray(message((1, 2), batch_item(Operation.Get, make(Tag.UniqueIdentifier, "abcdefgh"))))
    raw[raw.index(b"abcdefgh")] = 0xFF
    assert (await refused(bytes(raw)))[1] is ResultReason.InvalidMessage


async def test_another_tenants_object_is_an_absent_one() -> None:
    lab = Lab()
    uid = await lab.key(named("mine"))
    stranger = [(await lab.do(Operation.Get, which, caller=MALLORY)).item.value for which in (uid, "0" * 32)]
    assert stranger[0] == stranger[1]
    located = await lab.ask(Operation.Locate, struct(Tag.Attributes, named("mine")), caller=MALLORY)
    assert located.all(Tag.UniqueIdentifier) == []
    assert (await lab.ask(Operation.Create, *new_key(*aes(), named("mine")), caller=MALLORY)).reason is None


async def test_a_credential_is_the_certificates_name_or_nothing() -> None:
    def credential(name: str, kind: CredentialType = CredentialType.UsernameAndPassword) -> Item:
        value = struct(Tag.CredentialValue, make(Tag.Username, name), make(Tag.Password, "p"))
        return struct(Tag.Authentication, struct(Tag.Credential, make(Tag.CredentialType, kind), value))

    lab = Lab()
    raw = message((1, 2), QUERY, more=(credential("alice"),))
    assert parsed(await lab.engine.handle(raw, ALICE))[1][0].reason is None
    for bad in (credential("mallory"), credential(""), credential("alice", CredentialType.Device)):
        assert (await refused(message((1, 2), QUERY, more=(bad,))))[1] is ResultReason.AuthenticationNotSuccessful


@pytest.mark.parametrize("now_s", [-1, 0, 2**62, 2**63 - 1, NOW_S + 10**9])
async def test_a_clients_clock_changes_nothing(now_s: int) -> None:
    raw = message((2, 1), QUERY, more=(make(Tag.TimeStamp, now_s),))
    version, answers = parsed(await Lab().engine.handle(raw, ALICE))
    assert (version, answers[0].reason) == ((2, 1), None)


async def test_what_is_not_served_is_refused_and_not_ignored() -> None:
    mandatory = Item(Tag.AsynchronousIndicator, ItemType.ENUMERATION, 1)
    assert (await refused(message((2, 1), QUERY, more=(mandatory,))))[1] is ResultReason.FeatureNotSupported
    critical = struct(
        Tag.MessageExtension,
        make(Tag.VendorIdentification, "v"),
        make(Tag.CriticalityIndicator, True),
        struct(Tag.VendorExtension),
    )
    assert isinstance(QUERY.value, tuple)
    extended = struct(Tag.BatchItem, *QUERY.value, critical)
    assert (await refused(message((1, 4), extended)))[1] is ResultReason.FeatureNotSupported
    lab = Lab()
    for operation in (Operation.Archive, Operation.CreateKeyPair, Operation.Interop, Operation.Sign):
        assert (await lab.ask(operation)).reason is ResultReason.OperationNotSupported
    for operation, version in ((Operation.Encrypt, (1, 1)), (Operation.DiscoverVersions, (1, 0))):
        assert (await lab.ask(operation, version=version)).reason is ResultReason.OperationNotSupported


async def test_an_operation_of_no_specification() -> None:
    unknown = struct(Tag.BatchItem, Item(Tag.Operation, ItemType.ENUMERATION, 0xFFFF_FFFF), struct(Tag.RequestPayload))
    assert (await refused(message((2, 1), unknown)))[1] is ResultReason.UnknownEnumeration


@pytest.mark.parametrize(
    ("attribute", "reason"),
    [
        (vendors("State", "x", vendor="y"), ResultReason.AttributeReadOnly),
        (vendors("", "x"), ResultReason.InvalidAttributeValue),
        (make(Tag.State, 2), ResultReason.AttributeReadOnly),
        (make(Tag.CryptographicUsageMask, -1), ResultReason.InvalidField),
        (make(Tag.ActivationDate, -1), ResultReason.InvalidAttributeValue),
        (make(Tag.ActivationDate, 2**62), ResultReason.InvalidAttributeValue),
        (make(Tag.CryptographicAlgorithm, 0xFFFF), ResultReason.UnknownEnumeration),
        (Item(Tag.ActivationDate, ItemType.INTEGER, 1), ResultReason.InvalidDataType),
        (Item(0x540001, ItemType.INTEGER, 1), ResultReason.UnsupportedAttribute),
        (Item(Tag.Name, ItemType.TEXT_STRING, "n"), ResultReason.InvalidDataType),
        (make(Tag.ContactInformation, "c" * 5_000), ResultReason.InvalidField),
        (struct(Tag.Name), ResultReason.InvalidMessage),
    ],
)
async def test_attributes_that_are_none(attribute: Item, reason: ResultReason) -> None:
    lab = Lab()
    answer = await lab.ask(Operation.Register, *brought_key(bytes(16), attribute))
    assert answer.reason is reason
    assert lab.store.held == {}


async def test_1_x_names_that_are_none() -> None:
    lab = Lab(version=(1, 2))
    for name in ("x-", "x", "", "State", "X-a", "y-a", "Unique Identifier", "x" * 5_000):
        attribute = struct(
            Tag.Attribute, make(Tag.AttributeName, name), Item(Tag.AttributeValue, ItemType.TEXT_STRING, "v")
        )
        whole = template(*aes()).value
        assert isinstance(whole, tuple)
        answer = await lab.ask(Operation.Create, new_key()[0], struct(Tag.TemplateAttribute, *whole, attribute))
        assert answer.status is ResultStatus.OperationFailed, name


_TAGS = sorted(TYPE_OF)


def _items() -> st.SearchStrategy[Item]:
    numbers = st.integers(-(2**31), 2**31 - 1)
    values: dict[ItemType, st.SearchStrategy[int | str | bytes]] = {
        ItemType.INTEGER: numbers,
        ItemType.LONG_INTEGER: st.integers(-(2**63), 2**63 - 1),
        ItemType.BIG_INTEGER: st.integers(-(2**70), 2**70),
        ItemType.ENUMERATION: st.one_of(st.integers(0, 64), st.integers(0, 2**32 - 1), st.sampled_from(list(Tag))),
        ItemType.BOOLEAN: st.booleans(),
        ItemType.TEXT_STRING: st.text(max_size=12),
        ItemType.BYTE_STRING: st.binary(max_size=40),
        ItemType.DATE_TIME: st.integers(-(2**63), 2**63 - 1),
        ItemType.INTERVAL: st.integers(0, 2**32 - 1),
    }

    def typed(tag: Tag) -> st.SearchStrategy[Item]:
        kind = TYPE_OF[tag]
        return st.builds(Item, st.just(int(tag)), st.just(kind), values.get(kind, st.just(())))

    right = st.sampled_from([tag for tag in _TAGS if TYPE_OF[tag] is not ItemType.STRUCTURE]).flatmap(typed)
    wrong = st.sampled_from(list(values)).flatmap(
        lambda kind: st.builds(Item, st.sampled_from([int(tag) for tag in Tag]), st.just(kind), values[kind])
    )
    structures = [int(tag) for tag in _TAGS if TYPE_OF[tag] is ItemType.STRUCTURE] + [int(Tag.KeyValue)]
    return st.recursive(
        st.one_of(right, right, wrong),
        lambda inner: st.builds(
            Item, st.sampled_from(structures), st.just(ItemType.STRUCTURE), st.lists(inner, max_size=4).map(tuple)
        ),
        max_leaves=12,
    )


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.sampled_from(VERSIONS), st.sampled_from(list(Operation)), st.lists(_items(), max_size=5), st.booleans())
async def test_any_payload_is_answered(version: Version, operation: Operation, items: list[Item], own: bool) -> None:
    lab = Lab(interop=True)
    uid = [make(Tag.UniqueIdentifier, await lab.key(named("n"), vendors("a", "b")))] if own else []
    raw = message(version, batch_item(operation, *uid, *items))
    spoken, answers = parsed(await lab.engine.handle(raw, ALICE))
    assert spoken == version and len(answers) == 1
    if own:
        shown = await lab.do(Operation.GetAttributes, str(uid[0].value))
        assert shown.status is ResultStatus.Success


@settings(max_examples=150, deadline=None)
@given(st.data())
async def test_any_damage_is_answered(data: st.DataObject) -> None:
    lab = Lab()
    raw = bytearray(message((2, 1), batch_item(Operation.Create, *new_key(*aes(), named("n"), vendors("a", "b")))))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at] = data.draw(st.integers(0, 255))
    parsed(await lab.engine.handle(bytes(raw), ALICE))
    for objects in lab.store.held.values():
        for uid in objects:
            assert (await lab.do(Operation.GetAttributes, uid)).status is ResultStatus.Success


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
async def test_any_bytes_are_answered(raw: bytes) -> None:
    parsed(await Lab().engine.handle(raw, ALICE))


@pytest.mark.parametrize(
    ("mask", "refused"), [(0, False), (sum(CryptographicUsageMask), False), (2**31 - 1, True), (-1, True)]
)
async def test_usage_masks_of_no_bits_all_bits_and_bits_of_nobody(mask: int, refused: bool) -> None:
    lab = Lab()
    made = await lab.ask(Operation.Create, *new_key(*aes(mask), make(Tag.ActivationDate, NOW_S)))
    assert made.reason is (ResultReason.InvalidField if refused else None)
    if mask == 0:
        for operation in (Operation.Encrypt, Operation.Decrypt, Operation.MAC):
            answer = await lab.do(operation, made.uid, make(Tag.Data, bytes(16)))
            assert answer.reason is ResultReason.IncompatibleCryptographicUsageMask


@pytest.mark.parametrize("number", [0, -1, 2**63, -(2**63), 2**4_000])
async def test_a_big_integer_is_no_number_of_another_type_and_comes_back_as_it_was(number: int) -> None:
    lab = Lab()
    length = Item(Tag.CryptographicLength, ItemType.BIG_INTEGER, number)
    assert (await lab.ask(Operation.Create, *new_key(*aes()[:1], length, *aes()[2:]))).reason is (
        ResultReason.InvalidDataType
    )
    brought = struct(
        Tag.Attribute,
        make(Tag.VendorIdentification, "x"),
        make(Tag.AttributeName, "n"),
        Item(Tag.AttributeValue, ItemType.BIG_INTEGER, number),
    )
    uid = await lab.key(brought)
    shown = (await lab.do(Operation.GetAttributes, uid)).all(Tag.AttributeValue)
    assert shown == [Item(Tag.AttributeValue, ItemType.BIG_INTEGER, number)]
