"""PyKMIP's client, 1.0 to 1.4 and 2.0: what it makes, uses and ends, and how it takes a refusal."""

from __future__ import annotations

import hashlib
import hmac
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap
from kmip.core import objects as core_objects
from kmip.core.enums import (
    AttributeType,
    BlockCipherMode,
    CryptographicAlgorithm,
    CryptographicUsageMask,
    EncodingOption,
    KMIPVersion,
    OpaqueDataType,
    PaddingMethod,
    ResultReason,
    RevocationReasonCode,
    SecretDataType,
    State,
    WrappingMethod,
)
from kmip.core.exceptions import OperationFailure
from kmip.core.factories.attributes import AttributeFactory
from kmip.pie.client import ProxyKmipClient
from kmip.pie.exceptions import KmipOperationFailure
from kmip.pie.objects import OpaqueObject, SecretData, SymmetricKey
from tests.integration.kmip_clients.served import Served

ALL = list(KMIPVersion)
USING = [version for version in ALL if version.value >= KMIPVersion.KMIP_1_2.value]  # Encrypt came with 1.2
AES, MASKS = CryptographicAlgorithm.AES, [CryptographicUsageMask.ENCRYPT, CryptographicUsageMask.DECRYPT]
CBC = {
    "cryptographic_algorithm": AES,
    "block_cipher_mode": BlockCipherMode.CBC,
    "padding_method": PaddingMethod.PKCS5,
}


@contextmanager
def client(served: Served, version: KMIPVersion, **more: Any) -> Iterator[ProxyKmipClient]:
    made = ProxyKmipClient(
        hostname=served.host,
        port=served.port,
        cert=str(served.identity_file),
        key=str(served.identity_file),
        ca=str(served.ca_file),
        config_file=os.devnull,
        kmip_version=version,
        **more,
    )
    with made:
        yield made


@contextmanager
def refused(*reasons: ResultReason) -> Iterator[None]:
    with pytest.raises(KmipOperationFailure) as failure:
        yield
    assert failure.value.reason in reasons


@contextmanager
def refused_plainly(reason: str) -> Iterator[None]:
    with pytest.raises(OperationFailure) as failure:
        yield
    assert failure.value.reason.name == reason


def reason_for(version: KMIPVersion, in_2: ResultReason, before: ResultReason) -> ResultReason:
    return in_2 if version is KMIPVersion.KMIP_2_0 else before


def fresh_name() -> str:
    return f"key-{uuid.uuid4()}"


def attribute(kind: AttributeType, value: object) -> Any:
    return AttributeFactory().create_attribute(kind, value)


@pytest.mark.parametrize("version", ALL)
def test_a_key_from_its_making_to_its_end(served: Served, version: KMIPVersion) -> None:
    name = fresh_name()
    with client(served, version) as peer:
        uid = peer.create(AES, 256, name=name, cryptographic_usage_mask=MASKS)
        assert peer.locate(attributes=[attribute(AttributeType.NAME, name)]) == [uid]
        key = peer.get(uid)
        assert (key.cryptographic_algorithm, key.cryptographic_length, len(key.value)) == (AES, 256, 32)
        assert peer.get(uid).value == key.value
        peer.activate(uid)
        with refused(reason_for(version, ResultReason.WRONG_KEY_LIFECYCLE_STATE, ResultReason.PERMISSION_DENIED)):
            peer.destroy(uid)
        peer.revoke(RevocationReasonCode.CESSATION_OF_OPERATION, uid, revocation_message="done with")
        peer.destroy(uid)
        with refused(reason_for(version, ResultReason.OBJECT_DESTROYED, ResultReason.PERMISSION_DENIED)):
            peer.get(uid)
        assert peer.locate(attributes=[attribute(AttributeType.NAME, name)]) == []


@pytest.mark.parametrize("version", ALL)
def test_what_is_registered_comes_back(served: Served, version: KMIPVersion) -> None:
    with client(served, version) as peer:
        for given in (
            SymmetricKey(AES, 128, bytes(range(16)), masks=MASKS, name=fresh_name()),
            SecretData(
                b"swordfish", SecretDataType.PASSWORD, masks=[CryptographicUsageMask.DERIVE_KEY], name=fresh_name()
            ),
            OpaqueObject(b"\x00opaque\xff", OpaqueDataType.NONE, name=fresh_name()),
        ):
            got = peer.get(peer.register(given))
            assert (type(got), got.value) == (type(given), given.value)


