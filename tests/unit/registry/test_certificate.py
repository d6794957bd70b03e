"""The kill switch's arithmetic, its records, and the certificate's one verifier."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from keymesh.control import build, evidence, trust
from keymesh.control.evidence import Certificate, Holder, Statement, verify_certificate
from keymesh.control.kinds import TenantCreate
from keymesh.control.messages import RestrictionAck
from keymesh.control.rows import PolicyRow, RootRow, SignersRow
from keymesh.control.signing import DsseSuite
from keymesh.ledger.maptree import MapTree, Proof, Row
from keymesh.model import strict_json
from keymesh.model.errors import Integrity, Refused
from keymesh.model.ids import Digest, KeyId
from keymesh.model.time import Instant
from keymesh.registry import certificate, killswitch, spaces
from keymesh.registry.records import EvidenceRecord
from tests.unit.registry.harness import (
    OFFICERS,
    ROOT,
    TTL_MS,
    Bench,
    genesis,
    keys_of,
    mesh_up,
    node,
    signer,
    with_tenant,
)

ROOT_ROW = RootRow(version=1, keys=keys_of(*ROOT), threshold=2)
BOUND_MS = TTL_MS + TTL_MS // 1_000 + 2_000


def verify(made: Certificate) -> evidence.VerifiedCertificate:
    """As a stranger would: from bytes, with the root keys alone."""
    return verify_certificate(evidence.encode_certificate(made), root=ROOT_ROW, mesh="example")


def status(bench: Bench, command_id: str = "s1", namespace: str = "acme") -> str:
    record = killswitch.record_of(bench.state, namespace, command_id)
    assert record is not None
    return record.status


def suspended(scope: str = "tenant:acme", kind: str = "suspend") -> Bench:
    bench = with_tenant()
    bench.ok(bench.scope_command(kind, scope, "s1"))
    return bench


def certified(kind: str = "suspend") -> Certificate:
    bench = suspended(kind=kind)
    bench.ack_tasks("us-east")
    bench.ack_tasks("us-west")
    (ready,) = bench.certificates
    made = ready.certificate
    assert isinstance(made, Certificate)
    return made


def refusal_of(bench: Bench, command_id: str, **query: Any) -> tuple[str, str, str | None]:
    with pytest.raises(Refused) as caught:
        killswitch.find(bench.state, command_id, **query)
    return caught.value.code, caught.value.message, caught.value.field


def test_a_kill_switch_is_found_among_those_that_one_may_see() -> None:
    """Two tenants used one id: each finds its own, whoever came first, and nobody learns of the other's."""
    bench = suspended()
    bench.tenant("globex")
    bench.ok(bench.scope_command("suspend", "tenant:globex", "s1"))
    bench.ok(bench.scope_command("suspend", "tenant:globex", "s2"))

    def ask(*seen: str, namespace: str | None = None) -> dict[str, Any]:
        return {"namespace": namespace, "may_see": lambda name: name in seen}

    for own in ("acme", "globex"):
        for named in (None, own):
            assert killswitch.find(bench.state, "s1", **ask(own, namespace=named)) == (own, "s1")
            assert killswitch.find(bench.state, "s1", **ask("acme", "globex", namespace=own)) == (own, "s1")
    assert refusal_of(bench, "s1", **ask("acme", "globex"))[0] == "ambiguous"
    absent = refusal_of(bench, "s9", **ask("acme"))
    assert absent[0] == "not-found"
    for foreign in (ask("acme"), ask("acme", namespace="globex"), ask("acme", namespace="nobody/../x")):
        assert refusal_of(bench, "s2", **foreign) == absent


# --- arithmetic -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ms", "expected"), [(0, 0), (1, 2), (999, 1_000), (1_000, 1_001), (1_001, 1_003)])
def test_durations_are_stretched_by_a_thousandth_and_rounded_up(ms: int, expected: int) -> None:
    assert evidence.stretched(ms) == expected


def test_the_bound_is_commit_and_ttl_and_slack() -> None:
    assert evidence.bound_end(10_000, 60_000) == 10_000 + 60_060 + 2_000


