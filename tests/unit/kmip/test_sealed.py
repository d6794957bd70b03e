"""An object at rest: it opens as what it is, for whom it is, and as nothing else."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from keymesh.crypto.blob import seal_l4
from keymesh.crypto.kid import kid_of
from keymesh.crypto.xaes import XaesKey
from keymesh.kmip import sealed
from keymesh.kmip.enums import ObjectType, State
from keymesh.kmip.enums_crypto import KeyFormatType
from keymesh.kmip.faults import Fault
from keymesh.kmip.items import make, struct
from keymesh.kmip.objects import Attribute, ManagedObject, packed
from keymesh.kmip.ports import Scope
from keymesh.kmip.tags import Tag
from keymesh.kmip.ttlv import encode
from keymesh.model.errors import Integrity
from keymesh.model.limits import KMIP_NAMES_MAX, KMIP_OBJECT_MAX_BYTES
from tests.unit.kmip.support import CountedChance

FILES, MAIL, GLOBEX = Scope("acme", "files"), Scope("acme", "mail"), Scope("globex", "files")
KEY = hashlib.sha256(b"an L3").digest()
CHANCE = CountedChance()


def wrapping(key: bytes = KEY) -> sealed.Wrapping:
    return sealed.Wrapping(XaesKey(key), kid_of(key))


def held(*names: str, uid: str = "u1", data: bytes | None = b"inner") -> ManagedObject:
    attributes = tuple(
        Attribute(struct(Tag.Name, make(Tag.NameValue, name), make(Tag.NameType, 1)), n) for n, name in enumerate(names)
    )
    state = Attribute(make(Tag.State, State.Active))
    return ManagedObject(uid, ObjectType.SymmetricKey, (*attributes, state), data, KeyFormatType.Raw, version=3)


def test_an_object_opens_as_what_it_was_with_its_version() -> None:
    for one in (held("a", "b"), held(data=None), held()):
        raw = sealed.seal_object(wrapping(), FILES, one, 3, CHANCE)
        assert sealed.open_object(wrapping(), FILES, "u1", 3, raw) == one
        assert sealed.kid_in(raw) == kid_of(KEY)
        assert b"inner" not in raw


@pytest.mark.parametrize(
    ("key", "scope", "uid", "version"),
    [
        (KEY, MAIL, "u1", 3),
        (KEY, GLOBEX, "u1", 3),
        (KEY, FILES, "u2", 3),
        (KEY, FILES, "u1", 2),
        (KEY, FILES, "u1", 4),
        (bytes(32), FILES, "u1", 3),
    ],
)
def test_it_opens_for_nobody_else(key: bytes, scope: Scope, uid: str, version: int) -> None:
    raw = sealed.seal_object(wrapping(), FILES, held(), 3, CHANCE)
    with pytest.raises(Integrity) as refused:
        sealed.open_object(wrapping(key), scope, uid, version, raw)
    assert refused.value.message == Integrity.opaque().message


@given(st.data())
def test_no_changed_bit_opens(data: st.DataObject) -> None:
    raw = bytearray(sealed.seal_object(wrapping(), FILES, held("a"), 3, CHANCE))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(Integrity):
        sealed.open_object(wrapping(), FILES, "u1", 3, bytes(raw))


@given(st.binary(max_size=200))
def test_what_is_no_parcel_is_refused_in_one_answer(raw: bytes) -> None:
    for ask in (
        lambda: sealed.kid_in(raw),
        lambda: sealed.open_material(wrapping(), FILES, "u1", raw),
        lambda: sealed.open_object(wrapping(), FILES, "u1", 1, raw),
    ):
        with pytest.raises(Integrity):
            ask()


def test_key_bytes_are_bound_to_their_object_and_are_no_object() -> None:
    raw = sealed.seal_material(wrapping(), FILES, "u1", b"key bytes", CHANCE)
    assert sealed.open_material(wrapping(), FILES, "u1", raw) == b"key bytes"
    for scope, uid in ((MAIL, "u1"), (GLOBEX, "u1"), (FILES, "u2")):
        with pytest.raises(Integrity):
            sealed.open_material(wrapping(), scope, uid, raw)
    with pytest.raises(Integrity):
        sealed.open_object(wrapping(), FILES, "u1", 1, raw)
    whole = sealed.seal_object(wrapping(), FILES, held(), 1, CHANCE)
    with pytest.raises(Integrity):
        sealed.open_material(wrapping(), FILES, "u1", whole)


def test_what_is_larger_than_an_object_may_be_is_refused_by_name() -> None:
    with pytest.raises(Fault, match="bytes"):
        sealed.seal_object(wrapping(), FILES, held(data=bytes(KMIP_OBJECT_MAX_BYTES)), 1, CHANCE)
    with pytest.raises(Fault, match="Name"):
        sealed.seal_object(wrapping(), FILES, held(*map(str, range(KMIP_NAMES_MAX + 1))), 1, CHANCE)


def test_a_names_token_says_nothing_and_is_its_services_own() -> None:
    tokens = {
        sealed.name_token(key, scope, name)
        for key in (KEY, bytes(32))
        for scope in (FILES, MAIL, GLOBEX)
        for name in ("a", "b", "")
    }
    assert len(tokens) == 18
    assert {len(token) for token in tokens} == {32}
    assert sealed.name_token(KEY, FILES, "a") == sealed.name_token(KEY, FILES, "a")
    assert sealed.name_token(KEY, Scope("ab", "c"), "d") != sealed.name_token(KEY, Scope("a", "bc"), "d")


def test_the_form_is_the_one_that_is_written_down() -> None:
    """Built from docs/formats.md with nothing of ours but the L4 blob and the parcel around it, and opened by ours."""
    l3, l4 = KEY, bytes(range(32))
    ttlv = encode(packed(held("a")))
    for context, payload, opens in (
        ({"keymesh": "kmip-object/1", "service": "files", "uid": "u1", "version": "3"}, b"\x01" + ttlv, True),
        ({"keymesh": "kmip-object/1", "service": "files", "uid": "u1", "version": "3"}, b"\x02" + ttlv, False),
        ({"keymesh": "kmip-object/1", "service": "files", "uid": "u1", "version": "3"}, b"\x01" + ttlv[:-8], False),
        ({"keymesh": "kmip-object/2", "service": "files", "uid": "u1", "version": "3"}, b"\x01" + ttlv, False),
        ({"service": "files", "uid": "u1", "version": "3"}, b"\x01" + ttlv, False),
    ):
        blob = seal_l4(XaesKey(l3), kid_of(l3), "acme", context, l4, bytes(24))
        parcel = b"\x01\x01" + blob + bytes(12) + AESGCM(l4).encrypt(bytes(12), payload, b"\x01\x01" + blob)
        if opens:
            assert sealed.open_object(wrapping(), FILES, "u1", 3, parcel) == held("a")
        else:
            with pytest.raises(Integrity):
                sealed.open_object(wrapping(), FILES, "u1", 3, parcel)
    prk = hmac.digest(bytes(32), l3, "sha256")
    key = hmac.digest(prk, b"keymesh/kmip-names/1\x01", "sha256")
    said = b"\0\0\0\4acme\0\0\0\5files\0\0\0\1a"
    assert sealed.name_token(l3, FILES, "a") == hmac.digest(key, said, "sha256")
