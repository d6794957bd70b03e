"""Envelopes: who vouches, one form on the wire, and nothing counts twice."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from keymesh.crypto import dsse
from keymesh.model.errors import Refused
from keymesh.model.ids import KeyId
from keymesh.model.limits import SIGNATURES_MAX

ALICE, BOB, EVE = (dsse.Ed25519Signer.from_seed(bytes((i,)) * 32) for i in (1, 2, 3))
KEYS = {signer.key_id: signer.public_key for signer in (ALICE, BOB)}
TYPE = "application/vnd.keymesh.test+json"


def both() -> dsse.Envelope:
    return dsse.add_signature(ALICE.sign(b"{}", TYPE), BOB.signature(b"{}", TYPE))


def test_pae_is_the_standards_example() -> None:
    """The example of DSSE's protocol text, and lengths in bytes, not characters."""
    expected = b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    assert dsse.pae(b"hello world", "http://example.com/HelloWorld") == expected
    assert dsse.pae(b"", "é") == b"DSSEv1 2 \xc3\xa9 0 "


def test_distinct_keys_vouch() -> None:
    assert dsse.verify_envelope(both(), KEYS) == {ALICE.key_id, BOB.key_id}
    assert dsse.verify_envelope(ALICE.sign(b"{}", TYPE), KEYS) == {ALICE.key_id}
    assert dsse.verify_envelope(EVE.sign(b"{}", TYPE), KEYS) == frozenset()
    assert dsse.verify_envelope(both(), {}) == frozenset()


def test_a_key_counts_once() -> None:
    signature = ALICE.signature(b"{}", TYPE)
    twice = dsse.Envelope(b"{}", TYPE, (signature, signature))
    assert dsse.verify_envelope(twice, KEYS) == {ALICE.key_id}
    alias = KeyId("0" * 64)
    under_two_names = {**KEYS, alias: ALICE.public_key}
    aliased = dsse.Envelope(b"{}", TYPE, (signature, dsse.Signature(alias, signature.sig)))
    assert dsse.verify_envelope(aliased, under_two_names) == {ALICE.key_id}


def test_a_bad_signature_does_not_hide_a_good_one() -> None:
    good = ALICE.signature(b"{}", TYPE)
    bad = dsse.Signature(ALICE.key_id, bytes(64))
    for order in ((bad, good), (good, bad)):
        assert dsse.verify_envelope(dsse.Envelope(b"{}", TYPE, order), KEYS) == {ALICE.key_id}


def test_payload_type_and_key_are_bound() -> None:
    envelope = ALICE.sign(b"{}", TYPE)
    for changed in (
        dsse.Envelope(b"{ }", TYPE, envelope.signatures),
        dsse.Envelope(b"{}", TYPE + "x", envelope.signatures),
        dsse.Envelope(b"{}", TYPE, (dsse.Signature(BOB.key_id, envelope.signatures[0].sig),)),
        dsse.Envelope(b"{}", TYPE, (dsse.Signature(ALICE.key_id, envelope.signatures[0].sig[:-1]),)),
        dsse.Envelope(b"{}", TYPE, ()),
    ):
        assert dsse.verify_envelope(changed, KEYS) == frozenset()


def test_the_boundary_of_type_and_payload_cannot_move() -> None:
    assert dsse.pae(b"b c", "a") != dsse.pae(b"c", "a b")


def test_every_bit_flip_of_a_signature_is_noticed() -> None:
    good = ALICE.signature(b"{}", TYPE)
    for bit in range(512):
        sig = bytearray(good.sig)
        sig[bit // 8] ^= 1 << bit % 8
        changed = dsse.Envelope(b"{}", TYPE, (dsse.Signature(ALICE.key_id, bytes(sig)),))
        assert not dsse.verify_envelope(changed, KEYS)


@pytest.mark.parametrize("public", [bytes(32), b"\1" + bytes(31), b"short", b"\xff" * 32])
def test_weak_or_broken_keys_vouch_for_nothing(public: bytes) -> None:
    """Under the identity as public key, R = identity and s = 0 would sign anything."""
    forged = dsse.Signature(dsse.key_id(public), b"\1" + bytes(63))
    assert not dsse.verify_envelope(dsse.Envelope(b"x", TYPE, (forged,)), {forged.keyid: public})


def test_limits_of_signatures() -> None:
    many = tuple(dsse.Signature(KeyId(f"{i:064x}"), bytes(64)) for i in range(SIGNATURES_MAX))
    full = dsse.Envelope(b"{}", TYPE, many)
    with pytest.raises(Refused):
        dsse.add_signature(full, ALICE.signature(b"{}", TYPE))
    over = dsse.Envelope(b"{}", TYPE, (*many, ALICE.signature(b"{}", TYPE)))
    with pytest.raises(Refused):
        dsse.verify_envelope(over, KEYS)
    with pytest.raises(Refused):
        dsse.envelope_from_json(dsse.envelope_to_json(over))
    assert dsse.envelope_from_json(dsse.envelope_to_json(full)) == full


def test_adding_again_replaces() -> None:
    envelope = dsse.add_signature(both(), dsse.Signature(ALICE.key_id, bytes(64)))
    assert [s.keyid for s in envelope.signatures] == [BOB.key_id, ALICE.key_id]


@given(st.binary(max_size=200), st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40))
def test_json_round_trip(payload: bytes, kind: str) -> None:
    envelope = ALICE.sign(payload, kind)
    again = dsse.envelope_from_json(dsse.envelope_to_json(envelope))
    assert again == envelope
    assert dsse.verify_envelope(again, KEYS) == {ALICE.key_id}


