"""A Registry that dies anywhere comes back from the log and its records, and nothing acknowledged is lost."""

from __future__ import annotations

from typing import Any

import pytest

from keymesh.control.messages import CountersignRequest
from keymesh.control.rows import RestrictionRow, get
from keymesh.model.errors import Integrity
from keymesh.model.machine import ClockWentAhead, Persist, Persisted, Received, Tick
from keymesh.model.time import Instant
from keymesh.registry import killswitch, machine
from keymesh.registry.events import LogRead
from tests.unit.registry.harness import Bench, mesh_up, node, with_tenant


def restart(bench: Bench, *, later_ms: int = 10) -> None:
    bench.now = Instant(bench.now + later_ms)
    bench.sent.clear()
    bench.boot()
    bench.settle()


def status(bench: Bench) -> str:
    record = killswitch.record_of(bench.state, "acme", "s1")
    assert record is not None
    return record.status


def test_everything_is_made_again_from_the_log() -> None:
    bench = with_tenant()
    bench.ok(bench.scope_command("suspend", "tenant:acme", "s1"))
    before = {n: (s.seq, s.rows, s.offered) for n, s in bench.state.spaces.items()}
    roots = {r: h.root for r, h in bench.state.regions.items()}
    restart(bench)
    assert {n: (s.seq, s.rows, s.offered) for n, s in bench.state.spaces.items()} == before
    assert {r: h.root for r, h in bench.state.regions.items()} == roots
    assert bench.ok(bench.scope_command("suspend", "tenant:acme", "s1")).duplicate


def test_an_append_whose_answer_died_with_the_registry_is_found_again() -> None:
    bench = with_tenant()
    bench.auto_append = False
    bench.feed(bench.scope_command("suspend", "tenant:acme", "s1"))
    effect = bench.appends[0]
    bench.do_append(answer=False)
    assert effect.entries
    bench.auto_append = True
    restart(bench)
    assert bench.ok(bench.scope_command("suspend", "tenant:acme", "s1")).duplicate
    assert status(bench) == "revoking"


def test_an_uncommitted_entry_is_countersigned_after_a_restart() -> None:
    bench = with_tenant()
    bench.auto_vote = False
    bench.ok(bench.scope_command("suspend", "tenant:acme", "s1"))
    restart(bench)
    assert [m.seq for _, m in bench.sent if isinstance(m, CountersignRequest)] == [3, 3, 3]
    assert status(bench) == "pending"
    bench.auto_vote = True
    bench.settle()
    assert status(bench) == "revoking"


def test_a_commit_is_kept_and_not_asked_for_again() -> None:
    bench = with_tenant()
    bench.ok(bench.scope_command("suspend", "tenant:acme", "s1"))
    committed_at = bench.state.spaces["acme"].commits[3].committed_at
    bench.auto_vote = False
    restart(bench)
    assert not [m for _, m in bench.sent if isinstance(m, CountersignRequest)]
    assert bench.state.spaces["acme"].commits[3].committed_at == committed_at


def test_an_uncommitted_resume_stays_unoffered_across_a_restart() -> None:
    bench = with_tenant()
    bench.ok(bench.scope_command("suspend", "tenant:acme", "s1"))
    bench.auto_vote = False
    bench.ok(bench.scope_command("resume", "tenant:acme", "r1"))
    restart(bench)
    assert bench.offered("us-east")["acme"].seq == 3
    bench.auto_vote = True
    bench.settle()
    assert bench.offered("us-east")["acme"].seq == 4


def test_evidence_and_certificates_survive() -> None:
    bench = with_tenant()
    bench.ok(bench.scope_command("suspend", "tenant:acme", "s1"))
    bench.ack_tasks("us-east")
    restart(bench)
    assert status(bench) == "revoking"
    bench.ack("us-west", "acme", 3)
    assert status(bench) == "certified"
    (ready,) = bench.certificates
    restart(bench)
    record = killswitch.record_of(bench.state, "acme", "s1")
    assert record is not None
    assert record.certificate == ready.certificate
    assert len(bench.certificates) == 1


def test_a_bound_counts_anew_from_the_start_of_a_life() -> None:
    """While the Registry was down its wall clock may have been set: what it waits for, it waits for itself."""
    bench = with_tenant()
    bench.ok(bench.scope_command("suspend", "tenant:acme", "s1"))
    restart(bench, later_ms=100_000)
    bench.advance(62_059)
    assert status(bench) == "revoking"
    bench.advance(1)
    assert status(bench) == "certified"


def test_a_clock_that_jumps_ahead_brings_no_certificate_forward() -> None:
    bench = with_tenant()
    bench.ok(bench.scope_command("suspend", "tenant:acme", "s1"))
    bench.now = Instant(bench.now + 100_000)
    bench.feed(ClockWentAhead(by_ms=100_000))
    bench.advance(62_059)
    assert status(bench) == "revoking"
    bench.advance(1)
    assert status(bench) == "certified"


def test_lost_records_cost_time_never_safety() -> None:
    """All of them gone: commits are asked for again, from now, so no certificate is early."""
    bench = with_tenant()
    bench.ok(bench.scope_command("suspend", "tenant:acme", "s1"))
    bench.ack_tasks("us-east")
    bench.records.clear()
    restart(bench, later_ms=30_000)
    assert status(bench) == "revoking"
    assert bench.state.spaces["acme"].commits[3].committed_at == bench.now
    bench.advance(62_059)
    assert not bench.certificates
    bench.advance(1)
    assert bench.certificates


