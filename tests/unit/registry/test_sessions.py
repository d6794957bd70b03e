"""What nodes are told: lanes, acknowledgements, lag, drift, forks, parking, residency."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from keymesh.control.messages import RestrictionAck
from keymesh.model.ids import Digest
from keymesh.model.machine import Received
from keymesh.model.states import Lane
from keymesh.model.time import Instant
from keymesh.orbital.messages import Hello
from tests.unit.registry.harness import Bench, mesh_up, node, with_tenant


def seqs(bench: Bench, region: str = "us-east") -> list[int]:
    return [t.state.head.entry.seq for t in bench.take_tasks(region)]


def queue_of(bench: Bench, region: str = "us-east") -> Any:
    return bench.state.sessions[node(region)].queue


def leaves(bench: Bench, **seq: int) -> dict[str, Any]:
    return {name: bench.leaf(name, n) for name, n in seq.items()}


def test_tasks_carry_the_correlation_id_of_their_cause_and_unique_ids() -> None:
    bench = with_tenant()
    bench.ok(bench.label("acme", 1))
    (task,) = bench.take_tasks("us-east")
    head = task.state.head
    assert task.correlation_id == "c-label-1"
    assert task.task_id == f"acme:1:3:{head.hash[:16]}"
    assert task.lane is Lane.ROUTINE


def test_a_region_that_may_not_hold_a_tenant_gets_nothing_of_it() -> None:
    bench = with_tenant()
    bench.ok(bench.label("acme", 1))
    bench.ok(bench.scope_command("suspend", "tenant:acme", "s1"))
    bench.advance(5_000)
    for region in ("eu-central", "eu-west"):
        assert not bench.take_tasks(region)


def test_at_most_one_lower_task_is_out() -> None:
    bench = with_tenant()
    for n in range(5):
        bench.ok(bench.label("acme", n))
    assert seqs(bench) == [3]
    bench.ack("us-east", "acme", 3)
    assert seqs(bench) == [4]


def test_a_restriction_overtakes_ten_thousand_waiting_tasks() -> None:
    bench = with_tenant()
    bench.tenant("beta")
    for n in range(300):
        bench.ok(bench.label("acme", n))
        bench.ok(bench.label("beta", n))
    bench.take_tasks("us-east")
    bench.ok(bench.scope_command("suspend", "tenant:acme", "s1"))
    (task,) = bench.take_tasks("us-east")
    assert task.lane is Lane.RESTRICTION
    # what was out before may finish; nothing of the lower lanes follows until Lane 0 is acknowledged
    bench.ack("us-east", "beta", 2, correlation_id="c-label-0")
    assert not bench.take_tasks("us-east")
    bench.ack("us-east", "acme", task.state.head.entry.seq)
    assert bench.take_tasks("us-east")


def test_lower_lanes_progress_past_a_restriction_that_is_stuck() -> None:
    bench = with_tenant()
    bench.tenant("beta")
    bench.ack_tasks("us-east")
    bench.ok(bench.scope_command("suspend", "tenant:acme", "s1"))
    bench.ok(bench.label("beta", 1))
    assert {t.namespace for t in bench.take_tasks("us-east")} == {"acme"}
    bench.advance(2_000)
    assert {t.namespace for t in bench.take_tasks("us-east")} == {"acme", "beta"}


def test_lane_0_is_repeated_every_second_until_it_is_acknowledged() -> None:
    bench = with_tenant()
    bench.ok(bench.scope_command("suspend", "tenant:acme", "s1"))
    assert seqs(bench) == [3]
    bench.advance(3_000)
    assert seqs(bench) == [3, 3, 3]
    bench.ack("us-east", "acme", 3)
    bench.advance(5_000)
    assert seqs(bench) == []


def test_an_acknowledgement_that_does_not_list_the_restriction_settles_nothing() -> None:
    bench = with_tenant()
    bench.ok(bench.scope_command("suspend", "tenant:acme", "s1"))
    bench.take_tasks("us-east")
    bench.ack("us-east", "acme", 3, restrictions=())
    other = RestrictionAck(
        scope="service:acme/pay", seq=3, entry_hash=None, edge_leases_end_in_ms=0, open_edge_leases=0
    )
    bench.ack("us-east", "acme", 3, restrictions=(other,))
    older = replace(other, scope="tenant:acme", seq=2)
    bench.ack("us-east", "acme", 3, restrictions=(older,))
    assert queue_of(bench).urgent
    bench.ack("us-east", "acme", 3)
    assert not queue_of(bench).urgent


def test_a_later_leaf_that_lists_the_restriction_settles_it() -> None:
    bench = with_tenant()
    bench.ok(bench.scope_command("suspend", "tenant:acme", "s1"))
    bench.ok(bench.scope_command("suspend", "service:acme/pay", "s2"))
    assert seqs(bench) == [3, 4]
    bench.ack("us-east", "acme", 4)
    assert not queue_of(bench).urgent


def test_a_resumed_scope_is_settled_by_the_leaf_of_its_resume() -> None:
    """The node was away for suspend and resume; it applies the newest state and lists nothing: that is right."""
    bench = with_tenant()
    bench.ok(bench.scope_command("suspend", "tenant:acme", "s1"))
    bench.ok(bench.scope_command("resume", "tenant:acme", "r1"))
    bench.take_tasks("us-east")
    bench.ack("us-east", "acme", 4)
    assert not queue_of(bench).urgent


@pytest.mark.parametrize(
    "changed",
    [{"by": "us-west"}, {"region": "us-west"}, {"node": "n2"}, {"mesh": "other"}, {"namespace": "mesh"}],
)
def test_an_acknowledgement_that_is_not_the_node_s_own_changes_nothing(changed: dict[str, Any]) -> None:
    bench = with_tenant()
    bench.ok(bench.scope_command("suspend", "tenant:acme", "s1"))
    bench.ack("us-east", "acme", 3, **changed)
    assert queue_of(bench).urgent
    assert bench.state.sessions[node("us-east")].applied["acme"].seq == 2


def test_an_acknowledgement_for_a_tenant_that_the_region_may_not_hold_is_refused() -> None:
    bench = with_tenant()
    bench.ok(bench.scope_command("suspend", "tenant:acme", "s1"))
    bench.ack("eu-west", "acme", 3)
    assert "ack-refused" in bench.note_names()
    assert "acme" not in bench.state.sessions[node("eu-west")].applied


def test_a_leaf_that_the_log_does_not_have_is_a_fork() -> None:
    bench = with_tenant()
    forged = replace(bench.leaf("acme", 2), entry_hash=Digest("00" * 32))
    bench.ack("us-east", "acme", 2, leaf=forged)
    bench.ack("us-east", "acme", 2, leaf=replace(forged, seq=9))
    assert {"fork", "leaf-ahead"} <= set(bench.note_names())
    assert bench.state.sessions[node("us-east")].applied["acme"] == bench.leaf("acme", 2)


# --- lag, drift, forks ----------------------------------------------------------------------------------------------


def test_lag_is_filled_with_each_restriction_and_one_newest_state() -> None:
    bench = with_tenant()
    for n in range(5):
        bench.ok(bench.label("acme", n))
    bench.ok(bench.scope_command("suspend", "service:acme/pay", "s1"))
    bench.ok(bench.label("acme", 9))
    bench.state.sessions[node("us-west")].queue = type(queue_of(bench))()  # as after a restart here
    bench.sent.clear()
    bench.advance(20_000)
    bench.beat("us-west", leaves=leaves(bench, mesh=1, acme=2))
    tasks = bench.take_tasks("us-west")
    assert [(t.lane, t.state.head.entry.seq) for t in tasks] == [(Lane.RESTRICTION, 8)]
    bench.ack("us-west", "acme", 8)
    assert seqs(bench, "us-west") == [9]


def test_a_node_that_lost_its_disk_gets_everything_again() -> None:
    bench = with_tenant()
    bench.ok(bench.scope_command("suspend", "tenant:acme", "s1"))
    bench.ack_tasks("us-east")
    bench.advance(20_000)
    bench.beat("us-east", leaves={})
    assert {(t.namespace, t.lane) for t in bench.take_tasks("us-east")} >= {("acme", Lane.RESTRICTION)}
    bench.advance(2_000)
    assert "mesh" in {t.namespace for t in bench.take_tasks("us-east")}


def test_a_heartbeat_older_than_an_acknowledgement_is_not_taken_for_lag() -> None:
    bench = with_tenant()
    bench.ok(bench.label("acme", 1))
    bench.ack_tasks("us-east")
    bench.beat("us-east", leaves=leaves(bench, mesh=1, acme=2))
    assert not bench.take_tasks("us-east")


def test_drift_is_put_right_by_force_in_lane_1_or_0_where_anything_is_restricted() -> None:
    bench = with_tenant()
    bench.advance(20_000)
    drifted = {**leaves(bench, mesh=1), "acme": replace(bench.leaf("acme", 2), state=Digest("11" * 32))}
    bench.beat("us-east", leaves=drifted)
    (task,) = bench.take_tasks("us-east")
    assert (task.force, task.lane, task.state.head.entry.seq) == (True, Lane.ONBOARDING, 2)
    assert "drift" in bench.note_names()
    bench.ack("us-east", "acme", 2)
    bench.ok(bench.scope_command("suspend", "service:acme/pay", "s1"))
    bench.ack_tasks("us-east")
    bench.advance(20_000)
    drifted["acme"] = replace(bench.leaf("acme", 3), state=Digest("11" * 32))
    bench.beat("us-east", leaves=drifted)
    (task,) = bench.take_tasks("us-east")
    assert (task.force, task.lane) == (True, Lane.RESTRICTION)
    bench.ack("us-east", "acme", 3)
    assert not queue_of(bench).urgent


def test_forks_and_foreign_leaves_raise_the_alarm() -> None:
    bench = with_tenant()
    bench.tenant("globex", regions=("eu-central",), home="eu-central")
    bench.advance(20_000)
    forked = replace(bench.leaf("acme", 2), entry_hash=Digest("22" * 32))
    bench.beat("us-east", leaves={**leaves(bench, mesh=1, globex=1), "acme": forked})
    assert {"fork", "residency-breach"} <= set(bench.note_names())
    assert all(t.namespace != "globex" for t in bench.take_tasks("us-east"))


def test_a_node_ahead_of_what_is_offered_is_left_alone() -> None:
    bench = with_tenant()
    bench.advance(20_000)
    ahead = replace(bench.leaf("acme", 2), seq=3, entry_hash=Digest("33" * 32))
    bench.beat("us-east", leaves={**leaves(bench, mesh=1), "acme": ahead})
    assert "fork" in bench.note_names()
    assert not bench.take_tasks("us-east")


def test_equal_manifests_settle_what_waits_but_not_lane_0() -> None:
    bench = with_tenant()
    bench.ok(bench.label("acme", 1))
    bench.ok(bench.scope_command("suspend", "tenant:acme", "s1"))
    bench.take_tasks("us-east")
    bench.beat_in_step("us-east")
    assert queue_of(bench).flight is None
    assert queue_of(bench).urgent  # its acknowledgement is evidence


# --- poison ---------------------------------------------------------------------------------------------------------


def test_poison_is_parked_with_its_reason_and_others_go_on() -> None:
    bench = with_tenant()
    bench.tenant("beta")
    bench.ack_tasks("us-east")
    bench.ok(bench.label("acme", 1))
    bench.ok(bench.label("beta", 1))
    others = 0
    for _ in range(10):
        for task in bench.take_tasks("us-east"):
            if task.namespace == "acme":
                bench.ack("us-east", "acme", 2, outcome="refused", reason="state-mismatch", correlation_id="c-label-1")
            else:
                others += 1
                bench.ack("us-east", "beta", 2)
    assert others == 1
    parked = bench.records["parked/node:us-east/n1/acme"]
    assert (parked.reason, parked.seq) == ("state-mismatch", 3)
    assert bench.note_names().count("task-parked") == 1
    # newer content is tried, and settles it
    bench.ok(bench.label("acme", 2))
    assert seqs(bench) == [4]
    bench.ack("us-east", "acme", 4)
    assert "parked/node:us-east/n1/acme" not in bench.records


def test_a_parked_task_is_tried_again_after_a_snapshot_without_a_person() -> None:
    bench = with_tenant()
    bench.ok(bench.label("acme", 1))
    for _ in range(3):
        bench.take_tasks("us-east")
        bench.ack("us-east", "acme", 2, outcome="refused", reason="disk", correlation_id="c-label-1")
    assert not bench.take_tasks("us-east")
    bench.advance(15_000)
    bench.beat("us-east", leaves=leaves(bench, mesh=1, acme=2))
    assert not bench.take_tasks("us-east")
    bench.advance(20_000)
    bench.beat("us-east", leaves=leaves(bench, mesh=1, acme=2))
    assert seqs(bench) == [3]


def test_a_quarantined_restriction_is_still_tried_and_alarms_once() -> None:
    bench = with_tenant()
    bench.ok(bench.scope_command("suspend", "tenant:acme", "s1"))
    for _ in range(5):
        bench.ack("us-east", "acme", 2, outcome="quarantined", reason="fork", correlation_id="c-s1")
    assert bench.note_names().count("task-parked") == 1
    bench.take_tasks("us-east")
    bench.advance(10_000)
    assert seqs(bench)


# --- connections ----------------------------------------------------------------------------------------------------


def test_a_hello_brings_what_may_be_lost_at_once() -> None:
    bench = with_tenant()
    bench.ok(bench.scope_command("suspend", "tenant:acme", "s1"))
    bench.take_tasks("us-east")
    bench.feed(Received(node("us-east"), Hello(region="us-east", node="n1", boot_id="b2")))
    assert seqs(bench) == [3]
    bench.feed(Received(node("us-west"), Hello(region="us-east", node="n1", boot_id="b2")))
    assert seqs(bench) == []


def test_the_mesh_comes_along_where_the_node_needs_it() -> None:
    bench = mesh_up()
    rotate = {"region": "us-east", "generation": 2}
    bench.ok(bench.command("region.rotate-ivk", rotate, namespace="mesh", command_id="ivk-2"))
    bench.take_tasks("us-east")
    bench.tenant("acme")
    bench.ack("us-east", "mesh", 2)
    (task,) = bench.take_tasks("us-east")
    assert task.mesh is None
    bench.advance(20_000)
    bench.beat("us-east", leaves=leaves(bench, mesh=1))
    tasks = bench.take_tasks("us-east")
    assert any(t.namespace == "acme" and t.mesh is not None for t in tasks) or queue_of(bench).flight is not None


def test_ten_thousand_entries_of_one_namespace_are_a_bounded_backlog() -> None:
    bench = with_tenant()
    for n in range(600):
        bench.ok(bench.label("acme", n))
    assert queue_of(bench).depth(Lane.ROUTINE) <= 257
    bench.take_tasks("us-east")
    bench.ack("us-east", "acme", bench.state.spaces["acme"].seq)
    assert queue_of(bench).depth(Lane.ROUTINE) == 0


def test_an_unreachable_node_is_not_a_busy_loop() -> None:
    bench = with_tenant()
    bench.ok(bench.scope_command("suspend", "tenant:acme", "s1"))
    bench.ok(bench.label("acme", 1))
    bench.sent.clear()
    bench.now = Instant(bench.now + 1)
    bench.advance(60_000)
    assert len(bench.take_tasks("us-east")) <= 75
