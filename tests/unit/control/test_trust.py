"""Who must have signed what: thresholds, roles, and every way to fall short of them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from tests.unit.control.world import FAR, Key, Mesh, resigned, row_of

from keymesh.control import build, trust
from keymesh.control.entry import AUTHORITY_PAYLOAD_TYPE, SignedEntry
from keymesh.control.kinds import KINDS
from keymesh.control.rows import DelegationRow, SignersRow, encode, get
from keymesh.control.signing import from_plain, to_plain
from keymesh.control.state import NamespaceState
from keymesh.crypto.dsse import Envelope
from keymesh.model.errors import Integrity, KeymeshError

WIDE = {"scope": "region:us-west", "reason": "", "abandon_children": False}


@pytest.fixture(params=[True, False], ids=["dsse", "fake"])
def mesh(request: pytest.FixtureRequest) -> Mesh:
    made = Mesh(real=request.param)
    made.tenant()
    return made


def verify(mesh: Mesh, signed: SignedEntry, **kwargs: Any) -> None:
    signers = get(mesh.states["acme"].rows, "signers", SignersRow)
    trust.verify_entry(signed, mesh.mesh.rows, signers, mesh.registry, **kwargs)


def code(mesh: Mesh, signed: SignedEntry, **kwargs: Any) -> str:
    with pytest.raises(KeymeshError) as caught:
        verify(mesh, signed, **kwargs)
    return caught.value.code


def with_authority(mesh: Mesh, state: NamespaceState, *envelopes: Envelope) -> SignedEntry:
    body = msgspec.structs.replace(state.head.entry.body, authority=tuple(to_plain(e) for e in envelopes))
    return resigned(state, mesh.registry, body=body).head


def word(_: Mesh, state: NamespaceState, signers: list[Key], /, **changed: Any) -> Envelope:
    """An authority for ``state``'s head, of which ``changed`` is wrong."""
    e = state.head.entry
    fields: dict[str, Any] = {
        "mesh": e.mesh, "namespace": e.namespace, "command_id": e.command_id, "kind": e.kind, "args": e.body.args,
        "not_after": FAR,
    }  # fmt: skip
    return trust.make_authority(**(fields | changed), signers=signers)


def test_what_everybody_signed_verifies(mesh: Mesh) -> None:
    verify(mesh, mesh.states["acme"].head)
    verify(mesh, mesh.mesh.head, pins=mesh.pins)
    verify(mesh, mesh.service().head)
    verify(mesh, mesh.restrict("suspend", "tenant:acme").head)
    verify(mesh, mesh.restrict("suspend", "region:us-west").head)
    verify(mesh, mesh.do("acme", "l1.switch", {"binding_id": "b2", "provider": "dev", "descriptor": {}}).head)


def test_unsigned_wrong_key_and_tampered(mesh: Mesh) -> None:
    state = mesh.service()
    entry, envelope = state.head.entry, state.head.envelope
    assert code(mesh, build.sign_entry(entry)) == "bad-signature"
    for stranger in (mesh.officers[0], mesh.roots[0], mesh.signer, mesh.key("nobody")):
        assert code(mesh, build.sign_entry(entry, stranger)) == "bad-signature"
    moved = build.sign_entry(msgspec.structs.replace(entry, seq=9))
    mixed = Envelope(moved.envelope.payload, envelope.payload_type, envelope.signatures)
    assert code(mesh, SignedEntry(entry=moved.entry, hash=moved.hash, envelope=mixed)) == "bad-signature"


def test_delegations_limit_kind_and_scope(mesh: Mesh) -> None:
    signed = mesh.service().head
    for change in ({"kinds": ("suspend",)}, {"scope": "mesh"}):
        row = row_of(mesh.mesh.rows, "delegation/registry", DelegationRow)
        rows = dict(mesh.mesh.rows) | {"delegation/registry": encode(msgspec.structs.replace(row, **change))}
        with pytest.raises(Integrity) as caught:
            trust.verify_entry(signed, rows, None, mesh.registry)
        assert caught.value.code == "not-delegated"
    with pytest.raises(Integrity):
        trust.verify_entry(signed, {}, None, mesh.registry)


