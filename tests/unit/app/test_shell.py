"""The shell carries out effects strictly in order, and decides nothing."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from keymesh.adapters.sqlite_records import SqliteRecords
from keymesh.app import lifeline
from keymesh.app import shell as shell_module
from keymesh.app.shell import Shell
from keymesh.control.messages import Poll
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
from keymesh.model.time import NEVER, Instant
from keymesh.orbital.wire import MESSAGES

PEER = Address("registry")


class Died(BaseException):
    """Stands for the end of the process, which nothing in it survives."""


@dataclass(frozen=True, slots=True)
class Work:
    name: str


@dataclass
class Script:
    """A machine that answers each kind of event with a list of effects, and remembers what it was fed."""

    answers: dict[Any, list[Any]] = field(default_factory=dict)
    seen: list[tuple[Instant, Any]] = field(default_factory=list)

    @property
    def events(self) -> list[Any]:
        return [event for _, event in self.seen]


def step(state: Script, now: Instant, event: Any) -> list[Any]:
    state.seen.append((now, event))
    token = getattr(event, "token", None)
    for key in ((type(event), token), token, type(event)):
        if key in state.answers:
            return state.answers[key]
    return []


def poll(n: int) -> Poll:
    return Poll(mesh="m", epoch=1, set_id=1, poll_id=n)


class World:
    """One shell over real records; ``done`` is what it carried out, in order."""

    def __init__(self, path: Path | None) -> None:
        self.machine = Script()
        self.done: list[Any] = []
        self.records = SqliteRecords(path, MESSAGES) if path is not None else None
        self.shell = Shell(
            name="script",
            state=self.machine,
            step=step,
            records=self.records,
            send=lambda to, message: self.done.append((to, message)),
            effects={Work: self.done.append},
        )

    def close(self) -> None:
        self.shell.stop()
        if self.records is not None:
            self.records.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path / "records.db")
    yield made
    made.close()


@pytest.fixture(autouse=True)
def deaths(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, BaseException]]:
    found: list[tuple[str, BaseException]] = []

    def die(what: str, failed: BaseException) -> None:
        found.append((what, failed))
        raise Died(what) from failed

    monkeypatch.setattr(shell_module, "die", die)
    return found


def set_clock(monkeypatch: pytest.MonkeyPatch, world: World) -> dict[str, int]:
    """The shell's clock, in the test's hands; starts where it stands."""
    clock = world.shell._watch.clock
    boot_ms, wall_ms = clock.readings_ms()
    at = {"wall": wall_ms, "boot": boot_ms}
    monkeypatch.setattr(type(clock), "readings_ms", lambda self: (at["boot"], at["wall"]))
    world.shell._watch = type(world.shell._watch)(clock)
    return at


def fill_disk(world: World) -> None:
    """From now on the database may not grow by a page, and nothing is free in it."""
    assert world.records is not None
    pages = world.records._db.execute("PRAGMA page_count").fetchone()[0]
    world.records._db.execute(f"PRAGMA max_page_count = {pages}")


async def test_effects_are_carried_out_in_order_and_persist_is_answered_within(world: World) -> None:
    world.machine.answers = {
        Tick: [
            Send(PEER, "one"),
            Persist("p1", (("a", poll(1)),)),
            Work("two"),
            Persist("p2", (("b", poll(2)),), ("a",)),
            Send(PEER, "three"),
        ],
        "p1": [Send(PEER, "after p1"), Persist("inner", (("c", poll(3)),)), Work("after inner")],
        "inner": [Work("inner")],
    }
    world.shell.feed(Tick())
    assert world.done == [
        (PEER, "one"),
        (PEER, "after p1"),
        Work("inner"),
        Work("after inner"),
        Work("two"),
        (PEER, "three"),
    ]
    assert world.machine.events == [Tick(), Persisted("p1"), Persisted("inner"), Persisted("p2")]
    assert world.records is not None
    assert world.records.read_all() == {"b": poll(2), "c": poll(3)}


async def test_what_is_persisted_is_there_before_the_next_effect(world: World, tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []

    def look(_: Any) -> None:
        other = SqliteRecords(tmp_path / "records.db", MESSAGES)
        seen.append(other.read_all())
        other.close()

    world.shell._handlers[Work] = look
    world.machine.answers = {Tick: [Work("before"), Persist("p", (("a", poll(1)),)), Work("after")], "p": [Work("in")]}
    world.shell.feed(Tick())
    assert seen == [{}, {"a": poll(1)}, {"a": poll(1)}]


async def test_a_failed_persist_drops_the_rest_of_its_step_alone(world: World) -> None:
    big = Poll(mesh="m" * 300_000, epoch=1, set_id=1, poll_id=1)
    world.machine.answers = {
        Tick: [Work("first"), Persist("bad", (("big", big),)), Send(PEER, "never")],
        (Persisted, "bad"): [Work("never either")],
        (PersistFailed, "bad"): [Work("told"), Persist("small", (("s", poll(1)),)), Work("after small")],
        Received: [Persist("outer", (("o", poll(2)),)), Work("outer goes on")],
        (Persisted, "outer"): [Persist("bad", (("big", big),)), Work("never, inside")],
    }
    fill_disk(world)
    world.shell.feed(Tick())
    assert world.machine.events[1] == PersistFailed("bad")
    assert (PEER, "never") not in world.done
    assert world.done[:2] == [Work("first"), Work("told")]
    world.done.clear()
    world.shell.feed(Received(PEER, "x"))
    assert Work("never, inside") not in world.done
    assert world.done[-1] == Work("outer goes on")  # a nested step's failure is its own


async def test_without_records_a_persist_is_still_answered() -> None:
    world = World(None)
    world.machine.answers = {Tick: [Persist("p", (("a", poll(1)),)), Work("x")]}
    world.shell.feed(Tick())
    assert world.machine.events == [Tick(), Persisted("p")]
    assert world.done == [Work("x")]
    world.close()


async def test_boot_gives_back_what_earlier_lives_recorded(tmp_path: Path) -> None:
    first = World(tmp_path / "r.db")
    first.machine.answers = {Booted: [Persist("p", (("a", poll(1)), ("b", poll(2))), ())]}
    first.shell.boot()
    first.close()
    second, third = World(tmp_path / "r.db"), World(tmp_path / "r.db")
    second.shell.boot()
    third.shell.boot()
    one, other = second.machine.events[0], third.machine.events[0]
    assert isinstance(one, Booted)
    assert one.records == {"a": poll(1), "b": poll(2)}
    assert len(one.entropy) == 32
    assert one.entropy != other.entropy
    assert one.mark.boot_id == other.mark.boot_id
    assert 0 < one.mark.boottime_ms <= other.mark.boottime_ms
    second.close()
    third.close()


async def test_the_last_wake_counts_and_comes_due_once(world: World) -> None:
    now = world.shell.now()
    first, soon, late = Instant(now + 1), Instant(now + 20), Instant(now + 3_600_000)
    world.machine.answers = {Booted: [Wake(first), Wake(late), Wake(soon)]}
    world.shell.boot()
    await asyncio.sleep(0.2)
    ticks = [(at, event) for at, event in world.machine.seen if isinstance(event, Tick)]
    assert len(ticks) == 1
    assert ticks[0][0] >= soon


async def test_a_wake_is_taken_back_by_one_at_never(world: World) -> None:
    world.machine.answers = {Booted: [Wake(Instant(world.shell.now() + 10)), Wake(NEVER)]}
    world.shell.boot()
    await asyncio.sleep(0.1)
    assert Tick not in {type(event) for event in world.machine.events}


async def test_a_wake_in_the_past_comes_at_once_and_may_be_asked_for_again(world: World) -> None:
    world.machine.answers = {Booted: [Wake(Instant(0))], Tick: [Wake(Instant(0))]}
    world.shell.boot()
    assert world.machine.events[1:] == []  # never within the step that asked
    await asyncio.sleep(0.05)
    assert len(world.machine.events) > 3


async def test_nothing_happens_after_stop(world: World) -> None:
    world.machine.answers = {Booted: [Wake(Instant(0))], Tick: [Work("never")], ClockWentBack: [Work("never")]}
    world.shell.boot()
    world.shell.stop()
    world.shell.feed(Tick())
    await asyncio.sleep(0.02)
    assert world.done == []
    assert len(world.machine.events) == 1


async def test_a_clock_set_back_reaches_the_machine_before_the_event(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = set_clock(monkeypatch, world)
    world.machine.answers = {ClockWentBack: [Work("dropped")], Received: [Work("event")]}
    world.shell.feed(Tick())
    at["wall"] -= 900  # within what a step of the time service may do
    at["boot"] += 10
    world.shell.feed(Tick())
    assert ClockWentBack() not in world.machine.events
    at["wall"] -= 600_000
    at["boot"] += 10
    world.shell.feed(Received(PEER, "x"))
    assert world.done == [Work("dropped"), Work("event")]
    assert world.machine.events[-2:] == [ClockWentBack(), Received(PEER, "x")]
    world.shell.feed(Tick())
    assert world.machine.events.count(ClockWentBack()) == 1
    instants = [now for now, _ in world.machine.seen]
    assert instants == sorted(instants)


async def test_a_clock_set_ahead_reaches_the_machine_first_with_by_how_much(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = set_clock(monkeypatch, world)
    world.shell.feed(Tick())
    before = world.machine.seen[-1][0]
    at["wall"] += 60_000
    world.shell.feed(Tick())
    assert world.machine.events[1:] == [ClockWentAhead(60_000), Tick()]
    assert world.machine.seen[-1][0] - before >= 60_000
    world.shell.feed(Tick())
    assert len(world.machine.events) == 4


async def test_a_reading_of_the_clock_alone_tells_the_machine_too(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = set_clock(monkeypatch, world)
    at["wall"] -= 10_000
    world.shell.now()
    assert world.machine.events == [ClockWentBack()]


@pytest.mark.parametrize("how", ["step", "handler", "unknown effect", "persist", "nested"])
async def test_a_bug_ends_the_process(world: World, deaths: list[tuple[str, BaseException]], how: str) -> None:
    def broken(_: Any) -> None:
        raise KeyError("a bug")

    world.shell._handlers[Work] = broken
    world.machine.answers = {
        "step": {Tick: 5},
        "handler": {Tick: [Work("x"), Send(PEER, "never")]},
        "unknown effect": {Tick: [object(), Send(PEER, "never")]},
        "persist": {Tick: [Persist("p", (("a", object()),)), Send(PEER, "never")]},
        "nested": {Tick: [Persist("p", (("a", poll(1)),)), Send(PEER, "never")], "p": [Work("x")]},
    }[how]  # type: ignore[assignment]
    with pytest.raises(Died, match="script failed at Tick"):
        world.shell.feed(Tick())
    assert len(deaths) == 1
    assert world.done == []


async def test_a_bug_at_a_clock_that_went_back_ends_the_process_whoever_asked_for_the_time(
    world: World, deaths: list[tuple[str, BaseException]], monkeypatch: pytest.MonkeyPatch
) -> None:
    at = set_clock(monkeypatch, world)
    world.machine.answers = {ClockWentBack: [object()]}
    at["wall"] -= 10_000
    with pytest.raises(Died, match="ClockWentBack"):
        world.shell.now()
    assert len(deaths) == 1


async def test_notes_are_counted_and_shown(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="keymesh.shell")
    shown: list[Note] = []
    world.shell.on_note = shown.append
    note = Note("drift", "c-1", (("namespace", "acme"),))
    world.machine.answers = {Tick: [note, note, Note("fork", "c-2")]}
    world.shell.feed(Tick())
    assert world.shell.notes == {"drift": 2, "fork": 1}
    assert shown == [note, note, Note("fork", "c-2")]
    assert [r.message for r in caplog.records] == ["drift", "drift", "fork"]


def test_the_end_of_a_process_is_its_exit_code_70(monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr(logging, "shutdown", lambda: None)
    lifeline.die("a bug", KeyError("x"))
    assert codes == [70]