def test_an_acknowledgement_ends_when_the_last_lease_does_or_when_it_came() -> None:
    assert evidence.ack_end(5_000, 0, 0) == 5_000
    assert evidence.ack_end(5_000, 1_000, 2) == 6_001
    assert evidence.ack_end(5_000, 1_000, 0) == 5_000


@given(
    st.integers(0, 10**6),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 3)), max_size=4),
)
def test_t_is_never_before_the_commit_nor_after_the_bound_of_all(
    committed: int, words: list[tuple[int, int, int]]
) -> None:
    ends = []
    for received, e_ms, open_leases in words:
        word = EvidenceRecord(
            command_id="c",
            namespace="acme",
            node="n",
            ack=None,
            received_at=committed + received,
            edge_leases_end_in_ms=e_ms,
            open_edge_leases=open_leases,
        )
        held = certificate.holder_evidence("n", word, bound=evidence.bound_end(committed, TTL_MS))
        assert held.t <= evidence.bound_end(committed, TTL_MS)
        ends.append(held.t)
    assert evidence.certain_end(committed, ends) >= committed
    assert all(evidence.certain_end(committed, ends) >= e for e in ends)


def test_a_tenant_s_own_ttl_is_the_longest_that_a_lease_can_carry() -> None:
    settings = genesis().settings
    bench = with_tenant(ttl_ms=5_000)
    assert evidence.longest_ttl_ms(settings, bench.state.spaces["acme"].policy) == 5_000
    assert evidence.longest_ttl_ms(settings, None) == TTL_MS


# --- records --------------------------------------------------------------------------------------------------------


def test_nobody_is_shown_more_than_is_certain() -> None:
    bench = with_tenant()
    bench.auto_vote = False
    bench.ok(bench.scope_command("suspend", "tenant:acme", "s1"))
    assert status(bench) == "pending"
    bench.ack_tasks("us-east")
    bench.ack_tasks("us-west")
    assert status(bench) == "pending"
    bench.auto_vote = True
    bench.advance(1_000)
    assert status(bench) == "certified"


def test_all_acknowledged_without_open_leases_certifies_at_once() -> None:
    bench = suspended()
    assert status(bench) == "revoking"
    bench.ack_tasks("us-east")
    assert status(bench) == "revoking"
    bench.ack_tasks("us-west")
    assert status(bench) == "certified"
    verified = verify(bench.certificates[0].certificate)
    assert verified.by_ack == ("node:us-east/n1", "node:us-west/n1")
    assert verified.by_bound == ()
    assert verified.t == bench.now


def test_a_silent_holder_costs_the_bound_to_the_millisecond() -> None:
    bench = suspended()
    committed = bench.now
    bench.ack_tasks("us-east")
    bench.advance(BOUND_MS - 1)
    assert not bench.certificates
    bench.advance(1)
    verified = verify(bench.certificates[0].certificate)
    assert verified.t == committed + BOUND_MS
    assert verified.by_bound == ("node:us-west/n1",)


def still_open(bench: Bench) -> dict[str, tuple[str, int]]:
    kill = bench.state.kills[("acme", "s1")]
    return {h.node: (h.evidence, at) for h, at in killswitch.open_holders(bench.state, kill, bench.now)}