def test_an_online_threshold_of_two(mesh: Mesh) -> None:
    other = mesh.key("registry-2")
    row = DelegationRow(
        keys={mesh.registry.key_id: mesh.registry.public_hex, other.key_id: other.public_hex},
        threshold=2,
        kinds=("*",),
        scope="any",
    )
    rows = dict(mesh.mesh.rows) | {"delegation/registry": encode(row)}
    entry = mesh.service().head.entry
    trust.verify_entry(build.sign_entry(entry, mesh.registry, other), rows, None, mesh.registry)
    for short in (build.sign_entry(entry, mesh.registry), build.sign_entry(entry, mesh.registry, mesh.registry)):
        with pytest.raises(Integrity):
            trust.verify_entry(short, rows, None, mesh.registry)


def test_wide_scopes_need_two_officers(mesh: Mesh) -> None:
    for kind in ("suspend", "revoke"):
        for text in ("region:us-west", "mesh"):
            state = mesh.plan("mesh", kind, WIDE | {"scope": text})
            o, stranger = mesh.officers, mesh.key("nobody")
            for signers in ([], [o[0]], [o[0], o[0]], [o[0], stranger], list(mesh.roots), [mesh.registry]):
                assert code(mesh, with_authority(mesh, state, word(mesh, state, signers))) == "below-threshold"
            assert code(mesh, with_authority(mesh, state)) == "below-threshold"
            verify(mesh, with_authority(mesh, state, word(mesh, state, [o[0], o[2]])))
            apart = (word(mesh, state, [o[0]]), word(mesh, state, [o[2]], not_after=FAR - 1))
            verify(mesh, with_authority(mesh, state, *apart))
            twice = (word(mesh, state, [o[0]]), word(mesh, state, [o[0]], not_after=FAR - 1))
            assert code(mesh, with_authority(mesh, state, *twice)) == "below-threshold"


@pytest.mark.parametrize(
    "changed",
    [
        {"mesh": "m2"},
        {"namespace": "acme"},
        {"command_id": "other"},
        {"kind": "revoke"},
        {"args": WIDE | {"scope": "mesh"}},
        {"args": {"scope": "region:us-west"}},
    ],
)
def test_an_approval_is_for_one_command_whole(mesh: Mesh, changed: dict[str, Any]) -> None:
    state = mesh.plan("mesh", "suspend", WIDE)
    assert code(mesh, with_authority(mesh, state, word(mesh, state, mesh.officers[:2], **changed))) == "below-threshold"


def test_malformed_approvals_count_for_nothing(mesh: Mesh) -> None:
    state = mesh.plan("mesh", "suspend", WIDE)
    good = word(mesh, state, mesh.officers[:2])
    other_type = Envelope(good.payload, "application/json", good.signatures)
    loose = good.payload.replace(b'{"', b'{ "')
    unform = Envelope(
        loose, AUTHORITY_PAYLOAD_TYPE, tuple(o.sign(loose, AUTHORITY_PAYLOAD_TYPE) for o in mesh.officers)
    )
    for bad in (other_type, unform):
        assert code(mesh, with_authority(mesh, state, bad)) == "below-threshold"
    body = msgspec.structs.replace(state.head.entry.body, authority=({"payload": 1},))
    assert code(mesh, resigned(state, mesh.registry, body=body).head) == "below-threshold"
    assert code(mesh, with_authority(mesh, state, *[good] * 17)) == "bad-field"


