"""Attributes over both families: one model, the rules, indices, and edits that open nothing."""

from __future__ import annotations

import pytest

from keymesh.kmip.attributes import ATTRIBUTES_MAX, RULES
from keymesh.kmip.enums import Operation, ResultReason, ResultStatus
from keymesh.kmip.faults import VERSIONS, Version
from keymesh.kmip.items import make, struct
from keymesh.kmip.memory import PlainSealer
from keymesh.kmip.ports import Scope
from keymesh.kmip.tables import ATTRIBUTE_NAME
from keymesh.kmip.tags import Tag
from keymesh.kmip.ttlv import Item, ItemType
from tests.unit.kmip.support import ALICE, NOW_S, Lab, aes, brought_key, named, new_key, template, vendors


def new(item: Item) -> Item:
    return struct(Tag.NewAttribute, item)


def current(item: Item) -> Item:
    return struct(Tag.CurrentAttribute, item)


def refer(tag: Tag) -> Item:
    return Item(Tag.AttributeReference, ItemType.ENUMERATION, tag)


def one(name: str, value: str | None = None, index: int | None = None) -> Item:
    """An attribute of text as 1.x writes it."""
    return struct(
        Tag.Attribute,
        make(Tag.AttributeName, name),
        None if index is None else make(Tag.AttributeIndex, index),
        None if value is None else Item(Tag.AttributeValue, ItemType.TEXT_STRING, value),
    )


async def shown(lab: Lab, uid: str, version: Version) -> set[str]:
    """Names of all attributes as a version lists them."""
    answer = await lab.ask(Operation.GetAttributeList, make(Tag.UniqueIdentifier, uid), version=version)
    if version < (2, 0):
        return {str(item.value) for item in answer.all(Tag.AttributeName)}
    return {Tag(int(str(item.value))).name for item in answer.all(Tag.AttributeReference) if item.value in list(Tag)}


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_version_shows_only_attributes_that_it_has(version: Version) -> None:
    lab = Lab()
    uid = await lab.key(named("n"), make(Tag.Description, "d"))
    names = await shown(lab, uid, version)
    since = {
        (1, 1): Tag.Fresh,
        (1, 2): Tag.OriginalCreationDate,
        (1, 3): Tag.RandomNumberGenerator,
        (1, 4): Tag.Sensitive,
        (2, 0): Tag.ProtectionStorageMask,
    }
    for first, tag in since.items():
        name = tag.name if version >= (2, 0) else ATTRIBUTE_NAME[tag]
        assert (name in names) == (version >= first)
    got = await lab.ask(Operation.GetAttributes, make(Tag.UniqueIdentifier, uid), version=version)
    assert got.status is ResultStatus.Success
    assert bool(got.all(Tag.Attributes)) == (version >= (2, 0))


async def test_one_model_under_both_families() -> None:
    lab = Lab()
    old = await lab.ask(
        Operation.Create,
        new_key()[0],
        template(*aes(), named("n"), make(Tag.ContactInformation, "Joe")),
        version=(1, 0),
    )
    assert await lab.attribute(old.uid, Tag.ContactInformation) == "Joe"
    await lab.do(Operation.AddAttribute, old.uid, new(vendors("a", "b")))
    got = await lab.ask(
        Operation.GetAttributes,
        make(Tag.UniqueIdentifier, old.uid),
        make(Tag.AttributeName, "x-a"),
        make(Tag.AttributeName, "Contact Information"),
        make(Tag.AttributeName, "no such"),
        version=(1, 2),
    )
    assert [item.value for item in got.all(Tag.AttributeValue)] == ["b", "Joe"]


async def test_names_of_nothing_are_not_all_names() -> None:
    lab = Lab(version=(1, 2))
    uid = await lab.key()
    got = await lab.do(Operation.GetAttributes, uid, make(Tag.AttributeName, "no such"))
    assert got.all(Tag.Attribute) == []


async def test_a_digest_of_1_0_names_no_format() -> None:
    lab = Lab()
    uid = await lab.key()
    ask = (make(Tag.UniqueIdentifier, uid), make(Tag.AttributeName, "Digest"))
    for version, there in (((1, 0), False), ((1, 1), True)):
        got = await lab.ask(Operation.GetAttributes, *ask, version=version)
        assert (got.value(Tag.KeyFormatType) is not None) == there