def test_a_running_one_says_who_is_open_and_by_when_all_are_closed_at_the_latest() -> None:
    bench = with_tenant()
    bench.auto_vote = False
    bench.ok(bench.scope_command("suspend", "tenant:acme", "s1"))
    kill = bench.state.kills[("acme", "s1")]
    assert not killswitch.is_running(bench.state, kill) and still_open(bench) == {}  # not committed: no bound
    bench.auto_vote = True
    bench.advance(1_000)
    committed = kill.record.committed_at
    both = {node(r): ("bound", committed + BOUND_MS) for r in ("us-east", "us-west")}
    assert killswitch.is_running(bench.state, kill) and still_open(bench) == both
    bench.ack("us-east", "acme", 3, e_ms=5_000, open_leases=1)
    lease_end = bench.now + 5_005
    assert still_open(bench) == {**both, node("us-east"): ("ack", lease_end)}
    assert killswitch.due_at(bench.state, kill) == committed + BOUND_MS
    bench.advance(lease_end - bench.now - 1)
    assert node("us-east") in still_open(bench)
    bench.advance(1)
    assert still_open(bench) == {node("us-west"): both[node("us-west")]}
    bench.ack_tasks("us-west")
    assert not killswitch.is_running(bench.state, kill) and still_open(bench) == {}
    assert verify(bench.certificates[0].certificate).t == bench.now


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["us-east", "us-west"]), st.integers(0, 90_000), st.integers(0, 2), st.integers(0, 9_000)
        ),
        max_size=6,
    )
)
@settings(max_examples=30, deadline=None)
def test_the_latest_instant_that_was_shown_only_comes_nearer(words: list[tuple[str, int, int, int]]) -> None:
    """Whatever the nodes say later, and T is never after it."""
    bench = suspended()
    kill = bench.state.kills[("acme", "s1")]
    shown = [killswitch.due_at(bench.state, kill)]
    for region, e_ms, open_leases, pause_ms in words:
        bench.ack(region, "acme", 3, e_ms=e_ms, open_leases=open_leases)
        if killswitch.is_running(bench.state, kill):
            shown.append(killswitch.due_at(bench.state, kill))
            last = [at for _, at in killswitch.open_holders(bench.state, kill, bench.now)]
            assert max(last) == shown[-1] > bench.now
        bench.advance(pause_ms)
    bench.advance(BOUND_MS)
    assert shown == sorted(shown, reverse=True)
    assert verify(bench.certificates[0].certificate).t <= shown[-1]


def test_after_a_restart_a_running_one_counts_what_is_left_anew() -> None:
    bench = suspended()
    bench.advance(30_000)
    bench.boot()
    bench.settle()
    bench.advance(100)
    kill = bench.state.kills[("acme", "s1")]
    assert killswitch.is_running(bench.state, kill)
    ends = [at for _, at in still_open(bench).values()]
    assert len(ends) == 2 and max(ends) == killswitch.due_at(bench.state, kill) > kill.record.committed_at + BOUND_MS


def test_what_was_lifted_runs_no_more() -> None:
    bench = suspended()
    bench.ok(bench.scope_command("resume", "tenant:acme", "r1"))
    assert not killswitch.is_running(bench.state, bench.state.kills[("acme", "s1")])


def test_open_edge_leases_are_waited_for() -> None:
    bench = suspended()
    bench.ack_tasks("us-east")
    bench.ack("us-west", "acme", 3, e_ms=5_000, open_leases=2)
    bench.advance(5_004)
    assert not bench.certificates
    bench.advance(1)
    assert verify(bench.certificates[0].certificate).t == bench.now


def test_a_later_acknowledgement_that_ends_sooner_replaces() -> None:
    bench = suspended()
    bench.ack_tasks("us-east")
    bench.ack("us-west", "acme", 3, e_ms=50_000, open_leases=2)
    bench.advance(100)
    bench.ack("us-west", "acme", 3, e_ms=20_000, open_leases=1)
    bench.ack("us-west", "acme", 3, e_ms=50_000, open_leases=2)  # a late copy of the first
    assert not bench.certificates
    bench.ack("us-west", "acme", 3)
    assert verify(bench.certificates[0].certificate).t == bench.now


def test_an_acknowledgement_that_would_end_after_the_bound_gives_way_to_it() -> None:
    bench = suspended()
    committed = bench.now
    bench.ack_tasks("us-east")
    bench.ack("us-west", "acme", 3, e_ms=3_600_000, open_leases=1)
    bench.advance(BOUND_MS)
    verified = verify(bench.certificates[0].certificate)
    assert (verified.t, verified.by_bound) == (committed + BOUND_MS, ("node:us-west/n1",))


