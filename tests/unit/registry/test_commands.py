"""Commands to entries: idempotency, groups, conflicts, unknown outcomes, order of restrictions."""

from __future__ import annotations

from typing import Any

import pytest

from keymesh.control.rows import RestrictionRow, get
from keymesh.model.errors import KeymeshError, Refused, Unavailable
from keymesh.model.time import Instant
from keymesh.registry import commands
from keymesh.registry.events import Appended, Command, LogUnavailable
from tests.unit.registry.harness import OFFICERS, REGIONS, ROOT, Bench, genesis, mesh_up, with_tenant


def error_of(bench: Bench, command: Command) -> KeymeshError:
    done = bench.submit(command)
    assert done is not None
    assert isinstance(done.error, KeymeshError)
    return done.error


def kinds(bench: Bench, namespace: str) -> list[str]:
    return [e.entry.kind for e in bench.state.spaces[namespace].entries]


def test_a_repeated_command_gets_its_first_outcome() -> None:
    bench = with_tenant()
    first = bench.ok(bench.label("acme", 1))
    again = bench.ok(bench.label("acme", 1))
    assert (again.duplicate, first.duplicate) == (True, False)
    assert (again.seq, again.index, again.epoch) == (first.seq, first.index, first.epoch)
    assert kinds(bench, "acme").count("tenant.labels") == 1


def test_the_same_id_with_another_body_is_a_conflict() -> None:
    bench = with_tenant()
    bench.ok(bench.label("acme", 1))
    other = bench.command("tenant.labels", {"labels": {"n": "2"}}, namespace="acme", command_id="label-1")
    assert error_of(bench, other).code == "conflict"
    other_kind = bench.scope_command("suspend", "tenant:acme", "label-1")
    assert error_of(bench, other_kind).code == "conflict"


def test_the_same_id_in_another_tenant_is_another_command() -> None:
    bench = with_tenant()
    bench.tenant("beta")
    bench.ok(bench.label("acme", 1))
    assert not bench.ok(bench.label("beta", 1)).duplicate


def test_nothing_is_acknowledged_before_it_is_in_the_log() -> None:
    bench = with_tenant()
    bench.auto_append = False
    assert bench.submit(bench.label("acme", 1)) is None
    bench.do_append()
    assert bench.done[-1].command_id == "label-1"


def test_two_commands_of_one_namespace_in_one_group_chain() -> None:
    bench = with_tenant()
    bench.auto_append = False
    bench.feed(bench.label("acme", 0))
    for n in range(1, 5):
        bench.feed(bench.label("acme", n))
    bench.auto_append = True
    before = bench.state.index
    bench.settle()
    assert bench.state.index == before + 2
    assert [d.seq for d in bench.done[-5:]] == [3, 4, 5, 6, 7]
    assert {d.index for d in bench.done[-4:]} == {before + 2}


def test_a_group_has_at_most_32_entries() -> None:
    bench = with_tenant()
    bench.auto_append = False
    for n in range(80):
        bench.feed(bench.label("acme", n))
    sizes = []
    while bench.appends:
        sizes.append(len(bench.appends[0].entries))
        bench.do_append()
    assert sizes == [1, 32, 32, 15]


def test_the_second_of_two_rivals_in_a_group_is_refused_alone() -> None:
    """Both want version 2 of the service: one becomes an entry, the other hears why not."""
    bench = with_tenant()
    bench.auto_append = False
    bench.feed(bench.label("acme", 0))
    row = {"version": 2, "custody": "leased", "edge_ttl_ms": 5_000, "mint_budget": None, "open_budget": None}
    for n in ("a", "b"):
        bench.feed(
            bench.command("service.set", {"service": "pay", "row": row}, namespace="acme", command_id=f"rival-{n}")
        )
    bench.feed(bench.label("acme", 1))
    bench.auto_append = True
    bench.settle()
    outcome = {d.command_id: d.error for d in bench.done}
    assert outcome["rival-a"] is None
    assert isinstance(outcome["rival-b"], Refused)
    assert outcome["rival-b"].code == "conflict"
    assert outcome["label-1"] is None


def test_a_repeat_that_arrives_while_the_first_is_out_is_a_duplicate() -> None:
    bench = with_tenant()
    bench.auto_append = False
    bench.feed(bench.label("acme", 1))
    bench.feed(bench.label("acme", 1))
    bench.auto_append = True
    bench.settle()
    assert [d.duplicate for d in bench.done[-2:]] == [False, True]


