"""Two replicas of the Registry over one log: what one appends the other takes, tells, completes and certifies."""

from __future__ import annotations

from keymesh.control.entry import SignedEntry
from keymesh.control.messages import CountersignRequest
from keymesh.model.errors import KeymeshError, Refused
from keymesh.model.states import Lane
from keymesh.registry import killswitch
from keymesh.registry.events import AppendConflict, LogBroken, LogMoved, LogRead
from tests.unit.registry.harness import OFFICERS, REGIONS, Bench, node, run, with_tenant


def pair() -> tuple[Bench, Bench]:
    """Two replicas that know a tenant ``acme`` with a service, each in touch with all nodes."""
    first = with_tenant()
    second = Bench(log=first.log, lives=100)
    second.settle()
    for region in sorted(REGIONS):
        second.beat_in_step(region)
    second.sent.clear()
    return first, second


def rows(bench: Bench) -> list[tuple[int, SignedEntry]]:
    return run(bench.log.read(0))[1]


def hint(bench: Bench) -> None:
    bench.feed(LogMoved(run(bench.log.read(0))[0]))
    bench.settle()


def status(bench: Bench, command_id: str) -> str:
    record = killswitch.record_of(bench.state, "acme", command_id)
    assert record is not None
    return record.status


def test_a_hint_makes_it_read_and_a_false_one_costs_a_single_read() -> None:
    first, second = pair()
    first.ok(first.label("acme", 1))
    seen = second.state.index
    second.feed(LogMoved(seen + 1))
    assert len(second.reads) == 1
    second.settle()
    assert second.state.index == seen + 1
    second.feed(LogMoved(seen + 1))
    assert not second.reads, "that is known"
    second.feed(LogMoved(seen + 50))
    assert len(second.reads) == 1
    second.settle()
    second.advance(20_000)
    assert not second.reads
    assert second.state.index == seen + 1


def test_a_hint_during_a_read_is_for_the_next_one() -> None:
    first, second = pair()
    second.auto_read = False
    first.ok(first.label("acme", 1))
    second.feed(LogMoved(second.state.index + 1))
    first.ok(first.label("acme", 2))
    second.feed(LogMoved(second.state.index + 2))
    assert len(second.reads) == 1
    effect = second.reads.pop()
    second.feed(LogRead(effect.token, second.state.index + 1, tuple(rows(first)[-2:-1])))
    assert len(second.reads) == 1, "what was hinted meanwhile"


def test_a_lost_read_is_made_again_with_what_was_hinted() -> None:
    first, second = pair()
    second.auto_read = False
    first.ok(first.label("acme", 1))
    second.feed(LogMoved(second.state.index + 1))
    second.reads.clear()  # its answer never comes
    second.auto_read = True
    second.advance(6_000)
    assert second.state.index == first.state.index


def test_a_restriction_of_another_replica_leaves_in_lane_0_at_once() -> None:
    first, second = pair()
    first.ok(first.scope_command("suspend", "tenant:acme", "s1"))
    second.sent.clear()
    hint(second)
    for region in ("us-east", "us-west"):
        (task,) = second.take_tasks(region)
        assert (task.lane, task.state.head.entry.command_id) == (Lane.RESTRICTION, "s1")


def test_grants_of_one_read_wait_for_the_restrictions_of_it() -> None:
    """Read together, a suspension goes first, though the grant before it is older."""
    first, second = pair()
    first.ok(first.label("acme", 1))
    first.ok(first.scope_command("suspend", "tenant:acme", "s1"))
    second.sent.clear()
    hint(second)
    for region in ("us-east", "us-west"):
        assert [task.lane for task in second.take_tasks(region)] == [Lane.RESTRICTION]
    second.advance(2_500)
    assert second.take_tasks("us-west"), "where nobody answers, two seconds later"


def test_a_kill_switch_is_certified_by_the_replica_that_is_left() -> None:
    """The one at which it began dies for good right after the append."""
    first, second = pair()
    first.auto_vote = False
    first.ok(first.scope_command("suspend", "tenant:acme", "s1"))
    hint(second)
    assert status(second, "s1") == "revoking"
    for region in ("us-east", "us-west"):
        second.ack_tasks(region)
    second.advance(120_000)
    assert status(second, "s1") == "certified"
    assert len(second.certificates) == 1
    assert status(first, "s1") == "pending"


def test_both_certify_each_by_what_it_heard() -> None:
    first, second = pair()
    first.ok(first.scope_command("suspend", "tenant:acme", "s1"))
    hint(second)
    for bench in (first, second):
        for region in ("us-east", "us-west"):
            bench.ack_tasks(region)
        bench.advance(120_000)
        assert status(bench, "s1") == "certified"


def test_the_same_command_at_both_becomes_one_entry_and_both_are_answered() -> None:
    first, second = pair()
    first.auto_append = second.auto_append = False
    command = first.label("acme", 1)
    first.feed(command)
    second.feed(command)
    first.do_append()
    second.do_append()
    second.settle()
    (one,) = [d for d in first.done if d.command_id == command.command_id]
    (two,) = [d for d in second.done if d.command_id == command.command_id]
    assert (one.seq, one.index, one.error, two.error) == (two.seq, two.index, None, None)
    assert sum(s.entry.command_id == command.command_id for _, s in rows(first)) == 1