@pytest.mark.parametrize(
    "changed",
    [
        {"outcome": "refused", "reason": "unproven-lift"},
        {"outcome": "quarantined", "reason": "fork"},
        {"restrictions": ()},
        {"by": "us-east"},
    ],
)
def test_a_word_that_does_not_say_it_is_no_evidence(changed: dict[str, Any]) -> None:
    bench = suspended()
    bench.ack_tasks("us-east")
    bench.ack("us-west", "acme", 3, **changed)
    assert not bench.certificates


@pytest.mark.parametrize("changed", [{"seq": 2}, {"seq": 4}, {"entry_hash": "00" * 32}, {"scope": "service:acme/pay"}])
def test_a_word_that_names_another_entry_is_no_evidence(changed: dict[str, Any]) -> None:
    bench = suspended()
    bench.ack_tasks("us-east")
    said = RestrictionAck(scope="tenant:acme", seq=3, entry_hash=None, edge_leases_end_in_ms=0, open_edge_leases=0)
    bench.ack("us-west", "acme", 3, restrictions=(replace(said, **changed),))
    assert not bench.certificates


def test_an_older_leaf_is_no_evidence_though_it_lists_the_scope() -> None:
    bench = suspended()
    bench.ack_tasks("us-east")
    said = RestrictionAck(scope="tenant:acme", seq=3, entry_hash=None, edge_leases_end_in_ms=0, open_edge_leases=0)
    bench.ack("us-west", "acme", 2, restrictions=(said,))
    assert not bench.certificates


def test_a_node_enrolled_before_the_commit_is_a_holder_connected_or_not() -> None:
    """Model trace 8: a node that nobody has heard of yet."""
    bench = mesh_up(regions=("us-east", "eu-central", "us-west"))
    bench.tenant("globex", regions=("eu-central",), home="eu-central")
    bench.auto_vote = False
    bench.ok(bench.scope_command("suspend", "mesh", "s1", by=OFFICERS[:2]))
    bench.ok(bench.join("eu-west", ("n1",)))
    bench.auto_vote = True
    bench.advance(1_000)
    record = killswitch.record_of(bench.state, "mesh", "s1")
    assert record is not None
    assert node("eu-west") in record.holders


def test_scopes_have_their_own_holders() -> None:
    bench = with_tenant()
    bench.ok(bench.scope_command("suspend", "region:us-west", "s1", by=OFFICERS[:2]))
    bench.ok(bench.scope_command("suspend", "mesh", "s2", by=OFFICERS[:2]))
    region = killswitch.record_of(bench.state, "mesh", "s1")
    mesh = killswitch.record_of(bench.state, "mesh", "s2")
    assert region is not None
    assert mesh is not None
    assert region.holders == ("node:us-west/n1",)
    assert len(mesh.holders) == 4
    for name in ("us-west", "us-east", "eu-central", "eu-west"):
        bench.ack_tasks(name)
    assert {verify(c.certificate).action for c in bench.certificates} == {"suspend"}
    assert len(bench.certificates) == 2


def test_a_suspension_superseded_by_a_revocation_still_ends_and_the_revocation_is_certified_first() -> None:
    bench = suspended()
    bench.take_tasks("us-west")
    bench.take_tasks("us-east")
    bench.ok(bench.scope_command("revoke", "tenant:acme", "v1"))
    assert status(bench) == "superseded"
    bench.ack_tasks("us-east")
    bench.ack_tasks("us-west")
    assert [c.command_id for c in bench.certificates] == ["v1"]
    bench.advance(BOUND_MS)
    assert [c.command_id for c in bench.certificates] == ["v1", "s1"]
    assert all(verify(c.certificate) for c in bench.certificates)


def test_a_committed_resume_ends_an_open_record() -> None:
    bench = suspended()
    bench.ok(bench.scope_command("resume", "tenant:acme", "r1"))
    assert status(bench) == "lifted"
    bench.advance(BOUND_MS + 1)
    assert not bench.certificates


def test_every_repeated_revoke_has_its_own_certificate() -> None:
    bench = suspended()
    bench.ack_tasks("us-east")
    bench.ack_tasks("us-west")
    bench.ok(bench.scope_command("resume", "tenant:acme", "r1"))
    bench.ok(bench.scope_command("suspend", "tenant:acme", "s2"))
    bench.ack_tasks("us-east")
    bench.ack_tasks("us-west")
    assert [c.command_id for c in bench.certificates] == ["s1", "s2"]


