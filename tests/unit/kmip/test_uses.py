"""Encrypt, Decrypt, MAC, Hash: against the cryptography package alone, whole and in parts, and what is refused."""

from __future__ import annotations

import hashlib
import hmac
from enum import IntEnum

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.cmac import CMAC
from hypothesis import given, settings
from hypothesis import strategies as st

from keymesh.kmip import uses as uses_module
from keymesh.kmip.enums import CryptographicUsageMask as Mask
from keymesh.kmip.enums import (
    Operation,
    ResultReason,
    ResultStatus,
    RevocationReasonCode,
    UsageLimitsUnit,
    ValidityIndicator,
)
from keymesh.kmip.enums_crypto import BlockCipherMode, CryptographicAlgorithm, HashingAlgorithm, PaddingMethod
from keymesh.kmip.items import make, struct
from keymesh.kmip.streams import IDLE_S, STREAMS_OF_ONE_MAX
from keymesh.kmip.tags import Tag
from keymesh.kmip.ttlv import Item
from tests.unit.kmip.support import ALICE, ALL_USES, MALLORY, NOW_S, Answer, Lab, brought_key, new_key, reason

KEY = bytes(range(32))
DATA = bytes(range(100, 148))


def params(**fields: int | bytes) -> Item:
    return struct(Tag.CryptographicParameters, *(make(Tag[name], value) for name, value in fields.items()))


GCM = params(BlockCipherMode=BlockCipherMode.GCM, TagLength=16)
CBC = params(BlockCipherMode=BlockCipherMode.CBC, PaddingMethod=PaddingMethod.PKCS5)


async def key(lab: Lab, *more: Item, mask: int = ALL_USES, material: bytes = KEY) -> str:
    attributes = (make(Tag.CryptographicUsageMask, mask), make(Tag.ActivationDate, NOW_S), *more)
    return (await lab.ask(Operation.Register, *brought_key(material, *attributes))).uid


async def chacha(lab: Lab, algorithm: CryptographicAlgorithm) -> str:
    attributes = (
        make(Tag.CryptographicAlgorithm, algorithm),
        make(Tag.CryptographicLength, 256),
        make(Tag.CryptographicUsageMask, ALL_USES),
        make(Tag.ActivationDate, NOW_S),
    )
    return (await lab.ask(Operation.Create, *new_key(*attributes))).uid


def data(value: bytes = DATA) -> Item:
    return make(Tag.Data, value)


async def test_gcm_is_gcm() -> None:
    lab = Lab()
    uid = await key(lab)
    iv, aad = bytes(12), b"context"
    fields = (GCM, make(Tag.IVCounterNonce, iv), make(Tag.AuthenticatedEncryptionAdditionalData, aad))
    sealed = await lab.do(Operation.Encrypt, uid, *fields, data())
    out, tag = sealed.value(Tag.Data), sealed.value(Tag.AuthenticatedEncryptionTag)
    assert isinstance(out, bytes) and isinstance(tag, bytes)
    assert out + tag == AESGCM(KEY).encrypt(iv, DATA, aad)
    tagged = make(Tag.AuthenticatedEncryptionTag, tag)
    opened = await lab.do(Operation.Decrypt, uid, *fields, data(out), tagged)
    assert opened.value(Tag.Data) == DATA
    for bad in (
        (GCM, make(Tag.IVCounterNonce, bytes(12)), data(out), tagged),  # no additional data
        (*fields, data(out[:-1]), tagged),
        (*fields, data(out), make(Tag.AuthenticatedEncryptionTag, tag[:-1] + b"\0")),
        (*fields, data(out), make(Tag.AuthenticatedEncryptionTag, tag[:4])),
        (*fields, data(out), make(Tag.AuthenticatedEncryptionTag, b"")),
    ):
        failed = await lab.do(Operation.Decrypt, uid, *bad)
        assert failed.reason is ResultReason.CryptographicFailure
        assert failed.value(Tag.Data) is None
    assert (await lab.do(Operation.Decrypt, uid, *fields, data(out))).reason is ResultReason.InvalidMessage


@pytest.mark.parametrize("tag_bytes", [0, 1, 11, 17, 32, -1])
async def test_tags_are_12_to_16_bytes(tag_bytes: int) -> None:
    lab = Lab()
    uid = await key(lab)
    asked = params(BlockCipherMode=BlockCipherMode.GCM, TagLength=tag_bytes, RandomIV=True)
    assert (await lab.do(Operation.Encrypt, uid, asked, data())).reason is ResultReason.GeneralFailure