def test_one_id_for_two_commands_at_two_replicas_is_a_conflict_for_the_second() -> None:
    first, second = pair()
    first.auto_append = second.auto_append = False
    first.feed(first.command("tenant.labels", {"labels": {"a": "1"}}, namespace="acme", command_id="c"))
    second.feed(second.command("tenant.labels", {"labels": {"a": "2"}}, namespace="acme", command_id="c"))
    first.do_append()
    second.do_append()
    second.settle()
    (error,) = [d.error for d in second.done if d.command_id == "c"]
    assert isinstance(error, Refused)
    assert error.code == "conflict"


def test_a_resume_is_overtaken_by_a_restriction_that_another_replica_recorded_first() -> None:
    """It was asked for before anyone here knew of the restriction: it must not undo it by being late."""
    first, second = pair()
    first.ok(first.scope_command("suspend", "tenant:acme", "s1"))
    hint(second)
    second.auto_append = False
    second.feed(second.scope_command("resume", "tenant:acme", "r1"))
    first.ok(first.scope_command("suspend", "service:acme/pay", "s2"))
    second.auto_append = True
    second.settle()
    (error,) = [d.error for d in second.done if d.command_id == "r1"]
    assert isinstance(error, Refused)
    assert error.code == "overtaken"
    second.ok(second.scope_command("resume", "tenant:acme", "r2"))


def test_a_resume_asked_for_while_its_restriction_is_on_its_way_follows_it() -> None:
    bench, _ = pair()
    bench.auto_append = False
    bench.feed(bench.scope_command("suspend", "tenant:acme", "s1"))
    bench.feed(bench.command("resume", {"scope": "tenant:acme"}, namespace="acme", command_id="r1"))
    bench.auto_append = True
    bench.settle()
    assert [d.error for d in bench.done if d.command_id == "r1"] == [None]


def test_a_lease_lacks_no_restriction_that_another_replica_has_certified() -> None:
    """Its disk is full: it never learns that the resume is committed, nor that the restriction behind it is."""
    first, second = pair()
    first.ok(first.scope_command("suspend", "tenant:acme", "s1"))
    hint(second)
    second.persists = False
    first.ok(first.scope_command("resume", "tenant:acme", "r1"))
    first.ok(first.scope_command("suspend", "tenant:acme", "s2"))
    hint(second)
    space = first.state.spaces["acme"]
    assert space.seq in space.commits, "committed, so a certificate may count from here"
    assert not second.state.spaces["acme"].commits.keys() & {space.seq}
    second.beat("us-east", leaves={})
    for message in second.answers("us-east"):
        assert message.leaves is not None
        assert message.leaves["acme"].seq == space.seq


def test_what_a_replica_cannot_record_it_asks_for_again() -> None:
    first, second = pair()
    second.persists = False
    first.ok(first.scope_command("suspend", "tenant:acme", "s1"))
    hint(second)
    assert status(second, "s1") == "pending"
    second.persists = True
    second.advance(3_000)
    assert status(second, "s1") == "revoking"


def test_a_mesh_restriction_of_another_replica_makes_our_append_start_anew() -> None:
    """Tenants' entries rest on the mesh head: it moved, so they are planned again on the new one."""
    first, second = pair()
    second.auto_append = False
    second.feed(second.label("acme", 1))
    first.ok(first.scope_command("suspend", "region:us-west", "s1", by=OFFICERS[:2]))
    second.do_append()
    second.auto_append = True
    second.settle()
    assert [d.error for d in second.done if d.command_id == "label-1"] == [None]
    assert second.state.spaces["acme"].entries[-1].entry.mesh_seq == first.state.spaces["mesh"].seq


def test_a_broken_log_halts_it_whatever_is_under_way() -> None:
    first, second = pair()
    second.auto_read = second.auto_append = False
    second.feed(second.label("acme", 1))
    second.feed(LogMoved(99))
    (read,), (append,) = second.reads, second.appends
    second.feed(LogBroken("rolled-back: it went back"))
    assert second.state.halted == "rolled-back: it went back"
    second.feed(LogRead(read.token, 99, ()))
    second.feed(AppendConflict(append.token))
    second.reads.clear()
    second.advance(20_000)
    assert not second.reads
    done = second.submit(first.label("acme", 2))
    assert done is not None
    assert isinstance(done.error, KeymeshError)
    assert done.error.code == "halted"


def test_both_ask_the_voters_and_a_vote_is_given_to_each() -> None:
    first, second = pair()
    first.auto_vote = second.auto_vote = False
    first.ok(first.scope_command("suspend", "tenant:acme", "s1"))
    hint(second)
    for bench in (first, second):
        assert {to for to, m in bench.sent if isinstance(m, CountersignRequest)} <= {node(r) for r in REGIONS}
        assert any(isinstance(m, CountersignRequest) for _, m in bench.sent)
