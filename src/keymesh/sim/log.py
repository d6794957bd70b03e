"""The control log in simulation: one linearizable compare-and-append store that may be away, late or silent.

The compare is the one of DESIGN section 2: each namespace's head, the mesh head (without writing it), every command
id absent.  The moment an append is applied here is its true commit to the log.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from keymesh.control.entry import SignedEntry
from keymesh.model.ids import MESH_NAMESPACE, ZERO_DIGEST
from keymesh.registry.events import AppendConflict, Appended, AppendUnknown, LogRead, LogUnavailable
from keymesh.sim.draw import mix, stream_of

_STREAM = stream_of("log")
_TIMEOUT_MS = 1_000

Schedule = Callable[[int, Callable[[Any, Any], None], Any, Any], None]


class SimLog:
    """``on_append(index, entries)`` is told of every true commit; ``reply(life, event)`` reaches the asker."""

    def __init__(
        self,
        seed: int,
        *,
        schedule: Schedule,
        on_append: Callable[[int, tuple[SignedEntry, ...]], None],
        counts: Counter[str],
    ) -> None:
        self._seed = seed
        self._schedule = schedule
        self._on_append = on_append
        self._counts = counts
        self._n = 0
        self.commits: list[tuple[SignedEntry, ...]] = []
        self.heads: dict[str, SignedEntry] = {}
        self.commands: set[tuple[str, str]] = set()
        self.down = 0  # overlapping outages
        self.unknowns = 0  # appends to come whose answer is lost

    @property
    def index(self) -> int:
        return len(self.commits)

    def append(
        self, entries: tuple[SignedEntry, ...], token: str, reply: Callable[[Any, Any], None], life: Any
    ) -> None:
        draw = self._draw()
        if self.down:
            # refused for certain, or sent into the void: both happen
            answer: Any = LogUnavailable(token) if draw & 1 else AppendUnknown(token)
            self._schedule(_TIMEOUT_MS, reply, life, answer)
            return
        if self.unknowns:
            self.unknowns -= 1
            self._counts["log-unknown"] += 1
            if draw & 3:
                self._schedule(2 + (draw >> 8) % 1_500, self._apply_silently, entries, None)
            self._schedule(_TIMEOUT_MS, reply, life, AppendUnknown(token))
            return
        self._schedule(1 + (draw >> 8) % 4, self._apply, (entries, token, reply, life), None)

    def read(self, after_index: int, token: str, reply: Callable[[Any, Any], None], life: Any) -> None:
        if self.down:
            self._schedule(_TIMEOUT_MS, reply, life, LogUnavailable(token))
            return
        self._schedule(1 + (self._draw() >> 8) % 3, self._read, (after_index, token, reply, life), None)

    def compare(self, entries: tuple[SignedEntry, ...]) -> bool:
        """Whether the append may happen."""
        heads = dict(self.heads)
        mesh = self.heads.get(MESH_NAMESPACE)
        mesh_seq = 0 if mesh is None else mesh.entry.seq
        for signed in entries:
            e = signed.entry
            head = heads.get(e.namespace)
            if e.prev != (ZERO_DIGEST if head is None else head.hash):
                return False
            if e.seq != (1 if head is None else head.entry.seq + 1):
                return False
            if e.mesh_seq != (e.seq - 1 if e.namespace == MESH_NAMESPACE else mesh_seq):
                return False
            if (e.namespace, e.command_id) in self.commands:
                return False
            heads[e.namespace] = signed
            if e.namespace == MESH_NAMESPACE:
                mesh_seq = e.seq
        return True

    def put(self, entries: tuple[SignedEntry, ...]) -> int | None:
        """The index of the commit, or None where the compare failed."""
        if not entries or not self.compare(entries):
            return None
        ordered = tuple(sorted(entries, key=lambda s: (s.entry.namespace, s.entry.seq)))
        self.commits.append(ordered)
        for signed in ordered:
            self.heads[signed.entry.namespace] = signed
            self.commands.add((signed.entry.namespace, signed.entry.command_id))
        self._on_append(self.index, ordered)
        return self.index

    def _apply(self, job: Any, _: Any) -> None:
        entries, token, reply, life = job
        index = self.put(entries)
        self._schedule(1, reply, life, AppendConflict(token) if index is None else Appended(token, index))

    def _apply_silently(self, entries: Any, _: Any) -> None:
        self.put(entries)

    def _read(self, job: Any, _: Any) -> None:
        after, token, reply, life = job
        found = tuple((i + 1, signed) for i in range(after, self.index) for signed in self.commits[i])
        self._schedule(1, reply, life, LogRead(token, self.index, found))

    def _draw(self) -> int:
        self._n += 1
        return mix(self._seed, _STREAM, self._n)
