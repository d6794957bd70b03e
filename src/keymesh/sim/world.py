"""The simulated world: one heap of events, the machines' shells, and the hooks that checkers watch through.

It carries out effects exactly as the production shell does: strictly in order, ``Persist`` durable and answered
before the next one, a crash possible between any two.  It decides nothing about the protocol.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any, Final

from keymesh.model.machine import (
    REGISTRY,
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
from keymesh.sim.clocks import HostClock, ProcessClock
from keymesh.sim.draw import mix, stream_of
from keymesh.sim.ledger import Ledger
from keymesh.sim.log import SimLog
from keymesh.sim.network import Network
from keymesh.sim.options import Options
from keymesh.sim.process import Machine, Process

_MASK: Final = 2**64 - 1
_RESTART_MS: Final = 700

Watch = Callable[[Machine, Any], None]


class Violation(Exception):
    """An invariant does not hold.  ``t`` is true ms."""

    def __init__(self, invariant: str, t: int, detail: str) -> None:
        super().__init__(f"{invariant} at {t} ms: {detail}")
        self.invariant = invariant
        self.t = t
        self.detail = detail


class World:
    """One seed's mesh.

    ``after`` hooks run when a machine has carried out all effects of an event of that type (for ``Received``: of that
    message type), ``before`` hooks ahead of a received message, ``on_send`` and ``on_persist`` before the effect.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.t = 0
        self.heap: list[tuple[int, int, Callable[[Any, Any], None], Any, Any]] = []
        self.seq = 0
        self.steps = 0
        self.trace = options.seed & _MASK
        self.faults: Counter[str] = Counter()
        self.sometimes: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self.transitions: set[str] = set()
        self.explain: list[str] | None = None
        self.ledger = Ledger(len(options.voters))
        self.log = SimLog(options.seed, schedule=self.schedule, on_append=self._logged, counts=self.faults)
        self.processes: dict[str, Process] = {}
        self.machines: dict[Address, Machine] = {}
        self.voters: dict[Address, Machine] = {}
        self.registries: list[Machine] = []  # replicas: what is sent to the Registry goes to each of them
        self.region_of: dict[str, str] = {}
        self.network = Network(
            options, region_of=self.region_of, schedule=self.schedule, corrupt=self._corrupted, counts=self.faults
        )
        self.corrupt: Callable[[Any, int], Any] = lambda message, draw: None
        self.voter_messages: frozenset[type] = frozenset()
        self.handlers: dict[type, Callable[[Machine, Any], Any]] = {
            Send: self._send,
            Persist: self._persist,
            Wake: self._wake,
            Note: self._note,
        }
        self.before: dict[type, list[Watch]] = {}
        self.after: dict[type, list[Watch]] = {}
        self.on_send: dict[type, list[Callable[[Machine, Address, Any], None]]] = {}
        self.on_persist: list[Callable[[Machine, Persist], None]] = []
        self.on_logged: list[Callable[[Any], None]] = []
        self.on_publish: list[Callable[[Machine], None]] = []
        self.on_boot: list[Callable[[Process], None]] = []
        self.on_crash: list[Callable[[Process], None]] = []
        self.on_wipe: list[Callable[[Process], None]] = []
        self.on_l1_disabled: list[Callable[[str], None]] = []
        self._type_numbers: dict[type, int] = {}

    # --- time --------------------------------------------------------------------------------------------------------

    def schedule(self, delay_ms: int, run: Callable[[Any, Any], None], a: Any = None, b: Any = None) -> None:
        self.seq += 1
        heappush(self.heap, (self.t + delay_ms, self.seq, run, a, b))

    def at(self, t: int, run: Callable[[Any, Any], None], a: Any = None, b: Any = None) -> None:
        self.seq += 1
        heappush(self.heap, (t if t > self.t else self.t, self.seq, run, a, b))

    def run_until(self, end: int) -> None:
        """Everything that happens up to true time ``end``."""
        heap = self.heap
        while heap and heap[0][0] <= end:
            t, _, run, a, b = heappop(heap)
            self.t = t
            run(a, b)
        self.t = end

    def fail(self, invariant: str, detail: str) -> None:
        raise Violation(invariant, self.t, detail)

    def say(self, text: str) -> None:
        if self.explain is not None:
            self.explain.append(f"{self.t:>9} {text}")

    # --- processes ---------------------------------------------------------------------------------------------------

    def add_process(self, name: str, region: str, host: HostClock) -> Process:
        proc = self.processes[name] = Process(name, region, host, self.t)
        self.region_of[name] = region
        return proc

    def add_machine(self, proc: Process, kind: str, address: Address, build: Callable[[], Any], step: Any) -> Machine:
        machine = Machine(len(self.machines) + len(self.voters), kind, address, proc, build, step)
        proc.machines.append(machine)
        (self.voters if kind == "voter" else self.machines)[address] = machine
        if kind == "registry":
            self.registries.append(machine)
        return machine

    def boot(self, proc: Process) -> None:
        """A new life: memory empty, records as they were left."""
        proc.alive = True
        proc.life += 1
        proc.fuse = -1
        proc.clock = ProcessClock(proc.host, self.t)
        self.say(f"{proc.name} boots, life {proc.life}")
        life = proc.life
        for machine in proc.machines:
            machine.state = machine.build()
            machine.wake_at = None
            machine.published = None
            number = mix(self.options.seed, stream_of(machine.kind, machine.address), life)
            entropy = number.to_bytes(8, "big") * 4
            self.run(machine, Booted(dict(machine.disk), proc.host.mark(self.t), entropy))
            if proc.life != life or not proc.alive:
                return
        for hook in self.on_boot:
            hook(proc)

    def crash(self, proc: Process, down_ms: int = _RESTART_MS) -> None:
        """kill -9; it starts again after ``down_ms``."""
        if not proc.alive:
            return
        self.say(f"{proc.name} dies")
        proc.alive = False
        proc.life += 1
        proc.fuse = -1
        proc.inbox.clear()
        for machine in proc.machines:
            machine.state = None
            machine.published = None
        for hook in self.on_crash:
            hook(proc)
        proc.restart_at = self.t + down_ms
        self.schedule(down_ms, self._restart, proc)

    def _restart(self, proc: Process, _: Any) -> None:
        if not proc.alive and self.t >= proc.restart_at:
            self.boot(proc)

    def pause(self, proc: Process) -> None:
        proc.paused += 1

    def unpause(self, proc: Process, life: int) -> None:
        """SIGCONT: what waited arrives in order."""
        if proc.paused == 0:
            return
        proc.paused -= 1
        if proc.paused or not proc.alive:
            return
        self._observe(proc)
        inbox, proc.inbox = proc.inbox, []
        for machine, event in inbox:
            self.deliver(machine, event)

    def step_wall_clock(self, host: HostClock, by_ms: int) -> None:
        """Somebody sets the wall clock; processes notice at their next look."""
        host.lead_ms += by_ms
        for proc in self.processes.values():
            if proc.host is host and proc.alive and not proc.paused:
                self._observe(proc)

    def _observe(self, proc: Process) -> None:
        before = proc.clock.keeper.ahead_ms
        back = proc.clock.observe(self.t)
        ahead_ms = proc.clock.keeper.ahead_ms - before
        if ahead_ms > 0:
            for machine in list(proc.machines):
                if proc.alive and machine.kind != "voter":
                    self.run(machine, ClockWentAhead(ahead_ms))
        if back:
            self.say(f"{proc.name}: wall clock went back")
            for machine in list(proc.machines):
                if proc.alive and machine.kind != "voter":
                    self.run(machine, ClockWentBack())

    def deliver(self, machine: Machine, event: Any) -> None:
        """An event for a machine: at once, or when its process goes on, or never."""
        proc = machine.proc
        if not proc.alive:
            return
        if proc.paused:
            proc.inbox.append((machine, event))
            return
        self.run(machine, event)

    def reply(self, life: Any, event: Any) -> None:
        """An asynchronous answer: lost if the asker has died since."""
        machine, number = life
        if machine.proc.life == number:
            self.deliver(machine, event)

    # --- the shell ---------------------------------------------------------------------------------------------------

    def run(self, machine: Machine, event: Any) -> None:
        """One step and its effects, in order."""
        proc = machine.proc
        life = proc.life
        t = self.t
        now = t + t * proc.ppm // 1_000_000 + proc.clock.base
        kind: type = type(event)
        if kind is Received:
            kind = type(event.message)
            if kind in self.before:
                for hook in self.before[kind]:
                    hook(machine, event)
        effects = machine.step(machine.state, Instant(now), event)
        self.steps += 1
        numbers = self._type_numbers
        if kind not in numbers:
            numbers[kind] = len(numbers) + 1
        number = numbers[kind]
        trace = self.trace * 1_000_003 ^ (t << 20 | machine.number << 12 | number << 6 | len(effects))
        if self.explain is not None and kind is not Tick:
            self._explain(machine, event, effects)
        handlers = self.handlers
        for effect in effects:
            if proc.fuse >= 0 and self._burns(proc):
                break
            if handlers[type(effect)](machine, effect) is False or proc.life != life:
                break
        self.trace = (trace ^ self.trace >> 7) & _MASK
        if proc.life == life:
            if kind in self.after:
                for hook in self.after[kind]:
                    hook(machine, event)

    def _burns(self, proc: Process) -> bool:
        """One effect nearer to the end of the fuse; whether the process died there."""
        if proc.fuse == 0:
            self.sometimes["crash-between-effects"] += 1
            self.crash(proc)
            return True
        proc.fuse -= 1
        return False

    def _send(self, machine: Machine, effect: Send) -> None:
        message = effect.message
        kind = type(message)
        if kind in self.on_send:
            for hook in self.on_send[kind]:
                hook(machine, effect.to, message)
        machines = self.voters if kind in self.voter_messages else self.machines
        if effect.to == REGISTRY and self.registries:
            for to in self.registries:
                self.network.send(machine.proc.name, to.proc.name, self._arrive, to, Received(machine.address, message))
        elif effect.to in machines:
            to = machines[effect.to]
            sender = REGISTRY if machine.kind == "registry" else machine.address  # nodes cannot tell replicas apart
            self.network.send(machine.proc.name, to.proc.name, self._arrive, to, Received(sender, message))

    def _arrive(self, machine: Machine, event: Any) -> None:
        proc = machine.proc
        if not proc.alive:
            return
        if proc.paused:
            if len(proc.inbox) < 4_096:
                proc.inbox.append((machine, event))
            return
        self.run(machine, event)

    def _persist(self, machine: Machine, effect: Persist) -> bool | None:
        proc = machine.proc
        if proc.disk_full:
            self.run(machine, PersistFailed(effect.token))
            return False
        if proc.torn:
            proc.torn -= 1
            self.faults["torn-write"] += 1
            self.crash(proc)
            return False
        for hook in self.on_persist:
            hook(machine, effect)
        disk = machine.disk
        for key, value in effect.puts:
            disk[key] = value
            if proc.rotten:
                proc.rotten.discard(key)
        for key in effect.deletes:
            disk.pop(key, None)
        if proc.fuse == 1 and self.trace & 1:
            self.sometimes["crash-after-persist-before-persisted"] += 1
            self.crash(proc)
            return False
        if proc.jump_in_write:
            by_ms, proc.jump_in_write = proc.jump_in_write, 0
            self.step_wall_clock(proc.host, by_ms)
            if not proc.alive:
                return False
        self.run(machine, Persisted(effect.token))
        return None

    def _wake(self, machine: Machine, effect: Wake) -> None:
        at = machine.wake_at = effect.at
        if at < NEVER:
            proc = machine.proc
            self.at(proc.clock.true_time(at), self._tick, (machine, proc.life), at)

    def _tick(self, life: Any, at: Any) -> None:
        machine, number = life
        proc = machine.proc
        if machine.wake_at != at or proc.life != number:
            return
        now = self.t + self.t * proc.ppm // 1_000_000 + proc.clock.base
        if now < at:
            self.at(proc.clock.true_time(at), self._tick, life, at)
            return
        machine.wake_at = None
        if proc.paused:
            proc.inbox.append((machine, Tick()))
        else:
            self.run(machine, _TICK)

    def _note(self, machine: Machine, effect: Note) -> None:
        self.notes[effect.name] += 1

    def _logged(self, index: int, entries: Any) -> None:
        for signed in entries:
            fact = self.ledger.append(index, signed, self.t)
            self.say(f"LOG {fact.namespace}:{fact.seq} {fact.kind} {fact.args.get('scope', '')} index {index}")
            for hook in self.on_logged:
                hook(fact)

    def _corrupted(self, event: Any, draw: int) -> Any:
        message = self.corrupt(event.message, draw)
        return None if message is None else Received(event.sender, message)

    def _explain(self, machine: Machine, event: Any, effects: list[Any]) -> None:
        shown = event.message if type(event) is Received else event
        source = f" from {event.sender}" if type(event) is Received else ""
        self.say(f"{machine.address}: {_brief(shown)}{source} -> {', '.join(_brief(e) for e in effects) or '-'}")


def _brief(value: Any) -> str:
    if type(value) is Send:
        return f"Send({value.to}, {_brief(value.message)})"
    if type(value) is Persist:
        return f"Persist({', '.join(k for k, _ in value.puts)}{' -' if value.deletes else ''}{','.join(value.deletes)})"
    if type(value) is Note:
        return f"Note({value.name})"
    if type(value) is Booted:
        return "Booted"
    text = repr(value)
    return text if len(text) < 160 else f"{text[:150]}..."


_TICK: Final = Tick()
