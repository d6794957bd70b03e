"""What is truly so in a world, kept beside the machines and never shown to them.

An entry is committed the moment the log and a majority of voters' disks hold it, or the moment a Registry's disk says
so, whichever is first.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from keymesh.control.messages import AnswerMessage, HeartbeatMessage
from keymesh.control.voter_state import PROMISE_RECORD, EpochReply
from keymesh.model.machine import Received
from keymesh.sim.exhaust.start import LOCAL_PREFIX


class Committed(NamedTuple):
    seq: int
    kind: str
    at: int


class Truth(NamedTuple):
    """``commits`` by seq; ``certificates``: (seq, true T); ``floors``: (nonce, newest commit when its heartbeat came
    to the Registry); ``floor``: of the offer that the node holds now.  ``locals``: command ids of the restrictions that
    a node ever had durable of itself.  ``words``: (voter, newest restriction it told) of those that stored the next
    epoch and said so; ``opened_at``: when a majority had stored it.  ``seals``: (voter, number of its word) of
    those that said that they sealed their set."""

    commits: tuple[Committed, ...] = ()
    certificates: tuple[tuple[int, int], ...] = ()
    floors: tuple[tuple[str, int], ...] = ()
    floor: int = 0
    locals: tuple[str, ...] = ()
    words: tuple[tuple[int, int], ...] = ()
    opened_at: int | None = None
    seals: tuple[tuple[int, int], ...] = ()

    def certified(self, seq: int, end: int) -> Truth:
        """A certificate was issued for the restriction by entry ``seq``: nothing from true ms ``end`` on."""
        found = (seq, end)
        return self if found in self.certificates else self._replace(certificates=(*self.certificates, found))

    def told(self, voter: int, reply: EpochReply) -> Truth:
        """A voter said what it had stored when it took up the next epoch; its first word counts."""
        if reply.stored is None or voter in dict(self.words):
            return self
        newest = max((head.seq for head in reply.stored.message.heads), default=0)
        return self._replace(words=tuple(sorted((*self.words, (voter, newest)))))

    def sealed(self, voter: int, word: int) -> Truth:
        """A voter said that it sealed its set; its last word counts."""
        return self._replace(seals=tuple(sorted({**dict(self.seals), voter: word}.items())))

    def moved(self, system: Any, before: Any, after: Any, i: int, event: Any) -> Truth:
        """The truth after ``event`` took machine ``i`` from ``before`` to ``after``."""
        kind, changed = system.kinds[i].kind, before.cells[i] != after.cells[i]
        truth: Truth = self
        if changed and kind in ("voter", "registry"):
            truth = truth._committed(system, after)._opened(system, after)
        if changed and kind == "node":
            disk = system.cells.cells[after.cells[i]].disk
            new = [n.rpartition("/")[2] for n in disk if n.startswith(LOCAL_PREFIX)]
            truth = truth._replace(locals=tuple(sorted({*self.locals, *new})))
        if type(event) is Received:
            message = event.message
            if kind == "registry" and type(message) is HeartbeatMessage:
                truth = truth._heard(message.heartbeat.message.nonce)
            if kind == "node" and type(message) is AnswerMessage:
                old, new_offer = (system.cells.cells[w.cells[i]].state.offer for w in (before, after))
                if old != new_offer:
                    truth = truth._replace(floor=dict(truth.floors).get(message.answer.message.nonce, 0))
        return truth

    def _heard(self, nonce: str) -> Truth:
        newest = max((c.seq for c in self.commits), default=0)
        if not newest or nonce in dict(self.floors):
            return self
        return self._replace(floors=(*self.floors, (nonce, newest)))

    def _committed(self, system: Any, world: Any) -> Truth:
        known = {c.seq for c in self.commits}
        now = system.time_of(world)
        found = [Committed(seq, kind, now) for seq, kind in system.judge.committed(world) if seq not in known]
        return self._replace(commits=tuple(sorted((*self.commits, *found)))) if found else self

    def _opened(self, system: Any, world: Any) -> Truth:
        if self.opened_at is not None:
            return self
        voters = [system.cells.cells[world.cells[i]] for i in system.of_kind["voter"]]
        if sum(PROMISE_RECORD in cell.disk for cell in voters) < system.judge.majority:
            return self
        return self._replace(opened_at=system.time_of(world))
