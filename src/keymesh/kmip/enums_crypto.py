"""Enumerations and masks of KMIP that say how keys and bytes are used, by the names that the XML form gives them.

A word that Python keeps for itself has an underscore after it (``None_``); ``tables.py`` knows names without it.
Source: KMIP 1.4, section 9.1.3.2 and 9.1.3.3; KMIP 2.1, section 11.
"""

from __future__ import annotations

from enum import IntEnum


class CryptographicAlgorithm(IntEnum):
    DES = 1
    DES3 = 2
    AES = 3
    RSA = 4
    DSA = 5
    ECDSA = 6
    HMAC_SHA1 = 7
    HMAC_SHA224 = 8
    HMAC_SHA256 = 9
    HMAC_SHA384 = 10
    HMAC_SHA512 = 11
    HMAC_MD5 = 12
    DH = 13
    ECDH = 14
    ECMQV = 15
    Blowfish = 16
    Camellia = 17
    CAST5 = 18
    IDEA = 19
    MARS = 20
    RC2 = 21
    RC4 = 22
    RC5 = 23
    SKIPJACK = 24
    Twofish = 25
    EC = 26
    OneTimePad = 27
    ChaCha20 = 28
    Poly1305 = 29
    ChaCha20Poly1305 = 30
    SHA3_224 = 31
    SHA3_256 = 32
    SHA3_384 = 33
    SHA3_512 = 34
    HMAC_SHA3_224 = 35
    HMAC_SHA3_256 = 36
    HMAC_SHA3_384 = 37
    HMAC_SHA3_512 = 38
    SHAKE_128 = 39
    SHAKE_256 = 40
    ARIA = 41
    SEED = 42
    SM2 = 43
    SM3 = 44
    SM4 = 45


class BlockCipherMode(IntEnum):
    CBC = 1
    ECB = 2
    PCBC = 3
    CFB = 4
    OFB = 5
    CTR = 6
    CMAC = 7
    CCM = 8
    GCM = 9
    CBC_MAC = 10
    XTS = 11
    AESKeyWrapPadding = 12
    NISTKeyWrap = 13
    X9_102AESKW = 14
    X9_102TDKW = 15
    X9_102AKW1 = 16
    X9_102AKW2 = 17
    AEAD = 18


class PaddingMethod(IntEnum):
    None_ = 1
    OAEP = 2
    PKCS5 = 3
    SSL3 = 4
    Zeros = 5
    ANSIX9_23 = 6
    ISO10126 = 7
    PKCS1V1_5 = 8
    X9_31 = 9
    PSS = 10


class HashingAlgorithm(IntEnum):
    MD2 = 1
    MD4 = 2
    MD5 = 3
    SHA_1 = 4
    SHA_224 = 5
    SHA_256 = 6
    SHA_384 = 7
    SHA_512 = 8
    RIPEMD_160 = 9
    Tiger = 10
    Whirlpool = 11
    SHA_512_224 = 12
    SHA_512_256 = 13
    SHA3_224 = 14
    SHA3_256 = 15
    SHA3_384 = 16
    SHA3_512 = 17


class KeyFormatType(IntEnum):
    Raw = 1
    Opaque = 2
    PKCS_1 = 3
    PKCS_8 = 4
    X_509 = 5
    ECPrivateKey = 6
    TransparentSymmetricKey = 7
    TransparentDSAPrivateKey = 8
    TransparentDSAPublicKey = 9
    TransparentRSAPrivateKey = 10
    TransparentRSAPublicKey = 11
    TransparentDHPrivateKey = 12
    TransparentDHPublicKey = 13
    TransparentECDSAPrivateKey = 14
    TransparentECDSAPublicKey = 15
    TransparentECDHPrivateKey = 16
    TransparentECDHPublicKey = 17
    TransparentECMQVPrivateKey = 18
    TransparentECMQVPublicKey = 19
    TransparentECPrivateKey = 20
    TransparentECPublicKey = 21
    PKCS_12 = 22
    PKCS_10 = 23


