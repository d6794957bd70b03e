"""Commitment by a majority, and what may be offered before it."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from keymesh.control.entry import Leaf
from keymesh.control.messages import CountersignRequest
from keymesh.model.machine import Received
from keymesh.model.states import Lane
from keymesh.registry import killswitch
from tests.unit.registry.harness import (
    OFFICERS,
    REGIONS,
    VOTERS,
    Bench,
    mesh_up,
    node,
    region_of,
    with_tenant,
)


def asked(bench: Bench) -> list[tuple[Any, CountersignRequest]]:
    """Countersign requests sent since last asked."""
    found = [(to, m) for to, m in bench.sent if isinstance(m, CountersignRequest)]
    bench.sent = [(to, m) for to, m in bench.sent if not isinstance(m, CountersignRequest)]
    return found


def suspended() -> tuple[Bench, list[tuple[Any, CountersignRequest]]]:
    """A suspension in the log, its voters asked but silent."""
    bench = with_tenant()
    bench.auto_vote = False
    bench.ok(bench.scope_command("suspend", "tenant:acme", "s1"))
    return bench, asked(bench)


def is_committed(bench: Bench, seq: int = 3, namespace: str = "acme") -> bool:
    return seq in bench.state.spaces[namespace].commits


def offered(bench: Bench, region: str = "us-east") -> Leaf:
    return bench.offered(region)["acme"]


def test_every_voter_is_asked_under_a_blind_name() -> None:
    _, requests = suspended()
    assert sorted(region_of(to) for to, _ in requests) == sorted(VOTERS)
    for _, request in requests:
        assert "acme" not in repr(request)
        assert request.restriction
        assert len(request.blind) == 64


def test_one_voter_is_no_majority_two_are() -> None:
    bench, requests = suspended()
    bench.feed(Received(requests[0][0], bench.countersignature(*requests[0])))
    assert not is_committed(bench)
    bench.feed(Received(requests[1][0], bench.countersignature(*requests[1])))
    assert is_committed(bench)
    assert "commit/acme/3" in bench.records


def test_one_voter_twice_is_one_voice() -> None:
    bench, requests = suspended()
    for _ in range(3):
        bench.feed(Received(requests[0][0], bench.countersignature(*requests[0])))
    assert not is_committed(bench)


def test_forged_and_foreign_words_count_for_nothing() -> None:
    bench, requests = suspended()
    (first, request), (second, _), _ = requests
    bench.feed(Received(first, bench.countersignature(first, request)))
    # sealed by another voter's key, or by its own voter but handed in by another
    bench.feed(Received(second, bench.countersignature(second, request, by=region_of(first))))
    bench.feed(Received(second, bench.countersignature(first, request)))
    # a region that is no voter
    bench.feed(Received(node("eu-west"), bench.countersignature(node("eu-west"), request)))
    # nobody
    bench.feed(Received(node("nowhere"), bench.countersignature(second, request)))
    assert not is_committed(bench)
    assert bench.note_names().count("countersignature-refused") == 3


@pytest.mark.parametrize(
    "changed",
    [
        {"entry_hash": "00" * 32},
        {"seq": 2},
        {"epoch": 2},
        {"set_id": 2},
        {"mesh": "other"},
        {"blind": "11" * 32},
        {"restriction": False},
    ],
)
def test_a_word_about_something_else_counts_for_nothing(changed: dict[str, Any]) -> None:
    bench, requests = suspended()
    for to, request in requests:
        bench.feed(Received(to, bench.countersignature(to, replace(request, **changed))))
    assert not is_committed(bench)


def test_silent_voters_are_asked_again_every_second_and_others_are_not() -> None:
    bench, requests = suspended()
    bench.feed(Received(requests[0][0], bench.countersignature(*requests[0])))
    bench.advance(999)
    assert not asked(bench)
    bench.advance(1)
    assert [to for to, _ in asked(bench)] == sorted(to for to, _ in requests[1:])


def test_a_commit_that_cannot_be_recorded_is_no_commit() -> None:
    bench, requests = suspended()
    bench.persists = False
    for request in requests:
        bench.feed(Received(request[0], bench.countersignature(*request)))
    assert not is_committed(bench)
    record = killswitch.record_of(bench.state, "acme", "s1")
    assert record is not None
    assert record.status == "pending"
    bench.persists = True
    bench.advance(1_000)
    assert is_committed(bench)


def test_with_fewer_than_three_voters_the_log_commits() -> None:
    bench = mesh_up(voters=("us-east",))
    bench.auto_vote = False
    bench.tenant("acme")
    bench.ok(bench.scope_command("suspend", "tenant:acme", "s1"))
    assert is_committed(bench, 2)
    assert not asked(bench)
    bench.beat_in_step("us-west")
    assert len(bench.answers("us-west")) == 1


# --- what is offered before a commit -----------------------------------------------------------------------


def resumed() -> Bench:
    """Suspended, applied everywhere; then a resume that no voter has seen."""
    bench = with_tenant()
    bench.ok(bench.scope_command("suspend", "tenant:acme", "s1"))
    for region in sorted(REGIONS):
        bench.ack_tasks(region)
        bench.beat_in_step(region)
    bench.sent.clear()
    bench.auto_vote = False
    bench.ok(bench.scope_command("resume", "tenant:acme", "r1"))
    return bench


def test_a_restriction_is_offered_and_sent_before_any_voter_spoke() -> None:
    bench, _ = suspended()
    assert offered(bench).seq == 3
    for region in ("us-east", "us-west"):
        (task,) = bench.take_tasks(region)
        assert (task.lane, task.state.head.entry.kind) == (Lane.RESTRICTION, "suspend")
    for region in ("eu-central", "eu-west"):
        assert not bench.take_tasks(region)


def test_a_resume_is_neither_offered_nor_sent_before_it_is_committed() -> None:
    bench = resumed()
    assert offered(bench).seq == 3
    assert not bench.take_tasks("us-east")
    bench.beat("us-east", leaves={"mesh": bench.leaf("mesh", 1), "acme": bench.leaf("acme", 3)})
    assert not bench.take_tasks("us-east")
    bench.auto_vote = True
    bench.settle()
    assert offered(bench).seq == 4
    (task,) = bench.take_tasks("us-east")
    (proof,) = [s for s in task.state.support if s.signed.entry.kind == "resume"]
    assert len(proof.countersignatures) >= 2


def test_no_answer_shows_an_uncommitted_resume() -> None:
    bench = resumed()
    root = bench.state.regions["us-east"].root
    bench.auto_vote = True
    bench.beat("us-east", leaves={})
    assert bench.answers("us-east")
    for message in bench.answers("us-east"):
        assert message.leaves is not None
    bench2 = resumed()
    bench2.sent = [(to, m) for to, m in bench2.sent if not isinstance(m, CountersignRequest)]
    bench2.auto_vote = True  # polls only: the countersign requests are lost
    bench2.beat("us-east", leaves={})
    (message,) = bench2.answers("us-east")
    assert message.leaves is not None
    assert message.leaves["acme"].seq == 3
    assert bench2.state.regions["us-east"].root == root


def test_grants_behind_an_uncommitted_resume_wait_for_it() -> None:
    bench = resumed()
    bench.ok(bench.label("acme", 1))
    assert offered(bench).seq == 3
    assert not bench.take_tasks("us-west")
    bench.auto_vote = True
    bench.settle()
    assert offered(bench).seq == 5
    assert bench.ack_tasks("us-west") >= 1
    assert bench.state.sessions[node("us-west")].applied["acme"].seq == 5


def test_lane_0_does_not_wait_for_an_uncommitted_resume() -> None:
    bench = resumed()
    bench.ok(bench.scope_command("suspend", "service:acme/pay", "s2"))
    (task,) = bench.take_tasks("us-east")
    assert (task.lane, task.state.head.entry.seq) == (Lane.RESTRICTION, 5)
    assert offered(bench).seq == 5  # another replica may know it to be committed: no lease without it


def test_an_unproven_lift_settles_nothing_and_is_no_failure() -> None:
    bench = resumed()
    bench.ok(bench.scope_command("suspend", "service:acme/pay", "s2"))
    bench.take_tasks("us-east")
    for _ in range(5):
        bench.ack("us-east", "acme", 3, outcome="refused", reason="unproven-lift", correlation_id="c-s2")
        bench.advance(1_000)
        assert bench.take_tasks("us-east")
    assert "task-parked" not in bench.note_names()
    bench.auto_vote = True
    bench.advance(1_000)
    tasks = bench.take_tasks("us-east")
    assert any(s.countersignatures for t in tasks for s in t.state.support if s.signed.entry.kind == "resume")
    assert offered(bench).seq == 5


def test_voters_are_asked_oldest_first() -> None:
    """So that a restriction is never committed before a resume that it stands behind (I12)."""
    bench = resumed()
    asked(bench)
    bench.ok(bench.scope_command("suspend", "service:acme/pay", "s2"))
    bench.advance(1_000)
    assert {m.seq for _, m in asked(bench)} == {4}
    bench.auto_vote = True
    bench.advance(1_000)
    assert is_committed(bench, 4)
    assert is_committed(bench, 5)
    space = bench.state.spaces["acme"]
    assert space.commits[4].committed_at <= space.commits[5].committed_at


def test_other_namespaces_do_not_wait_for_an_uncommitted_resume() -> None:
    bench = resumed()
    bench.tenant("beta")
    assert bench.offered("us-east")["beta"].seq == 1


def test_a_mesh_resume_waits_too_and_tenant_restrictions_carry_the_mesh() -> None:
    bench = with_tenant()
    bench.ok(bench.scope_command("suspend", "region:us-west", "s1", by=OFFICERS[:2]))
    for region in sorted(REGIONS):
        bench.ack_tasks(region)
    bench.auto_vote = False
    bench.ok(bench.scope_command("resume", "region:us-west", "r1", by=OFFICERS[:2]))
    assert bench.offered("us-west")["mesh"].seq == 2
    bench.ok(bench.scope_command("suspend", "tenant:acme", "s2"))
    (task,) = bench.take_tasks("us-west")
    assert task.mesh is not None
    assert task.mesh.head.entry.seq == 3


def test_a_superseded_registry_lifts_nothing() -> None:
    """No voter answers it: its resume stays unproven for ever, while its restrictions still go out."""
    bench = resumed()
    bench.advance(60_000)
    assert offered(bench).seq == 3
    assert not bench.take_tasks("us-east")
    bench.ok(bench.scope_command("suspend", "service:acme/pay", "s2"))
    assert bench.take_tasks("us-east")
