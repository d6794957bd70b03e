"""Receipts and the chain of records: limits by field, and nothing out of turn."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from keymesh.crypto.dsse import Ed25519Signer, Envelope
from keymesh.ledger import receipts
from keymesh.ledger.receipts import RECEIPT_TYPE, Chain, Outcome, Receipt, Record
from keymesh.model import strict_json
from keymesh.model.errors import Integrity, Refused
from keymesh.model.ids import ZERO_DIGEST, CorrelationId, Digest, Namespace
from keymesh.model.time import Instant

SIGNER = Ed25519Signer.from_seed(b"\1" * 32)


def receipt(number: int = 1, **over: Any) -> Receipt:
    base: dict[str, Any] = {
        "id": f"r-{number}",
        "at": Instant(1_700_000_000_000 + number),
        "actor": "spiffe://mesh.test/admin/ann",
        "action": "suspend",
        "namespace": Namespace("acme"),
        "outcome": Outcome.DONE,
        "correlation_id": CorrelationId("c-1"),
        "lamport": number,
    }
    return Receipt(**(base | over))


def signed(chain: Chain, one: Receipt) -> Envelope:
    return SIGNER.sign(chain.next_payload(one), RECEIPT_TYPE)


def test_a_chain_moves_record_by_record() -> None:
    chain = Chain("eu-west")
    heads = [chain.head]
    for number in (1, 2, 3):
        record = chain.accept(signed(chain, receipt(number, causes=("r-0",), digest=Digest("ab" * 32))))
        assert (record.seq, record.prev) == (number, heads[-1])
        heads.append(chain.head)
    assert heads[0] == ZERO_DIGEST
    assert len(set(heads)) == 4
    assert (chain.seq, chain.lamport) == (3, 3)


def test_out_of_turn_is_integrity() -> None:
    chain = Chain("eu-west")
    first = signed(chain, receipt(1))
    fork = signed(chain, receipt(9))
    chain.accept(first)
    second = signed(chain, receipt(2))
    chain.accept(second)
    for bad in (first, second, fork, Envelope(second.payload, "text/plain", second.signatures)):
        with pytest.raises(Integrity, match="record 3"):
            chain.accept(bad)
    with pytest.raises(Integrity):
        Chain("us-east").accept(first)
    other = Chain("eu-west")
    with pytest.raises(Integrity):
        other.accept(second)
    assert chain.seq == 2


@pytest.mark.parametrize("payload", [b"", b"{}", b"[]", b'{"origin":"eu-west","seq":1}', b"\xff"])
def test_malformed_records_are_integrity(payload: bytes) -> None:
    with pytest.raises(Integrity):
        Chain("eu-west").accept(Envelope(payload, RECEIPT_TYPE, ()))


def test_an_unknown_field_is_integrity() -> None:
    chain = Chain("eu-west")
    raw = strict_json.loads(chain.next_payload(receipt()), max_bytes=10_000)
    raw["receipt"]["secret"] = "x"
    with pytest.raises(Integrity):
        chain.accept(Envelope(strict_json.dumps(raw), RECEIPT_TYPE, ()))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", ""),
        ("id", "a b"),
        ("id", "x" * 129),
        ("actor", ""),
        ("actor", "x" * 257),
        ("actor", "ann\nroot"),
        ("action", ""),
        ("namespace", ""),
        ("subject", "x" * 257),
        ("reason", "line\r\nbreak"),
        ("correlation_id", ""),
        ("lamport", 0),
        ("at", -1),
        ("causes", tuple(f"r-{i}" for i in range(33))),
        ("causes", ("not a token",)),
        ("digest", "abc"),
    ],
)
def test_limits_by_field(field: str, value: Any) -> None:
    with pytest.raises(Refused) as caught:
        Chain("eu-west").next_payload(receipt(**{field: value}))
    assert caught.value.field == field


def test_what_is_signed_is_one_form() -> None:
    record = Record(origin="eu-west", seq=1, prev=ZERO_DIGEST, receipt=receipt())
    payload = receipts.record_payload(record)
    assert strict_json.decode(payload, Record, max_bytes=10_000) == record
    assert strict_json.dumps(strict_json.loads(payload, max_bytes=10_000)) == payload


def test_lamport_follows_what_was_seen() -> None:
    assert receipts.next_lamport(()) == 1
    assert receipts.next_lamport((receipt(7), receipt(3))) == 8
    assert msgspec.structs.replace(receipt(7), lamport=8).lamport == 8
