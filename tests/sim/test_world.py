"""The simulated world itself: effects in order, crashes between any two, clocks, links, the log."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from keymesh.model.machine import (
    Address,
    Booted,
    ClockWentAhead,
    ClockWentBack,
    Note,
    Persist,
    Persisted,
    PersistFailed,
    Received,
    Send,
    Tick,
    Wake,
)
from keymesh.model.time import Instant, Timekeeper
from keymesh.registry.events import AppendUnknown, LogRead, LogUnavailable
from keymesh.sim.clocks import HostClock, ProcessClock
from keymesh.sim.draw import mix
from keymesh.sim.log import SimLog
from keymesh.sim.network import Network
from keymesh.sim.options import options_of
from keymesh.sim.process import Machine
from keymesh.sim.world import World


class Script:
    """A machine that answers each event by what the test wrote down, and remembers what it saw."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.answers: dict[type, list[Any]] = {}

    def step(self, state: Any, now: Instant, event: Any) -> list[Any]:
        self.seen.append(event)
        return self.answers.get(type(event), [])

    def kinds(self) -> list[str]:
        return [type(e).__name__ for e in self.seen]


def one() -> tuple[World, Machine, Script]:
    world = World(options_of(0))
    script = Script()
    proc = world.add_process("p", "us-east", HostClock("p", 0, 0))
    machine = world.add_machine(proc, "node", Address("node:p"), lambda: object(), script.step)
    world.boot(proc)
    return world, machine, script


def put(token: str) -> Persist:
    return Persist(token, ((f"k/{token}", token),))


def test_effects_are_carried_out_in_order_and_a_persist_is_answered_before_the_next() -> None:
    world, machine, script = one()
    notes: list[str] = []
    world.handlers[Note] = lambda m, e: notes.append(e.name)
    script.answers = {Tick: [Note("a", ""), put("t"), Note("c", "")], Persisted: [Note("b", "")]}
    world.run(machine, Tick())
    assert notes == ["a", "b", "c"]
    assert machine.disk == {"k/t": "t"}


def test_a_failed_persist_drops_the_rest_of_its_step() -> None:
    world, machine, script = one()
    machine.proc.disk_full = 1
    script.answers = {Tick: [put("t"), put("u")]}
    world.run(machine, Tick())
    assert script.kinds() == ["Booted", "Tick", "PersistFailed"]
    assert machine.disk == {}
    assert script.seen[-1] == PersistFailed("t")


def test_a_crash_falls_between_any_two_effects_and_only_what_was_persisted_stays() -> None:
    for fuse in range(3):
        world, machine, script = one()
        script.answers = {Tick: [put("a"), put("b"), put("c")]}
        machine.proc.fuse = fuse
        world.trace = 0  # dies before an effect, not after its write
        world.run(machine, Tick())
        assert not machine.proc.alive
        assert list(machine.disk) == ["k/a", "k/b", "k/c"][:fuse]
        world.run_until(world.t + 10_000)
        booted = [e for e in script.seen if isinstance(e, Booted)]
        assert len(booted) == 2
        assert list(booted[-1].records) == list(machine.disk)


def test_a_torn_write_is_lost_whole_and_never_answered() -> None:
    world, machine, script = one()
    machine.proc.torn = 1
    script.answers = {Tick: [put("a")]}
    world.run(machine, Tick())
    assert machine.disk == {}
    assert "Persisted" not in script.kinds()


def test_a_paused_process_takes_what_waited_in_order_and_ticks_late() -> None:
    world, machine, script = one()
    now = machine.proc.clock.now(0)
    script.answers = {Booted: [], Tick: []}
    world.run(machine, Booted({}, machine.proc.host.mark(0), b""))
    world._wake(machine, Wake(Instant(now + 100)))
    world.pause(machine.proc)
    world.deliver(machine, Received(Address("x"), 1))
    world.run_until(1_000)
    assert script.kinds()[-1] == "Booted"
    world.unpause(machine.proc, machine.proc.life)
    assert script.kinds()[-2:] == ["Received", "Tick"]


def test_wakes_of_a_dead_life_do_not_tick_the_next_one() -> None:
    world, machine, script = one()
    world._wake(machine, Wake(Instant(machine.proc.clock.now(0) + 2_000)))
    world.crash(machine.proc, 100)
    world.run_until(5_000)
    assert "Tick" not in script.kinds()


def test_a_set_wall_clock_is_told_both_ways() -> None:
    world, machine, script = one()
    world.step_wall_clock(machine.proc.host, 5_000)
    assert script.seen[-1] == ClockWentAhead(5_000)
    world.step_wall_clock(machine.proc.host, -9_000)
    assert script.seen[-1] == ClockWentBack()
    world.step_wall_clock(machine.proc.host, -500)
    assert len([e for e in script.seen if isinstance(e, ClockWentBack)]) == 1