@pytest.mark.parametrize("version", ALL[1:])
def test_a_key_is_given_out_wrapped(served: Served, version: KMIPVersion) -> None:
    with client(served, version) as peer:
        kek = bytes(range(32))
        masks = [CryptographicUsageMask.WRAP_KEY, CryptographicUsageMask.UNWRAP_KEY]
        kek_uid = peer.register(SymmetricKey(AES, 256, kek, masks=masks, name=fresh_name()))
        peer.activate(kek_uid)
        plain = bytes(range(100, 116))
        uid = peer.register(SymmetricKey(AES, 128, plain, masks=MASKS, name=fresh_name()))
        specification = {
            "wrapping_method": WrappingMethod.ENCRYPT,
            "encryption_key_information": {
                "unique_identifier": kek_uid,
                "cryptographic_parameters": {"block_cipher_mode": BlockCipherMode.NIST_KEY_WRAP},
            },
            "encoding_option": EncodingOption.NO_ENCODING,  # 1.0 has none, and PyKMIP reads nothing that is encoded
        }
        wrapped = peer.get(uid, key_wrapping_specification=specification)
        assert aes_key_unwrap(kek, wrapped.value) == plain
        said = wrapped.key_wrapping_data["encryption_key_information"]
        assert said["unique_identifier"] == kek_uid


@pytest.mark.parametrize("version", USING)
def test_encrypt_and_decrypt(served: Served, version: KMIPVersion) -> None:
    with client(served, version) as peer:
        uid = peer.create(AES, 256, cryptographic_usage_mask=MASKS)
        with refused(reason_for(version, ResultReason.WRONG_KEY_LIFECYCLE_STATE, ResultReason.PERMISSION_DENIED)):
            peer.encrypt(b"too early", uid, CBC, bytes(16))
        peer.activate(uid)
        sealed, iv = peer.encrypt(b"attack at dawn", uid, CBC, bytes(range(16)))
        assert iv is None and sealed != b"attack at dawn"
        assert peer.decrypt(sealed, uid, CBC, bytes(range(16))) == b"attack at dawn"
        sealed, iv = peer.encrypt(b"at noon", uid, CBC | {"random_iv": True})
        assert len(iv) == 16
        assert peer.decrypt(sealed, uid, CBC, iv) == b"at noon"
        with refused(ResultReason.CRYPTOGRAPHIC_FAILURE):
            peer.decrypt(sealed[:-1] + bytes((sealed[-1] ^ 1,)) + bytes(16), uid, CBC, iv)


@pytest.mark.parametrize("version", USING)
def test_mac(served: Served, version: KMIPVersion) -> None:
    with client(served, version) as peer:
        key = bytes(range(32))
        masks = [CryptographicUsageMask.MAC_GENERATE]
        given = SymmetricKey(CryptographicAlgorithm.HMAC_SHA256, 256, key, masks=masks, name=fresh_name())
        uid = peer.register(given)
        peer.activate(uid)
        who, made = peer.mac(b"signed", uid, CryptographicAlgorithm.HMAC_SHA256)
        assert (who, made) == (uid, hmac.digest(key, b"signed", hashlib.sha256))


@pytest.mark.parametrize("version", ALL)
def test_attributes(served: Served, version: KMIPVersion) -> None:
    name, second = fresh_name(), fresh_name()
    with client(served, version) as peer:
        uid = peer.create(AES, 192, name=name, cryptographic_usage_mask=MASKS)
        names = peer.get_attribute_list(uid)
        assert {"Cryptographic Algorithm", "Cryptographic Length", "Name", "State", "Unique Identifier"} <= set(names)
        _, found = peer.get_attributes(uid, ["State", "Cryptographic Length"])
        values = {each.attribute_name.value: each.attribute_value.value for each in found}
        assert values == {"State": State.PRE_ACTIVE, "Cryptographic Length": 192}
        if version is KMIPVersion.KMIP_2_0:
            peer.set_attribute(uid, attribute_name="Sensitive", attribute_value=True)
            _, found = peer.get_attributes(uid, ["Sensitive"])
            assert [each.attribute_value.value for each in found] == [True]
            reference = core_objects.AttributeReference(vendor_identification="x", attribute_name="none")
            with refused_plainly("ATTRIBUTE_NOT_FOUND"):
                peer.delete_attribute(uid, attribute_reference=reference)
        else:
            changed = attribute(AttributeType.NAME, second)
            changed.attribute_index = core_objects.Attribute.AttributeIndex(0)
            peer.modify_attribute(uid, attribute=changed)
            assert peer.locate(attributes=[attribute(AttributeType.NAME, second)]) == [uid]
            assert peer.locate(attributes=[attribute(AttributeType.NAME, name)]) == []
            peer.delete_attribute(uid, attribute_name="Name", attribute_index=0)
            assert "Name" not in peer.get_attribute_list(uid)


