"""The tables of tags, enumerations and masks: one number a name, and the names that the published cases use."""

from __future__ import annotations

from enum import IntEnum

import pytest

from keymesh.kmip import enums, enums_crypto, tables
from keymesh.kmip.enums_crypto import OpaqueDataType, PaddingMethod
from keymesh.kmip.tags import Tag
from keymesh.kmip.ttlv import ItemType


def _words() -> list[type[IntEnum]]:
    found = [*vars(enums).values(), *vars(enums_crypto).values(), Tag]
    return [each for each in found if isinstance(each, type) and issubclass(each, IntEnum) and each is not IntEnum]


@pytest.mark.parametrize("words", _words())
def test_a_number_has_one_name(words: type[IntEnum]) -> None:
    assert len(words.__members__) == len({int(member) for member in words})
    for name, member in words.__members__.items():
        assert tables.named(words, tables.name_of(member)) is member
        assert tables.name_of(member) == name.removesuffix("_")


def test_words_that_python_keeps_for_itself() -> None:
    assert tables.named(PaddingMethod, "None") is PaddingMethod.None_
    assert tables.named(OpaqueDataType, "None") == 0x8000_0000
    with pytest.raises(KeyError):
        tables.named(PaddingMethod, "Nothing")


def test_every_tag_is_a_standard_one() -> None:
    assert {tag >> 16 for tag in Tag} == {0x42}


def test_enumerations_and_masks_have_the_type_they_need() -> None:
    assert {tables.TYPE_OF[tag] for tag in tables.MASK_OF} == {ItemType.INTEGER}
    assert {tag for tag in tables.ENUM_OF if tables.TYPE_OF[tag] is not ItemType.ENUMERATION} == {Tag.UniqueIdentifier}


def test_names_of_attributes_are_their_tags_with_spaces() -> None:
    for tag, name in tables.ATTRIBUTE_NAME.items():
        spelled = name.replace("X.509", "X_509").replace("PKCS#12", "PKCS_12").replace(" ", "")
        assert spelled == tag.name
        assert tables.ATTRIBUTE_TAG[name] is tag