async def test_indices_of_1_x_stay_with_their_values() -> None:
    lab = Lab(version=(1, 2))
    uid = await lab.key()
    for value in ("zero", "one", "two"):
        added = await lab.do(Operation.AddAttribute, uid, one("x-a", value))
        assert added.value(Tag.AttributeValue) == value
    deleted = await lab.do(Operation.DeleteAttribute, uid, make(Tag.AttributeName, "x-a"), make(Tag.AttributeIndex, 1))
    assert deleted.value(Tag.AttributeValue) == "one"
    changed = await lab.do(Operation.ModifyAttribute, uid, one("x-a", "second", 2))
    assert (changed.value(Tag.AttributeIndex), changed.value(Tag.AttributeValue)) == (2, "second")
    first = await lab.do(Operation.ModifyAttribute, uid, one("x-a", "zero!", 0))
    assert first.value(Tag.AttributeIndex) == 0  # told where it was asked
    unasked = await lab.do(Operation.ModifyAttribute, uid, one("x-a", "zero"))
    assert unasked.value(Tag.AttributeIndex) is None
    gone = await lab.do(Operation.ModifyAttribute, uid, one("x-a", "x", 1))
    assert gone.reason is ResultReason.ItemNotFound
    added = await lab.do(Operation.AddAttribute, uid, one("x-a", "three"))
    assert added.value(Tag.AttributeIndex) == 3
    got = await lab.do(Operation.GetAttributes, uid, make(Tag.AttributeName, "x-a"))
    assert [item.value for item in got.all(Tag.AttributeValue)] == ["zero", "second", "three"]
    assert (await lab.do(Operation.AddAttribute, uid, one("x-b", "v", 1))).reason is ResultReason.InvalidField
    assert (await lab.do(Operation.AddAttribute, uid, one("x-b"))).reason is ResultReason.InvalidMessage
    assert (await lab.do(Operation.ModifyAttribute, uid, one("x-a", "v", -1))).reason is ResultReason.IndexOutOfBounds


async def test_2_x_edits_by_current_value() -> None:
    lab = Lab()
    uid = await lab.key(vendors("a", "1"), vendors("a", "2"))
    changed = await lab.do(Operation.ModifyAttribute, uid, current(vendors("a", "2")), new(vendors("a", "3")))
    assert changed.status is ResultStatus.Success
    missing = await lab.do(Operation.ModifyAttribute, uid, current(vendors("a", "9")), new(vendors("a", "4")))
    assert missing.reason is ResultReason.AttributeInstanceNotFound
    other = await lab.do(Operation.ModifyAttribute, uid, current(vendors("a", "1")), new(vendors("b", "4")))
    assert other.reason is ResultReason.InvalidField
    assert (await lab.do(Operation.DeleteAttribute, uid, current(vendors("a", "1")))).reason is None
    held = await lab.store.get(ALICE.scope, uid)
    assert held is not None
    assert [each.item for each in held.attributes if each.item.tag == Tag.Attribute] == [vendors("a", "3")]
    absent = await lab.do(Operation.ModifyAttribute, uid, new(make(Tag.Comment, "c")))
    assert absent.reason is ResultReason.AttributeNotFound


async def test_set_is_for_attributes_of_one_value() -> None:
    lab = Lab()
    uid = await lab.key()
    for value in ("c", "d"):
        assert (await lab.do(Operation.SetAttribute, uid, new(make(Tag.Comment, value)))).reason is None
    assert await lab.attribute(uid, Tag.Comment) == "d"
    assert (await lab.do(Operation.SetAttribute, uid, new(named("n")))).reason is ResultReason.MultiValuedAttribute


READ_ONLY = sorted(tag for tag, rule in RULES.items() if rule.edit.name == "NO" and rule.until >= (2, 1))


@pytest.mark.parametrize("tag", READ_ONLY, ids=lambda tag: Tag(tag).name)
async def test_what_is_the_servers_cannot_be_edited(tag: Tag) -> None:
    lab = Lab()
    uid = await lab.key()
    item = Item(tag, ItemType.INTEGER, 1)
    before = dict(lab.store.held[ALICE.scope])
    for operation in (Operation.AddAttribute, Operation.ModifyAttribute, Operation.SetAttribute):
        assert (await lab.do(operation, uid, new(item))).reason is ResultReason.AttributeReadOnly
    deleted = await lab.do(Operation.DeleteAttribute, uid, refer(Tag(tag)))
    assert deleted.reason is ResultReason.AttributeReadOnly
    assert lab.store.held[ALICE.scope] == before