def test_json_is_standard_dsse() -> None:
    wire = json.loads(dsse.envelope_to_json(both()))
    assert set(wire) == {"payload", "payloadType", "signatures"}
    assert [set(signature) for signature in wire["signatures"]] == [{"keyid", "sig"}] * 2
    assert base64.b64decode(wire["payload"]) == b"{}"


WIRE: dict[str, Any] = json.loads(dsse.envelope_to_json(ALICE.sign(b"abcd", TYPE)))
SIGNED: dict[str, str] = WIRE["signatures"][0]


@pytest.mark.parametrize(
    "change",
    [
        {"payload": "YWJjZA"},  # padding missing
        {"payload": "YWJjZB=="},  # unused bits set
        {"payload": "YWJj\nZA=="},
        {"payload": "YWJjZA=== "},
        {"payload": "_-8="},  # the URL form
        {"payload": 7},
        {"payload": None},
        {"payloadType": ""},
        {"payloadType": "x" * 129},
        {"signatures": []},
        {"signatures": [{**SIGNED, "sig": "AA=="}]},
        {"signatures": [{**SIGNED, "keyid": "AB" * 32}]},
        {"signatures": [{**SIGNED, "keyid": "../../etc"}]},
        {"signatures": [{**SIGNED, "cert": "x"}]},
        {"signatures": [{"sig": SIGNED["sig"]}]},
        {"extra": 1},
    ],
)
def test_json_of_another_form_is_refused(change: dict[str, Any]) -> None:
    dsse.envelope_from_json(json.dumps(WIRE).encode())
    with pytest.raises(Refused):
        dsse.envelope_from_json(json.dumps(WIRE | change).encode())


def test_json_bytes_of_another_form_are_refused() -> None:
    raw = dsse.envelope_to_json(both())
    for bad in (
        raw + b"x",
        b"\xef\xbb\xbf" + raw,
        raw[:-1],
        b"",
        b"[" * 100_000,
        raw.replace(b"{", b'{"payload":"",', 1),
    ):
        with pytest.raises(Refused):
            dsse.envelope_from_json(bad)
    with pytest.raises(Refused):
        dsse.envelope_from_json(raw, max_bytes=len(raw) - 1)


def test_keys_from_pem() -> None:
    key = Ed25519PrivateKey.from_private_bytes(b"\1" * 32)
    plain = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"pass"))
    assert dsse.Ed25519Signer.from_pem(plain).key_id == ALICE.key_id
    assert dsse.Ed25519Signer.from_pem(locked, b"pass").key_id == ALICE.key_id
    other = ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for pem, password in ((locked, None), (locked, b"no"), (plain, b"pass"), (b"not a PEM", None), (other, None)):
        with pytest.raises(Refused) as caught:
            dsse.Ed25519Signer.from_pem(pem, password)
        assert caught.value.field == "signing_key"
    with pytest.raises(Refused):
        dsse.Ed25519Signer.from_seed(bytes(31))


def test_the_suite_signs_only_with_its_own_keys() -> None:
    suite: dsse.Suite = dsse.Ed25519Suite([ALICE])
    envelope = dsse.Envelope(b"{}", TYPE, (suite.sign(ALICE.key_id, b"{}", TYPE),))
    assert suite.verify(envelope, KEYS) == {ALICE.key_id}
    with pytest.raises(Refused) as caught:
        suite.sign(BOB.key_id, b"{}", TYPE)
    assert caught.value.code == "no-signing-key"


def test_a_signer_shows_nothing() -> None:
    import copy
    import pickle

    assert ALICE.key_id[:16] in repr(ALICE)
    for leak in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            leak(ALICE)


def test_the_plain_form_is_what_the_readers_of_the_json_have_and_is_held_to_the_same() -> None:
    envelope = both()
    plain = dsse.envelope_to_plain(envelope)
    assert plain == json.loads(dsse.envelope_to_json(envelope))
    assert dsse.envelope_from_plain(plain) == envelope
    size = len(dsse.envelope_to_json(envelope))
    assert dsse.envelope_from_plain(plain, max_bytes=size) == envelope
    bad: list[Any] = [
        None,
        [],
        "text",
        plain | {"more": 1},
        plain | {"payload": 1.0},
        plain | {"payload": "not base64"},
        plain | {"payloadType": ""},
        plain | {"signatures": []},
        plain | {"signatures": plain["signatures"] * SIGNATURES_MAX},
        plain | {"signatures": [plain["signatures"][0] | {"extra": ""}]},
        {name: plain[name] for name in ("payload", "signatures")},
    ]
    for value in bad:
        with pytest.raises(Refused):
            dsse.envelope_from_plain(value)
    with pytest.raises(Refused):
        dsse.envelope_from_plain(plain, max_bytes=size - 1)
    with pytest.raises(Refused):
        dsse.envelope_to_plain(ALICE.sign(bytes(dsse.ENVELOPE_MAX_BYTES), TYPE))