def test_approvals_expire_where_now_is_asked_for_and_at_their_own_instant(mesh: Mesh) -> None:
    state = mesh.plan("mesh", "suspend", WIDE)
    e = state.head.entry
    quorum = trust.quorum_for(KINDS["suspend"], e.body.args, mesh_rows=mesh.mesh.rows, tenant_signers=None)
    assert quorum is not None
    envelope = to_plain(word(mesh, state, mesh.officers[:2], not_after=1_000))

    def check(now: int | None) -> None:
        trust.verify_authority(
            mesh=e.mesh, namespace="mesh", command_id=e.command_id, kind="suspend", args=e.body.args,
            authority=(envelope,), quorum=quorum, suite=mesh.registry, now=now,
        )  # fmt: skip

    check(None)
    check(999)
    for late in (1_000, 1_001):
        with pytest.raises(KeymeshError):
            check(late)


def test_l1_is_the_tenants_to_switch(mesh: Mesh) -> None:
    args = {"binding_id": "b2", "provider": "dev", "descriptor": {}}
    for signers in ([], mesh.officers, mesh.roots, [mesh.registry], [mesh.key("nobody")]):
        state = mesh.plan("acme", "l1.switch", args, signers=list(signers))
        assert code(mesh, state.head) == "below-threshold"
    good = mesh.plan("acme", "l1.switch", args)
    verify(mesh, good.head)
    with pytest.raises(KeymeshError):
        trust.verify_entry(good.head, mesh.mesh.rows, None, mesh.registry)


def test_a_tenant_is_created_under_its_own_signers(mesh: Mesh) -> None:
    args = mesh.tenant_args()
    state = mesh.plan("other", "tenant.create", args, signers=[mesh.key("nobody")])
    assert code(mesh, state.head) == "below-threshold"


def test_mesh_rows_are_the_roots_to_give(mesh: Mesh) -> None:
    args = {"region": "ap", "row": {"domain": "ap", "failure_domain": "ap", "ca_fingerprint": "0"}, "nodes": {}}
    for signers in ([], mesh.officers, mesh.roots[:1], [mesh.roots[0], mesh.roots[0]]):
        assert code(mesh, mesh.plan("mesh", "region.join", args, signers=list(signers)).head) == "below-threshold"
    verify(mesh, mesh.plan("mesh", "region.join", args).head)


def test_genesis_is_the_pinned_roots(mesh: Mesh) -> None:
    head = mesh.mesh.head
    foreign = trust.Pins(mesh=mesh.name, root_keys={mesh.signer.key_id: mesh.signer.public_hex}, threshold=1)
    lower = trust.Pins(mesh=mesh.name, root_keys=mesh.pins.root_keys, threshold=1)
    assert code(mesh, head, pins=foreign) == "foreign-root"
    assert code(mesh, head, pins=lower) == "foreign-root"
    assert code(mesh, with_authority(mesh, mesh.mesh), pins=mesh.pins) == "below-threshold"
    one = word(mesh, mesh.mesh, mesh.roots[:1])
    assert code(mesh, with_authority(mesh, mesh.mesh, one), pins=mesh.pins) == "below-threshold"
    verify(mesh, with_authority(mesh, mesh.mesh, word(mesh, mesh.mesh, mesh.roots[1:])), pins=mesh.pins)
    with pytest.raises(KeymeshError):
        build.make_genesis(mesh.genesis(), mesh="m1", root_signers=mesh.roots[:1], registry=mesh.registry)


def test_arguments_and_namespaces_of_an_entry(mesh: Mesh) -> None:
    state = mesh.service()
    body = state.head.entry.body
    more = msgspec.structs.replace(body, args=body.args | {"more": 1})
    assert code(mesh, resigned(state, mesh.registry, body=more).head) == "bad-field"
    assert code(mesh, resigned(state, mesh.registry, kind="tenant.paint").head) == "unknown-kind"
    assert code(mesh, resigned(state, mesh.registry, namespace="mesh").head) == "wrong-namespace"
    assert code(mesh, resigned(state, mesh.registry, namespace="Acme").head) == "bad-field"


def test_an_authority_travels_as_it_was_signed(mesh: Mesh) -> None:
    state = mesh.plan("mesh", "suspend", WIDE)
    envelope = word(mesh, state, mesh.officers[:2])
    assert trust.parse_authority(from_plain(to_plain(envelope))).command_id == state.head.entry.command_id
