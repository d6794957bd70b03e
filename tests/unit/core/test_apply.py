"""Tasks: restrictions before the record, grants after it; duplicates, replays, forks and what nobody understands."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from keymesh.control.entry import Body
from keymesh.control.state import NamespaceState
from keymesh.core.events import DropKeys, LoadKeys
from keymesh.core.records import closed_name, overlay_name, quarantine_name, state_name
from keymesh.core.refusals import QUARANTINE_MAX, UNKNOWN
from keymesh.core.state import NO_LEAF
from keymesh.model.ids import ZERO_DIGEST
from keymesh.model.machine import Address, Note, Persist
from keymesh.model.states import Mode, Operation
from keymesh.sim.suite import FakeSuite
from tests.unit.control.world import Mesh, resigned
from tests.unit.core.bench import L3_KID, TENANT, Bench

SCOPE = f"tenant:{TENANT}"
SERVICE_SCOPE = f"service:{TENANT}/pay"


# --- order of effects ------------------------------------------------------------------------------------------------


def test_a_restriction_acts_before_it_is_recorded_and_is_acknowledged_after() -> None:
    bench = Bench().up()
    bench.give(bench.mesh.restrict("suspend", SCOPE))
    names = [type(getattr(e, "message", e)).__name__ for e in bench.out]
    assert names.index("DropKeys") < names.index("Persist") < names.index("AckMessage")
    assert not bench.may().allowed
    assert bench.memory == set()


def test_a_crash_before_the_record_leaves_the_task_unacknowledged() -> None:
    bench = Bench().up()
    newer = bench.mesh.restrict("suspend", SCOPE)
    bench.crash_at_persist = True
    bench.give(newer)
    assert not bench.may().allowed  # in force before the record
    assert bench.acks() == []
    bench.crash_at_persist = False
    bench.reboot()
    assert bench.holding().leaf.seq == newer.head.entry.seq - 1
    bench.give(newer)
    assert bench.acks()[-1].outcome == "applied"


def test_a_grant_is_recorded_before_it_applies() -> None:
    bench = Bench().up()
    newer = bench.mesh.service(name="mail")
    bench.disk_works = False
    bench.give(newer)
    assert "mail" not in bench.holding().view.services
    assert bench.acks() == []
    assert bench.may().allowed  # a grant that cannot be recorded closes nothing
    bench.disk_works = True
    bench.give(newer)
    assert "mail" in bench.holding().view.services
    assert bench.disk[state_name(TENANT)] == newer


def test_a_resume_is_recorded_before_it_applies() -> None:
    bench = Bench().up()
    bench.give(bench.mesh.restrict("suspend", SCOPE))
    bench.disk_works = False
    bench.give(bench.mesh.restrict("resume", SCOPE))
    assert not bench.may().allowed
    bench.disk_works = True
    bench.give(bench.mesh.states[TENANT])
    assert bench.may().allowed


# --- a restriction that cannot be recorded ---------------------------------------------------------------------------


def test_a_node_that_cannot_record_a_restriction_closes_until_it_can() -> None:
    bench = Bench().up()
    bench.disk_works = False
    newer = bench.mesh.restrict("suspend", SERVICE_SCOPE)
    bench.give(newer)
    assert bench.acks() == []
    assert bench.mode() is Mode.CLOSED  # the whole tenant
    bench.advance(1_500)
    assert bench.mode() is Mode.CLOSED
    bench.disk_works = True
    bench.advance(1_000)
    assert bench.disk[state_name(TENANT)] == newer
    assert bench.mode() is not Mode.CLOSED
    assert bench.acks()[-1].outcome == "applied"
    assert bench.may().reason == "restricted-service"


def test_a_second_try_never_records_something_older() -> None:
    bench = Bench().up()
    bench.disk_works = False
    bench.give(bench.mesh.restrict("suspend", SERVICE_SCOPE))
    bench.disk_works = True
    newest = bench.mesh.restrict("suspend", SCOPE)
    bench.give(newest)
    bench.advance(2_500)
    assert bench.disk[state_name(TENANT)] == newest
    assert bench.holding().leaf == newest.leaf
    assert not bench.state.unrecorded


def test_a_crash_while_closed_for_want_of_a_record_forgets_only_what_was_never_acknowledged() -> None:
    bench = Bench().up()
    bench.disk_works = False
    bench.give(bench.mesh.restrict("suspend", SCOPE))
    bench.reboot()
    assert bench.acks() == []
    bench.disk_works = True
    bench.give_all()
    bench.renew()
    assert not bench.may().allowed


# --- duplicates, replays, re-ordering --------------------------------------------------------------------------------


def test_duplicates_are_acknowledged_and_change_nothing() -> None:
    bench = Bench().up()
    newer = bench.mesh.restrict("suspend", SCOPE)
    bench.give(newer)
    before = dict(bench.disk)
    bench.take()
    for _ in range(3):
        bench.give(newer)
    assert [ack.outcome for ack in bench.acks()] == ["stale"] * 3
    assert all(ack.restrictions[0].scope == SCOPE for ack in bench.acks())
    assert bench.effects(Persist) == []
    assert bench.disk == before


def test_an_older_resume_after_a_newer_suspend_lifts_nothing() -> None:
    bench = Bench().up()
    mesh = bench.mesh
    suspend, resume = mesh.restrict("suspend", SCOPE), mesh.restrict("resume", SCOPE)
    again = mesh.restrict("suspend", SCOPE)
    for state in (again, resume, suspend, resume):
        bench.give(state)
        assert not bench.may().allowed
    assert bench.holding().leaf == again.leaf
    bench.reboot()
    assert bench.holding().leaf == again.leaf
    assert SCOPE in bench.holding().restrictions


def test_a_repeated_suspend_is_a_new_restriction_to_acknowledge() -> None:
    bench = Bench().up()
    first = bench.mesh.restrict("suspend", SCOPE)
    second = bench.mesh.restrict("suspend", SCOPE)
    bench.give(first)
    bench.give(second)
    assert [ack.restrictions[0].seq for ack in bench.acks()] == [first.head.entry.seq, second.head.entry.seq]
    assert bench.acks()[-1].restrictions[0].entry_hash == second.head.hash


def test_a_gap_does_not_hold_up_a_restriction() -> None:
    bench = Bench().up()
    for n in range(3):
        bench.mesh.service(name=f"s{n}")
    bench.give(bench.mesh.restrict("suspend", SCOPE))
    assert not bench.may().allowed
    assert set(bench.holding().view.services) == {"pay", "s0", "s1", "s2"}


def test_recorded_positions_never_fall() -> None:
    bench = Bench().up()
    states = [bench.mesh.service(name=f"s{n}") for n in range(4)]
    highest = 0
    for n in (2, 0, 3, 1, 2, 0):
        bench.give(states[n])
        seq = bench.disk[state_name(TENANT)].head.entry.seq
        assert seq >= highest
        highest = seq


# --- what must be refused --------------------------------------------------------------------------------------------


def refusal(bench: Bench, state: NamespaceState, **kwargs: Any) -> str:
    before = bench.disk.get(state_name(TENANT))
    bench.take()
    bench.give(state, **kwargs)
    assert bench.disk.get(state_name(TENANT)) == before
    ack = bench.acks()[-1]
    assert ack.outcome == "refused"
    return ack.reason


def test_unsigned_forged_and_foreign_states_change_nothing() -> None:
    bench = Bench().up()
    good = bench.mesh.plan(TENANT, "suspend", {"scope": SCOPE, "reason": "", "abandon_children": False})
    assert refusal(bench, resigned(good, FakeSuite("thief"))) == "bad-signature"
    assert refusal(bench, resigned(good, bench.mesh.registry, mesh="other")) == "foreign-mesh"
    assert refusal(bench, resigned(good, bench.mesh.registry, epoch=2)) == "future-epoch"
    assert refusal(bench, resigned(good, bench.mesh.registry, state=ZERO_DIGEST)) == "state-mismatch"
    assert refusal(bench, replace(good, rows=dict(bench.mesh.states[TENANT].rows))) == "state-mismatch"
    assert bench.may().allowed


def test_a_task_of_anyone_but_the_registry_is_ignored() -> None:
    bench = Bench().up()
    task = bench.task(bench.mesh.restrict("suspend", SCOPE))
    bench.receive(task, Address("node:us-west/n1"))
    assert bench.may().allowed
    assert bench.acks() == []


def test_a_namespace_that_does_not_match_the_entry() -> None:
    bench = Bench().up()
    task = replace(bench.task(bench.mesh.restrict("suspend", SCOPE)), namespace="globex")
    bench.receive(task)
    assert bench.acks()[-1].reason == "namespace-mismatch"
    assert bench.acks()[-1].leaf == NO_LEAF
    assert "globex" not in bench.state.tenants


def test_a_tenant_before_its_mesh_waits_for_the_mesh_that_comes_along() -> None:
    bench = Bench()
    bench.give(bench.mesh.states[TENANT])
    assert bench.acks()[-1].reason == "needs-mesh"
    bench.give(bench.mesh.states[TENANT], mesh=bench.mesh.mesh)
    assert {ack.namespace for ack in bench.acks() if ack.outcome == "applied"} == {"mesh", TENANT}
    assert len([e for e in bench.effects(Persist) if e.puts]) == 1  # in one transaction
    bench.renew()
    assert bench.mode() is Mode.SYNCED


def test_a_mesh_that_is_not_of_the_pinned_root() -> None:
    bench = Bench()
    bench.give(resigned(bench.mesh.mesh, FakeSuite("thief")))
    bench.give(Mesh(name="other").mesh)
    assert [ack.outcome for ack in bench.acks()] == ["refused", "refused"]
    assert bench.state.mesh.applied is None


def test_an_acknowledgement_names_its_life_and_rises() -> None:
    bench = Bench().up()
    newer = bench.mesh.restrict("suspend", SCOPE)
    bench.give(newer)
    bench.give(newer)
    first, second = bench.acks()
    assert second.counter > first.counter
    life = first.boot_id
    bench.reboot()
    bench.give(newer)
    assert bench.acks()[-1].boot_id != life


# --- forks, unknown kinds --------------------------------------------------------------------------------------------


def forked(mesh: Mesh) -> tuple[NamespaceState, NamespaceState]:
    base = mesh.states[TENANT]
    plans = [mesh.plan(TENANT, "tenant.labels", {"labels": {"side": side}}, held=base) for side in ("left", "right")]
    return plans[0], plans[1]


def test_a_fork_keeps_both_as_evidence_and_closes_for_good() -> None:
    bench = Bench().up()
    left, right = forked(bench.mesh)
    bench.give(left)
    bench.take()
    bench.give(right)
    evidence = bench.disk[quarantine_name(TENANT, right.head.hash)]
    assert (evidence.held.hash, evidence.other.hash) == (left.head.hash, right.head.hash)
    assert bench.acks()[-1].outcome == "quarantined"
    assert bench.mode() is Mode.CLOSED
    assert bench.memory == set()
    assert bench.holding().leaf == left.leaf
    later = bench.mesh.plan(TENANT, "tenant.labels", {"labels": {}}, held=left)
    bench.give(later)
    bench.renew(leaves={**bench.leaves(), TENANT: later.leaf})
    assert bench.mode() is Mode.CLOSED
    bench.reboot()
    bench.renew(leaves={**bench.leaves(), TENANT: later.leaf})
    assert bench.mode() is Mode.CLOSED


def test_evidence_is_kept_once_and_within_a_limit() -> None:
    bench = Bench().up()
    left, right = forked(bench.mesh)
    bench.give(left)
    for _ in range(3):
        bench.give(right)
    assert len(bench.state.quarantined[TENANT]) == 1
    for n in range(QUARANTINE_MAX + 5):
        base = bench.mesh.states[TENANT]
        bench.give(bench.mesh.plan(TENANT, "tenant.labels", {"labels": {"n": str(n)}}, held=base))
    kept = [name for name in bench.disk if name.startswith("quarantine/")]
    assert len(kept) == QUARANTINE_MAX
    bench.reboot()
    assert len(bench.state.quarantined[TENANT]) == QUARANTINE_MAX


def test_an_unknown_kind_closes_the_tenant_until_it_is_understood() -> None:
    bench = Bench().up()
    mesh = bench.mesh
    plain = mesh.plan(TENANT, "tenant.labels", {"labels": {}})
    strange = resigned(plain, mesh.registry, kind="tenant.teleport")
    bench.give(strange)
    assert bench.acks()[-1].reason == "unknown-kind"
    assert closed_name(TENANT, UNKNOWN) in bench.disk
    assert bench.mode() is Mode.CLOSED
    bench.reboot()
    bench.give_all()
    bench.renew()
    assert bench.mode() is Mode.CLOSED
    newer = mesh.do(TENANT, "tenant.labels", {"labels": {"a": "b"}})
    bench.give(newer)
    bench.renew()
    assert bench.mode() is Mode.SYNCED
    assert closed_name(TENANT, UNKNOWN) not in bench.disk


@pytest.mark.parametrize(
    ("kind", "args"),
    [
        ("tenant.labels", {"labels": {}, "colour": "red"}),
        ("tenant.labels", {}),
        ("suspend", {"scope": f"tenant:{TENANT}", "until": "noon"}),
    ],
    ids=["grant", "missing", "restriction"],
)
def test_an_unknown_field_of_a_known_kind_closes_the_tenant_at_once(kind: str, args: dict[str, Any]) -> None:
    """A restriction above all: what a later release says more of it is no reason to pass over it."""
    bench = Bench().up()
    plain = bench.mesh.plan(TENANT, "tenant.labels", {"labels": {}})
    strange = resigned(plain, bench.mesh.registry, kind=kind, body=Body(args=args))
    bench.give(strange)
    assert bench.acks()[-1].reason == "unknown-kind"
    assert bench.mode() is Mode.CLOSED


def test_what_is_understood_after_all_does_not_end_a_fork() -> None:
    bench = Bench().up()
    mesh = bench.mesh
    left, right = forked(mesh)
    bench.give(left)
    bench.give(right)
    plain = mesh.plan(TENANT, "tenant.labels", {"labels": {}}, held=left)
    bench.give(resigned(plain, mesh.registry, kind="tenant.teleport"))
    bench.give(mesh.plan(TENANT, "tenant.labels", {"labels": {"a": "b"}}, held=plain))
    assert set(bench.holding().closed) == {"fork"}
    bench.reboot()
    assert set(bench.holding().closed) == {"fork"}


def test_an_unknown_row_closes_the_tenant() -> None:
    bench = Bench().up()
    from keymesh.ledger.maptree import root_of

    held = bench.mesh.states[TENANT]
    rows = {**held.rows, "halo/x": b"{}"}
    plain = bench.mesh.plan(TENANT, "tenant.labels", {"labels": {}})
    strange = replace(resigned(plain, bench.mesh.registry, state=root_of(rows)), rows=rows)
    bench.give(strange)
    assert bench.acks()[-1].reason == "unknown-kind"
    assert bench.mode() is Mode.CLOSED


def test_an_unknown_mesh_entry_closes_by_renewing_no_lease() -> None:
    bench = Bench().up()
    plain = bench.mesh.plan("mesh", "region.rotate-ivk", {"region": "us-west", "generation": 2})
    strange = resigned(plain, bench.mesh.registry, kind="mesh.levitate")
    bench.give(strange)
    assert bench.may().allowed
    lease = bench.holding().lease
    bench.advance(500)
    bench.renew(leaves={**bench.leaves(), "mesh": strange.leaf})
    assert bench.holding().lease == lease


def test_one_stuck_namespace_does_not_delay_another() -> None:
    mesh = Mesh()
    mesh.furnished(TENANT)
    mesh.furnished("globex")
    bench = Bench(mesh)
    bench.up()
    strange = resigned(mesh.plan(TENANT, "tenant.labels", {"labels": {}}), mesh.registry, kind="tenant.teleport")
    bench.give(strange)
    newer = mesh.restrict("suspend", "tenant:globex")
    bench.give(newer)
    assert bench.holding("globex").leaf == newer.leaf
    assert bench.mode(TENANT) is Mode.CLOSED
    bench.give(mesh.restrict("resume", "tenant:globex"))
    bench.renew()
    assert bench.mode("globex") is Mode.SYNCED


# --- unproven lifts --------------------------------------------------------------------------------------------------


def test_an_unproven_lift_applies_only_what_it_restricts() -> None:
    bench = Bench().up()
    mesh = bench.mesh
    mesh.service(name="mail")
    held = mesh.restrict("suspend", SERVICE_SCOPE)
    bench.give(held)
    mesh.restrict("resume", SERVICE_SCOPE, committed=False)
    newer = mesh.restrict("suspend", f"service:{TENANT}/mail")
    bench.take()
    bench.give(newer)
    ack = bench.acks()[-1]
    assert (ack.outcome, ack.reason, ack.leaf) == ("refused", "unproven-lift", held.leaf)
    assert {r.scope: r.seq for r in ack.restrictions} == {
        SERVICE_SCOPE: held.head.entry.seq,
        f"service:{TENANT}/mail": newer.head.entry.seq,
    }
    assert bench.may().reason == "restricted-service"  # the resume counts for nothing
    assert bench.may(service="mail").reason == "restricted-service"
    bench.renew()
    lease = bench.holding().lease
    bench.advance(100)
    bench.renew()
    assert bench.holding().lease == lease  # no renewal on it
    bench.reboot()
    assert set(bench.holding().restrictions) == {SERVICE_SCOPE, f"service:{TENANT}/mail"}


def test_restrictions_of_an_unproven_lift_are_lifted_only_with_a_proof_too() -> None:
    bench = Bench().up()
    mesh = bench.mesh
    other = f"service:{TENANT}/mail"
    mesh.service(name="mail")
    bench.give(mesh.restrict("suspend", SERVICE_SCOPE))
    unproven = mesh.restrict("resume", SERVICE_SCOPE, committed=False)
    bench.give(mesh.restrict("suspend", other))
    mesh.restrict("resume", other, committed=False)
    # now the first resume is proven, the second is not
    state = mesh.states[TENANT]
    proof = mesh.commit(replace(unproven, support=state.support))
    bench.give(replace(state, support=proof.support))
    assert other in bench.holding().restrictions
    assert bench.acks()[-1].reason == "unproven-lift"
    bench.give(mesh.commit(replace(state, support=proof.support)))
    assert bench.holding().restrictions == {}
    assert overlay_name(TENANT) not in bench.disk
    assert bench.may().reason == ""


@pytest.mark.parametrize("last", ["suspend", "revoke"])
def test_an_older_state_restricts_although_a_newer_one_was_seen(last: str) -> None:
    """It knows an older word on what the newer one restricted, and is not to be refused for that."""
    bench = Bench().up()
    mesh = bench.mesh
    key, other = f"key:{TENANT}/files@1", f"service:{TENANT}/mail"
    mesh.service(name="mail")
    mesh.restrict("suspend", key)
    mesh.restrict("resume", key)
    bench.give(mesh.restrict("suspend", other))
    older = mesh.restrict("suspend", SERVICE_SCOPE)
    mesh.restrict("resume", SERVICE_SCOPE)
    mesh.restrict("resume", other, committed=False)
    bench.give(mesh.restrict(last, key))
    assert set(bench.holding().restrictions) == {key, other}
    bench.give(older)
    assert set(bench.holding().restrictions) == {key, other, SERVICE_SCOPE}
    assert bench.acks()[-1].reason == "unproven-lift"


def test_what_is_recorded_late_takes_the_record_of_its_overlay_with_it() -> None:
    """The older task lacks what the newer one, accepted but not recorded, restricts: an overlay is recorded first."""
    bench = Bench().up()
    mesh = bench.mesh
    older = mesh.restrict("suspend", SERVICE_SCOPE)
    newer = mesh.restrict("suspend", SCOPE)
    bench.disk_works = False
    bench.give(newer)
    bench.disk_works = True
    bench.give(older)
    bench.advance(1_000)
    assert bench.holding().leaf == newer.leaf
    assert overlay_name(TENANT) not in bench.disk


def test_a_crash_while_an_unproven_lift_is_recorded() -> None:
    bench = Bench().up()
    mesh = bench.mesh
    bench.give(mesh.restrict("suspend", SERVICE_SCOPE))
    mesh.restrict("resume", SERVICE_SCOPE, committed=False)
    newer = mesh.restrict("suspend", SCOPE)
    bench.take()
    bench.disk_works = False
    bench.give(newer)
    assert bench.acks() == []
    assert bench.mode() is Mode.CLOSED
    bench.disk_works = True
    bench.advance(1_200)
    assert {r.scope for r in bench.acks()[-1].restrictions} == {SCOPE, SERVICE_SCOPE}


def test_nothing_lifts_a_revocation() -> None:
    bench = Bench().up()
    mesh = bench.mesh
    bench.give(mesh.restrict("revoke", SERVICE_SCOPE))
    held = mesh.states[TENANT]
    rows = {name: raw for name, raw in held.rows.items() if not name.startswith("restriction/")}
    from keymesh.ledger.maptree import root_of

    plain = mesh.plan(TENANT, "tenant.labels", {"labels": {}})
    bad = replace(resigned(plain, mesh.registry, state=root_of(rows)), rows=rows)
    assert refusal(bench, bad) in ("revoked-lifted", "row-vanished")
    assert not bench.may().allowed


# --- scopes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scope", "reason"),
    [
        (SCOPE, "restricted-tenant"),
        (SERVICE_SCOPE, "restricted-service"),
        (f"key:{TENANT}/pay@1", "restricted-key"),
        ("region:us-east", "restricted-region"),
        ("mesh", "restricted-mesh"),
        ("region:us-west", ""),
    ],
)
def test_every_scope(scope: str, reason: str) -> None:
    bench = Bench().up()
    bench.give(bench.mesh.restrict("suspend", scope))
    assert bench.may().reason == reason
    assert (L3_KID in bench.memory) == (reason == "")
    bench.give(bench.mesh.restrict("resume", scope))
    bench.renew()
    assert bench.may().allowed
    assert L3_KID in bench.memory


def test_a_restricted_key_leaves_memory_alone_and_comes_back() -> None:
    bench = Bench().up()
    bench.give(bench.mesh.restrict("suspend", f"key:{TENANT}/pay@1"))
    assert bench.effects(DropKeys) == [DropKeys(TENANT, (L3_KID,))]
    bench.take()
    bench.give(bench.mesh.restrict("resume", f"key:{TENANT}/pay@1"))
    assert [ref.kid for e in bench.effects(LoadKeys) for ref in e.keys] == [L3_KID]
    assert bench.may(Operation.WRAP).allowed


def test_a_tenant_of_other_regions_leaves_no_trace() -> None:
    """I5, whatever the Registry sends: nothing kept, nothing named, not even where it is not understood."""
    bench = Bench(region="eu-west")
    bench.give(bench.mesh.mesh)
    bench.take()
    newest = bench.mesh.states[TENANT]
    odd = resigned(newest, bench.mesh.registry, kind="tenant.rename")
    for state in (newest, odd):
        bench.give(state)
        assert (bench.acks()[-1].outcome, bench.acks()[-1].reason) == ("refused", "residency")
    bench.give(newest, force=True)
    assert bench.state.tenants == {}
    assert set(bench.disk) == {state_name("mesh")}
    assert not any(TENANT in repr(effect) for effect in bench.effects(Note))


def test_residency_withdrawn_closes() -> None:
    mesh = Mesh()
    mesh.furnished(TENANT)
    bench = Bench(mesh, region="us-west").up()
    policy = msgspec.structs.replace(bench.holding().view.policy, regions=("us-east",))  # type: ignore[type-var]
    bench.holding().view = replace(bench.holding().view, policy=policy)
    assert bench.mode() is Mode.CLOSED


# --- disk ------------------------------------------------------------------------------------------------------------


def test_rotten_rows_keep_their_restrictions_show_as_drift_and_close() -> None:
    bench = Bench().up()
    newest = bench.mesh.restrict("suspend", SERVICE_SCOPE)
    bench.give(newest)
    rotten = {name: raw for name, raw in newest.rows.items() if name != "labels" and not name.startswith("wrapping")}
    bench.disk[state_name(TENANT)] = replace(newest, rows=rotten)
    bench.reboot()
    assert SERVICE_SCOPE in bench.holding().restrictions
    assert bench.heartbeat_leaf(TENANT).state != newest.leaf.state
    bench.renew()
    assert bench.mode() is Mode.CLOSED
    bench.give(newest, force=True)
    bench.renew()
    assert bench.mode() is Mode.SYNCED
    assert bench.heartbeat_leaf(TENANT) == newest.leaf