async def test_secrecy_only_grows() -> None:
    lab = Lab()
    uid = await lab.key(make(Tag.Sensitive, False))
    assert (await lab.do(Operation.ModifyAttribute, uid, new(make(Tag.Sensitive, True)))).reason is None
    assert await lab.attribute(uid, Tag.AlwaysSensitive) is False
    assert (await lab.do(Operation.Get, uid)).reason is ResultReason.Sensitive
    back = await lab.do(Operation.ModifyAttribute, uid, new(make(Tag.Sensitive, False)))
    assert back.reason is ResultReason.AttributeReadOnly
    assert (await lab.do(Operation.SetAttribute, uid, new(make(Tag.Sensitive, False)))).reason is not None
    assert (await lab.do(Operation.ModifyAttribute, uid, new(make(Tag.Extractable, False)))).reason is None
    assert (await lab.do(Operation.Get, uid)).reason is ResultReason.NotExtractable
    assert (await lab.do(Operation.SetAttribute, uid, new(make(Tag.Extractable, True)))).reason is not None
    always = await lab.key(make(Tag.Sensitive, True), make(Tag.Extractable, False))
    assert await lab.attribute(always, Tag.AlwaysSensitive) is True
    assert await lab.attribute(always, Tag.NeverExtractable) is True


async def test_dates_are_set_before_they_pass() -> None:
    lab = Lab()
    uid = await lab.key(active=False)
    later = new(make(Tag.ActivationDate, NOW_S + 5))
    assert (await lab.do(Operation.AddAttribute, uid, later)).reason is None
    lab.clock.now_s += 5
    assert (await lab.do(Operation.ModifyAttribute, uid, later)).reason is ResultReason.WrongKeyLifecycleState
    old = await lab.ask(
        Operation.ModifyAttribute,
        make(Tag.UniqueIdentifier, uid),
        struct(
            Tag.Attribute,
            make(Tag.AttributeName, "Activation Date"),
            Item(Tag.AttributeValue, ItemType.DATE_TIME, NOW_S),
        ),
        version=(1, 2),
    )
    assert old.reason is ResultReason.PermissionDenied


async def test_names_are_one_objects_alone_until_it_is_destroyed() -> None:
    lab = Lab()
    first, second = await lab.key(named("n"), active=False), await lab.key()
    for taken in (
        await lab.ask(Operation.Create, *new_key(*aes(), named("n"))),
        await lab.ask(Operation.Register, *brought_key(bytes(16), named("n"))),
        await lab.do(Operation.AddAttribute, second, new(named("n"))),
    ):
        assert taken.reason is ResultReason.NonUniqueNameAttribute
    await lab.do(Operation.Destroy, first)
    assert (await lab.do(Operation.AddAttribute, second, new(named("n")))).reason is None


async def test_an_object_has_only_so_many_values() -> None:
    lab = Lab()
    uid = await lab.key(*(vendors(str(at), "v") for at in range(100)))
    reasons = set()
    for at in range(100, ATTRIBUTES_MAX):
        reasons.add((await lab.do(Operation.AddAttribute, uid, new(vendors(str(at), "v")))).reason)
    assert reasons == {None, ResultReason.ServerLimitExceeded}
    many = await lab.ask(Operation.Create, *new_key(*aes(), *(vendors(str(at), "v") for at in range(200))))
    assert many.reason is ResultReason.ServerLimitExceeded


async def test_an_edit_neither_opens_nor_seals_the_key() -> None:
    class Shut(PlainSealer):
        async def open(self, scope: Scope, uid: str, sealed: bytes) -> bytes:
            raise AssertionError("opened")

        async def seal(self, scope: Scope, uid: str, material: bytes) -> bytes:
            raise AssertionError("sealed")

    made = Lab()
    uid = await made.key(vendors("a", "1"))
    before = await made.store.get(ALICE.scope, uid)
    lab = Lab(store=made.store, sealer=Shut())
    for operation, item in (
        (Operation.AddAttribute, new(named("n"))),
        (Operation.ModifyAttribute, new(vendors("a", "2"))),
        (Operation.SetAttribute, new(make(Tag.Comment, "c"))),
        (Operation.DeleteAttribute, refer(Tag.Comment)),
        (Operation.GetAttributes, refer(Tag.Digest)),
    ):
        assert (await lab.do(operation, uid, item)).reason is None
    after = await made.store.get(ALICE.scope, uid)
    assert before is not None and after is not None
    assert (after.sealed, after.version) == (before.sealed, before.version + 4)