async def test_a_mode_with_a_tag_needs_a_version_with_a_tag() -> None:
    lab = Lab(version=(1, 3))
    uid = await lab.key()
    failed = await lab.do(Operation.Encrypt, uid, GCM, make(Tag.IVCounterNonce, bytes(12)), data())
    assert failed.reason is ResultReason.InvalidField


@pytest.mark.parametrize("tag_bytes", [12, 16])
async def test_chacha20_poly1305_with_whole_and_short_tags(tag_bytes: int) -> None:
    lab = Lab()
    uid = await chacha(lab, CryptographicAlgorithm.ChaCha20Poly1305)
    material = (await lab.do(Operation.Get, uid)).value(Tag.KeyMaterial)
    assert isinstance(material, bytes)
    nonce = make(Tag.IVCounterNonce, bytes(12))
    asked = params(BlockCipherMode=BlockCipherMode.AEAD, TagLength=tag_bytes)
    sealed = await lab.do(Operation.Encrypt, uid, asked, nonce, data())
    out, tag = sealed.value(Tag.Data), sealed.value(Tag.AuthenticatedEncryptionTag)
    assert isinstance(out, bytes) and isinstance(tag, bytes) and len(tag) == tag_bytes
    assert (out + tag) == ChaCha20Poly1305(material).encrypt(bytes(12), DATA, b"")[: len(DATA) + tag_bytes]
    good = await lab.do(Operation.Decrypt, uid, asked, nonce, data(out), make(Tag.AuthenticatedEncryptionTag, tag))
    assert good.value(Tag.Data) == DATA
    for at in range(tag_bytes):
        bent = bytearray(tag)
        bent[at] ^= 1
        bad = make(Tag.AuthenticatedEncryptionTag, bytes(bent))
        failed = await lab.do(Operation.Decrypt, uid, asked, nonce, data(out), bad)
        assert failed.reason is ResultReason.CryptographicFailure


@pytest.mark.parametrize(
    "mode",
    [BlockCipherMode.ECB, BlockCipherMode.CBC, BlockCipherMode.CTR, BlockCipherMode.XTS],
)
async def test_what_was_encrypted_is_decrypted(mode: BlockCipherMode) -> None:
    lab = Lab()
    uid = await key(lab)
    asked = params(BlockCipherMode=mode, RandomIV=True)
    sealed = await lab.do(Operation.Encrypt, uid, asked, data())
    iv = sealed.value(Tag.IVCounterNonce)
    assert (iv is None) == (mode is BlockCipherMode.ECB)
    ivs = (make(Tag.IVCounterNonce, iv),) if isinstance(iv, bytes) else ()
    out = sealed.value(Tag.Data)
    assert isinstance(out, bytes) and out != DATA
    assert (await lab.do(Operation.Decrypt, uid, asked, *ivs, data(out))).value(Tag.Data) == DATA


async def test_a_random_iv_is_another_every_time() -> None:
    lab = Lab()
    uid = await key(lab)
    asked = params(BlockCipherMode=BlockCipherMode.GCM, RandomIV=True)
    ivs = {(await lab.do(Operation.Encrypt, uid, asked, data())).value(Tag.IVCounterNonce) for _ in range(20)}
    assert len(ivs) == 20


async def test_padding_that_is_wrong_says_no_more_than_that() -> None:
    lab = Lab()
    uid = await key(lab)
    iv = make(Tag.IVCounterNonce, bytes(16))
    reasons: set[tuple[object, object]] = set()
    for last in range(64):
        failed = await lab.do(Operation.Decrypt, uid, CBC, iv, data(bytes(31) + bytes((last,))))
        if failed.status is not ResultStatus.Success:
            reasons.add((failed.reason, failed.value(Tag.ResultMessage)))
    reasons.add(_told(await lab.do(Operation.Decrypt, uid, CBC, iv, data(bytes(15)))))
    assert reasons == {(ResultReason.CryptographicFailure, "could not be opened")}


def _told(answer: Answer) -> tuple[object, object]:
    return answer.reason, answer.value(Tag.ResultMessage)


