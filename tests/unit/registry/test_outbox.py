"""What becomes of an outbox line: a task, later, or nothing any more."""

from __future__ import annotations

from keymesh.model.ids import MESH_NAMESPACE, Namespace
from keymesh.model.states import Lane
from keymesh.orbital.messages import Task
from keymesh.registry import outbox
from keymesh.registry.outbox import Line, Turn
from tests.unit.registry.harness import Bench, mesh_up, node, with_tenant


def line(bench: Bench, *, namespace: str = "acme", seq: int | None = None, lane: Lane = Lane.ROUTINE) -> Line:
    newest = bench.state.spaces[namespace].seq
    return Line(Namespace(namespace), newest if seq is None else seq, "us-east", lane, "c1")


def test_a_line_becomes_a_task_of_its_lane_with_the_mesh_state_that_it_rests_on() -> None:
    bench = with_tenant()
    bench.ok(bench.label("acme", 1))
    bench.state.sessions[node("us-east")].applied.clear()
    made = outbox.task_of(bench.state, line(bench), "us-east")
    assert isinstance(made, Task)
    assert (made.namespace, made.lane, made.correlation_id, made.force) == ("acme", Lane.ROUTINE, "c1", False)
    assert made.state.head.entry.seq == bench.state.spaces["acme"].seq
    assert made.mesh is not None
    assert made.mesh.head.entry.namespace == MESH_NAMESPACE


def test_what_the_replica_has_not_read_waits() -> None:
    bench = with_tenant()
    assert outbox.task_of(bench.state, line(bench, seq=99), "us-east") is Turn.LATER
    unknown = Line(Namespace("unheard"), 1, "us-east", Lane.ROUTINE, "c1")
    assert outbox.task_of(bench.state, unknown, "us-east") is Turn.LATER


def test_what_every_node_has_is_not_sent() -> None:
    bench = with_tenant()
    bench.ack_tasks("us-east")
    assert outbox.task_of(bench.state, line(bench), "us-east") is Turn.NEVER


def test_a_region_that_may_not_hold_it_any_more_gets_nothing() -> None:
    """I5, even where a line says otherwise."""
    bench = with_tenant()
    policy = bench.state.spaces["acme"].policy
    assert policy is not None
    outside = next(r for r in bench.state.regions if r not in policy.regions)
    assert outbox.task_of(bench.state, line(bench), outside) is Turn.NEVER


def test_a_resume_and_what_follows_it_wait_for_its_commit_but_a_restriction_does_not() -> None:
    bench = with_tenant()
    bench.ok(bench.scope_command("suspend", "tenant:acme", "s1"))
    bench.auto_vote = False
    bench.ok(bench.scope_command("resume", "tenant:acme", "r1"))
    resume = line(bench)
    assert outbox.task_of(bench.state, resume, "us-east") is Turn.LATER
    bench.ok(bench.label("acme", 1))
    assert outbox.task_of(bench.state, line(bench), "us-east") is Turn.LATER
    bench.ok(bench.scope_command("suspend", "tenant:acme", "s2"))
    assert isinstance(outbox.task_of(bench.state, line(bench, lane=Lane.RESTRICTION), "us-east"), Task)


def test_heads_are_those_of_the_log() -> None:
    bench = mesh_up()
    assert outbox.heads(bench.state) == {"mesh": bench.state.spaces["mesh"].seq}
