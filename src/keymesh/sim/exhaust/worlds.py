"""The transition system: what a world is, and every world that may follow from it.

A world is the time, one cell for each machine, the letters under way, the log, the truth that the judge keeps, and how
much of the scenario's script and faults is used up.  Letters form a set: any may arrive next, later or never, so loss,
delay and re-ordering need no action of their own; a letter that is sent again while it is under way is the same one.
A machine that nothing reaches is paused.  Reads and appends of the log happen at once; their answers do too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from keymesh.control.messages import SetSealed
from keymesh.control.voter_state import EpochReply
from keymesh.model.machine import REGISTRY, Received, Send
from keymesh.sim.exhaust.cells import TICK, Cells, Crash, Kind, Reboot
from keymesh.sim.exhaust.start import TICK_MS
from keymesh.sim.exhaust.truth import Truth
from keymesh.sim.mesh import Mesh
from keymesh.sim.process import Machine


@dataclass(frozen=True, slots=True)
class Later:
    """An event that follows from the world: ``make(system, world)`` gives it, or None as long as it can't happen."""

    make: Callable[[Any, Any], Any]


@dataclass(frozen=True, slots=True)
class Asked:
    """A step of a script: ``event`` for ``machine`` (an index), at any moment after the step before it."""

    machine: int
    event: Any

    def now(self, system: Any, world: Any) -> Any:
        """The event in this world, or None."""
        return self.event.make(system, world) if type(self.event) is Later else self.event


@dataclass(frozen=True, slots=True)
class Limits:
    """What a search is complete for.

    ``ticks``: up to which anything happens (the judge looks beyond, see there); ``first_tick``: nothing reached
    anybody before.  ``crashes``: machine -> how often, of all together.  ``lost``: kinds of message that never arrive.
    ``instant``: kinds that arrive as they are sent.  ``newest``: kinds of which only the last one between two machines
    is still under way.  ``asleep``: machines that no timer wakes.

    Voters are alike, which is made use of in two ways.  ``as_one``: these hear and say everything in the same moment.
    ``in_order``: of a kind of message in ``ordered`` the first of these hears first, then the second, ....
    """

    ticks: int
    first_tick: int = 0
    crashes: dict[int, int] = field(default_factory=dict)
    lost: frozenset[type] = frozenset()
    instant: frozenset[type] = frozenset()
    newest: frozenset[type] = frozenset()
    asleep: frozenset[int] = frozenset()
    as_one: tuple[int, ...] = ()
    in_order: tuple[int, ...] = ()
    ordered: frozenset[type] = frozenset()


class World(NamedTuple):
    tick: int
    cells: tuple[int, ...]
    letters: frozenset[int]
    log: int
    truth: Truth
    asked: tuple[int, ...]
    crashed: int


class Letter(NamedTuple):
    to: int
    event: Received


Found = tuple[str, World]
REBOOT: Final = Reboot()