@pytest.mark.parametrize(
    ("asked", "more", "told"),
    [
        ((), (), ResultReason.UnsupportedCryptographicParameters),
        ((CBC,), (), ResultReason.InvalidMessage),
        ((CBC,), (make(Tag.IVCounterNonce, bytes(8)),), ResultReason.InvalidField),
        ((GCM,), (make(Tag.IVCounterNonce, b""),), ResultReason.InvalidField),
        ((params(BlockCipherMode=BlockCipherMode.PCBC),), (), ResultReason.UnsupportedCryptographicParameters),
        ((params(BlockCipherMode=0xFFFF),), (), ResultReason.UnknownEnumeration),
        (
            (params(BlockCipherMode=BlockCipherMode.GCM, PaddingMethod=PaddingMethod.PKCS5),),
            (),
            ResultReason.UnsupportedCryptographicParameters,
        ),
        ((params(CryptographicAlgorithm=CryptographicAlgorithm.DES3),), (), ResultReason.InvalidField),
    ],
)
async def test_parameters_that_are_not_served(
    asked: tuple[Item, ...], more: tuple[Item, ...], told: ResultReason
) -> None:
    lab = Lab()
    uid = await key(lab)
    assert (await lab.do(Operation.Encrypt, uid, *asked, *more, data())).reason is told


async def test_parameters_that_hold_bytes_are_remembered_nowhere() -> None:
    lab = Lab()
    uid = await key(lab)
    before = uses_module._known.cache_info().currsize
    for at in range(3):
        large = params(BlockCipherMode=BlockCipherMode.ECB, PSource=bytes((at,)) * 10_000)
        assert (await lab.do(Operation.Encrypt, uid, large, data(bytes(16)))).status is ResultStatus.Success
    assert uses_module._known.cache_info().currsize == before


@pytest.mark.parametrize(
    ("operation", "bit"),
    [
        (Operation.Encrypt, Mask.Encrypt),
        (Operation.Decrypt, Mask.Decrypt),
        (Operation.MAC, Mask.MACGenerate),
        (Operation.MACVerify, Mask.MACVerify),
    ],
)
async def test_a_use_needs_its_bit_and_no_other(operation: Operation, bit: Mask) -> None:
    asked: tuple[Item, ...] = (params(BlockCipherMode=BlockCipherMode.ECB), data())
    if operation in (Operation.MAC, Operation.MACVerify):
        asked = (params(CryptographicAlgorithm=CryptographicAlgorithm.HMAC_SHA256), data())
    asked += (make(Tag.MACData, b"m"),) if operation is Operation.MACVerify else ()
    lab = Lab()
    without = await key(lab, mask=ALL_USES & ~bit)
    refused = await lab.do(operation, without, *asked)
    assert refused.reason is ResultReason.IncompatibleCryptographicUsageMask
    assert (await lab.do(operation, await key(lab, mask=bit), *asked)).status is ResultStatus.Success


async def test_usage_limits_count_down_and_stay_down() -> None:
    ecb = params(BlockCipherMode=BlockCipherMode.ECB)
    for unit, total, uses in ((UsageLimitsUnit.Byte, 48 * 3, 3), (UsageLimitsUnit.Object, 2, 2)):
        lab = Lab()
        limits = struct(Tag.UsageLimits, make(Tag.UsageLimitsTotal, total), make(Tag.UsageLimitsUnit, unit))
        uid = await key(lab, limits)
        for _ in range(uses):
            assert (await lab.do(Operation.Encrypt, uid, ecb, data())).reason is None
        assert (await lab.do(Operation.Encrypt, uid, ecb, data())).reason is ResultReason.PermissionDenied
        assert (await lab.do(Operation.Decrypt, uid, ecb, data())).reason is None
        more = await lab.do(Operation.ModifyAttribute, uid, struct(Tag.NewAttribute, limits))
        assert more.reason is ResultReason.WrongKeyLifecycleState


async def test_mac_hash_and_verify() -> None:
    lab = Lab()
    uid = await key(lab, params(CryptographicAlgorithm=CryptographicAlgorithm.HMAC_SHA512))
    made = (await lab.do(Operation.MAC, uid, data())).value(Tag.MACData)
    assert made == hmac.new(KEY, DATA, hashlib.sha512).digest()
    assert isinstance(made, bytes)
    for claimed, told in (
        (made, ValidityIndicator.Valid),
        (made[:-1], ValidityIndicator.Invalid),
        (b"", ValidityIndicator.Invalid),
        (bytes(64), ValidityIndicator.Invalid),
    ):
        answer = await lab.do(Operation.MACVerify, uid, data(), make(Tag.MACData, claimed))
        assert answer.value(Tag.ValidityIndicator) == told
    cmac = await lab.do(Operation.MAC, uid, params(BlockCipherMode=BlockCipherMode.CMAC), data())
    expected = CMAC(AES(KEY))
    expected.update(DATA)
    assert cmac.value(Tag.MACData) == expected.finalize()
    hashed = await lab.ask(Operation.Hash, params(HashingAlgorithm=HashingAlgorithm.SHA3_256), data())
    assert hashed.value(Tag.Data) == hashlib.sha3_256(DATA).digest()
    md5 = await lab.ask(Operation.Hash, params(HashingAlgorithm=HashingAlgorithm.MD5), data())
    assert md5.reason is ResultReason.UnsupportedCryptographicParameters


