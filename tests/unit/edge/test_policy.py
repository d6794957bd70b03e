"""The policy verifier: each step of the procedure refuses on its own."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.unit.edge.world import POLICY

from keymesh.control.entry import ENTRY_PAYLOAD_TYPE, Body, Entry, encode_entry
from keymesh.control.rows import ServiceRow
from keymesh.control.signing import DsseSuite, to_plain
from keymesh.crypto.dsse import Ed25519Signer, Envelope
from keymesh.edge.policy import policy_verifier, verify_policy
from keymesh.model.errors import KeymeshError
from keymesh.model.ids import ZERO_DIGEST, Digest
from keymesh.orbital.edge_messages import LeaseGrant

REGISTRY = Ed25519Signer(Ed25519PrivateKey.from_private_bytes(b"r" * 32))
STRANGER = Ed25519Signer(Ed25519PrivateKey.from_private_bytes(b"s" * 32))
KEYS = {REGISTRY.key_id: REGISTRY.public_key.hex()}
SUITE = DsseSuite(STRANGER)


def policy_entry(signer: Ed25519Signer = REGISTRY, *, row: ServiceRow = POLICY, **changes: Any) -> Envelope:
    fields: dict[str, Any] = {
        "mesh": "dev",
        "epoch": 1,
        "namespace": "acme",
        "seq": 2,
        "prev": ZERO_DIGEST,
        "mesh_seq": 1,
        "kind": "service.set",
        "body": Body(args={"service": "files", "row": msgspec.to_builtins(row)}),
        "state": Digest("1" * 64),
        "actor": "operator",
        "correlation_id": "c1",
        "command_id": "c1",
        "issued_at": 0,
    }
    return signer.sign(encode_entry(Entry(**fields | changes)), ENTRY_PAYLOAD_TYPE)


def grant(entry: Any, policy: ServiceRow = POLICY) -> LeaseGrant:
    return LeaseGrant(
        lease_id="l1",
        nonce="n",
        tenant="acme",
        service="files",
        ttl_ms=1_000,
        versions=(),
        policy=policy,
        policy_entry=entry,
    )


def verify(entry: Any, policy: ServiceRow = POLICY) -> None:
    verify_policy(grant(entry, policy), mesh="dev", registry_keys=KEYS, suite=SUITE)


def test_the_registrys_word_is_accepted_in_every_form_that_it_travels_in() -> None:
    envelope = policy_entry()
    for form in (envelope, to_plain(envelope), msgspec.to_builtins(envelope)):
        verify(form)
    policy_verifier(mesh="dev", registry_keys=KEYS, suite=SUITE)(grant(envelope))


@pytest.mark.parametrize(
    "entry",
    [
        None,
        {},
        "text",
        policy_entry(STRANGER),
        policy_entry(mesh="other"),
        policy_entry(namespace="other"),
        policy_entry(kind="tenant.labels"),
        policy_entry(row=ServiceRow(version=1, custody="leased", edge_ttl_ms=60_001)),
        policy_entry(body=Body(args={"service": "other", "row": msgspec.to_builtins(POLICY)})),
        policy_entry(body=Body(args={"service": "files"})),
        Envelope(b"{}", ENTRY_PAYLOAD_TYPE, policy_entry().signatures),
        Envelope(policy_entry().payload, "text/plain", policy_entry().signatures),
        Envelope(policy_entry().payload.replace(b"60000", b"60001"), ENTRY_PAYLOAD_TYPE, policy_entry().signatures),
        Envelope(policy_entry().payload, ENTRY_PAYLOAD_TYPE, ()),
    ],
)
def test_anything_else_is_refused(entry: Any) -> None:
    with pytest.raises(KeymeshError):
        verify(entry)


def test_a_policy_that_differs_from_the_entry_is_refused() -> None:
    with pytest.raises(KeymeshError):
        verify(policy_entry(), ServiceRow(version=1, custody="leased", edge_ttl_ms=60_000, mint_budget=1))