@settings(max_examples=60, deadline=None)
@given(
    ppm=st.integers(-1_000, 1_000),
    jumps=st.lists(st.tuples(st.integers(0, 100_000), st.integers(-20_000, 20_000)), max_size=6),
    later=st.integers(0, 500_000),
)
def test_instants_are_the_timekeepers_and_their_inverse_holds(
    ppm: int, jumps: list[tuple[int, int]], later: int
) -> None:
    host = HostClock("h", ppm, 0)
    clock = ProcessClock(host, 0)
    keeper = Timekeeper(boot_zero_ms=host.boottime_ms(0), wall_zero_ms=host.wall_ms(0))
    t = 0
    for gap, by in jumps:
        t += gap
        host.lead_ms += by
        expected = keeper.observe(boottime_ms=host.boottime_ms(t), wall_ms=host.wall_ms(t))
        assert clock.observe(t) == expected[1]
        assert clock.now(t) == expected[0]
    at = clock.now(t + later)
    assert clock.now(clock.true_time(at)) >= at
    assert clock.now(clock.true_time(at) - 1) < at


def test_draws_are_even_and_independent_of_each_other() -> None:
    bits = Counter(mix(9, 4, n) & 15 for n in range(4_096))
    assert min(bits.values()) > 180 and max(bits.values()) < 340
    assert mix(9, 4, 1) != mix(9, 5, 1) != mix(10, 4, 1)


class Pipes:
    def __init__(self, seed: int) -> None:
        self.sent: list[tuple[int, Any]] = []
        self.counts: Counter[str] = Counter()
        self.network = Network(
            options_of(seed),
            region_of={"a": "us-east", "b": "eu-west"},
            schedule=lambda delay, deliver, to, message: self.sent.append((delay, message)),
            corrupt=lambda message, draw: None,
            counts=self.counts,
        )


def test_a_cut_link_carries_nothing_one_way_and_healing_restores_it() -> None:
    pipes = Pipes(0)
    pipes.network.link("a", "b").cuts = 1
    pipes.network.send("a", "b", print, None, "lost")
    pipes.network.send("b", "a", print, None, "there")
    assert [m for _, m in pipes.sent] == ["there"]
    assert not pipes.network.connected("a", "b")
    pipes.network.heal()
    assert pipes.network.connected("a", "b")


def test_the_nth_message_of_a_link_meets_the_same_luck_whatever_other_links_do() -> None:
    first, second = Pipes(1), Pipes(1)
    first.network.quiet = second.network.quiet = False
    for n in range(50):
        first.network.send("a", "b", print, None, n)
        second.network.send("b", "a", print, None, n)
        second.network.send("a", "b", print, None, n)
    there = [s for s in second.sent if s in first.sent]
    assert [d for d, _ in first.sent] == [d for d, m in there][: len(first.sent)] or len(there) >= len(first.sent)


def _log() -> tuple[SimLog, list[tuple[int, Any]]]:
    later: list[tuple[int, Any]] = []

    def schedule(delay: int, run: Any, a: Any, b: Any = None) -> None:
        later.append((delay, (run, a, b)))

    log = SimLog(
        1,
        schedule=schedule,
        on_append=lambda index, entries: None,
        counts=Counter(),
    )
    return log, later


def test_an_unreachable_log_says_so_late_and_applies_nothing_twice() -> None:
    log, later = _log()
    answers: list[Any] = []
    log.down = 1
    log.append((), "t", lambda life, event: answers.append(event), None)
    log.read(0, "r", lambda life, event: answers.append(event), None)
    for _, (run, a, b) in later:
        run(a, b)
    assert type(answers[0]) in (LogUnavailable, AppendUnknown)
    assert answers[1] == LogUnavailable("r")
    assert log.index == 0


def test_a_read_shows_the_log_as_it_is_when_it_is_served() -> None:
    log, later = _log()
    answers: list[Any] = []
    log.read(0, "r", lambda life, event: answers.append(event), None)
    run, a, b = later.pop(0)[1]
    run(a, b)
    run, a, b = later.pop(0)[1]
    run(a, b)
    assert answers == [LogRead("r", 0, ())]


def test_a_message_reaches_its_machine_as_received_from_its_sender() -> None:
    world, machine, script = one()
    other = Script()
    proc = world.add_process("q", "us-east", HostClock("q", 0, 0))
    there = world.add_machine(proc, "node", Address("node:q"), lambda: object(), other.step)
    world.boot(proc)
    script.answers = {Tick: [Send(there.address, "hello")]}
    world.run(machine, Tick())
    world.run_until(50)
    assert other.seen[-1] == Received(machine.address, "hello")
