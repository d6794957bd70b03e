"""The trusted view: everything that it must refuse, and that gaps, repeats and forks are told apart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from tests.unit.control.world import Mesh, digest, resigned, row_keys, row_of

from keymesh.control import build, view
from keymesh.control.entry import ENTRY_PAYLOAD_TYPE, Body, Entry, SignedEntry, parse_entry
from keymesh.control.messages import Countersignature
from keymesh.control.rows import (
    KeyRow,
    NodeRow,
    PolicyRow,
    RestrictionRow,
    Row,
    ServiceRow,
    SignersRow,
    VotersRow,
    WantRow,
    WrappingRow,
    encode,
    get,
    policy_in,
)
from keymesh.control.signing import to_plain
from keymesh.control.state import NamespaceState, support_after, with_commit
from keymesh.control.view import Accepted, Fork, NeedsMesh, Offered, RefusedTask, Stale
from keymesh.crypto.dsse import Envelope
from keymesh.ledger.maptree import root_of
from keymesh.model import strict_json
from keymesh.model.errors import Integrity, KeymeshError, Refused


@pytest.fixture(params=[True, False], ids=["dsse", "fake"])
def mesh(request: pytest.FixtureRequest) -> Mesh:
    made = Mesh(real=request.param)
    made.furnished()
    return made


def with_rows(mesh: Mesh, state: NamespaceState, change: dict[str, bytes | None], **fields: Any) -> NamespaceState:
    """What a Registry gone bad, with its own key only, would offer next: other rows, signed and attested."""
    rows = dict(state.rows)
    for name, raw in change.items():
        if raw is None:
            del rows[name]
        else:
            rows[name] = raw
    entry = state.head.entry
    fields = {"seq": entry.seq + 1, "prev": state.head.hash, "kind": "tenant.labels"} | fields
    body = msgspec.structs.replace(entry.body, args={"labels": {}}, authority=())
    if entry.namespace == "mesh":
        fields |= {"kind": "region.rotate-ivk", "mesh_seq": entry.seq}
        body = msgspec.structs.replace(body, args={"region": "us-east", "generation": 2})
    forged = resigned(state, mesh.registry, **({"body": body, "state": root_of(rows)} | fields))
    return replace(forged, rows=rows)


def code(outcome: object) -> str:
    assert isinstance(outcome, RefusedTask), outcome
    return outcome.code


def accepted(outcome: object) -> Accepted:
    assert isinstance(outcome, Accepted), outcome
    return outcome


# --- newer, older, other ---------------------------------------------------------------------------------------------


def test_the_next_entry_applies_and_says_what_it_restricts(mesh: Mesh) -> None:
    held = mesh.states["acme"]
    outcome = accepted(mesh.offer(held, mesh.restrict("suspend", "tenant:acme")))
    assert (outcome.restricts, outcome.lifts, outcome.is_restriction) == (("tenant:acme",), (), True)
    assert outcome.state is mesh.states["acme"]
    assert not accepted(mesh.offer(None, held)).is_restriction


def test_a_gap_applies_from_any_state(mesh: Mesh) -> None:
    for n in range(2, 5):
        mesh.service(version=n)
    mesh.restrict("suspend", "service:acme/pay")
    newest = mesh.states["acme"]
    for held in [None, *mesh.history["acme"][:-1]]:
        assert accepted(mesh.offer(held, newest)).restricts == ("service:acme/pay",)


def test_stale_rollback_and_replay_change_nothing(mesh: Mesh) -> None:
    newest = mesh.service(version=2)
    for old in mesh.history["acme"]:
        assert isinstance(mesh.offer(newest, old), Stale)
    assert isinstance(mesh.offer(newest, newest, force=False), Stale)


def test_a_forced_repeat_of_the_held_entry_applies_again(mesh: Mesh) -> None:
    newest = mesh.restrict("suspend", "tenant:acme")
    drifted = replace(newest, rows={n: r for n, r in newest.rows.items() if not n.startswith("restriction/")})
    outcome = accepted(mesh.offer(drifted, newest, force=True))
    assert outcome.state.rows == newest.rows
    assert outcome.restricts == ("tenant:acme",)
    assert isinstance(mesh.offer(newest, mesh.history["acme"][0], force=True), Stale), "force undoes nothing"
    assert code(mesh.offer(newest, drifted, force=True)) == "state-mismatch"


def test_forks_both_ways(mesh: Mesh) -> None:
    base = mesh.states["acme"]
    left = mesh.plan("acme", "tenant.labels", {"labels": {"a": "1"}})
    right = mesh.plan("acme", "tenant.labels", {"labels": {"a": "2"}})
    same_place = mesh.offer(left, right)
    assert isinstance(same_place, Fork)
    assert (same_place.held, same_place.other) == (left, right)
    after_right = mesh.plan("acme", "tenant.labels", {"labels": {"a": "3"}}, held=right)
    assert isinstance(mesh.offer(left, after_right), Fork), "its prev cannot match"
    assert isinstance(mesh.offer(after_right, left), Fork), "ours cannot follow it"
    assert isinstance(mesh.offer(after_right, right), Stale)
    assert isinstance(mesh.offer(base, after_right), Accepted)


def test_a_fork_needs_the_registrys_signature(mesh: Mesh) -> None:
    left = mesh.plan("acme", "tenant.labels", {"labels": {"a": "1"}})
    right = mesh.plan("acme", "tenant.labels", {"labels": {"a": "2"}}, by=mesh.key("nobody"))
    assert code(mesh.offer(left, right)) == "bad-signature"


@pytest.mark.parametrize("epoch", [2, 2**63 - 1])
def test_an_epoch_that_is_not_open_is_refused(mesh: Mesh, epoch: int) -> None:
    held = mesh.states["acme"]
    newer = mesh.plan("acme", "tenant.labels", {"labels": {}}, epoch=epoch)
    assert code(mesh.offer(held, newer)) == "future-epoch"
    assert isinstance(mesh.offer(held, newer, epoch=epoch), Accepted)
    assert isinstance(mesh.offer(newer, mesh.plan("acme", "tenant.labels", {"labels": {}}), epoch=epoch), Stale)


@pytest.mark.parametrize("place", [{"epoch": 0}, {"seq": 0}, {"epoch": -1}])
def test_positions_count_from_one(mesh: Mesh, place: dict[str, int]) -> None:
    assert code(mesh.offer(None, resigned(mesh.states["acme"], mesh.registry, **place))) == "bad-position"


def test_fast_forward_by_seq(mesh: Mesh) -> None:
    held = mesh.restrict("suspend", "tenant:acme")
    for before in (held, None):
        assert code(mesh.offer(before, with_rows(mesh, held, {}, seq=2**63 - 1))) == "fast-forward"
    assert isinstance(mesh.offer(held, with_rows(mesh, held, {"labels": b'{"labels":{}}'}, seq=1_000)), Accepted)
    freed = with_rows(mesh, held, {"restriction/tenant:acme": None}, seq=1_000)
    assert code(mesh.offer(held, freed)) == "unproven-lift", "a gap proves no more than the next entry would"


# --- whose, and whether whole ----------------------------------------------------------------------------------------


def test_another_mesh(mesh: Mesh) -> None:
    other = Mesh(name="m2", real=not hasattr(mesh.registry, "name"))
    other.furnished()
    assert code(mesh.offer(None, other.states["acme"])) == "foreign-mesh"
    assert code(mesh.offer(None, other.mesh)) == "foreign-mesh"


def test_namespaces_do_not_mix(mesh: Mesh) -> None:
    mesh.tenant("other")
    assert code(mesh.offer(None, mesh.states["other"], namespace="acme")) == "namespace-mismatch"
    mixed = replace(mesh.states["acme"], rows=mesh.states["other"].rows)
    assert code(mesh.offer(None, mixed)) == "state-mismatch"
    foreign = replace(mesh.states["acme"], support=mesh.states["other"].support)
    assert code(mesh.offer(None, foreign)) == "unproven-change"


def test_mix_and_match_of_states(mesh: Mesh) -> None:
    """The head of one entry with the rows of another, and the grant of one with the residency of another."""
    held = mesh.states["acme"]
    newer = mesh.service(version=2)
    assert code(mesh.offer(held, replace(newer, rows=held.rows))) == "state-mismatch"
    for name in sorted(newer.rows):
        rest = {n: r for n, r in newer.rows.items() if n != name}
        assert code(mesh.offer(held, replace(newer, rows=rest))) == "state-mismatch"
    assert code(mesh.offer(held, replace(newer, rows={**newer.rows, "want/l9": b"{}"}))) == "state-mismatch"


def test_signatures(mesh: Mesh) -> None:
    held = mesh.states["acme"]
    newer = mesh.plan("acme", "tenant.labels", {"labels": {}})
    for signers in ([], [mesh.key("nobody")], [mesh.signer], mesh.officers, mesh.roots):
        assert code(mesh.offer(held, replace(newer, head=build.sign_entry(newer.head.entry, *signers)))) == (
            "bad-signature"
        )


def test_the_typed_entry_must_be_the_signed_bytes(mesh: Mesh) -> None:
    newer = mesh.plan("acme", "tenant.labels", {"labels": {}})
    head = newer.head
    later = msgspec.structs.replace(head.entry, seq=99)
    for forged in (
        SignedEntry(entry=later, hash=head.hash, envelope=head.envelope),
        SignedEntry(entry=head.entry, hash=mesh.states["acme"].head.hash, envelope=head.envelope),
    ):
        assert code(mesh.offer(None, replace(newer, head=forged))) == "entry-mismatch"


def test_an_entry_that_rests_on_a_newer_mesh_waits_for_it(mesh: Mesh) -> None:
    old_mesh = mesh.mesh
    mesh.do("mesh", "region.rotate-ivk", {"region": "us-east", "generation": 2})
    newer = mesh.service(version=2)
    held = mesh.history["acme"][-2]
    assert mesh.offer(held, newer, mesh=old_mesh) == NeedsMesh(2)
    assert view.accept(None, Offered("acme", newer), None, mesh.registry, pins=mesh.pins, epoch=1) == NeedsMesh(2)
    assert isinstance(mesh.offer(held, newer), Accepted)


def test_size(mesh: Mesh) -> None:
    big = mesh.states["acme"]
    rows = {**big.rows, "labels": b"x" * 262_144}
    assert code(mesh.offer(None, replace(big, rows=rows))) == "too-large"


# --- forms -----------------------------------------------------------------------------------------------------------


def envelope_of(mesh: Mesh, payload: bytes, kind: str = ENTRY_PAYLOAD_TYPE) -> Envelope:
    return Envelope(payload, kind, (mesh.registry.sign(payload, kind),))


def test_entries_have_one_form(mesh: Mesh) -> None:
    head = mesh.states["acme"].head
    good = head.envelope.payload
    assert parse_entry(envelope_of(mesh, good)).hash == head.hash
    plain = strict_json.loads(good, max_bytes=2**20)
    bad = {
        "duplicate key": good.replace(b'"epoch":1', b'"epoch":1,"epoch":1'),
        "space": good.replace(b'"epoch":1', b'"epoch": 1'),
        "float": good.replace(b'"epoch":1', b'"epoch":1.0'),
        "order": b'{"state":"%s",' % plain["state"].encode() + good[1:].replace(b'"state":', b'"stat2":'),
        "unknown field": strict_json.dumps(plain | {"zz": 1}),
        "missing field": strict_json.dumps({k: v for k, v in plain.items() if k != "prev"}),
        "null": strict_json.dumps(plain | {"seq": None}),
        "too large a number": good.replace(b'"epoch":1', b'"epoch":99999999999999999999'),
        "trailing": good + b" ",
        "not JSON": b"\xff",
        "64 KiB": strict_json.dumps(plain | {"actor": "x" * 65_536}),
    }
    for what, payload in bad.items():
        with pytest.raises((Refused, Integrity)):
            parse_entry(envelope_of(mesh, payload))
            pytest.fail(what)
    with pytest.raises(Integrity):
        parse_entry(envelope_of(mesh, good, "application/json"))


@pytest.mark.parametrize(
    ("name", "raw", "expected"),
    [
        ("quota/x", b"{}", "unknown-kind"),
        ("want/l3/new", b'{"version":1,"why":"x"}', "unknown-kind"),
        ("want/l3/new", b'{"version":1.0}', "unknown-kind"),
        ("want/l3/new", b'{"version":1,"version":1}', "unknown-kind"),
        ("want/l3/new", b'{"version": 1}', "not-canonical"),
        ("restriction/tenant:acme", b'{"command_id":"x","seq":1,"state":"paused"}', "unknown-kind"),
        ("restriction/mesh", b'{"command_id":"x","seq":1,"state":"suspended"}', "foreign-row"),
        ("restriction/tenant:other", b'{"command_id":"x","seq":1,"state":"suspended"}', "foreign-row"),
        ("region/mars", b"{}", "foreign-row"),
        ("root", b"{}", "foreign-row"),
    ],
)
def test_rows_are_known_and_in_their_one_form(mesh: Mesh, name: str, raw: bytes, expected: str) -> None:
    held = mesh.states["acme"]
    outcome = mesh.offer(held, with_rows(mesh, held, {name: raw}))
    assert code(outcome) == expected
    assert isinstance(outcome, RefusedTask)
    assert outcome.closes is (expected == "unknown-kind")


def test_an_unknown_kind_closes_what_it_is_about(mesh: Mesh) -> None:
    held = mesh.states["acme"]
    outcome = mesh.offer(held, with_rows(mesh, held, {}, kind="tenant.paint"))
    assert isinstance(outcome, RefusedTask)
    assert (outcome.code, outcome.closes) == ("unknown-kind", True)
    unsigned = with_rows(mesh, held, {}, kind="tenant.paint")
    unsigned = replace(unsigned, head=build.sign_entry(unsigned.head.entry, mesh.key("nobody")))
    outcome = mesh.offer(held, unsigned)
    assert isinstance(outcome, RefusedTask)
    assert (outcome.code, outcome.closes) == ("bad-signature", False), "nobody closes a tenant without the key"


# --- what the Registry alone may not do ------------------------------------------------------------------------------


def test_residency_is_not_widened_without_the_tenant(mesh: Mesh) -> None:
    held = mesh.states["acme"]
    policy = row_of(held.rows, "policy", PolicyRow)
    wider = encode(msgspec.structs.replace(policy, version=2, regions=("eu-west", "us-east", "us-west")))
    assert code(mesh.offer(held, with_rows(mesh, held, {"policy": wider}))) == "unproven-change"
    assert code(mesh.offer(None, with_rows(mesh, held, {"policy": wider}))) == "unproven-change"
    assert code(mesh.offer(held, with_rows(mesh, held, {"policy": None}))) == "row-vanished"


def test_the_policy_version_does_not_fall(mesh: Mesh) -> None:
    held = mesh.states["acme"]
    lower = encode(msgspec.structs.replace(row_of(held.rows, "policy", PolicyRow), version=0))
    assert code(mesh.offer(held, with_rows(mesh, held, {"policy": lower}))) == "row-regressed"


def test_a_tenant_is_not_created_over_itself(mesh: Mesh) -> None:
    """A second ``tenant.create``, signed by signers of its own making, takes nothing from who holds the tenant."""
    held = mesh.states["acme"]
    thief = mesh.key("thief")
    args = mesh.tenant_args(("us-east", "us-west"))
    args["signers"] = msgspec.to_builtins(SignersRow(keys=row_keys(thief), threshold=1))
    del mesh.states["acme"]
    created = mesh.plan("acme", "tenant.create", args, signers=[thief])
    assert isinstance(mesh.offer(None, created), Accepted)
    stolen = with_rows(mesh, held, {"signers": created.rows["signers"]})
    stolen = replace(stolen, support=(*created.support, *stolen.support))
    assert code(mesh.offer(held, stolen)) == "unproven-change"
    assert isinstance(mesh.offer(held, created), Stale | Fork)
    later = resigned(created, mesh.registry, seq=held.head.entry.seq + 5, prev=digest("x"))
    assert code(mesh.offer(held, later)) in ("unproven-change", "row-vanished", "version-vanished")


def test_l1_is_not_changed_without_the_tenant(mesh: Mesh) -> None:
    held = mesh.states["acme"]
    b1 = held.rows["binding/b1"]
    mine = b1.replace(b"https://kms", b"https://evil")
    retiring = b1.replace(b'"active"', b'"retiring"')
    for change in (
        {"binding/b1": mine},
        {"binding/b2": b1},
        {"binding/b1": retiring, "binding/b2": mine},
        {"binding/b1": retiring},
    ):
        assert code(mesh.offer(held, with_rows(mesh, held, dict(change)))) == "unproven-change"
    assert code(mesh.offer(held, with_rows(mesh, held, {"binding/b1": None}))) == "row-vanished"
    switched = mesh.do("acme", "l1.switch", {"binding_id": "b2", "provider": "dev", "descriptor": {}})
    for before in (None, *mesh.history["acme"][:-1]):
        assert isinstance(mesh.offer(before, switched), Accepted)
    assert code(mesh.offer(switched, with_rows(mesh, switched, {"binding/b1": b1}))) == "row-regressed"
    bare = replace(switched, support=tuple(s for s in switched.support if s.signed.entry.kind != "l1.switch"))
    assert isinstance(mesh.offer(held, bare), Accepted), "the head is its own proof"
    later = mesh.service(version=2)
    bare = replace(later, support=tuple(s for s in later.support if s.signed.entry.kind != "l1.switch"))
    assert code(mesh.offer(held, bare)) == "unproven-change"


def test_a_switch_signed_by_somebody_else_proves_nothing(mesh: Mesh) -> None:
    held = mesh.states["acme"]
    args = {"binding_id": "b2", "provider": "dev", "descriptor": {}}
    assert code(mesh.offer(held, mesh.plan("acme", "l1.switch", args, signers=[mesh.key("thief")]))) == (
        "below-threshold"
    )


def test_key_rows_move_forwards_only(mesh: Mesh) -> None:
    held = mesh.states["acme"]
    row = get(held.rows, "key/l3/pay/1", KeyRow)
    assert row is not None

    def offered(**fields: Any) -> str:
        raw = encode(msgspec.structs.replace(row, **fields))
        return code(mesh.offer(held, with_rows(mesh, held, {"key/l3/pay/1": raw})))

    assert offered(kid="00" * 16) == "kid-changed"
    assert offered(state="pre-active") == "key-state-regressed"
    assert offered(state="sleeping") == "unknown-kind"
    assert offered(revision=0) == "row-regressed"
    assert offered(digest="00" * 32) == "version-reused"
    assert offered(parent="00" * 16) == "version-reused"
    assert code(mesh.offer(held, with_rows(mesh, held, {"key/l3/pay/1": None}))) == "version-vanished"
    dead = mesh.restrict("revoke", "key:acme/pay@1")
    assert code(mesh.offer(dead, with_rows(mesh, dead, {"key/l3/pay/1": held.rows["key/l3/pay/1"]}))) == (
        "key-state-regressed"
    )


def test_counters_do_not_fall(mesh: Mesh) -> None:
    mesh.do("acme", "key.want", {"key": "l3/pay", "version": 2})
    mesh.key_version("acme", "l3/pay", 2, digest("acme/l2/1")[:32])
    held = mesh.service(version=2)
    service = row_of(held.rows, "service/pay", ServiceRow)
    cases: list[tuple[str, Row, str]] = [
        ("want/l3/pay", WantRow(version=1), "row-regressed"),
        ("wrapping/l3/pay", WrappingRow(version=1), "row-regressed"),
        ("service/pay", msgspec.structs.replace(service, version=1), "row-regressed"),
        ("service/pay", msgspec.structs.replace(service, edge_ttl_ms=5_000), "version-reused"),
    ]
    for name, row, expected in cases:
        assert code(mesh.offer(held, with_rows(mesh, held, {name: encode(row)}))) == expected


# --- restrictions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["tenant:acme", "service:acme/pay", "key:acme/pay@1"])
def test_a_revocation_is_never_lifted(mesh: Mesh, text: str) -> None:
    held = mesh.restrict("revoke", text)
    row = get(held.rows, f"restriction/{text}", RestrictionRow)
    assert row is not None
    for state in ("none", "suspended"):
        raw = encode(msgspec.structs.replace(row, state=state, seq=row.seq + 1))
        assert code(mesh.offer(held, with_rows(mesh, held, {f"restriction/{text}": raw}))) == "revoked-lifted"
    assert code(mesh.offer(held, with_rows(mesh, held, {f"restriction/{text}": None}))) == "revoked-lifted"


def test_a_suspension_needs_its_committed_resume(mesh: Mesh) -> None:
    held = mesh.restrict("suspend", "tenant:acme")
    resumed = mesh.restrict("resume", "tenant:acme", committed=False)
    proof: tuple[str, ...]
    for proof in ((), ("us-east",), ("us-east", "us-east"), ("us-east", "eu-west"), ("eu-west", "eu-west")):
        offered = mesh.commit(resumed, *proof) if proof else resumed
        assert code(mesh.offer(held, offered)) == "unproven-lift"
    for proof in (("us-east", "us-west"), ("us-west", "eu-central"), ("us-east", "us-west", "eu-central")):
        outcome = accepted(mesh.offer(held, mesh.commit(resumed, *proof)))
        assert outcome.lifts == ("tenant:acme",)
        assert not outcome.is_restriction
    for late in (mesh.history["acme"][-3], None):  # it never saw the suspension; nobody has said that it is over
        assert code(mesh.offer(late, resumed)) == "unproven-lift"
        assert isinstance(mesh.offer(late, mesh.commit(resumed, "us-east", "us-west")), Accepted)


def test_a_suspension_and_resume_that_were_passed_over_again_need_the_newest_proof(mesh: Mesh) -> None:
    mesh.restrict("suspend", "tenant:acme")
    held = mesh.restrict("resume", "tenant:acme")
    mesh.restrict("suspend", "tenant:acme")
    resumed = mesh.restrict("resume", "tenant:acme", committed=False)
    assert code(mesh.offer(held, replace(resumed, support=(*held.support, *resumed.support)))) == "unproven-lift"
    assert isinstance(mesh.offer(held, mesh.commit(resumed, "us-east", "us-west")), Accepted)


def test_a_resume_counts_for_its_own_suspension_only(mesh: Mesh) -> None:
    first = mesh.restrict("suspend", "tenant:acme")
    resumed = mesh.restrict("resume", "tenant:acme")
    second = mesh.restrict("suspend", "tenant:acme")
    later = mesh.restrict("suspend", "service:acme/pay")
    again = with_rows(mesh, later, {"restriction/tenant:acme": resumed.rows["restriction/tenant:acme"]})
    again = replace(again, support=(*again.support, *resumed.support))
    assert code(mesh.offer(second, again)) == "row-regressed", "an older resume lifts no newer suspension"
    gone = with_rows(mesh, later, {"restriction/tenant:acme": None})
    gone = replace(gone, support=resumed.support)
    assert code(mesh.offer(later, gone)) == "unproven-lift"
    assert isinstance(mesh.offer(first, resumed), Accepted)
    assert accepted(mesh.offer(first, second)).restricts == ("tenant:acme",), "another entry, another restriction"


def test_votes_of_another_set_epoch_or_entry_count_for_nothing(mesh: Mesh) -> None:
    held = mesh.restrict("suspend", "tenant:acme")
    resumed = mesh.restrict("resume", "tenant:acme", committed=False)
    good = [mesh.nodes[r] for r in ("us-east", "us-west")]
    whole = mesh.countersign(resumed.head, "us-east", "us-west")
    votes = [n.unseal(s, Countersignature, row_keys(n)) for n, s in zip(good, whole, strict=True)]
    for change in ({"set_id": 2}, {"epoch": 2}, {"entry_hash": held.head.hash}, {"restriction": True}, {"mesh": "m2"},
                   {"blind": "00" * 32}, {"voter": "eu-central"}):  # fmt: skip
        forged = tuple(n.seal(msgspec.structs.replace(v, **change)) for n, v in zip(good, votes, strict=True))
        support = with_commit(resumed.support, resumed.head.hash, forged)
        assert code(mesh.offer(held, replace(resumed, support=support))) == "unproven-lift"


def test_of_an_unproven_lift_the_restrictions_are_told(mesh: Mesh) -> None:
    """So Lane 0 waits for no resume: the holder adds what the new rows restrict to what it has."""
    held = mesh.restrict("suspend", "tenant:acme")
    mesh.restrict("resume", "tenant:acme", committed=False)
    newest = mesh.restrict("suspend", "service:acme/pay")
    outcome = mesh.offer(held, newest)
    assert isinstance(outcome, RefusedTask)
    assert (outcome.code, outcome.closes) == ("unproven-lift", False)
    assert [s for s, _ in outcome.restrictions] == ["service:acme/pay"]
    other = with_rows(mesh, newest, {"key/l2/1": None})
    refusal = mesh.offer(held, other)
    assert isinstance(refusal, RefusedTask)
    assert refusal.restrictions == (), "only where the lift is the only flaw"


def test_with_fewer_than_three_voters_the_log_is_enough() -> None:
    mesh = Mesh(voters=("us-east", "us-west"))
    mesh.furnished()
    held = mesh.restrict("suspend", "tenant:acme")
    resumed = mesh.restrict("resume", "tenant:acme", committed=False)
    assert accepted(mesh.offer(held, resumed)).lifts == ("tenant:acme",)


# --- the mesh itself -------------------------------------------------------------------------------------------------


def test_the_first_mesh_state_rests_on_the_pinned_root(mesh: Mesh) -> None:
    mesh.do("mesh", "region.rotate-ivk", {"region": "us-east", "generation": 2})
    state = mesh.mesh
    assert view.check_first_mesh(state, suite=mesh.registry, pins=mesh.pins).state is state
    assert code(mesh.offer(None, replace(state, support=()))) == "no-genesis"
    stranger = Mesh(real=not hasattr(mesh.registry, "name"))
    stranger.roots = [stranger.key(f"other-{i}") for i in range(3)]
    foreign = replace(mesh.pins, root_keys=row_keys(*stranger.roots))
    outcome = view.accept(None, Offered("mesh", state), None, mesh.registry, pins=foreign, epoch=1)
    assert code(outcome) == "foreign-root"
    with pytest.raises(KeymeshError):
        view.check_first_mesh(state, suite=mesh.registry, pins=foreign)


def test_the_registry_alone_changes_nothing_of_the_mesh(mesh: Mesh) -> None:
    held = mesh.mesh
    evil = mesh.key("evil")
    changes: list[dict[str, bytes | None]] = [
        {"delegation/registry": held.rows["delegation/registry"].replace(b'"any"', b'"mesh"')},
        {"delegation/extra": held.rows["delegation/officers"]},
        {"root": held.rows["root"].replace(b'"threshold":2', b'"threshold":1')},
        {"settings": held.rows["settings"].replace(b"60000", b"90000")},
        {"voters": encode(VotersRow(set_id=2, regions=("us-east",)))},
        {"region/us-east": held.rows["region/us-east"].replace(b'"us"', b'"eu"')},
        {"region/mars": held.rows["region/us-east"]},
        {"node/us-east/n2": encode(NodeRow(signing_key=evil.public_hex))},
        {"node/us-east/n1": encode(NodeRow(signing_key=evil.public_hex))},
    ]
    for change in changes:
        for before in (held, None):
            assert code(mesh.offer(before, with_rows(mesh, held, change))) == "unproven-change", change
    assert code(mesh.offer(held, with_rows(mesh, held, {"node/us-east/n1": None}))) == "row-vanished"


def test_a_region_joins_by_the_root_and_its_ivk_generation_only_rises(mesh: Mesh) -> None:
    held = mesh.mesh
    args = {"region": "ap", "row": {"domain": "ap", "failure_domain": "ap", "ca_fingerprint": "0"},
            "nodes": {"n1": {"signing_key": "22" * 32}}}  # fmt: skip
    mesh.do("mesh", "region.join", args)
    mesh.do("mesh", "region.rotate-ivk", {"region": "ap", "generation": 2})
    newest = mesh.do("mesh", "region.rotate-ivk", {"region": "us-east", "generation": 2})
    for before in (None, held, *mesh.history["mesh"][:-1]):
        assert isinstance(mesh.offer(before, newest), Accepted)
    lower = with_rows(mesh, newest, {"region/ap": mesh.history["mesh"][1].rows["region/ap"]})
    assert code(mesh.offer(newest, lower)) == "row-regressed"
    migrated = mesh.do("mesh", "region.migrate-keystore", {"region": "us-east", "schema": 2})
    for before in (None, held, newest):
        assert isinstance(mesh.offer(before, migrated), Accepted)
    back = with_rows(mesh, migrated, {"region/us-east": newest.rows["region/us-east"]})
    assert code(mesh.offer(migrated, back)) == "row-regressed"
    newest = migrated
    forged = mesh.plan("mesh", "region.join", args | {"region": "ap2"}, signers=mesh.officers)
    assert code(mesh.offer(newest, forged)) == "below-threshold"


def test_mesh_wide_restrictions(mesh: Mesh) -> None:
    held = mesh.mesh
    suspended = mesh.restrict("suspend", "mesh")
    assert accepted(mesh.offer(held, suspended)).restricts == ("mesh",)
    resumed = mesh.restrict("resume", "mesh", committed=False)
    assert code(mesh.offer(suspended, resumed)) == "unproven-lift"
    assert accepted(mesh.offer(suspended, mesh.commit(resumed))).lifts == ("mesh",)


# --- the officers' word, used once -----------------------------------------------------------------------------------


def appended(mesh: Mesh, base: NamespaceState, entry: Entry, **row: Any) -> NamespaceState:
    """``base`` with the command of ``entry`` once more, as a Registry that checks nothing appends it; committed."""
    scope, seq = entry.body.args["scope"], base.head.entry.seq + 1
    state = {"suspend": "suspended", "resume": "none"}[entry.kind]
    given = RestrictionRow(**{"state": state, "seq": seq, "command_id": entry.command_id, **row})
    rows = {**base.rows, f"restriction/{scope}": encode(given)}
    again = msgspec.structs.replace(entry, seq=seq, prev=base.head.hash, mesh_seq=seq - 1, state=root_of(rows))
    head = build.sign_entry(again, mesh.registry)
    return mesh.commit(NamespaceState(head=head, rows=rows, support=support_after(base.support, head)))


@pytest.mark.parametrize("scope", ["region:us-east", "mesh"])
def test_an_officers_resume_ends_no_later_suspension(mesh: Mesh, scope: str) -> None:
    first = mesh.restrict("suspend", scope)
    resumed = mesh.restrict("resume", scope)
    assert accepted(mesh.offer(first, resumed)).lifts == (scope,)
    second = mesh.restrict("suspend", scope)
    replayed = appended(mesh, second, resumed.head.entry)
    assert code(mesh.offer(second, replayed)) == "unproven-lift"
    honest = mesh.restrict("resume", scope)
    assert accepted(mesh.offer(second, honest)).lifts == (scope,)


@pytest.mark.parametrize("scope", ["region:us-east", "mesh"])
def test_a_holder_that_missed_a_suspension_takes_the_resume_of_a_later_one(mesh: Mesh, scope: str) -> None:
    first = mesh.restrict("suspend", scope)
    mesh.restrict("suspend", scope)
    assert accepted(mesh.offer(first, mesh.restrict("resume", scope))).lifts == (scope,)


@pytest.mark.parametrize("upto", [None, 0, 1, 3, 4, 2**40])
def test_a_wide_resume_that_names_no_suspension_or_one_to_come_lifts_nothing(mesh: Mesh, upto: int | None) -> None:
    """Officers who were shown a wrong number: their word is no blank cheque."""
    held = mesh.restrict("suspend", "mesh")
    assert held.head.entry.seq == 2
    args = {"scope": "mesh"} if upto is None else {"scope": "mesh", "upto_seq": upto}
    word = mesh.authority("mesh", "resume", args, "r")
    entry = msgspec.structs.replace(
        held.head.entry, kind="resume", command_id="r", body=Body(args=args, authority=tuple(map(to_plain, word)))
    )
    assert code(mesh.offer(held, appended(mesh, held, entry))) == "unproven-lift"


def test_the_number_in_a_wide_resume_is_signed(mesh: Mesh) -> None:
    mesh.restrict("suspend", "mesh")
    resumed = mesh.restrict("resume", "mesh")
    second = mesh.restrict("suspend", "mesh")
    entry = resumed.head.entry
    args = {**entry.body.args, "upto_seq": second.head.entry.seq}
    forged = msgspec.structs.replace(entry, body=msgspec.structs.replace(entry.body, args=args))
    assert isinstance(mesh.offer(second, appended(mesh, second, forged)), RefusedTask)


# --- what a tenant changed of its policy ------------------------------------------------------------------------------


def test_standby_is_changed_by_the_tenants_own_signers_alone(mesh: Mesh) -> None:
    held = mesh.states["acme"]
    before = policy_in(held.rows)
    assert before is not None and before.standby == "allow"
    state = mesh.do("acme", "tenant.set", {"standby": "deny"})
    assert isinstance(mesh.offer(held, state), Accepted)
    found = policy_in(state.rows)
    assert found is not None and (found.standby, found.version) == ("deny", 1)
    assert get(state.rows, "policy", PolicyRow) == get(held.rows, "policy", PolicyRow)  # as created, for certificates
    later = mesh.do("acme", "tenant.labels", {"labels": {"a": "b"}})
    for holds in (held, state, None):  # the proof travels with every later state
        assert isinstance(mesh.offer(holds, later), Accepted)
    unproven = replace(later, support=tuple(s for s in later.support if s.signed.entry.kind != "tenant.set"))
    for holds in (held, None):
        assert code(mesh.offer(holds, unproven)) == "unproven-change"
    unsigned = mesh.plan("acme", "tenant.set", {"standby": "allow"}, signers=(mesh.key("somebody"),))
    assert isinstance(mesh.offer(later, unsigned), RefusedTask)
    again = mesh.do("acme", "tenant.set", {"standby": "allow"})
    assert sum(s.signed.entry.kind == "tenant.set" for s in again.support) == 1
    assert isinstance(mesh.offer(held, again), Accepted)
    with pytest.raises(Refused) as caught:
        mesh.do("acme", "tenant.set", {"standby": "allow"})
    assert caught.value.code == "already"
    with pytest.raises(Refused) as caught:
        mesh.do("acme", "tenant.set", {"standby": "perhaps"})
    assert (caught.value.code, caught.value.field) == ("bad-field", "standby")