def test_a_certificate_that_cannot_be_recorded_is_not_shown() -> None:
    bench = suspended()
    bench.ack_tasks("us-east")
    bench.ack("us-west", "acme", 3, e_ms=5_000, open_leases=1)
    bench.persists = False
    bench.advance(8_000)
    assert not bench.certificates
    assert status(bench) == "revoking"
    bench.persists = True
    bench.advance(1_000)
    assert status(bench) == "certified"
    assert len(bench.certificates) == 1


# --- the verifier ---------------------------------------------------------------------------------------------------


def test_a_certificate_says_what_it_is_about() -> None:
    verified = verify(certified(kind="revoke"))
    said = verified.summary()
    assert (said["scope"], said["action"], said["command_id"]) == ("tenant:acme", "revoke", "s1")
    assert len(said["voters"]) >= 2
    assert said["not_covered"]
    strict_json.dumps(said)


def resigned(made: Certificate, change: Callable[[Statement], Statement], by: str = "registry") -> Certificate:
    """The certificate with another statement, signed by the Registry itself: an operator that lies."""
    keys = {KeyId(k): v for k, v in keys_of("registry").items()}
    statement = DsseSuite(signer("registry")).unseal(made.statement, Statement, keys)
    return replace(made, statement=DsseSuite(signer(by)).seal(change(statement)))


def with_holder(statement: Statement, at: int, **changed: Any) -> Statement:
    holders = list(statement.holders)
    holders[at] = replace(holders[at], **changed)
    return replace(statement, holders=tuple(holders))


def absence(statement: Statement) -> Proof:
    assert statement.policy is not None
    return replace(statement.policy, row=None)


def with_value(statement: Statement, value: bytes) -> Proof:
    assert statement.policy is not None
    return replace(statement.policy, row=Row("policy", value))


def cut_short(statement: Statement) -> Proof:
    assert statement.policy is not None
    return replace(statement.policy, siblings=statement.policy.siblings[:-1])


def no_hash(statement: Statement) -> Proof:
    assert statement.policy is not None
    return replace(statement.policy, siblings=(Digest("x"),))


def foreign_proof(name: str) -> Proof:
    """A true proof of the same row, under the state that the tenant had before the suspension."""
    rows = with_tenant().state.spaces["acme"].rows
    return MapTree.of(rows).prove(name)


