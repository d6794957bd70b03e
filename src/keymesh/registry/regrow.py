"""The log of a mesh, grown again from a backup and from what regions held (DESIGN section 3, "Epochs and restore").

Decides which entries are the log's: those of the backup, then of every namespace the longest chain of the highest
epoch.  Everything is judged as at the first time: signatures, chain, state.  Says nothing of what lies beside that
chain (``restore``).  Pure.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from keymesh.control import reduce, trust
from keymesh.control.entry import FIRST_EPOCH, SignedEntry
from keymesh.control.rows import SignersRow, get
from keymesh.control.signing import Suite
from keymesh.control.view import check_signed, rows_root
from keymesh.model.errors import Integrity, KeymeshError
from keymesh.model.ids import MESH_NAMESPACE, ZERO_DIGEST, Digest
from keymesh.registry.spaces import check_epoch

NOBODY: Final = ""


@dataclass(slots=True)
class Chain:
    """One namespace as far as it has grown."""

    entries: list[SignedEntry] = field(default_factory=list)
    rows: dict[str, bytes] = field(default_factory=dict)
    commands: set[str] = field(default_factory=set)
    hashes: set[Digest] = field(default_factory=set)

    @property
    def head(self) -> SignedEntry | None:
        return self.entries[-1] if self.entries else None

    @property
    def seq(self) -> int:
        return len(self.entries)


@dataclass(frozen=True, slots=True)
class Refusal:
    """What did not get into the log: whose it was, of which namespace, and why."""

    region: str
    namespace: str
    what: str
    reason: str


@dataclass(slots=True)
class Regrown:
    """``commits`` are what the log holds, in order.  ``taken``: region -> how many of its entries are among them."""

    pins: trust.Pins
    suite: Suite
    chains: dict[str, Chain] = field(default_factory=dict)
    commits: list[tuple[SignedEntry, ...]] = field(default_factory=list)
    taken: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    refused: list[Refusal] = field(default_factory=list)
    beside: dict[Digest, tuple[str, SignedEntry]] = field(default_factory=dict)  # signed, and in no chain

    def chain(self, namespace: str) -> Chain:
        return self.chains.get(namespace) or Chain()

    @property
    def mesh(self) -> Chain:
        return self.chain(MESH_NAMESPACE)

    @property
    def epoch(self) -> int:
        head = self.mesh.head
        return FIRST_EPOCH if head is None else head.entry.epoch

    def take(self, group: Iterable[SignedEntry]) -> None:
        """One commit more.  Raises Integrity or Refused where it is not what its signers made, or does not follow."""
        entries = tuple(group)
        for signed in entries:
            rows = self._rows_after(signed)
            chain = self.chains.setdefault(signed.entry.namespace, Chain())
            chain.entries.append(signed)
            chain.rows = rows
            chain.commands.add(signed.entry.command_id)
            chain.hashes.add(signed.hash)
        self.commits.append(entries)

    def _rows_after(self, signed: SignedEntry) -> dict[str, bytes]:
        entry, chain = signed.entry, self.chain(signed.entry.namespace)
        head = chain.head
        check_signed(signed)
        if entry.mesh != self.pins.mesh:
            raise Integrity("foreign-mesh", f"an entry of mesh {entry.mesh[:64]!r}", field="mesh")
        if entry.seq != chain.seq + 1 or entry.prev != (ZERO_DIGEST if head is None else head.hash):
            raise Integrity("chain", f"{entry.namespace}:{entry.seq} does not follow {chain.seq}", field="prev")
        if entry.command_id in chain.commands:
            raise Integrity("chain", f"{entry.namespace}:{entry.seq} repeats a command", field="command_id")
        if self.mesh.head is not None:
            check_epoch(self.epoch, signed)
        signers = get(chain.rows, "signers", SignersRow)
        trust.verify_entry(signed, self.mesh.rows, signers, self.suite, pins=self.pins)
        rows = reduce.apply(chain.rows, entry)
        if rows_root(rows) != entry.state:
            raise Integrity("state-mismatch", f"{entry.namespace}:{entry.seq} attests another state", field="state")
        return rows


# --- growing ---------------------------------------------------------------------------------------------------------


class _Pool:
    """Signed entries of regions, each once, by what they follow; of several the one that leads furthest, and to the
    highest epoch."""

    def __init__(self, found: Iterable[tuple[str, SignedEntry]]) -> None:
        self.source: dict[Digest, str] = {}
        self._after: dict[tuple[str, Digest], list[SignedEntry]] = defaultdict(list)
        entries: dict[Digest, SignedEntry] = {}
        for region, signed in found:
            entries[signed.hash] = signed
            self.source[signed.hash] = region
            self._after[signed.entry.namespace, signed.entry.prev].append(signed)
        self._reach: dict[Digest, tuple[int, int]] = {}
        for signed in sorted(entries.values(), key=lambda s: -s.entry.seq):
            own = (signed.entry.epoch, signed.entry.seq)
            after = self._after.get((signed.entry.namespace, signed.hash), ())
            self._reach[signed.hash] = max([own, *(self._reach.get(s.hash, own) for s in after)])
        self.entries = entries

    def namespaces(self) -> list[str]:
        return sorted({namespace for namespace, _ in self._after} - {MESH_NAMESPACE})

    def best(self, namespace: str, head: SignedEntry | None) -> SignedEntry | None:
        found = self._after.get((namespace, ZERO_DIGEST if head is None else head.hash), [])
        return max(found, key=lambda s: (self._reach[s.hash], s.hash), default=None)

    def drop(self, signed: SignedEntry) -> None:
        self._after[signed.entry.namespace, signed.entry.prev].remove(signed)


def grow(log: Regrown, found: Iterable[tuple[str, SignedEntry]]) -> None:
    """Take of the entries that regions had (region, entry) what continues ``log``.

    ``log`` has the genesis, whose delegations say who signs.  1. A copy that the Registry did not sign is refused
    first: it hides no intact one, and chooses no branch.  2. Tenants' entries that rest on the mesh head as it is; then
    one of the mesh; and again.  3. Of a fork the branch of the highest epoch, then the longest.  4. What does not hold
    is refused, and the next best tried.
    """
    pool = _Pool(_signed(log, found))
    while _grow_tenants(log, pool) or _grow_mesh(log, pool) or _give_up_one(log, pool):
        pass
    for digest, signed in pool.entries.items():
        if digest not in log.chain(signed.entry.namespace).hashes:
            log.beside[digest] = (pool.source[digest], signed)


def _signed(log: Regrown, found: Iterable[tuple[str, SignedEntry]]) -> Iterator[tuple[str, SignedEntry]]:
    """Of every entry that ``log`` lacks the first copy that verifies: what else was signed is in the hash."""
    taken: set[Digest] = set()
    for region, signed in found:
        if signed.hash in taken or signed.hash in log.chain(signed.entry.namespace).hashes:
            continue
        try:
            check_signed(signed)
            trust.verify_online(signed, log.mesh.rows, log.suite)
        except KeymeshError as bad:
            log.refused.append(_refusal(region, signed, bad.code))
            continue
        taken.add(signed.hash)
        yield region, signed


def _grow_tenants(log: Regrown, pool: _Pool) -> bool:
    grown = False
    for namespace in pool.namespaces():
        while (best := pool.best(namespace, log.chain(namespace).head)) is not None:
            if best.entry.mesh_seq != log.mesh.seq:
                break
            grown |= _try(log, pool, best)
    return grown


def _grow_mesh(log: Regrown, pool: _Pool) -> bool:
    best = pool.best(MESH_NAMESPACE, log.mesh.head)
    return best is not None and _try(log, pool, best)


def _give_up_one(log: Regrown, pool: _Pool) -> bool:
    """Nothing fits any more: a tenant's entry that rests on another mesh head never will.  Another may follow there."""
    for namespace in pool.namespaces():
        best = pool.best(namespace, log.chain(namespace).head)
        if best is not None:
            _refuse(log, pool, best, "mesh-moved")
            return True
    return False


def _try(log: Regrown, pool: _Pool, signed: SignedEntry) -> bool:
    try:
        log.take((signed,))
    except KeymeshError as bad:
        _refuse(log, pool, signed, bad.code)
        return True
    log.taken[pool.source[signed.hash]] += 1
    return True


def _refuse(log: Regrown, pool: _Pool, signed: SignedEntry, reason: str) -> None:
    pool.drop(signed)
    log.refused.append(_refusal(pool.source[signed.hash], signed, reason))


def _refusal(region: str, signed: SignedEntry, reason: str) -> Refusal:
    entry = signed.entry
    return Refusal(region, entry.namespace, f"entry {entry.epoch}:{entry.seq} {entry.kind}", reason)