def test_a_conflict_is_read_and_planned_anew() -> None:
    """Another Registry appended first: our entry moves behind it."""
    bench, rival = with_tenant(), None
    rival = Bench(log=bench.log)
    rival.settle()
    bench.auto_append = False
    bench.feed(bench.label("acme", 1))
    rival.ok(rival.label("acme", 2))
    bench.auto_append = True
    bench.settle()
    done = bench.done[-1]
    assert (done.command_id, done.error, done.seq) == ("label-1", None, 4)
    assert kinds(bench, "acme")[-2:] == ["tenant.labels", "tenant.labels"]


def test_an_unknown_outcome_that_landed_is_acknowledged_once() -> None:
    bench = with_tenant()
    bench.auto_append = False
    bench.feed(bench.label("acme", 1))
    bench.do_append(answer=False)
    bench.auto_append = True
    bench.settle()
    found = [d for d in bench.done if d.command_id == "label-1"]
    assert [(d.error, d.duplicate, d.seq) for d in found] == [(None, False, 3)]
    assert kinds(bench, "acme").count("tenant.labels") == 1


def test_an_unknown_outcome_that_did_not_land_is_tried_again() -> None:
    bench = with_tenant()
    bench.auto_append = False
    bench.feed(bench.label("acme", 1))
    lost = bench.appends.pop()
    bench.feed(LogUnavailable(lost.token))
    bench.auto_append = True
    bench.settle()
    assert bench.done[-1].seq == 3
    bench.feed(Appended(lost.token, 99))  # a late answer to the lost request is nobody's
    assert bench.state.index < 99


def test_an_append_that_is_never_answered_is_resolved_by_reading() -> None:
    bench = with_tenant()
    bench.auto_append = False
    bench.feed(bench.label("acme", 1))
    bench.appends.clear()
    bench.auto_append = True
    bench.advance(6_000)
    assert bench.done[-1].command_id == "label-1"
    assert bench.done[-1].error is None


def test_a_read_begun_before_the_append_was_lost_settles_nothing() -> None:
    bench = with_tenant()
    bench.auto_append = bench.auto_read = False
    bench.beat_in_step("us-east")
    assert len(bench.reads) == 1
    early = bench.reads.pop()
    bench.feed(bench.label("acme", 1))
    bench.do_append(answer=False)
    assert len(bench.reads) == 1
    assert bench.reads[0].token != early.token
    bench.auto_append = bench.auto_read = True
    bench.settle()
    assert [d.error for d in bench.done if d.command_id == "label-1"] == [None]
    assert kinds(bench, "acme").count("tenant.labels") == 1


def test_an_index_that_skips_is_read_before_anything_is_acknowledged() -> None:
    """Another Registry's commit of another tenant lies between: ours is taken after it, in order."""
    bench = with_tenant()
    bench.tenant("beta")
    rival = Bench(log=bench.log)
    rival.settle()
    bench.auto_append = bench.auto_read = False
    bench.feed(bench.label("acme", 1))
    rival.ok(rival.label("beta", 7))
    bench.do_append()
    assert not [d for d in bench.done if d.command_id == "label-1"]
    bench.do_read()
    assert [d.error for d in bench.done if d.command_id == "label-1"] == [None]
    assert [p.index for p in bench.projected] == list(range(1, bench.state.index + 1))


def test_a_repeated_suspend_after_a_resume_is_a_new_entry() -> None:
    """A duplicate restriction with an id of its own is never swallowed."""
    bench = with_tenant()
    for kind, command_id in (("suspend", "s1"), ("resume", "r1"), ("suspend", "s2"), ("suspend", "s3")):
        assert not bench.ok(bench.scope_command(kind, "tenant:acme", command_id)).duplicate
    assert kinds(bench, "acme")[-4:] == ["suspend", "resume", "suspend", "suspend"]
    row = get(bench.state.spaces["acme"].rows, "restriction/tenant:acme", RestrictionRow)
    assert row is not None
    assert (row.state, row.command_id) == ("suspended", "s3")


def test_restrictions_go_before_queued_grants() -> None:
    bench = with_tenant()
    bench.auto_append = False
    for n in range(100):
        bench.feed(bench.label("acme", n))
    bench.feed(bench.scope_command("suspend", "service:acme/pay", "s1"))
    bench.do_append()
    assert bench.appends[0].entries[0].entry.kind == "suspend"


def test_a_queued_resume_does_not_undo_a_restriction_that_overtakes_it() -> None:
    bench = with_tenant()
    bench.ok(bench.scope_command("suspend", "tenant:acme", "s1"))
    bench.auto_append = False
    bench.feed(bench.label("acme", 0))  # keeps the log busy
    bench.feed(bench.scope_command("resume", "tenant:acme", "r1"))
    bench.feed(bench.scope_command("suspend", "tenant:acme", "s2"))
    bench.auto_append = True
    bench.settle()
    assert {d.command_id: d.error for d in bench.done}["s2"] is None
    overtaken = {d.command_id: d.error for d in bench.done}["r1"]
    assert isinstance(overtaken, Refused)
    assert overtaken.code == "overtaken"
    row = get(bench.state.spaces["acme"].rows, "restriction/tenant:acme", RestrictionRow)
    assert row is not None
    assert row.state == "suspended"