def test_a_restriction_not_yet_applied_goes_out_after_a_restart_at_the_first_heartbeat() -> None:
    bench = with_tenant()
    bench.ok(bench.scope_command("suspend", "tenant:acme", "s1"))
    restart(bench)
    assert not bench.take_tasks("us-west")
    bench.beat("us-west", manifest_root="0" * 64)
    assert [t.state.head.entry.seq for t in bench.take_tasks("us-west")] == [3]


def test_a_parked_task_is_remembered() -> None:
    bench = with_tenant()
    bench.ok(bench.label("acme", 1))
    for _ in range(3):
        bench.take_tasks("us-east")
        bench.ack("us-east", "acme", 2, outcome="refused", reason="poison", correlation_id="c-label-1")
    restart(bench)
    bench.beat("us-east", leaves={"mesh": bench.leaf("mesh", 1), "acme": bench.leaf("acme", 2)})
    assert not bench.take_tasks("us-east")


def test_answers_of_an_earlier_life_are_nobody_s() -> None:
    bench = mesh_up()
    bench.auto_read = False
    bench.beat("us-east")
    old = bench.reads[0]
    bench.boot()
    bench.feed(LogRead(old.token, 99, ()))
    assert not bench.state.booted
    assert bench.state.index == 0


def test_a_registry_is_not_booted_by_heartbeats_alone() -> None:
    bench = mesh_up()
    bench.auto_read = False
    bench.boot()
    bench.feed(Received(node("us-east"), bench.heartbeat("us-east")))
    assert not bench.answers("us-east")


@pytest.mark.parametrize("damage", ["dropped", "reordered", "forged", "foreign"])
def test_a_log_that_is_not_what_was_appended_halts_the_registry(damage: str) -> None:
    bench = with_tenant()
    bench.ok(bench.label("acme", 1))
    bench.auto_read = False
    bench.boot()
    effect = bench.reads.pop()
    entries = [(i, e) for i, e in _all(bench)]
    if damage == "dropped":
        del entries[1]
    elif damage == "reordered":
        entries[1], entries[2] = (entries[1][0], entries[2][1]), (entries[2][0], entries[1][1])
    elif damage == "forged":
        signed = entries[1][1]
        unsigned = type(signed.envelope)(signed.envelope.payload, signed.envelope.payload_type, ())
        entries[1] = (2, type(signed)(entry=signed.entry, hash=signed.hash, envelope=unsigned))
    else:
        other = with_tenant(ttl_ms=5_000)
        entries[1] = (2, other.state.spaces["acme"].entries[0])
    bench.feed(LogRead(effect.token, len(entries), tuple(entries)))
    assert bench.state.halted
    assert "log-integrity" in bench.note_names()
    done = bench.submit(bench.label("acme", 2))
    assert done is not None
    assert isinstance(done.error, Integrity)
    bench.beat("us-east")
    assert not bench.answers("us-east")


def _all(bench: Bench) -> list[tuple[int, Any]]:
    from tests.unit.registry.harness import run

    return run(bench.log.read(0))[1]


def test_a_disk_that_fails_takes_nothing_with_it_but_the_record() -> None:
    """The rest of a step's effects is lost with its record: so records come last."""
    bench = with_tenant()
    for event in (bench.scope_command("suspend", "tenant:acme", "s1"), Tick()):
        effects = machine.step(bench.state, bench.now, event)
        kinds = [type(e) for e in effects]
        assert Persist not in kinds[:-1]
    bench.persists = False
    bench.auto_vote = True
    other = with_tenant()
    other.persists = False
    done = other.ok(other.scope_command("suspend", "tenant:acme", "s1"))
    assert done.error is None
    assert other.projected[-1].index == other.state.index
    assert other.take_tasks("us-east")


def test_killed_between_any_two_effects_it_converges() -> None:
    """One command; the process dies after its n-th effect, for every n; then life goes on."""
    for n in range(1, 40):
        bench = with_tenant()
        died = _until_death(bench, n)
        bench.auto_append = bench.auto_read = bench.auto_vote = True
        restart(bench)
        bench.ok(bench.scope_command("suspend", "tenant:acme", "s1"))
        for region in ("us-east", "us-west"):
            bench.beat(region, leaves={"mesh": bench.leaf("mesh", 1), "acme": bench.leaf("acme", 2)})
            bench.advance(1_500)
            bench.ack_tasks(region)
        row = get(bench.state.spaces["acme"].rows, "restriction/tenant:acme", RestrictionRow)
        assert row is not None
        assert (row.state, row.seq) == ("suspended", 3)
        assert status(bench) == "certified"
        if not died:
            return
    raise AssertionError("it never got through")


def _until_death(bench: Bench, effects: int) -> bool:
    """Feed a suspension and its answers, carrying out at most ``effects`` effects; whether that cut it short."""
    left = [effects]

    class Dead(Exception):
        pass

    def feed(event: Any) -> None:
        for effect in machine.step(bench.state, bench.now, event):
            if left[0] == 0:
                raise Dead
            left[0] -= 1
            if isinstance(effect, Persist):
                bench.records.update(effect.puts)
                feed(Persisted(effect.token))
            else:
                _carry_out(bench, effect)

    bench.feed = feed  # type: ignore[method-assign]
    try:
        bench.feed(bench.scope_command("suspend", "tenant:acme", "s1"))
        bench.settle()
    except Dead:
        return True
    finally:
        del bench.feed
    return False


def _carry_out(bench: Bench, effect: Any) -> None:
    name = {"AppendLog": "appends", "ReadLog": "reads", "CommandDone": "done", "Note": "notes"}.get(
        type(effect).__name__
    )
    if name is not None:
        getattr(bench, name).append(effect)
    elif type(effect).__name__ == "Send":
        bench.sent.append((effect.to, effect.message))
