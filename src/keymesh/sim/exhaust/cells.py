"""Cells: the product's machines, each with its disk, as numbered values; and their steps, each worked out once.

A cell's number stands for machine state, records, published lease and wake-up together.  What a step does depends on
the cell, the time and the event alone, so a search over millions of interleavings runs each machine only where
something new meets it.

The shell is the simulator's, made instant: effects strictly in order, ``Persist`` durable and answered before the
next effect; keys load and L1 answers within the step.  A crash may fall before or after any record of a step; the
process is up again at once (a longer absence is a pause).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

from keymesh.control.voter_state import EpochReply
from keymesh.core.events import (
    KeysLoaded,
    L1Outcome,
    L1Probed,
    LoadKeys,
    ProbeL1,
    SnapshotTaken,
    TakeSnapshot,
    Unsealed,
)
from keymesh.edge.snapshot import Connected, Publish
from keymesh.model.machine import Address, Booted, BootMark, Persist, Persisted, Send, Tick, Wake
from keymesh.model.time import NEVER, Instant
from keymesh.registry.events import AppendConflict, Appended, AppendLog, CertificateReady, LogRead, ReadLog
from keymesh.sim.exhaust.forms import Forms, copied
from keymesh.sim.keys import L2
from keymesh.sim.log import SimLog
from keymesh.sim.process import Machine

TICK: Final = Tick()


@dataclass(frozen=True, slots=True)
class Crash:
    """Dies at the step's record number ``record`` (from 0), before or just after it is durable."""

    record: int
    durable: bool


@dataclass(frozen=True, slots=True)
class Cell:
    """One machine between two steps."""

    state: Any
    disk: dict[str, Any]
    published: Any
    wake_at: Instant
    life: int


@dataclass(frozen=True, slots=True)
class Stepped:
    """What a step came to: the cell and the log after it, what it asks of the world, in order, and how many records
    it made."""

    cell: int
    log: int
    out: tuple[Any, ...]
    records: int


class _Died(Exception):
    pass


class Kind:
    """A machine of the start as the search knows it.  ``base`` turns true ms into its Instants."""

    def __init__(self, machine: Machine) -> None:
        self.address: Address = machine.address
        self.kind = machine.kind
        self.step = machine.step
        self.build = machine.build
        self.base = machine.proc.clock.base
        self.region = machine.proc.region
        self.host = machine.proc.host.name
        self.first = Cell(
            machine.state,
            dict(sorted(machine.disk.items())),
            machine.published,
            machine.wake_at or NEVER,
            machine.proc.life,
        )


class Cells:
    """All cells met so far, of all machines, and the memory of their steps."""

    def __init__(self, kinds: tuple[Kind, ...], log: SimLog) -> None:
        self.kinds = kinds
        self.logs = [log]
        self.forms = Forms()
        self.cells: list[Cell] = []
        self.steps = 0
        self._numbers: dict[Any, int] = {}
        self._log_numbers: dict[Any, int] = {}
        self._memory: dict[Any, Stepped] = {}

    def number(self, cell: Cell) -> int:
        form = self.forms.form
        key = (form(cell.state), form(cell.disk), form(cell.published), cell.wake_at, cell.life)
        found = self._numbers.get(key)
        if found is None:
            found = self._numbers[key] = len(self.cells)
            self.cells.append(cell)
        return found

    def step(self, machine: int, cell: int, t: int, event: Any, *, log: int, crash: Crash | None = None) -> Stepped:
        """``event`` for ``machine`` at true ms ``t``, with the log as it stands."""
        key = (machine, cell, t, self.forms.form(event), log, crash)
        found = self._memory.get(key)
        if found is None:
            self.steps += 1
            life = _Life(self, self.kinds[machine], self.cells[cell], t, log=log, crash=crash)
            found = self._memory[key] = life.run(event)
        return found

    def put(self, log: int, entries: Any) -> int | None:
        """The log with ``entries`` appended; None where its compare fails."""
        key = (log, self.forms.form(entries))
        found = self._log_numbers.get(key)
        if found is None:
            old = self.logs[log]
            new = SimLog(0, schedule=_nothing, on_append=_nothing, counts=Counter())
            new.commits, new.heads, new.commands = list(old.commits), dict(old.heads), set(old.commands)
            if new.put(entries) is None:
                return None
            found = self._log_numbers[key] = len(self.logs)
            self.logs.append(new)
        return found


