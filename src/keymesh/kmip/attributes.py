"""The rules of attributes: since which version, one value or many, who may set and change them, what a value must be.

Source: the tables "Attribute Rules" of KMIP 1.4, section 3, and KMIP 2.1, section 4.  An attribute that has no row here
is not supported; of a vendor's attributes any name is, within the limits.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum, auto
from typing import Final

from keymesh.kmip.enums import ResultReason
from keymesh.kmip.faults import Fault, Version
from keymesh.kmip.items import Fields, checked, children_of, number_of, tag_name, within, word_of
from keymesh.kmip.objects import Attribute, ManagedObject, key_of, next_index
from keymesh.kmip.tables import ATTRIBUTE_NAME, ENUM_OF
from keymesh.kmip.tags import Tag
from keymesh.kmip.ttlv import Item, ItemType

ATTRIBUTES_MAX: Final = 256  # values of one object
INSTANT_END_S: Final = 253_402_300_800  # the year 10 000
SERVERS_OWN: Final = "y"
"""The vendor, and in 1.x the prefix, whose attributes no client may set."""


class Edit(Enum):
    NO = auto()  # the server's
    MODIFY = auto()  # may be set and changed, not deleted
    FREE = auto()


@dataclass(frozen=True, slots=True)
class Rule:
    since: Version = (1, 0)
    until: Version = (2, 1)
    many: bool = False
    given: bool = False  # a client may give it when the object is made
    edit: Edit = Edit.NO


_GIVEN: Final = Rule(given=True)
_FREE: Final = Rule(given=True, edit=Edit.FREE)
_MANY: Final = Rule(given=True, edit=Edit.FREE, many=True)
_DATE: Final = Rule(given=True, edit=Edit.MODIFY)

RULES: Final[dict[int, Rule]] = {
    Tag.ActivationDate: _DATE,
    Tag.AlternativeName: Rule(since=(1, 2), many=True, given=True, edit=Edit.FREE),
    Tag.AlwaysSensitive: Rule(since=(1, 4)),
    Tag.ApplicationSpecificInformation: _MANY,
    Tag.Comment: Rule(since=(1, 4), given=True, edit=Edit.FREE),
    Tag.CompromiseDate: Rule(),
    Tag.CompromiseOccurrenceDate: Rule(),
    Tag.ContactInformation: _FREE,
    Tag.CryptographicAlgorithm: _GIVEN,
    Tag.CryptographicLength: _GIVEN,
    Tag.CryptographicParameters: _MANY,
    Tag.CryptographicUsageMask: _GIVEN,
    Tag.DeactivationDate: _DATE,
    Tag.Description: Rule(since=(1, 4), given=True, edit=Edit.FREE),
    Tag.DestroyDate: Rule(),
    Tag.Digest: Rule(many=True),
    Tag.Extractable: Rule(since=(1, 4), given=True, edit=Edit.MODIFY),
    Tag.Fresh: Rule(since=(1, 1), given=True),
    Tag.InitialDate: Rule(),
    Tag.KeyFormatType: Rule(since=(2, 0), given=True),
    Tag.LastChangeDate: Rule(),
    Tag.LeaseTime: Rule(),
    Tag.Link: _MANY,
    Tag.NISTKeyType: Rule(since=(2, 0), given=True, edit=Edit.FREE),
    Tag.Name: _MANY,
    Tag.NeverExtractable: Rule(since=(1, 4)),
    Tag.ObjectGroup: _MANY,
    Tag.ObjectType: Rule(),
    Tag.OperationPolicyName: Rule(until=(1, 4), given=True),
    Tag.OriginalCreationDate: Rule(since=(1, 2)),
    Tag.ProcessStartDate: _DATE,
    Tag.ProtectStopDate: _DATE,
    Tag.ProtectionLevel: Rule(since=(2, 0), given=True),
    Tag.ProtectionPeriod: Rule(since=(2, 0), given=True),
    Tag.ProtectionStorageMask: Rule(since=(2, 0)),
    Tag.QuantumSafe: Rule(since=(2, 0), given=True),
    Tag.RandomNumberGenerator: Rule(since=(1, 3)),
    Tag.RevocationReason: Rule(),
    Tag.Sensitive: Rule(since=(1, 4), given=True, edit=Edit.MODIFY),
    Tag.ShortUniqueIdentifier: Rule(since=(2, 0)),
    Tag.State: Rule(),
    Tag.UniqueIdentifier: Rule(),
    Tag.UsageLimits: _FREE,
    Tag.Attribute: _MANY,  # a vendor's
}

_FIELDS: Final[dict[Tag, tuple[str, str]]] = {  # of a structure: what it must have, what it may have
    Tag.Name: ("NameValue NameType", ""),
    Tag.AlternativeName: ("AlternativeNameValue AlternativeNameType", ""),
    Tag.ApplicationSpecificInformation: ("ApplicationNamespace", "ApplicationData"),
    Tag.Link: ("LinkType LinkedObjectIdentifier", ""),
    Tag.UsageLimits: ("UsageLimitsTotal UsageLimitsUnit", "UsageLimitsCount"),
    Tag.Digest: ("HashingAlgorithm DigestValue", "KeyFormatType"),
    Tag.RevocationReason: ("RevocationReasonCode", "RevocationMessage"),
    Tag.RandomNumberGenerator: ("RNGAlgorithm", "CryptographicAlgorithm CryptographicLength"),
    Tag.CryptographicParameters: (
        "",
        "BlockCipherMode PaddingMethod HashingAlgorithm KeyRoleType DigitalSignatureAlgorithm CryptographicAlgorithm "
        "RandomIV IVLength TagLength FixedFieldLength InvocationFieldLength CounterLength InitialCounterValue "
        "SaltLength MaskGenerator MaskGeneratorHashingAlgorithm PSource TrailerField",
    ),
}

_SHAPES: Final[dict[int, tuple[tuple[Tag, ...], tuple[Tag, ...]]]] = {
    tag: (tuple(Tag[name] for name in must.split()), tuple(Tag[name] for name in may.split()))
    for tag, (must, may) in _FIELDS.items()
}
_WORDS: Final[dict[int, type[IntEnum]]] = {int(tag): words for tag, words in ENUM_OF.items()}


def known_in(tag: int, version: Version) -> bool:
    """Whether a version has an attribute."""
    rule = RULES.get(tag)
    return rule is not None and rule.since <= version <= rule.until and (version >= (2, 0) or tag in _IN_1)


_IN_1: Final = {*ATTRIBUTE_NAME, Tag.Attribute}


def rule_of(item: Item, version: Version) -> Rule:
    """Raises Fault where the version has no such attribute, or this server has none."""
    if not known_in(item.tag, version):
        raise Fault(ResultReason.UnsupportedAttribute, f"{tag_name(item.tag)}: not an attribute that is served")
    return RULES[item.tag]


def valid(item: Item, version: Version) -> Item:
    """``item`` as a value of the attribute that it is.  Raises Fault naming the field and the limit."""
    rule_of(item, version)
    if item.tag == Tag.Attribute:
        return _vendors(item)
    _checked(item)
    shape = _SHAPES.get(item.tag)
    if shape is not None:
        fields = Fields(item)
        for tag in shape[0]:
            _checked(fields.need(tag))
        for tag in shape[1]:
            child = fields.one(tag)
            if child is not None:
                _checked(child)
        fields.done()
    if item.type is ItemType.DATE_TIME and not 0 <= number_of(item) < INSTANT_END_S:
        raise _bad_value(item, "an instant from 1970 to 9999")
    if item.tag == Tag.UsageLimits and any(
        number_of(child) < 0 for child in children_of(item) if child.tag != Tag.UsageLimitsUnit
    ):
        raise _bad_value(item, "a total of 0 or more")
    if item.tag in (Tag.CryptographicLength, Tag.ProtectionPeriod) and number_of(item) <= 0:
        raise _bad_value(item, "1 or more")
    return item


def _bad_value(item: Item, limit: str) -> Fault:
    return Fault(ResultReason.InvalidAttributeValue, f"{tag_name(item.tag)}: {limit}")


def _checked(item: Item) -> None:
    checked(item)
    words = _WORDS.get(item.tag)
    if words is not None and item.type is ItemType.ENUMERATION:
        word_of(Tag(item.tag), words, number_of(item))


def _vendors(item: Item) -> Item:
    fields = Fields(item)
    vendor, name = fields.need_text(Tag.VendorIdentification), fields.need_text(Tag.AttributeName)
    value = fields.raw(Tag.AttributeValue)
    fields.done()
    if not vendor or not name:
        raise _bad_value(item, "a vendor and a name")
    if value is None or value.type is ItemType.STRUCTURE:
        raise _bad_value(item, "a value that is no structure")
    within(value)
    return item


def settable(item: Item, version: Version) -> Rule:
    """The rule of an attribute that a client edits.  Raises Fault where it is the server's."""
    rule = rule_of(item, version)
    if rule.edit is Edit.NO or (item.tag == Tag.Attribute and key_of(item)[1] == SERVERS_OWN):
        raise Fault(ResultReason.AttributeReadOnly, f"{tag_name(item.tag)}: read only")
    return rule