def test_a_resume_that_found_no_room_in_its_group_does_not_come_after_a_newer_restriction(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = with_tenant()
    bench.ok(bench.scope_command("suspend", "tenant:acme", "s1"))
    bench.auto_append = False
    for n in range(2):
        bench.feed(bench.label("acme", n))  # the first keeps the log busy, the second fills the next group
    bench.feed(bench.scope_command("resume", "tenant:acme", "r1"))
    with monkeypatch.context() as small:
        small.setattr(commands, "COMMIT_MAX_BYTES", 1)
        bench.do_append()
    assert [p.command.command_id for p in bench.state.routine] == ["r1"]
    bench.feed(bench.scope_command("suspend", "tenant:acme", "s2"))
    bench.auto_append = True
    bench.settle()
    assert kinds(bench, "acme")[-1] == "suspend"
    errors = {d.command_id: d.error for d in bench.done}
    assert errors["s2"] is None
    assert isinstance(errors["r1"], Refused) and errors["r1"].code == "overtaken"
    row = get(bench.state.spaces["acme"].rows, "restriction/tenant:acme", RestrictionRow)
    assert row is not None and row.state == "suspended"


def test_a_resume_whose_append_failed_does_not_come_after_a_newer_restriction() -> None:
    bench = with_tenant()
    bench.ok(bench.scope_command("suspend", "tenant:acme", "s1"))
    bench.auto_append = False
    bench.feed(bench.scope_command("resume", "tenant:acme", "r1"))
    lost = bench.appends.pop()
    bench.feed(bench.scope_command("suspend", "tenant:acme", "s2"))
    bench.feed(LogUnavailable(lost.token))
    bench.auto_append = True
    bench.settle()
    assert kinds(bench, "acme")[-1] == "suspend"
    row = get(bench.state.spaces["acme"].rows, "restriction/tenant:acme", RestrictionRow)
    assert row is not None
    assert (row.state, row.command_id) == ("suspended", "s2")


def test_a_revoked_scope_stays_revoked() -> None:
    bench = with_tenant()
    bench.ok(bench.scope_command("revoke", "tenant:acme", "v1"))
    assert error_of(bench, bench.scope_command("resume", "tenant:acme", "r1")).code == "revoked"
    assert error_of(bench, bench.scope_command("revoke", "tenant:acme", "v2")).code == "already"
    assert bench.ok(bench.scope_command("revoke", "tenant:acme", "v1")).duplicate


@pytest.mark.parametrize(
    ("kind", "args", "namespace", "code"),
    [
        ("tenant.labels", {"labels": {}}, "nobody", "unknown"),
        ("no.such", {}, "acme", "unknown-kind"),
        ("tenant.labels", {"labels": {"a": 1}}, "acme", "bad-field"),
        ("tenant.labels", {"labels": {}, "extra": 1}, "acme", "bad-field"),
        ("tenant.labels", {"labels": {}}, "mesh", "bad-field"),
        ("region.rotate-ivk", {"region": "us-east", "generation": 2}, "acme", "bad-field"),
        ("tenant.labels", {"labels": {}}, "ACME", "bad-field"),
        ("suspend", {"scope": "tenant:beta"}, "acme", "wrong-namespace"),
        ("suspend", {"scope": "everything"}, "acme", "bad-field"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(kind: str, args: dict[str, Any], namespace: str, code: str) -> None:
    bench = with_tenant()
    before = bench.state.index
    assert error_of(bench, Command("x1", namespace, kind, args, "ann", "c1")).code == code
    assert bench.state.index == before


@pytest.mark.parametrize("command_id", ["", "a b", "x" * 129, "ä", "a/b"])
def test_ids_that_are_no_tokens_are_refused(command_id: str) -> None:
    bench = with_tenant()
    command = Command(command_id, "acme", "tenant.labels", {"labels": {}}, "ann", "c1")
    assert error_of(bench, command).code == "bad-field"


def test_wide_scopes_need_two_officers() -> None:
    bench = mesh_up()
    lone = bench.scope_command("suspend", "region:us-west", "s1", by=OFFICERS[:1])
    assert error_of(bench, lone).code == "below-threshold"
    none = bench.scope_command("suspend", "mesh", "s2")
    assert error_of(bench, none).code == "below-threshold"
    root = bench.scope_command("suspend", "mesh", "s3", by=ROOT[:2])
    assert error_of(bench, root).code == "below-threshold"
    bench.ok(bench.scope_command("suspend", "region:us-west", "s4", by=OFFICERS[:2]))


@pytest.mark.parametrize("kind", ["suspend", "revoke", "resume"])
def test_a_region_that_is_not_there_is_refused_with_those_that_are(kind: str) -> None:
    bench = mesh_up()
    before = bench.state.index
    refused = error_of(bench, bench.scope_command(kind, "region:us-esat", "s1", by=OFFICERS[:2]))
    assert (refused.code, refused.field) == ("bad-field", "scope")
    assert "us-esat" in refused.message and all(region in refused.message for region in REGIONS)
    assert bench.state.index == before
    elsewhere = Command("s2", "acme", kind, {"scope": "region:us-esat"}, "ann", "c1")
    assert "us-east" not in error_of(with_tenant(), elsewhere).message  # a tenant's administrator learns no names


def test_an_approval_of_another_command_is_no_approval() -> None:
    bench = mesh_up()
    approved = bench.scope_command("suspend", "region:us-west", "s1", by=OFFICERS[:2])
    other = Command("s1", "mesh", "suspend", {"scope": "region:us-east"}, "ann", "c1", approved.authority)
    assert error_of(bench, other).code == "below-threshold"
    replayed = Command("s2", "mesh", "suspend", {"scope": "region:us-west"}, "ann", "c1", approved.authority)
    assert error_of(bench, replayed).code == "below-threshold"


def test_approvals_expire_when_the_command_is_appended() -> None:
    bench = mesh_up()
    on_time = bench.scope_command("suspend", "region:us-west", "s1", by=OFFICERS[:2], not_after=bench.now + 1)
    late = bench.scope_command("suspend", "region:us-east", "s2", by=OFFICERS[:2], not_after=bench.now)
    bench.ok(on_time)
    assert error_of(bench, late).code == "approval-expired"
    bench.now = Instant(bench.now + 10)
    assert bench.ok(on_time).duplicate  # entries in the log do not expire


def test_a_second_genesis_and_a_second_tenant_are_conflicts() -> None:
    bench = with_tenant()
    again = bench.command("mesh.genesis", genesis(), namespace="mesh", command_id="genesis-2", by=ROOT[:2])
    assert error_of(bench, again).code == "conflict"
    created = bench.state.spaces["acme"].entries[0].entry
    twice = bench.command("tenant.create", created.body.args, namespace="acme", command_id="again", by=("signer-acme",))
    assert error_of(bench, twice).code == "conflict"


def test_before_the_log_is_read_commands_are_told_to_come_back() -> None:
    bench = Bench(auto_read=False)
    done = bench.submit(bench.label("acme", 1))
    assert done is not None
    assert isinstance(done.error, Unavailable)


def test_a_full_queue_sheds_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "QUEUE_MAX", 3)
    bench = with_tenant()
    bench.auto_append = False
    for n in range(5):
        bench.feed(bench.label("acme", n))
    assert isinstance(bench.done[-1].error, Unavailable)


def test_mesh_entries_go_alone_and_tenants_rest_on_them() -> None:
    bench = with_tenant()
    bench.auto_append = False
    bench.feed(bench.label("acme", 0))
    bench.feed(bench.label("acme", 1))
    rotate = {"region": "us-east", "generation": 2}
    bench.feed(bench.command("region.rotate-ivk", rotate, namespace="mesh", command_id="ivk-2"))
    bench.feed(bench.label("acme", 2))
    groups = []
    while bench.appends:
        groups.append([(s.entry.namespace, s.entry.mesh_seq) for s in bench.appends[0].entries])
        bench.do_append()
    assert groups == [[("acme", 1)], [("acme", 1)], [("mesh", 1)], [("acme", 2)]]


def test_the_officers_word_for_one_resume_ends_no_later_suspension() -> None:
    """Signed for the first suspension, it comes when the mesh is suspended anew: under its own id and another."""
    bench = with_tenant()
    officers = OFFICERS[:2]
    bench.ok(bench.scope_command("suspend", "mesh", "s1", by=officers))
    early, used = (bench.scope_command("resume", "mesh", command_id, by=officers) for command_id in ("r0", "r1"))
    bench.ok(used)
    bench.ok(bench.scope_command("suspend", "mesh", "s2", by=officers))
    assert error_of(bench, early).code == "stale-approval"
    assert error_of(bench, bench.scope_command("resume", "mesh", "r2")).code == "below-threshold"
    assert bench.ok(used).duplicate
    assert kinds(bench, "mesh")[-1] == "suspend"
    bench.ok(bench.scope_command("resume", "mesh", "r3", by=officers))
    assert kinds(bench, "mesh")[-1] == "resume"
