"""Enumerations and masks of KMIP that a message is made of, by the names that the XML form gives them.

A word that Python keeps for itself has an underscore after it (``None_``); ``tables.py`` knows names without it.
Source: KMIP 1.4, section 9.1.3.2 and 9.1.3.3; KMIP 2.1, section 11.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag


class Operation(IntEnum):
    Create = 1
    CreateKeyPair = 2
    Register = 3
    ReKey = 4
    DeriveKey = 5
    Certify = 6
    ReCertify = 7
    Locate = 8
    Check = 9
    Get = 10
    GetAttributes = 11
    GetAttributeList = 12
    AddAttribute = 13
    ModifyAttribute = 14
    DeleteAttribute = 15
    ObtainLease = 16
    GetUsageAllocation = 17
    Activate = 18
    Revoke = 19
    Destroy = 20
    Archive = 21
    Recover = 22
    Validate = 23
    Query = 24
    Cancel = 25
    Poll = 26
    Notify = 27
    Put = 28
    ReKeyKeyPair = 29
    DiscoverVersions = 30
    Encrypt = 31
    Decrypt = 32
    Sign = 33
    SignatureVerify = 34
    MAC = 35
    MACVerify = 36
    RNGRetrieve = 37
    RNGSeed = 38
    Hash = 39
    CreateSplitKey = 40
    JoinSplitKey = 41
    Import = 42
    Export = 43
    Log = 44
    Login = 45
    Logout = 46
    DelegatedLogin = 47
    AdjustAttribute = 48
    SetAttribute = 49
    SetEndpointRole = 50
    PKCS_11 = 51
    Interop = 52
    ReProvision = 53


class ObjectType(IntEnum):
    Certificate = 1
    SymmetricKey = 2
    PublicKey = 3
    PrivateKey = 4
    SplitKey = 5
    Template = 6
    SecretData = 7
    OpaqueObject = 8
    PGPKey = 9
    CertificateRequest = 10


class State(IntEnum):
    PreActive = 1
    Active = 2
    Deactivated = 3
    Compromised = 4
    Destroyed = 5
    DestroyedCompromised = 6


class ResultStatus(IntEnum):
    Success = 0
    OperationFailed = 1
    OperationPending = 2
    OperationUndone = 3


class ResultReason(IntEnum):
    """0x19 and later but GeneralFailure came with 2.0."""

    ItemNotFound = 1
    ResponseTooLarge = 2
    AuthenticationNotSuccessful = 3
    InvalidMessage = 4
    OperationNotSupported = 5
    MissingData = 6
    InvalidField = 7
    FeatureNotSupported = 8
    OperationCanceledByRequester = 9
    CryptographicFailure = 0xA
    IllegalOperation = 0xB
    PermissionDenied = 0xC
    ObjectArchived = 0xD
    IndexOutOfBounds = 0xE
    ApplicationNamespaceNotSupported = 0xF
    KeyFormatTypeNotSupported = 0x10
    KeyCompressionTypeNotSupported = 0x11
    EncodingOptionError = 0x12
    KeyValueNotPresent = 0x13
    AttestationRequired = 0x14
    AttestationFailed = 0x15
    Sensitive = 0x16
    NotExtractable = 0x17
    ObjectAlreadyExists = 0x18
    InvalidTicket = 0x19
    UsageLimitExceeded = 0x1A
    NumericRange = 0x1B
    InvalidDataType = 0x1C
    ReadOnlyAttribute = 0x1D
    MultiValuedAttribute = 0x1E
    UnsupportedAttribute = 0x1F
    AttributeInstanceNotFound = 0x20
    AttributeNotFound = 0x21
    AttributeReadOnly = 0x22
    AttributeSingleValued = 0x23
    BadCryptographicParameters = 0x24
    BadPassword = 0x25
    CodecError = 0x26
    IllegalObjectType = 0x28
    IncompatibleCryptographicUsageMask = 0x29
    InternalServerError = 0x2A
    InvalidAsynchronousCorrelationValue = 0x2B
    InvalidAttribute = 0x2C
    InvalidAttributeValue = 0x2D
    InvalidCorrelationValue = 0x2E
    InvalidCSR = 0x2F
    InvalidObjectType = 0x30
    KeyWrapTypeNotSupported = 0x32
    MissingInitializationVector = 0x34
    NonUniqueNameAttribute = 0x35
    ObjectDestroyed = 0x36
    ObjectNotFound = 0x37
    NotAuthorised = 0x39
    ServerLimitExceeded = 0x3A
    UnknownEnumeration = 0x3B
    UnknownMessageExtension = 0x3C
    UnknownTag = 0x3D
    UnsupportedCryptographicParameters = 0x3E
    UnsupportedProtocolVersion = 0x3F
    WrappingObjectArchived = 0x40
    WrappingObjectDestroyed = 0x41
    WrappingObjectNotFound = 0x42
    WrongKeyLifecycleState = 0x43
    ProtectionStorageUnavailable = 0x44
    PKCS_11CodecError = 0x45
    PKCS_11InvalidFunction = 0x46
    PKCS_11InvalidInterface = 0x47
    GeneralFailure = 0x100


class BatchErrorContinuationOption(IntEnum):
    Continue = 1
    Stop = 2
    Undo = 3


class QueryFunction(IntEnum):
    QueryOperations = 1
    QueryObjects = 2
    QueryServerInformation = 3
    QueryApplicationNamespaces = 4
    QueryExtensionList = 5
    QueryExtensionMap = 6
    QueryAttestationTypes = 7
    QueryRNGs = 8
    QueryValidations = 9
    QueryProfiles = 10
    QueryCapabilities = 11
    QueryClientRegistrationMethods = 12
    QueryDefaultsInformation = 13
    QueryStorageProtectionMasks = 14


class RevocationReasonCode(IntEnum):
    Unspecified = 1
    KeyCompromise = 2
    CACompromise = 3
    AffiliationChanged = 4
    Superseded = 5
    CessationOfOperation = 6
    PrivilegeWithdrawn = 7


class NameType(IntEnum):
    UninterpretedTextString = 1
    URI = 2


class AlternativeNameType(IntEnum):
    UninterpretedTextString = 1
    URI = 2
    ObjectSerialNumber = 3
    EmailAddress = 4
    DNSName = 5
    X_500DistinguishedName = 6
    IPAddress = 7


class ObjectGroupMember(IntEnum):
    GroupMemberFresh = 1
    GroupMemberDefault = 2


class LinkType(IntEnum):
    CertificateLink = 0x101
    PublicKeyLink = 0x102
    PrivateKeyLink = 0x103
    DerivationBaseObjectLink = 0x104
    DerivedKeyLink = 0x105
    ReplacementObjectLink = 0x106
    ReplacedObjectLink = 0x107
    ParentLink = 0x108
    ChildLink = 0x109
    PreviousLink = 0x10A
    NextLink = 0x10B
    PKCS_12CertificateLink = 0x10C
    PKCS_12PasswordLink = 0x10D
    WrappingKeyLink = 0x10E


class UniqueIdentifierEnumeration(IntEnum):
    """How 2.x names an object by what made it, in place of its identifier."""

    IDPlaceholder = 1
    Certify = 2
    Create = 3
    CreateKeyPair = 4
    CreateKeyPairPrivateKey = 5
    CreateKeyPairPublicKey = 6
    CreateSplitKey = 7
    DeriveKey = 8
    Import = 9
    JoinSplitKey = 10
    Locate = 11
    Register = 12
    ReKey = 13
    ReCertify = 14
    ReKeyKeyPair = 15
    ReKeyKeyPairPrivateKey = 16
    ReKeyKeyPairPublicKey = 17


class UsageLimitsUnit(IntEnum):
    Byte = 1
    Object = 2


class ValidityIndicator(IntEnum):
    Valid = 1
    Invalid = 2
    Unknown = 3


class CredentialType(IntEnum):
    UsernameAndPassword = 1
    Device = 2
    Attestation = 3
    OneTimePassword = 4
    HashedPassword = 5
    Ticket = 6


class InteropFunction(IntEnum):
    Begin = 1
    End = 2
    Reset = 3


class ProtectionLevel(IntEnum):
    High = 1
    Low = 2


class CancellationResult(IntEnum):
    Canceled = 1
    UnableToCancel = 2
    Completed = 3
    Failed = 4
    Unavailable = 5


class CryptographicUsageMask(IntFlag):
    Sign = 0x1
    Verify = 0x2
    Encrypt = 0x4
    Decrypt = 0x8
    WrapKey = 0x10
    UnwrapKey = 0x20
    Export = 0x40
    MACGenerate = 0x80
    MACVerify = 0x100
    DeriveKey = 0x200
    ContentCommitment = 0x400
    KeyAgreement = 0x800
    CertificateSign = 0x1000
    CRLSign = 0x2000
    GenerateCryptogram = 0x4000
    ValidateCryptogram = 0x8000
    TranslateEncrypt = 0x10000
    TranslateDecrypt = 0x20000
    TranslateWrap = 0x40000
    TranslateUnwrap = 0x80000
    Authenticate = 0x100000
    Unrestricted = 0x200000
    FPEEncrypt = 0x400000
    FPEDecrypt = 0x800000


class StorageStatusMask(IntFlag):
    OnlineStorage = 0x1
    ArchivalStorage = 0x2
    DestroyedStorage = 0x4


class ProtectionStorageMask(IntFlag):
    Software = 0x1
    Hardware = 0x2
    OnProcessor = 0x4
    OnSystem = 0x8
    OffSystem = 0x10
    Hypervisor = 0x20
    OperatingSystem = 0x40
    Container = 0x80
    OnPremises = 0x100
    OffPremises = 0x200
    SelfManaged = 0x400
    Outsourced = 0x800
    Validated = 0x1000
    SameJurisdiction = 0x2000
