"""The Registry's one timer: never put off by other events, never asked for what a tick does not settle; greetings."""

from __future__ import annotations

from keymesh.model.machine import Address, Received, Tick, Wake
from keymesh.model.time import NEVER, Instant
from keymesh.orbital.messages import Hello
from keymesh.registry import machine
from tests.unit.registry.harness import Bench, node, with_tenant
from tests.unit.registry.test_lifecycle import made

US = node("us-east")


def hello(bench: Bench, *, after_ms: int, boot_id: str = "b") -> None:
    bench.now = Instant(bench.now + after_ms)
    bench.feed(Received(US, Hello(region="us-east", node="n1", boot_id=boot_id)))


def waited_in_vain() -> Bench:
    """A version whose second region has been away for more than ten minutes."""
    bench = made()
    for _ in range(62):
        bench.beat_in_step("us-east")
        bench.advance(10_000)
    bench.beat_in_step("us-east")
    return bench


def test_what_is_overdue_is_asked_for_once_however_many_messages_come() -> None:
    bench = with_tenant()
    stranger = Received(Address("node:us-east/n1"), Hello(region="x", node="y", boot_id=""))
    bench.state.sessions[US].due_at = bench.now
    bench.state.due_sessions.add(US)
    asked = [e.at for _ in range(20) for e in machine.step(bench.state, bench.now, stranger) if type(e) is Wake]
    assert asked == [bench.now + 1]


def test_a_version_that_waits_for_a_region_is_looked_at_once_and_then_with_heartbeats() -> None:
    bench = waited_in_vain()
    assert bench.state.pre_active
    bench.feed(Tick())
    assert machine.next_due(bench.state) > bench.now + 100


def test_a_halted_registry_waits_for_nothing() -> None:
    bench = with_tenant()
    bench.auto_vote = False
    bench.submit(bench.scope_command("suspend", "tenant:acme", "s1"))
    bench.state.halted = "bad-signature"
    bench.now = Instant(bench.now + 5_000)
    bench.feed(Tick())
    assert machine.next_due(bench.state) == NEVER


def test_greetings_park_nothing() -> None:
    """A node that connects three times in a row has not been silent about the task that is out."""
    bench = with_tenant()
    bench.ok(bench.scope_command("suspend", "tenant:acme", "s1"))
    bench.ack_tasks("us-east")
    bench.ok(bench.scope_command("resume", "tenant:acme", "r1"))
    queue = bench.state.sessions[US].queue
    assert queue.flight is not None
    for life in "bcd":
        hello(bench, after_ms=1_500, boot_id=life)
    assert queue.flight is not None
    assert (queue.flight.tries, queue.parked) == (0, {})


def test_a_life_that_greets_again_and_again_is_answered_once_a_second() -> None:
    bench = with_tenant()
    bench.ok(bench.scope_command("suspend", "tenant:acme", "s1"))
    hello(bench, after_ms=30)
    sent = len(bench.sent)
    for _ in range(10):
        hello(bench, after_ms=10)
    assert len(bench.sent) == sent
    hello(bench, after_ms=1_000)
    assert len(bench.sent) == sent + 1
    hello(bench, after_ms=10, boot_id="another life")
    assert len(bench.sent) == sent + 2