class KeyCompressionType(IntEnum):
    ECPublicKeyTypeUncompressed = 1
    ECPublicKeyTypeX9_62CompressedPrime = 2
    ECPublicKeyTypeX9_62CompressedChar2 = 3
    ECPublicKeyTypeX9_62Hybrid = 4


class KeyRoleType(IntEnum):
    BDK = 1
    CVK = 2
    DEK = 3
    MKAC = 4
    MKSMC = 5
    MKSMI = 6
    MKDAC = 7
    MKDN = 8
    MKCP = 9
    MKOTH = 10
    KEK = 11
    MAC16609 = 12
    MAC97971 = 13
    MAC97972 = 14
    MAC97973 = 15
    MAC97974 = 16
    MAC97975 = 17
    ZPK = 18
    PVKIBM = 19
    PVKPVV = 20
    PVKOTH = 21
    DUKPT = 22
    IV = 23
    TRKBK = 24


class KeyWrapType(IntEnum):
    NotWrapped = 1
    AsRegistered = 2


class WrappingMethod(IntEnum):
    Encrypt = 1
    MACSign = 2
    EncryptThenMACSign = 3
    MACSignThenEncrypt = 4
    TR_31 = 5


class EncodingOption(IntEnum):
    NoEncoding = 1
    TTLVEncoding = 2


class SecretDataType(IntEnum):
    Password = 1
    Seed = 2


class OpaqueDataType(IntEnum):
    """None is the one value; vendors use 0x8......."""

    None_ = 0x80000000


class RNGAlgorithm(IntEnum):
    Unspecified = 1
    FIPS186_2 = 2
    DRBG = 3
    NRBG = 4
    ANSIX9_31 = 5
    ANSIX9_62 = 6


class DRBGAlgorithm(IntEnum):
    Unspecified = 1
    Dual_EC = 2
    Hash = 3
    HMAC = 4
    CTR = 5


class MaskGenerator(IntEnum):
    MGF1 = 1


class CertificateType(IntEnum):
    X_509 = 1
    PGP = 2


class DigitalSignatureAlgorithm(IntEnum):
    MD2WithRSAEncryption = 1
    MD5WithRSAEncryption = 2
    SHA_1WithRSAEncryption = 3
    SHA_224WithRSAEncryption = 4
    SHA_256WithRSAEncryption = 5
    SHA_384WithRSAEncryption = 6
    SHA_512WithRSAEncryption = 7
    RSASSA_PSS = 8
    DSAWithSHA_1 = 9
    DSAWithSHA_224 = 10
    DSAWithSHA_256 = 11
    ECDSAWithSHA_1 = 12
    ECDSAWithSHA_224 = 13
    ECDSAWithSHA_256 = 14
    ECDSAWithSHA_384 = 15
    ECDSAWithSHA_512 = 16
    SHA3_256WithRSAEncryption = 17
    SHA3_384WithRSAEncryption = 18
    SHA3_512WithRSAEncryption = 19


class NISTKeyType(IntEnum):
    PrivateSignatureKey = 1
    PublicSignatureVerificationKey = 2
    SymmetricAuthenticationKey = 3
    PrivateAuthenticationKey = 4
    PublicAuthenticationKey = 5
    SymmetricDataEncryptionKey = 6
    SymmetricKeyWrappingKey = 7
    SymmetricRandomNumberGenerationKey = 8
    SymmetricMasterKey = 9
    PrivateKeyTransportKey = 10
    PublicKeyTransportKey = 11
    SymmetricKeyAgreementKey = 12
    PrivateStaticKeyAgreementKey = 13
    PublicStaticKeyAgreementKey = 14
    PrivateEphemeralKeyAgreementKey = 15
    PublicEphemeralKeyAgreementKey = 16
    SymmetricAuthorizationKey = 17
    PrivateAuthorizationKey = 18
    PublicAuthorizationKey = 19