class _Life:
    """One step of one machine, and what follows from it within its process."""

    def __init__(self, cells: Cells, kind: Kind, cell: Cell, t: int, *, log: int, crash: Crash | None) -> None:
        self.cells = cells
        self.kind = kind
        self.now = Instant(t + kind.base)
        self.t = t
        self.log = log
        self.crash = crash
        self.records = 0
        self.out: list[Any] = []
        self.later: list[Any] = []
        self.state = copied(cell.state)
        self.disk = dict(cell.disk)
        self.published = cell.published
        self.wake_at = cell.wake_at
        self.life = cell.life

    def run(self, event: Any) -> Stepped:
        try:
            if type(event) is Tick:
                self.wake_at = NEVER
            if type(event) is Reboot:
                raise _Died
            self._all(event)
        except _Died:
            self.crash = None
            self._boot()
        number = self.cells.number(
            Cell(self.state, dict(sorted(self.disk.items())), self.published, self.wake_at, self.life)
        )
        return Stepped(number, self.log, tuple(self.out), self.records)

    def _all(self, event: Any) -> None:
        self._one(event)
        while self.later:
            self._one(self.later.pop(0))

    def _one(self, event: Any) -> None:
        for effect in self.kind.step(self.state, self.now, event):
            kind = type(effect)
            if kind is Persist:
                self._persist(effect)
            elif kind in _ANSWERED:
                self.later.append(_ANSWERED[kind](self, effect))
            elif kind is Wake:
                self.wake_at = effect.at
            elif kind is Publish:
                self.published = effect.lease
            elif kind in _OUTWARD:
                self.out.append(effect)

    def _persist(self, effect: Persist) -> None:
        here = self.crash is not None and self.crash.record == self.records
        self.records += 1
        if here and self.crash is not None and not self.crash.durable:
            raise _Died
        for name, record in effect.puts:
            self.disk[name] = record
        for name in effect.deletes:
            self.disk.pop(name, None)
        if here:
            raise _Died
        self._one(Persisted(effect.token))

    def _boot(self) -> None:
        self.life += 1
        self.state, self.published, self.wake_at = self.kind.build(), None, NEVER
        self.later.clear()
        mark = BootMark(boot_id=f"{self.kind.host}-boot-1", boottime_ms=self.t + 1_000_000)
        entropy = sha256(f"{self.kind.address}/{self.life}".encode()).digest()
        self._all(Booted(dict(self.disk), mark, entropy))
        if self.kind.kind == "node":
            self._all(Unsealed(1))
        elif self.kind.kind == "edge":
            self._all(Connected(self.state.config.cores[0]))


@dataclass(frozen=True, slots=True)
class Reboot:
    """Event: the process dies and starts again."""


def _loaded(life: _Life, e: LoadKeys) -> KeysLoaded:
    l1 = "ok" if any(ref.key == L2 for ref in e.keys) else "unused"
    return KeysLoaded(namespace=e.namespace, loaded=tuple(e.keys), failed=(), l1=l1, l1_started_at=life.now)


def _probed(life: _Life, e: ProbeL1) -> L1Probed:
    return L1Probed(
        namespace=e.namespace,
        binding_id=e.binding_id,
        outcome=L1Outcome.OK,
        started_at=life.now,
        all_replicas=e.all_replicas,
    )


def _taken(life: _Life, e: TakeSnapshot) -> SnapshotTaken:
    heads = {k.partition("/")[2]: r.head.entry.state for k, r in life.disk.items() if k.startswith("ns/")}
    return SnapshotTaken(heads)


def _read(life: _Life, e: ReadLog) -> LogRead:
    log = life.cells.logs[life.log]
    return LogRead(
        e.token, log.index, tuple((n + 1, s) for n in range(e.after_index, log.index) for s in log.commits[n])
    )


def _append(life: _Life, e: AppendLog) -> Appended | AppendConflict:
    number = life.cells.put(life.log, e.entries)
    if number is None:
        return AppendConflict(e.token)
    life.log = number
    return Appended(e.token, life.cells.logs[number].index)


def _nothing(*args: Any) -> None:
    return None


_ANSWERED: Final[dict[type, Callable[[Any, Any], Any]]] = {
    LoadKeys: _loaded,
    ProbeL1: _probed,
    TakeSnapshot: _taken,
    ReadLog: _read,
    AppendLog: _append,
}
_OUTWARD: Final = frozenset((Send, CertificateReady, EpochReply))