@pytest.mark.parametrize("version", ALL)
def test_locate_by_what_a_key_is(served: Served, version: KMIPVersion) -> None:
    with client(served, version) as peer:
        made = [peer.create(AES, 128, cryptographic_usage_mask=MASKS) for _ in range(3)]
        wanted = [
            attribute(AttributeType.CRYPTOGRAPHIC_ALGORITHM, AES),
            attribute(AttributeType.CRYPTOGRAPHIC_LENGTH, 128),
            attribute(AttributeType.STATE, State.PRE_ACTIVE),
        ]
        assert set(made) <= set(peer.locate(attributes=wanted))
        assert peer.locate(attributes=wanted, maximum_items=2) == made[:0:-1]


@pytest.mark.parametrize("version", [version for version in ALL if version is not KMIPVersion.KMIP_2_0])
def test_rekey_and_check(served: Served, version: KMIPVersion) -> None:
    name = fresh_name()
    with client(served, version) as peer:
        uid = peer.create(AES, 256, name=name, cryptographic_usage_mask=MASKS)
        peer.activate(uid)
        assert peer.check(uid, cryptographic_usage_mask=[CryptographicUsageMask.ENCRYPT]) == uid
        with pytest.raises(AttributeError):  # a fault of PyKMIP's: it reads the payload that a refusal does not have
            peer.check(uid, cryptographic_usage_mask=[CryptographicUsageMask.WRAP_KEY])
        newer = peer.rekey(uid)
        assert peer.get(newer).value != peer.get(uid).value
        assert peer.locate(attributes=[attribute(AttributeType.NAME, name)]) == [newer]


@pytest.mark.parametrize("version", ALL)
def test_refusals_as_the_client_tells_them(served: Served, version: KMIPVersion) -> None:
    with client(served, version) as peer:
        absent = reason_for(version, ResultReason.OBJECT_NOT_FOUND, ResultReason.ITEM_NOT_FOUND)
        for act in (
            peer.get,
            peer.activate,
            peer.destroy,
            lambda uid: peer.revoke(RevocationReasonCode.UNSPECIFIED, uid),
        ):
            with refused(absent):
                act("0" * 32)
        name = fresh_name()
        peer.create(AES, 256, name=name, cryptographic_usage_mask=MASKS)
        taken = reason_for(version, ResultReason.NON_UNIQUE_NAME_ATTRIBUTE, ResultReason.ILLEGAL_OPERATION)
        with refused(taken):
            peer.create(AES, 256, name=name, cryptographic_usage_mask=MASKS)
        with refused(ResultReason.INVALID_FIELD):
            peer.create(AES, 255, cryptographic_usage_mask=MASKS)
        with refused(ResultReason.OPERATION_NOT_SUPPORTED, ResultReason.INVALID_FIELD):
            peer.create_key_pair(CryptographicAlgorithm.RSA, 2_048)


def test_encrypt_before_its_version(served: Served) -> None:
    with client(served, KMIPVersion.KMIP_1_1) as peer:
        with refused(ResultReason.OPERATION_NOT_SUPPORTED):
            peer.encrypt(b"data", "0" * 32, CBC, bytes(16))


@pytest.mark.parametrize("version", ALL)
def test_a_password_beside_the_certificate(served: Served, version: KMIPVersion) -> None:
    with client(served, version, username=served.name, password="unused") as peer:
        uid = peer.create(AES, 128, cryptographic_usage_mask=MASKS)
        assert len(peer.get(uid).value) == 16
    with client(served, version, username="somebody else", password="unused") as peer:
        with refused(ResultReason.AUTHENTICATION_NOT_SUCCESSFUL):
            peer.create(AES, 128, cryptographic_usage_mask=MASKS)


def test_a_name_that_the_client_gives_by_itself_is_one_objects_alone(served: Served) -> None:
    """Its Register names what the caller does not, each by its type: the second of a type needs a name."""
    with client(served, KMIPVersion.KMIP_1_2) as peer:
        uid = peer.register(SymmetricKey(AES, 128, bytes(16), masks=MASKS))
        with refused(ResultReason.ILLEGAL_OPERATION):
            peer.register(SymmetricKey(AES, 128, bytes(range(16)), masks=MASKS))
        peer.destroy(uid)
        peer.destroy(peer.register(SymmetricKey(AES, 128, bytes(range(16)), masks=MASKS)))
