"""The thin asyncio shell around a protocol machine: clock in, effects out, strictly in order.

It decides nothing.  One shell drives one machine from one event loop; ``Persist`` is carried out synchronously, so
that what follows it in the same step really follows it.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Callable
from typing import Any

from keymesh.adapters.sqlite_records import SqliteRecords
from keymesh.adapters.system import Stopwatch
from keymesh.app.lifeline import die
from keymesh.model.errors import Unavailable
from keymesh.model.machine import (
    Booted,
    BootMark,
    ClockWentAhead,
    ClockWentBack,
    Note,
    Persist,
    Persisted,
    PersistFailed,
    Send,
    Tick,
    Wake,
)
from keymesh.model.time import NEVER, Instant

log = logging.getLogger("keymesh.shell")

Step = Callable[[Any, Instant, Any], list[Any]]


class Shell:
    """``send`` hands a message to the transport; ``effects`` maps the machine's own effect types to handlers."""

    def __init__(
        self,
        *,
        name: str,
        state: Any,
        step: Step,
        records: SqliteRecords | None,
        send: Callable[[str, Any], None],
        effects: dict[type, Callable[[Any], None]],
    ) -> None:
        self.name = name
        self.state = state
        self._step = step
        self._records = records
        self._send = send
        self._handlers = effects
        self._watch = Stopwatch()
        self._ahead_ms = 0
        self._timer: asyncio.TimerHandle | None = None
        self.notes: Counter[str] = Counter()
        self.stopped = False
        self.on_note: Callable[[Note], None] | None = None

    def now(self) -> Instant:
        """The current instant; a wall clock that was set reaches the machine first."""
        now, back = self._watch.observe()
        ahead_ms = self._watch.ahead_ms - self._ahead_ms
        if ahead_ms > 0:
            self._ahead_ms += ahead_ms
            self._guarded(now, ClockWentAhead(ahead_ms))
        if back:
            log.error("wall clock went back", extra={"fields": {"machine": self.name}})
            self._guarded(now, ClockWentBack())
        return now

    def boot(self) -> None:
        """First event of this life, with what earlier lives recorded."""
        records = self._records.read_all() if self._records is not None else {}
        mark = BootMark(boot_id=self._watch.clock.boot_id(), boottime_ms=self._watch.clock.boottime_ms())
        self.feed(Booted(records=records, mark=mark, entropy=os.urandom(32)))

    def feed(self, event: Any) -> None:
        """One event in, its effects carried out.  After ``stop`` nothing happens any more."""
        self._guarded(self.now(), event)

    def _guarded(self, now: Instant, event: Any) -> None:
        """A failure in here is our bug, and the state is what nobody planned: the process ends."""
        if self.stopped:
            return
        try:
            self._run(now, event)
        except Exception as bug:
            die(f"{self.name} failed at {type(event).__name__}", bug)

    def _run(self, now: Instant, event: Any) -> None:
        for effect in self._step(self.state, now, event):
            kind = type(effect)
            if kind is Send:
                self._send(effect.to, effect.message)
            elif kind is Persist:
                if not self._persist(effect):
                    return
            elif kind is Wake:
                self._wake(effect.at, now)
            elif kind is Note:
                self._note(effect)
            else:
                self._handlers[kind](effect)

    def _persist(self, effect: Persist) -> bool:
        try:
            if self._records is not None:
                self._records.write(effect.puts, effect.deletes)
        except Unavailable as failed:
            log.error("persist failed", extra={"fields": {"machine": self.name, "reason": failed.message}})
            self._run(self.now(), PersistFailed(effect.token))
            return False
        self._run(self.now(), Persisted(effect.token))
        return True

    def _wake(self, at: Instant, now: Instant) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if at < NEVER:
            delay_s = max(0, at - now) / 1000 + 0.001
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self.feed(Tick())

    def _note(self, note: Note) -> None:
        self.notes[note.name] += 1
        fields = {"machine": self.name, **dict(note.fields)}
        log.info(note.name, extra={"correlation_id": note.correlation_id, "fields": fields})
        if self.on_note is not None:
            self.on_note(note)

    def stop(self) -> None:
        self.stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