BEGIN, END = make(Tag.InitIndicator, True), make(Tag.FinalIndicator, True)


def goes_on(answer: Answer) -> Item:
    value = answer.value(Tag.CorrelationValue)
    assert isinstance(value, bytes)
    return make(Tag.CorrelationValue, value)


async def test_parts_are_the_whole() -> None:
    lab = Lab()
    uid = await key(lab)
    iv = make(Tag.IVCounterNonce, bytes(12))
    first = await lab.do(Operation.Encrypt, uid, GCM, iv, data(DATA[:10]), BEGIN)
    second = await lab.do(Operation.Encrypt, uid, data(DATA[10:30]), goes_on(first))
    third = await lab.do(Operation.Encrypt, uid, data(DATA[30:]), goes_on(second), END)
    tag = third.value(Tag.AuthenticatedEncryptionTag)
    out = b"".join(bytes(each.value(Tag.Data)) for each in (first, second, third))  # type: ignore[call-overload]
    assert isinstance(tag, bytes)
    assert out + tag == AESGCM(KEY).encrypt(bytes(12), DATA, b"")
    ended = await lab.do(Operation.Encrypt, uid, data(), goes_on(second), END)
    assert ended.reason is ResultReason.InvalidCorrelationValue
    tagged = make(Tag.AuthenticatedEncryptionTag, tag)
    opening = await lab.do(Operation.Decrypt, uid, GCM, iv, data(out[:20]), tagged, BEGIN)
    assert opening.value(Tag.Data) == b""  # nothing that is not verified yet
    opened = await lab.do(Operation.Decrypt, uid, data(out[20:]), goes_on(opening), END)
    assert opened.value(Tag.Data) == DATA
    mac = await lab.do(
        Operation.MAC, uid, params(CryptographicAlgorithm=CryptographicAlgorithm.HMAC_SHA256), data(DATA[:5]), BEGIN
    )
    whole = await lab.do(Operation.MAC, uid, data(DATA[5:]), goes_on(mac), END)
    assert whole.value(Tag.MACData) == hmac.new(KEY, DATA, hashlib.sha256).digest()
    hashing = await lab.ask(Operation.Hash, params(HashingAlgorithm=HashingAlgorithm.SHA_256), data(DATA[:5]), BEGIN)
    hashed = await lab.ask(Operation.Hash, data(DATA[5:]), goes_on(hashing), END)
    assert hashed.value(Tag.Data) == hashlib.sha256(DATA).digest()


async def test_a_use_in_parts_is_its_callers_its_keys_and_its_operations() -> None:
    lab = Lab()
    uid, other = await key(lab), await key(lab)
    iv = make(Tag.IVCounterNonce, bytes(16))
    first = goes_on(await lab.do(Operation.Encrypt, uid, CBC, iv, data(), BEGIN))
    lab_of_mallory = await lab.key(caller=MALLORY)
    for stolen in (
        await lab.do(Operation.Encrypt, other, data(), first),
        await lab.do(Operation.Decrypt, uid, data(), first),
        await lab.do(Operation.Encrypt, lab_of_mallory, data(), first, caller=MALLORY),
        await lab.do(Operation.Encrypt, uid, data(), make(Tag.CorrelationValue, b"guess")),
    ):
        assert stolen.reason is ResultReason.InvalidCorrelationValue
    await lab.do(Operation.Revoke, uid, reason(RevocationReasonCode.KeyCompromise))
    assert (await lab.do(Operation.Encrypt, uid, data(), first)).reason is ResultReason.WrongKeyLifecycleState