LIES: dict[str, tuple[str, Callable[[Statement], Statement]]] = {
    "a holder left out": ("certificate-holders", lambda s: replace(s, holders=s.holders[:1])),
    "a holder twice": ("certificate-holders", lambda s: replace(s, holders=(s.holders[0], s.holders[0]))),
    "a stranger": ("certificate-holders", lambda s: with_holder(s, 1, node="node:us-west/n9")),
    "an earlier end": ("certificate-evidence", lambda s: with_holder(s, 0, t=s.holders[0].t - 1)),
    "another's word": ("certificate-evidence", lambda s: with_holder(s, 0, ack=s.holders[1].ack)),
    "no word": ("certificate-evidence", lambda s: with_holder(s, 0, ack=None)),
    "an invented kind": ("certificate-evidence", lambda s: with_holder(s, 0, evidence="trust me")),
    "a bound short by one": (
        "certificate-evidence",
        lambda s: with_holder(s, 0, evidence="bound", t=evidence.bound_end(s.committed_at, s.ttl_ms) - 1),
    ),
    "a word before the entry": (
        "certificate-evidence",
        lambda s: with_holder(s, 0, received_at=1, t=1),
    ),
    "a word after the certificate": (
        "certificate-evidence",
        lambda s: with_holder(s, 0, received_at=s.issued_at + 1, t=s.issued_at + 1),
    ),
    "an earlier T": ("certificate-t", lambda s: replace(s, t=s.t - 1)),
    "a later T": ("certificate-t", lambda s: replace(s, t=s.t + 1)),
    "issued before T": ("certificate-evidence", lambda s: replace(s, issued_at=s.t - 1)),
    "one voter": ("certificate-commit", lambda s: replace(s, countersignatures=s.countersignatures[:1])),
    "one voter twice": ("certificate-commit", lambda s: replace(s, countersignatures=s.countersignatures[:1] * 2)),
    "no voter": ("certificate-commit", lambda s: replace(s, countersignatures=())),
    "committed before it was issued": ("certificate-commit", lambda s: replace(s, committed_at=1)),
    "a shorter ttl": ("certificate-ttl", lambda s: replace(s, ttl_ms=s.ttl_ms - 1)),
    "another scope": ("certificate-entry", lambda s: replace(s, scope="service:acme/pay")),
    "another action": ("certificate-entry", lambda s: replace(s, action="revoke")),
    "another command": ("certificate-entry", lambda s: replace(s, command_id="s2")),
    "another correlation": ("certificate-entry", lambda s: replace(s, correlation_id="x")),
    "another mesh": ("certificate-root", lambda s: replace(s, mesh="other")),
    "another mesh state": ("certificate-root", lambda s: replace(s, mesh_head="00" * 32)),
    "no tenant": ("certificate-tenant", lambda s: replace(s, tenant=None)),
    "the entry for the tenant": ("certificate-tenant", lambda s: replace(s, tenant=s.entry)),
    "the tenant for the entry": ("certificate-entry", lambda s: replace(s, entry=s.tenant)),
    "no proof of the policy": ("certificate-policy", lambda s: replace(s, policy=None)),
    "no proof of the signers": ("certificate-policy", lambda s: replace(s, signers=None)),
    "the proof of another row": ("certificate-policy", lambda s: replace(s, policy=s.signers)),
    "the proofs exchanged": ("certificate-policy", lambda s: replace(s, policy=s.signers, signers=s.policy)),
    "a proof of absence": ("certificate-policy", lambda s: replace(s, policy=absence(s))),
    "the proof of another state": ("certificate-policy", lambda s: replace(s, policy=foreign_proof("policy"))),
    "a proof with another value": ("certificate-policy", lambda s: replace(s, policy=with_value(s, b"{}"))),
    "a proof with too few steps": ("certificate-policy", lambda s: replace(s, policy=cut_short(s))),
    "a proof that is no hash": ("certificate-policy", lambda s: replace(s, policy=no_hash(s))),
}


@pytest.fixture(scope="module")
def sound() -> Certificate:
    return certified()


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_refused_though_the_registry_signed_it(lie: str, sound: Certificate) -> None:
    code, change = LIES[lie]
    with pytest.raises(Integrity) as refused:
        verify(resigned(sound, change))
    assert refused.value.code == code


def forged_creation(**policy: Any) -> Any:
    """An entry that creates acme once more, by the Registry's key alone: its signers are the thief's."""
    args = msgspec.to_builtins(
        TenantCreate(
            policy=PolicyRow(version=1, domain="us", admins=("ann",), **policy),
            signers=SignersRow(keys=keys_of("thief"), threshold=1),
            binding_id="b1",
            provider="customer-kms",
            descriptor={"url": "https://kms.example"},
        )
    )
    word = trust.make_authority(
        mesh="example",
        namespace="acme",
        command_id="x",
        kind="tenant.create",
        args=args,
        not_after=2**52,
        signers=[signer("thief")],
    )
    return build.extend(
        None,
        mesh="example",
        namespace="acme",
        kind="tenant.create",
        args=args,
        mesh_seq=1,
        suite=DsseSuite(signer("registry")),
        command_id="x",
        authority=(word,),
    )


