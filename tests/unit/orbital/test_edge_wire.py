"""The grant body and the bodies of core-held custody: only their one form is read."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keymesh.control.rows import ServiceRow
from keymesh.model import strict_json
from keymesh.model.errors import KeymeshError, Refused
from keymesh.orbital import edge_wire as wire
from keymesh.orbital.edge_messages import LeasedVersion, LeaseGrant, LeaseRefused
from keymesh.orbital.wire import MESSAGES

GRANT = LeaseGrant(
    lease_id="l1",
    nonce="n1",
    tenant="acme",
    service="files",
    ttl_ms=5_000,
    versions=(
        LeasedVersion(kid="a" * 32, version=1, may_wrap=False),
        LeasedVersion(kid="b" * 32, version=2, may_wrap=True),
    ),
    policy=ServiceRow(version=1, custody="leased", edge_ttl_ms=60_000),
    policy_entry={"payload": "e30=", "payloadType": "x", "signatures": []},
)
KEYS = (b"\1" * 32, b"\2" * 32)


def body() -> bytearray:
    return wire.encode_grant(GRANT, [memoryview(key) for key in KEYS])


def test_a_grant_travels_with_its_keys_in_order() -> None:
    raw = body()
    assert raw[-64:] == KEYS[0] + KEYS[1]
    taken = wire.decode_grant(raw)
    assert taken.grant == GRANT
    assert [bytes(key) for key in taken.keys] == list(KEYS)
    assert "GrantBody 2 keys" in repr(taken)


def test_the_keys_are_views_that_can_be_wiped() -> None:
    raw = body()
    taken = wire.decode_grant(raw)
    for key in taken.keys:
        key[:] = bytes(32)
    assert raw[-64:] == bytes(64)


@given(st.integers(0, 600), st.binary(max_size=40))
def test_a_cut_or_lengthened_grant_is_refused(cut: int, more: bytes) -> None:
    raw = body()
    changed = raw[: min(cut, len(raw) - 1)] + more
    if len(changed) == len(raw):
        return  # other key bytes: for the kid to notice
    with pytest.raises(KeymeshError):
        wire.decode_grant(bytearray(changed))


def test_a_length_that_lies_is_refused_before_anything_is_read() -> None:
    for lie in (0, 1, 2**31, 2**32 - 1):
        raw = body()
        raw[:4] = lie.to_bytes(4, "big")
        with pytest.raises(KeymeshError):
            wire.decode_grant(raw)


def test_another_message_is_no_grant() -> None:
    head = MESSAGES.encode(LeaseRefused(nonce="n", code="closed", retry_after_ms=1))
    with pytest.raises(KeymeshError):
        wire.decode_grant(bytearray(len(head).to_bytes(4, "big") + head))


def test_keys_must_fit_the_versions() -> None:
    for keys in ([], [memoryview(bytes(32))], [memoryview(bytes(32)), memoryview(bytes(31))]):
        with pytest.raises(Refused):
            wire.encode_grant(GRANT, keys)


@given(st.binary(max_size=100))
def test_base64_has_one_form(raw: bytes) -> None:
    text = wire.to_base64(raw)
    assert wire.from_base64("x", text, max_bytes=100) == raw
    for bad in (text + "\n", text + "=", " " + text, text.rstrip("=") + "*"):
        with pytest.raises(Refused):
            wire.from_base64("x", bad, max_bytes=100)


def test_requests_have_limits() -> None:
    blob = wire.to_base64(os.urandom(90))
    good = strict_json.dumps(wire.OpenRequest(blobs=(blob,), context={"k": "v"}))
    blobs, context = wire.decode_open(good, blob_bytes=90)
    assert len(blobs[0]) == 90
    assert context == {"k": "v"}
    for bad in (
        strict_json.dumps(wire.OpenRequest(blobs=())),
        strict_json.dumps(wire.OpenRequest(blobs=(wire.to_base64(os.urandom(200)),))),
        strict_json.dumps({"blobs": [blob], "more": 1}),
        strict_json.dumps({"blobs": [blob], "context": {"k": 1}}),
        b"[]",
    ):
        with pytest.raises(Refused):
            wire.decode_open(bad, blob_bytes=90)
    assert wire.decode_create(strict_json.dumps(wire.CreateRequest(count=3))).count == 3
    for count in (0, -1, 10_001):
        with pytest.raises(Refused):
            wire.decode_create(strict_json.dumps(wire.CreateRequest(count=count)))