class System:
    """All worlds of one scenario.  ``judge`` is set by whoever builds it."""

    judge: Any

    def __init__(
        self, mesh: Mesh, machines: tuple[Machine, ...], scripts: tuple[tuple[Asked, ...], ...], limits: Limits
    ) -> None:
        self.kinds = tuple(Kind(m) for m in machines)
        self.cells = Cells(self.kinds, mesh.world.log)
        self.scripts = scripts
        self.limits = limits
        self.began = mesh.world.t
        self.for_voters = mesh.world.voter_messages
        self.letters: list[Letter] = []
        self._letter_numbers: dict[Any, int] = {}
        self.words: list[Any] = []
        self._word_numbers: dict[Any, int] = {}
        self._places = {(k.address, k.kind == "voter"): i for i, k in enumerate(self.kinds) if k.kind != "registry"}
        self.of_kind = {
            kind: tuple(i for i, k in enumerate(self.kinds) if k.kind == kind)
            for kind in ("registry", "node", "edge", "voter")
        }

    def first(self) -> World:
        cells = tuple(self.cells.number(k.first) for k in self.kinds)
        return World(self.limits.first_tick, cells, frozenset(), 0, Truth(), (0,) * len(self.scripts), 0)

    def time_of(self, world: World) -> int:
        return self.began + world.tick * TICK_MS

    # --- actions -----------------------------------------------------------------------------------------------------

    def following(self, world: World) -> Iterator[Found]:
        """(what happened, the world after it), for everything that may happen next."""
        if world.tick < self.limits.ticks:
            yield "a tick passes", world._replace(tick=world.tick + 1)
        for number in sorted(world.letters):
            letter = self.letters[number]
            if not self._waits_its_turn(world, letter):
                yield from self._happens(world._replace(letters=world.letters - {number}), letter.to, letter.event)
        t = self.time_of(world)
        for i, kind in enumerate(self.kinds):
            if i not in self.limits.asleep and self.cells.cells[world.cells[i]].wake_at <= t + kind.base:
                yield from self._happens(world, i, TICK)
        for n, done in enumerate(world.asked):
            if done < len(self.scripts[n]):
                asked = self.scripts[n][done]
                event = asked.now(self, world)
                if event is None:
                    continue
                took = (*world.asked[:n], done + 1, *world.asked[n + 1 :])
                yield from self._happens(world._replace(asked=took), asked.machine, event)
        for i, most in self.limits.crashes.items():
            if world.crashed < most:
                yield self._told(i, REBOOT), self.after(world._replace(crashed=world.crashed + 1), i, REBOOT)

    def _waits_its_turn(self, world: World, letter: Letter) -> bool:
        """Whether a voter before this one has yet to hear its letter of that kind."""
        order, kind = self.limits.in_order, type(letter.event.message)
        if kind not in self.limits.ordered or letter.to not in order:
            return False
        before = order[: order.index(letter.to)]
        others = (self.letters[n] for n in world.letters)
        return any(o.to in before and type(o.event.message) is kind for o in others)

    def _happens(self, world: World, i: int, event: Any) -> Iterator[Found]:
        """The event, and the event with a crash at each of its records."""
        told = self._told(i, event)
        yield told, self.after(world, i, event)
        if world.crashed < self.limits.crashes.get(i, 0):
            stepped = self.cells.step(i, world.cells[i], self.time_of(world), event, log=world.log)
            for record in range(stepped.records):
                for durable in (False, True):
                    died = world._replace(crashed=world.crashed + 1)
                    where = "after" if durable else "before"
                    told_how = f"{told}, and dies {where} record {record + 1}"
                    yield told_how, self.after(died, i, event, Crash(record, durable))

    # --- what follows ------------------------------------------------------------------------------------------------

    def after(self, world: World, i: int, event: Any, crash: Crash | None = None) -> World:
        """``event`` for machine ``i``, and all that follows from it at once."""
        t = self.time_of(world)
        pending = [(other, event) for other in self._together(i)]
        while pending:
            i, event = pending.pop(0)
            stepped = self.cells.step(i, world.cells[i], t, event, log=world.log, crash=crash)
            crash = None
            cells = (*world.cells[:i], stepped.cell, *world.cells[i + 1 :])
            moved = world._replace(cells=cells, log=stepped.log)
            truth = world.truth
            for effect in stepped.out:
                if type(effect) is Send:
                    moved = self._sent(moved, i, effect, pending)
                elif type(effect) is EpochReply:
                    truth = truth.sealed(i, self._word(effect)) if _is_seal(effect) else truth.told(i, effect)
                else:
                    statement = effect.certificate.statement.message
                    seq = self._seq_of(moved.log, statement.command_id)
                    truth = truth.certified(seq, statement.t - self.kinds[i].base)
            world = moved._replace(truth=truth.moved(self, world, moved, i, event))
        return world

    def _together(self, i: int) -> tuple[int, ...]:
        return self.limits.as_one if i in self.limits.as_one else (i,)

    def _sent(self, world: World, i: int, effect: Send, pending: list[tuple[int, Any]]) -> World:
        kind = type(effect.message)
        if kind in self.limits.lost:
            return world
        event = Received(REGISTRY if self.kinds[i].kind == "registry" else self.kinds[i].address, effect.message)
        for to in self._addressed(effect):
            if kind in self.limits.instant or i in self.limits.as_one:
                pending.extend((other, event) for other in self._together(to))
                continue
            kept = world.letters
            if kind in self.limits.newest:
                kept = frozenset(n for n in kept if not self._same_place(n, to, event))
            world = world._replace(letters=kept | {self._letter(to, event)})
        return world

    def _same_place(self, number: int, to: int, event: Received) -> bool:
        """Whether that letter is of the same kind to the same machine from the same sender."""
        other = self.letters[number]
        return (other.to, type(other.event.message), other.event.sender) == (to, type(event.message), event.sender)

    def _addressed(self, effect: Send) -> tuple[int, ...]:
        if effect.to == REGISTRY:
            return self.of_kind["registry"]
        place = self._places.get((effect.to, type(effect.message) in self.for_voters))
        return () if place is None or place in self.limits.as_one[1:] else (place,)

    def _letter(self, to: int, event: Received) -> int:
        key = (to, self.cells.forms.form(event))
        number = self._letter_numbers.get(key)
        if number is None:
            number = self._letter_numbers[key] = len(self.letters)
            self.letters.append(Letter(to, event))
        return number

    def _word(self, reply: EpochReply) -> int:
        """The number of what a voter said when it had sealed its set."""
        key = self.cells.forms.form(reply.stored)
        if key not in self._word_numbers:
            self._word_numbers[key] = len(self.words)
            self.words.append(reply.stored)
        return self._word_numbers[key]

    def _seq_of(self, log: int, command_id: str) -> int:
        return next(
            s.entry.seq for commit in self.cells.logs[log].commits for s in commit if s.entry.command_id == command_id
        )

    def _told(self, i: int, event: Any) -> str:
        kind = self.kinds[i]
        who = f"voter {kind.region}" if kind.kind == "voter" else str(kind.address)
        if type(event) is Received:
            return f"{who} gets {type(event.message).__name__}"
        return f"{who}: {getattr(event, 'kind', type(event).__name__)}"


def _is_seal(reply: EpochReply) -> bool:
    return reply.stored is not None and type(reply.stored.message) is SetSealed