@pytest.mark.parametrize("own_proofs", [True, False])
def test_a_forged_creation_leaves_no_holder_out(own_proofs: bool) -> None:
    """Whoever has the Registry's key signs a policy without the region that still serves, and lies about the rest."""
    bench = suspended()
    bench.ack_tasks("us-east")
    forged = forged_creation(home="us-east", regions=("us-east",))
    trust.verify_entry(forged.head, bench.state.spaces["mesh"].rows, None, bench.state.config.suite)
    space, kill = bench.state.spaces["acme"], bench.state.kills[("acme", "s1")]
    mesh = bench.state.spaces["mesh"]
    made = certificate.make_certificate(
        replace(kill.record, holders=("node:us-east/n1",)),
        kill.evidence,
        entry=space.entries[kill.record.seq - 1],
        countersignatures=space.commits[kill.record.seq].countersignatures,
        mesh=spaces.state_at(mesh, kill.record.mesh_seq),
        tenant=forged.head,
        rows=forged.rows if own_proofs else space.rows,
        suite=bench.state.config.suite,
        now=bench.now,
    )
    with pytest.raises(Integrity) as refused:
        verify(made)
    assert refused.value.code == "certificate-policy"


def test_a_wide_certificate_needs_no_policy() -> None:
    bench = with_tenant()
    bench.ok(bench.scope_command("suspend", "region:us-west", "s1", by=OFFICERS[:2]))
    bench.ack_tasks("us-west")
    statement = verify(bench.certificates[0].certificate).statement
    assert (statement.tenant, statement.policy, statement.signers) == (None, None, None)


def test_a_certificate_outlives_the_rows_that_are_kept() -> None:
    """So many entries later that the rows after the suspension are gone: they are made again."""
    bench = suspended()
    bench.ack_tasks("us-east")
    space = bench.state.spaces["acme"]
    seq = bench.state.kills[("acme", "s1")].record.seq
    kept = spaces.rows_at(space, seq)
    for n in range(3):
        bench.ok(bench.label("acme", n))
    del space.versions[seq]
    assert spaces.rows_at(space, seq) == kept != space.rows
    bench.advance(BOUND_MS)
    assert verify(bench.certificates[0].certificate).by_bound == ("node:us-west/n1",)


def test_a_statement_signed_by_anybody_else_is_refused(sound: Certificate) -> None:
    for by in ("node-us-east", "root-1", "officer-1"):
        with pytest.raises(Integrity) as refused:
            verify(resigned(sound, lambda s: s, by))
        assert refused.value.code == "certificate-signature"


def test_other_roots_and_too_few_of_them_are_refused(sound: Certificate) -> None:
    raw = evidence.encode_certificate(sound)
    others = RootRow(version=1, keys=keys_of("mallory-1", "mallory-2"), threshold=1)
    for root, mesh in ((others, "example"), (ROOT_ROW, "other"), (replace(ROOT_ROW, threshold=1), "example")):
        with pytest.raises(Integrity) as refused:
            verify_certificate(raw, root=root, mesh=mesh)
        assert refused.value.code == "certificate-root"


def test_a_mesh_state_with_a_node_left_out_is_refused(sound: Certificate) -> None:
    rows = {k: v for k, v in sound.trust.rows.items() if k != "node/us-west/n1"}
    with pytest.raises(Integrity) as refused:
        verify(replace(sound, trust=replace(sound.trust, rows=rows)))
    assert refused.value.code == "certificate-root"


def test_every_flipped_byte_is_noticed(sound: Certificate) -> None:
    raw = bytearray(evidence.encode_certificate(sound))
    verify_certificate(bytes(raw), root=ROOT_ROW, mesh="example")
    for at in range(0, len(raw), max(1, len(raw) // 150)):
        broken = bytearray(raw)
        broken[at] ^= 0x01
        with pytest.raises((Integrity, Refused)):
            verify_certificate(bytes(broken), root=ROOT_ROW, mesh="example")


@pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b"null", b'{"trust":1,"statement":2}', b"\xff"])
def test_what_is_no_certificate_is_refused(raw: bytes) -> None:
    with pytest.raises(Refused):
        verify_certificate(raw, root=ROOT_ROW, mesh="example")


def test_the_verifier_judges_what_it_is_given_and_no_clock() -> None:
    made = certified()
    first, again = verify(made), verify(made)
    assert first == again
    assert isinstance(first.statement.holders[0], Holder)
    assert Instant(first.t) == first.statement.t