async def test_uses_in_parts_are_few_and_end_by_themselves() -> None:
    lab = Lab()
    uid = await key(lab)
    iv = make(Tag.IVCounterNonce, bytes(16))
    open_ = [await lab.do(Operation.Encrypt, uid, CBC, iv, data(), BEGIN) for _ in range(STREAMS_OF_ONE_MAX)]
    over = await lab.do(Operation.Encrypt, uid, CBC, iv, data(), BEGIN)
    assert over.reason is ResultReason.ServerLimitExceeded
    lab.clock.now_s += IDLE_S
    late = await lab.do(Operation.Encrypt, uid, data(), goes_on(open_[-1]))
    assert late.reason is ResultReason.InvalidCorrelationValue
    assert (await lab.do(Operation.Encrypt, uid, CBC, iv, data(), BEGIN)).reason is None


async def test_a_restriction_ends_uses_in_parts() -> None:
    lab = Lab()
    iv = make(Tag.IVCounterNonce, bytes(16))
    uid, theirs = await key(lab), await lab.key(caller=MALLORY)
    mine = goes_on(await lab.do(Operation.Encrypt, uid, CBC, iv, data(), BEGIN))
    other = goes_on(await lab.do(Operation.Encrypt, theirs, CBC, iv, data(), BEGIN, caller=MALLORY))
    lab.world.streams.end(ALICE.scope)
    assert (await lab.do(Operation.Encrypt, uid, data(), mine)).reason is ResultReason.InvalidCorrelationValue
    assert (await lab.do(Operation.Encrypt, theirs, data(), other, caller=MALLORY)).reason is None


def _some(words: type[IntEnum]) -> st.SearchStrategy[int]:
    return st.one_of(st.sampled_from([int(word) for word in words]), st.integers(0, 99))


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([Operation.Encrypt, Operation.Decrypt, Operation.MAC, Operation.MACVerify, Operation.Hash]),
    st.fixed_dictionaries(
        {},
        optional={
            "BlockCipherMode": _some(BlockCipherMode),
            "PaddingMethod": _some(PaddingMethod),
            "HashingAlgorithm": _some(HashingAlgorithm),
            "CryptographicAlgorithm": _some(CryptographicAlgorithm),
            "RandomIV": st.booleans(),
            "TagLength": st.integers(-1, 20),
            "IVLength": st.integers(-1, 2**31 - 1),
        },
    ),
    st.fixed_dictionaries(
        {"Data": st.binary(max_size=70)},
        optional={
            "IVCounterNonce": st.one_of(st.sampled_from([bytes(8), bytes(12), bytes(16)]), st.binary(max_size=140)),
            "AuthenticatedEncryptionAdditionalData": st.binary(max_size=20),
            "AuthenticatedEncryptionTag": st.binary(max_size=20),
            "MACData": st.binary(max_size=70),
            "InitIndicator": st.booleans(),
            "FinalIndicator": st.booleans(),
            "CorrelationValue": st.binary(max_size=17),
        },
    ),
    st.sampled_from([1, 16, 24, 32, 64]),
    st.sampled_from([None, CryptographicAlgorithm.ChaCha20, CryptographicAlgorithm.ChaCha20Poly1305]),
)
async def test_any_use_is_answered(
    operation: Operation,
    asked: dict[str, int],
    fields: dict[str, bytes | bool],
    n_bytes: int,
    algorithm: CryptographicAlgorithm | None,
) -> None:
    lab = Lab()
    uid = await key(lab, material=bytes(n_bytes)) if algorithm is None else await chacha(lab, algorithm)
    named_key = () if operation is Operation.Hash else (make(Tag.UniqueIdentifier, uid),)
    items = (params(**asked), *(make(Tag[name], value) for name, value in fields.items()))
    answer = await lab.ask(operation, *named_key, *items)
    again = answer.value(Tag.CorrelationValue)
    if isinstance(again, bytes):
        more = make(Tag.Data, b"more"), make(Tag.CorrelationValue, again), END
        await lab.ask(operation, *named_key, *more)


async def test_indicators_that_contradict() -> None:
    lab = Lab()
    uid = await key(lab)
    iv = make(Tag.IVCounterNonce, bytes(16))
    value = make(Tag.CorrelationValue, b"v")
    for fields in ((BEGIN, END, data()), (BEGIN, value, data()), (END, data()), (), (value,), (value, iv, data())):
        asked = await lab.do(Operation.Encrypt, uid, CBC, *fields)
        assert asked.reason in (ResultReason.InvalidMessage, ResultReason.InvalidCorrelationValue)
    assert ALICE.scope in lab.store.held