def added(held: ManagedObject, item: Item) -> tuple[Attribute, ...]:
    """The object's attributes and one value more.  The rule is the caller's to ask."""
    if len(held.attributes) >= ATTRIBUTES_MAX:
        raise Fault(ResultReason.ServerLimitExceeded, f"at most {ATTRIBUTES_MAX} attribute values")
    if any(each.item == item for each in held.attributes):
        reason = ResultReason.NonUniqueNameAttribute if item.tag == Tag.Name else ResultReason.InvalidAttributeValue
        raise Fault(reason, f"{tag_name(item.tag)}: the object has this value")
    return (*held.attributes, Attribute(item, next_index(held.attributes, key_of(item))))


def given(items: list[Item], version: Version) -> list[Attribute]:
    """The attributes that a client gives a new object, with their indices.

    Raises Fault where one may not be given, or twice.
    """
    found: list[Attribute] = []
    for item in items:
        rule = rule_of(item, version)
        if not rule.given or (item.tag == Tag.Attribute and key_of(item)[1] == SERVERS_OWN):
            raise Fault(ResultReason.AttributeReadOnly, f"{tag_name(item.tag)}: the server's to set")
        valid(item, version)
        key = key_of(item)
        if not rule.many and any(each.key == key for each in found):
            raise Fault(ResultReason.AttributeSingleValued, f"{tag_name(item.tag)}: one value")
        if any(each.item == item for each in found):
            raise Fault(ResultReason.InvalidAttributeValue, f"{tag_name(item.tag)}: the same value twice")
        found.append(Attribute(item, next_index(found, key)))
        if len(found) > ATTRIBUTES_MAX // 2:
            raise Fault(ResultReason.ServerLimitExceeded, f"at most {ATTRIBUTES_MAX // 2} attribute values")
    return found
