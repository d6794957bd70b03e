"""Both suites refuse the same things: the real one, and the simulator's."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from tests.unit.control.world import Key, real_key

from keymesh.control.messages import Heartbeat, Poll, PollAnswer
from keymesh.control.signing import DsseSuite, from_plain, sealed_type, to_plain
from keymesh.crypto.dsse import Envelope, Signature
from keymesh.model import strict_json
from keymesh.model.errors import Integrity, Refused
from keymesh.sim.suite import FakeSuite

POLL = Poll(mesh="m", epoch=1, set_id=1, poll_id=7)


@pytest.fixture(params=[real_key, FakeSuite], ids=["dsse", "fake"])
def make(request: pytest.FixtureRequest) -> Any:
    return request.param


def keys_of(*suites: Key) -> dict[Any, str]:
    return {s.key_id: s.public_hex for s in suites}


def test_what_is_sealed_opens_under_its_key(make: Any) -> None:
    a, b = make("a"), make("b")
    assert b.unseal(a.seal(POLL), Poll, keys_of(a, b)) == POLL
    assert make("a").key_id == a.key_id
    assert make("a").seal(POLL) == a.seal(POLL)


def test_foreign_and_mistyped_messages_do_not_open(make: Any) -> None:
    a, b = make("a"), make("b")
    sealed = a.seal(POLL)
    for shape, keys in ((Poll, keys_of(b)), (Poll, {}), (PollAnswer, keys_of(a)), (Heartbeat, keys_of(a))):
        with pytest.raises(Integrity) as caught:
            b.unseal(sealed, shape, keys)
        assert caught.value.code == "integrity"
    with pytest.raises(Integrity):
        b.unseal(sealed, Poll, {a.key_id: b.public_hex})
    with pytest.raises(Integrity):
        b.unseal(sealed, Poll, {a.key_id: "zz"})


@pytest.mark.parametrize("junk", [None, 0, "x", b"x", [], {}, {"payload": "", "payloadType": "", "signatures": []}])
def test_junk_does_not_open(make: Any, junk: Any) -> None:
    a = make("a")
    with pytest.raises(Integrity):
        a.unseal(junk, Poll, keys_of(a))


def test_a_tampered_object_does_not_open() -> None:
    a, b = FakeSuite("a"), FakeSuite("b")
    sealed = a.seal(POLL)
    other = msgspec.structs.replace(POLL, poll_id=8)
    for forged in (
        msgspec.structs.replace(sealed, message=other),
        msgspec.structs.replace(sealed, message=msgspec.structs.replace(POLL)),
        msgspec.structs.replace(sealed, key_id=b.key_id),
        msgspec.structs.replace(b.seal(POLL), key_id=a.key_id),
    ):
        with pytest.raises(Integrity):
            a.unseal(forged, Poll, keys_of(a, b))
    assert "secret" not in repr(sealed)


def test_tampered_json_does_not_open() -> None:
    a = real_key("a")
    sealed = a.seal(POLL)
    envelope = from_plain(sealed)
    assert to_plain(envelope) == sealed
    assert a.unseal(envelope, Poll, keys_of(a)) == POLL
    payload = strict_json.dumps(msgspec.structs.replace(POLL, poll_id=8))
    for forged in (
        msgspec.structs.replace(envelope, payload=payload),
        msgspec.structs.replace(envelope, payload_type=sealed_type(PollAnswer)),
        msgspec.structs.replace(envelope, signatures=()),
    ):
        with pytest.raises(Integrity):
            a.unseal(forged, Poll, keys_of(a))
    with pytest.raises(Integrity):
        a.unseal(sealed | {"extra": 1}, Poll, keys_of(a))


def test_one_form_only_even_where_it_is_signed() -> None:
    a = real_key("a")
    for payload in (b'{"epoch": 1,"mesh":"m","poll_id":7,"set_id":1}', b'{"epoch":1,"epoch":1}', b"[]", b"\xff"):
        kind = sealed_type(Poll)
        with pytest.raises(Integrity):
            a.unseal(Envelope(payload, kind, (a.sign(payload, kind),)), Poll, keys_of(a))


def test_signers_count_each_key_once(make: Any) -> None:
    a, b, c = make("a"), make("b"), make("c")
    one, two = a.sign(b"x", "t"), b.sign(b"x", "t")
    assert one.keyid == a.key_id
    assert a.signature(b"x", "t") == one
    envelope = Envelope(b"x", "t", (one, one, two))
    assert c.signers(envelope, keys_of(a, b, c)) == {a.key_id, b.key_id}
    assert c.signers(envelope, keys_of(b)) == {b.key_id}
    assert c.signers(envelope, {a.key_id: b.public_hex}) == frozenset()
    assert c.signers(Envelope(b"y", "t", (one,)), keys_of(a)) == frozenset()
    assert c.signers(Envelope(b"x", "u", (one,)), keys_of(a)) == frozenset()
    assert c.signers(Envelope(b"x", "t", (Signature(b.key_id, one.sig),)), keys_of(a, b)) == frozenset()
    with pytest.raises(Refused):
        c.signers(Envelope(b"x", "t", (one,) * 17), keys_of(a))


def test_the_real_suite_shows_no_key() -> None:
    suite = real_key("a")
    assert isinstance(suite, DsseSuite)
    assert suite.public_hex not in repr(suite)
