"""I1, I4, I12 and I13 in one world, or on the way from one to the next.

Also that a node says that it applied only what its disk holds (certificates rest on that), that nothing but an ordered
resume ends a local restriction, and that what a majority of voters tell a new epoch is all that the old one commits.

Judged to the tick: clocks are equal here, so a bound is commit + ttl without the slack for drift.  A deadline is
judged in every world before it as well: nothing may be usable at the deadline if nothing but time passes until then.
So a search looks further ahead than its ticks.
"""

from __future__ import annotations

from typing import Any, Final

from keymesh.control.messages import AckMessage
from keymesh.control.voter import VOTE_PREFIX
from keymesh.core import context
from keymesh.core.records import state_name
from keymesh.model.states import Operation
from keymesh.model.time import Instant
from keymesh.registry import certificate
from keymesh.registry.records import CommitRecord
from keymesh.sim.exhaust.start import SERVICE, TENANT
from keymesh.sim.exhaust.truth import Truth

_RECORD: Final = state_name(TENANT)
RESTRICTS: Final = frozenset(("suspend", "revoke"))
RESUME: Final = "resume"
_DONE: Final = frozenset(("applied", "stale"))


class Judge:
    """Of one system; remembers what it found about each cell."""

    def __init__(self, system: Any, *, ttl_ms: int, voters: int = 3) -> None:
        self.system = system
        self.ttl_ms = ttl_ms
        self.majority = voters // 2 + 1
        self._usable: dict[tuple[int, int], bool] = {}
        self._held: dict[int, frozenset[str]] = {}
        self._ends: dict[int, tuple[tuple[int, int], ...]] = {}
        self._orders: dict[int, Any] = {}
        self._words: dict[int, tuple[tuple[int, str, str], ...]] = {}

    # --- what is committed -------------------------------------------------------------------------------------------

    def words(self, log: int) -> tuple[tuple[int, str, str], ...]:
        """(seq, kind, entry hash) of every suspend, revoke and resume of the tenant in that log."""
        found = self._words.get(log)
        if found is None:
            found = self._words[log] = tuple(
                (s.entry.seq, s.entry.kind, s.hash)
                for commit in self.system.cells.logs[log].commits
                for s in commit
                if s.entry.namespace == TENANT and s.entry.kind in (*RESTRICTS, RESUME)
            )
        return found

    def held(self, cell: int) -> frozenset[str]:
        """Hashes of the entries that a voter's disk has votes for, or whose commit a Registry's disk records."""
        found = self._held.get(cell)
        if found is None:
            disk = self.system.cells.cells[cell].disk
            found = self._held[cell] = frozenset(
                r.entry_hash for n, r in disk.items() if n.startswith(VOTE_PREFIX) or type(r) is CommitRecord
            )
        return found

    def stored(self, world: Any, entry_hash: str) -> bool:
        """Whether a majority of voters' disks hold the entry."""
        voters = self.system.of_kind["voter"]
        return sum(entry_hash in self.held(world.cells[i]) for i in voters) >= self.majority

    def committed(self, world: Any) -> list[tuple[int, str]]:
        claimed = [self.held(world.cells[i]) for i in self.system.of_kind["registry"]]
        return [
            (seq, kind)
            for seq, kind, entry_hash in self.words(world.log)
            if self.stored(world, entry_hash) or any(entry_hash in c for c in claimed)
        ]

    # --- use ---------------------------------------------------------------------------------------------------------

    def usable(self, i: int, cell: int, at: int) -> bool:
        """Whether machine ``i`` would use the key at true ms ``at``, if nothing reaches it until then."""
        key = (cell, at)
        found = self._usable.get(key)
        if found is None:
            found = self._usable[key] = self._use(i, cell, at)
        return found

    def _use(self, i: int, cell: int, at: int) -> bool:
        kind, held = self.system.kinds[i], self.system.cells.cells[cell]
        now = Instant(at + kind.base)
        if kind.kind == "edge":
            return held.published is not None and now < held.published.deadline
        return context.may_use(held.state, now, TENANT, SERVICE, 1, Operation.UNWRAP).allowed

    def _users(self, world: Any, at: int) -> str:
        for kind in ("node", "edge"):
            for i in self.system.of_kind[kind]:
                if self.usable(i, world.cells[i], at):
                    return str(self.system.kinds[i].address)
        return ""

    # --- verdicts ----------------------------------------------------------------------------------------------------

    def world(self, world: Any) -> str:
        """What is wrong in this world; empty where nothing is."""
        t, truth = self.system.time_of(world), world.truth
        since = restricted_since(truth)
        if since is not None:
            user = self._users(world, max(t, since + self.ttl_ms))
            if user:
                return f"I1: {user} may use the key {self.ttl_ms} ms after the commit"
        if truth.opened_at is not None:
            user = self._users(world, max(t, truth.opened_at + self.ttl_ms))
            if user:
                return f"I1: {user} may use the key {self.ttl_ms} ms after a new epoch could restrict it"
        lifted = max((c.seq for c in truth.commits if c.kind == RESUME), default=0)
        for seq, end in (*truth.certificates, *self.ends(world)):
            if seq > lifted:
                user = self._users(world, max(t, end))
                if user:
                    return f"I13: {user} may use the key after the certificate's T"
        return self._local(world, t, lifted) or self._base(truth)

    def _local(self, world: Any, t: int, lifted: int) -> str:
        """A local restriction ends by a committed resume that was ordered after its entry, by nothing else."""
        placed = self.placed(world.log)
        for command_id in world.truth.locals:
            if placed.get(command_id, lifted + 1) > lifted:
                for i in self.system.of_kind["node"]:
                    if self.usable(i, world.cells[i], t):
                        return f"I1: {self.system.kinds[i].address} may use the key that it restricted itself"
        return ""

    def _base(self, truth: Truth) -> str:
        """Whatever majority's words a new epoch grows from, they show all that the old one ever commits."""
        shown = sorted(newest for _, newest in truth.words)[: self.majority]
        if len(shown) == self.majority:
            missed = [c.seq for c in truth.commits if c.kind in RESTRICTS and c.seq > shown[-1]]
            if missed:
                return f"I1: entry {missed[0]} is committed, and not in the next epoch's base"
        return ""

    def placed(self, log: int) -> dict[str, int]:
        """Command id -> seq, of every entry of the tenant in that log."""
        commits = self.system.cells.logs[log].commits
        return {s.entry.command_id: s.entry.seq for commit in commits for s in commit if s.entry.namespace == TENANT}

    def ends(self, world: Any) -> tuple[tuple[int, int], ...]:
        """(seq, true T) of what each Registry would certify on the evidence that it has."""
        found: list[tuple[int, int]] = []
        for i in self.system.of_kind["registry"]:
            cell = world.cells[i]
            if cell not in self._ends:
                state, base = self.system.cells.cells[cell].state, self.system.kinds[i].base
                kills = [state.kills[key] for key in state.open_kills.values()]
                self._ends[cell] = tuple(
                    (k.record.seq, certificate.end_of(k.record, k.evidence) - base) for k in kills if k.record.holders
                )
            found.extend(self._ends[cell])
        return tuple(found)

    def way(self, before: Any, after: Any) -> str:
        """What is wrong with the way from one world to the next."""
        for i in self.system.of_kind["node"]:
            old, new = before.cells[i], after.cells[i]
            if old == new:
                continue
            for number in after.letters - before.letters:
                said = self.system.letters[number].event.message
                if type(said) is AckMessage and not self._is_true(said.ack.message, new):
                    return f"I13: {self.system.kinds[i].address} acknowledged what its disk lacks"
            if self.order(new) < self.order(old):
                return f"I4: {self.system.kinds[i].address} held {self.order(old)} and now {self.order(new)}"
            if self.until(new) > self.until(old) and self.order(new)[1] < after.truth.floor:
                return f"I12: {self.system.kinds[i].address} has a lease and not what was committed before its read"
        return ""

    def _is_true(self, ack: Any, cell: int) -> bool:
        """Whether what a node says that it has applied is on its disk."""
        return ack.namespace != TENANT or ack.outcome not in _DONE or ack.leaf.order <= self.order(cell)

    def order(self, cell: int) -> tuple[int, int]:
        """(epoch, seq) that a node's disk holds of the tenant."""
        found = self._orders.get(cell)
        if found is None:
            record = self.system.cells.cells[cell].disk.get(_RECORD)
            leaf = None if record is None else record.leaf
            found = self._orders[cell] = (0, 0) if leaf is None else (leaf.epoch, leaf.seq)
        return found

    def until(self, cell: int) -> int:
        holding = self.system.cells.cells[cell].state.tenants.get(TENANT)
        return 0 if holding is None or holding.lease is None else int(holding.lease.until)


def restricted_since(truth: Truth) -> int | None:
    """Since when the tenant is restricted by what is committed; None where it is not."""
    since: int | None = None
    for word in truth.commits:
        if word.kind == RESUME:
            since = None
        elif since is None:
            since = word.at
    return since
