"""What the value of a tag must be: its type, and of enumerations and masks the words.

Decides nothing about which message may hold a tag.  A tag that stands in no table here is carried, never read.
Source: KMIP 1.4, section 9.1.3; KMIP 2.1, sections 4 and 11; names of the XML form: KMIP 2.1 profiles, 5.4.1.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final, TypeVar

from keymesh.kmip import enums, enums_crypto
from keymesh.kmip.tags import Tag
from keymesh.kmip.ttlv import ItemType

ENUM_OF: Final[dict[Tag, type[IntEnum]]] = {
    Tag.AlternativeNameType: enums.AlternativeNameType,
    Tag.AttributeReference: Tag,
    Tag.BatchErrorContinuationOption: enums.BatchErrorContinuationOption,
    Tag.BlockCipherMode: enums_crypto.BlockCipherMode,
    Tag.CancellationResult: enums.CancellationResult,
    Tag.CertificateType: enums_crypto.CertificateType,
    Tag.CredentialType: enums.CredentialType,
    Tag.CryptographicAlgorithm: enums_crypto.CryptographicAlgorithm,
    Tag.DRBGAlgorithm: enums_crypto.DRBGAlgorithm,
    Tag.DigitalSignatureAlgorithm: enums_crypto.DigitalSignatureAlgorithm,
    Tag.EncodingOption: enums_crypto.EncodingOption,
    Tag.HashingAlgorithm: enums_crypto.HashingAlgorithm,
    Tag.InteropFunction: enums.InteropFunction,
    Tag.KeyCompressionType: enums_crypto.KeyCompressionType,
    Tag.KeyFormatType: enums_crypto.KeyFormatType,
    Tag.KeyRoleType: enums_crypto.KeyRoleType,
    Tag.KeyWrapType: enums_crypto.KeyWrapType,
    Tag.LinkType: enums.LinkType,
    Tag.MaskGenerator: enums_crypto.MaskGenerator,
    Tag.MaskGeneratorHashingAlgorithm: enums_crypto.HashingAlgorithm,
    Tag.NISTKeyType: enums_crypto.NISTKeyType,
    Tag.NameType: enums.NameType,
    Tag.ObjectGroupMember: enums.ObjectGroupMember,
    Tag.ObjectType: enums.ObjectType,
    Tag.OpaqueDataType: enums_crypto.OpaqueDataType,
    Tag.Operation: enums.Operation,
    Tag.PaddingMethod: enums_crypto.PaddingMethod,
    Tag.ProtectionLevel: enums.ProtectionLevel,
    Tag.QueryFunction: enums.QueryFunction,
    Tag.RNGAlgorithm: enums_crypto.RNGAlgorithm,
    Tag.ResultReason: enums.ResultReason,
    Tag.ResultStatus: enums.ResultStatus,
    Tag.RevocationReasonCode: enums.RevocationReasonCode,
    Tag.SecretDataType: enums_crypto.SecretDataType,
    Tag.State: enums.State,
    Tag.UniqueIdentifier: enums.UniqueIdentifierEnumeration,  # 2.x; a text string otherwise
    Tag.UsageLimitsUnit: enums.UsageLimitsUnit,
    Tag.ValidityIndicator: enums.ValidityIndicator,
    Tag.WrappingMethod: enums_crypto.WrappingMethod,
}

MASK_OF: Final[dict[Tag, type[IntFlag]]] = {
    Tag.CryptographicUsageMask: enums.CryptographicUsageMask,
    Tag.ProtectionStorageMask: enums.ProtectionStorageMask,
    Tag.StorageStatusMask: enums.StorageStatusMask,
}

_TAGS_BY_TYPE: Final = {
    ItemType.STRUCTURE: (
        "AlternativeName ApplicationSpecificInformation Attribute Attributes Authentication BatchItem Credential "
        "CredentialValue CryptographicDomainParameters CryptographicParameters CurrentAttribute Digest "
        "EncryptionKeyInformation KeyBlock KeyWrappingData KeyWrappingSpecification Link MACSignatureKeyInformation "
        "MessageExtension Name NewAttribute OpaqueObject ProtectionStorageMasks ProtocolVersion RNGParameters "
        "RandomNumberGenerator RequestHeader RequestMessage RequestPayload ResponseHeader ResponseMessage "
        "ResponsePayload RevocationReason SecretData SymmetricKey TemplateAttribute UsageLimits"
    ),
    ItemType.INTEGER: (
        "AttributeIndex BatchCount CertificateLength CounterLength CryptographicLength CryptographicUsageMask "
        "DataLength FixedFieldLength IVLength InitialCounterValue InvocationFieldLength LocatedItems MaximumItems "
        "MaximumResponseSize OffsetItems ProtectionStorageMask ProtocolVersionMajor ProtocolVersionMinor SaltLength "
        "StorageStatusMask TagLength TrailerField"
    ),
    ItemType.LONG_INTEGER: "UsageLimitsCount UsageLimitsTotal",
    ItemType.BOOLEAN: (
        "AlwaysSensitive AsynchronousIndicator AttestationCapableIndicator BatchOrderOption CriticalityIndicator "
        "Extractable FinalIndicator Fresh InitIndicator KeyValuePresent NeverExtractable QuantumSafe RandomIV "
        "ReplaceExisting Sensitive"
    ),
    ItemType.TEXT_STRING: (
        "AlternativeNameValue ApplicationData ApplicationNamespace AttributeName ClientCorrelationValue Comment "
        "ContactInformation Description InteropIdentifier LinkedObjectIdentifier LogMessage NameValue ObjectGroup "
        "OperationPolicyName Password ResultMessage RevocationMessage ServerCorrelationValue UniqueIdentifier "
        "Username VendorIdentification"
    ),
    ItemType.BYTE_STRING: (
        "AsynchronousCorrelationValue AuthenticatedEncryptionAdditionalData AuthenticatedEncryptionTag "
        "CorrelationValue Data DigestValue IVCounterNonce Key MACData MACSignature OpaqueDataValue PSource "
        "ShortUniqueIdentifier UniqueBatchItemID"
    ),
    ItemType.DATE_TIME: (
        "ActivationDate ArchiveDate CompromiseDate CompromiseOccurrenceDate DeactivationDate DestroyDate InitialDate "
        "LastChangeDate OriginalCreationDate ProcessStartDate ProtectStopDate TimeStamp ValidityDate"
    ),
    ItemType.INTERVAL: "LeaseTime Offset ProtectionPeriod",
}

TYPE_OF: Final[dict[Tag, ItemType]] = {
    **dict.fromkeys(ENUM_OF, ItemType.ENUMERATION),
    **{Tag[name]: kind for kind, names in _TAGS_BY_TYPE.items() for name in names.split()},
}
"""The type of a tag's value.  ``UniqueIdentifier`` (2.x) may be an enumeration too; ``AttributeReference`` a structure;
``AttributeValue``, ``KeyMaterial`` and ``KeyValue`` are what their place says, so they are not here.
"""

_ATTRIBUTES: Final = {
    "ActivationDate": "Activation Date",
    "AlternativeName": "Alternative Name",
    "AlwaysSensitive": "Always Sensitive",
    "ApplicationSpecificInformation": "Application Specific Information",
    "ArchiveDate": "Archive Date",
    "CertificateLength": "Certificate Length",
    "CertificateType": "Certificate Type",
    "Comment": "Comment",
    "CompromiseDate": "Compromise Date",
    "CompromiseOccurrenceDate": "Compromise Occurrence Date",
    "ContactInformation": "Contact Information",
    "CryptographicAlgorithm": "Cryptographic Algorithm",
    "CryptographicDomainParameters": "Cryptographic Domain Parameters",
    "CryptographicLength": "Cryptographic Length",
    "CryptographicParameters": "Cryptographic Parameters",
    "CryptographicUsageMask": "Cryptographic Usage Mask",
    "DeactivationDate": "Deactivation Date",
    "Description": "Description",
    "DestroyDate": "Destroy Date",
    "Digest": "Digest",
    "DigitalSignatureAlgorithm": "Digital Signature Algorithm",
    "Extractable": "Extractable",
    "Fresh": "Fresh",
    "InitialDate": "Initial Date",
    "KeyFormatType": "Key Format Type",
    "KeyValueLocation": "Key Value Location",
    "KeyValuePresent": "Key Value Present",
    "LastChangeDate": "Last Change Date",
    "LeaseTime": "Lease Time",
    "Link": "Link",
    "NISTKeyType": "NIST Key Type",
    "Name": "Name",
    "NeverExtractable": "Never Extractable",
    "ObjectGroup": "Object Group",
    "ObjectType": "Object Type",
    "OperationPolicyName": "Operation Policy Name",
    "OriginalCreationDate": "Original Creation Date",
    "PKCS_12FriendlyName": "PKCS#12 Friendly Name",
    "ProcessStartDate": "Process Start Date",
    "ProtectStopDate": "Protect Stop Date",
    "ProtectionLevel": "Protection Level",
    "ProtectionPeriod": "Protection Period",
    "ProtectionStorageMask": "Protection Storage Mask",
    "QuantumSafe": "Quantum Safe",
    "RandomNumberGenerator": "Random Number Generator",
    "RevocationReason": "Revocation Reason",
    "Sensitive": "Sensitive",
    "ShortUniqueIdentifier": "Short Unique Identifier",
    "State": "State",
    "UniqueIdentifier": "Unique Identifier",
    "UsageLimits": "Usage Limits",
    "X_509CertificateIdentifier": "X.509 Certificate Identifier",
    "X_509CertificateIssuer": "X.509 Certificate Issuer",
    "X_509CertificateSubject": "X.509 Certificate Subject",
}

ATTRIBUTE_NAME: Final[dict[Tag, str]] = {Tag[tag]: name for tag, name in _ATTRIBUTES.items()}
"""The name by which 1.x calls an attribute; 2.x uses the tag."""

ATTRIBUTE_TAG: Final[dict[str, Tag]] = {name: tag for tag, name in ATTRIBUTE_NAME.items()}


E = TypeVar("E", bound=IntEnum)


def named(words: type[E], name: str) -> E:
    """The member that the XML form calls ``name``.  Raises KeyError where there is none."""
    member = words.__members__.get(name)
    return member if member is not None else words[name + "_"]


def name_of(member: IntEnum) -> str:
    """What the XML form calls a member."""
    return member.name.removesuffix("_")
