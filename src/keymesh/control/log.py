"""The control log's port, and the rules that every log obeys: chained namespaces, one compare, whole commits.

Decides whether a group of entries may be appended to given heads, and whether what a store holds is a log.  Not who
signed (``trust``), nor what entries mean (``reduce``).  Source: DESIGN section 2, "ControlLog".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from keymesh.control.entry import Leaf, SignedEntry, leaf_of, parse_entry
from keymesh.model.errors import ExitCode, Integrity, KeymeshError, Refused
from keymesh.model.ids import MESH_NAMESPACE, ZERO_DIGEST
from keymesh.model.limits import COMMIT_MAX_BYTES, COMMIT_MAX_ENTRIES


class Conflict(KeymeshError):
    """The compare failed: somebody was first.  Read, plan anew, try again."""

    exit_code = ExitCode.REFUSED


class UnknownOutcome(KeymeshError):
    """The append may or may not be in the log: look for its command ids before anything else."""

    exit_code = ExitCode.UNAVAILABLE


class ControlLog(Protocol):
    async def append(self, entries: Sequence[SignedEntry]) -> int:
        """Make ``entries`` durable in one transaction; the index of the commit.

        Raises Conflict, UnknownOutcome, Unavailable (certainly not appended: disk full, store away),
        Refused or Integrity (a group that no log may take).
        """
        ...

    async def read(self, after_index: int, limit: int | None = None) -> tuple[int, list[tuple[int, SignedEntry]]]:
        """(index of the log, entries after ``after_index`` in order), linearizable.

        Commits come whole: with a ``limit``, at least one, and no further one once that many entries are reached;
        where the last entry's index is not the log's, read on from it.  Raises Unavailable.
        """
        ...

    async def find(self, namespace: str, command_id: str) -> tuple[int, SignedEntry] | None:
        """Where that command became an entry.  Raises Unavailable."""
        ...

    async def heads(self) -> tuple[int, dict[str, Leaf]]:
        """(index of the log, head of each namespace), linearizable.  Raises Unavailable."""
        ...

    async def close(self) -> None: ...


def in_order(entries: Iterable[SignedEntry]) -> list[SignedEntry]:
    """Entries of one commit, as the log orders them."""
    return sorted(entries, key=lambda s: (s.entry.namespace, s.entry.seq))


def check_group(entries: Sequence[SignedEntry], *, mesh: str) -> None:
    """What can be said of a group without looking into the log.

    1. 1 to 32 entries, at most 1 MiB.  2. Each is what its signed bytes say, of this mesh.  3. No command id twice.
    Raises Refused or Integrity.
    """
    if not 1 <= len(entries) <= COMMIT_MAX_ENTRIES:
        raise Refused.bad_field("entries", f"1 to {COMMIT_MAX_ENTRIES}, got {len(entries)}")
    size = sum(len(signed.envelope.payload) for signed in entries)
    if size > COMMIT_MAX_BYTES:
        raise Refused.bad_field("entries", f"at most {COMMIT_MAX_BYTES} bytes, got {size}")
    for signed in entries:
        if signed.entry.mesh != mesh:
            raise Integrity("foreign-mesh", f"an entry of mesh {signed.entry.mesh[:64]!r}", field="mesh")
        parsed = parse_entry(signed.envelope)
        if parsed.hash != signed.hash or parsed.entry != signed.entry:
            raise Integrity("entry-mismatch", "the entry is not what its signed bytes say", field="entry")
    if len({(s.entry.namespace, s.entry.command_id) for s in entries}) != len(entries):
        raise Refused.bad_field("command_id", "each once in a group")


def check_heads(entries: Sequence[SignedEntry], heads: Mapping[str, Leaf]) -> dict[str, Leaf]:
    """The compare: each entry follows its namespace's head and rests on the mesh head; the heads afterwards.

    ``entries`` are taken in the order given, those of one namespace by seq; an entry after one of ``mesh`` in the
    same group rests on that one.  Raises Conflict.
    """
    after = dict(heads)
    for signed in entries:
        entry = signed.entry
        head, mesh = after.get(entry.namespace), after.get(MESH_NAMESPACE)
        seq, prev = (0, ZERO_DIGEST) if head is None else (head.seq, head.entry_hash)
        if entry.seq != seq + 1 or entry.prev != prev:
            raise Conflict("conflict", f"{entry.namespace} is at {seq}, not before {entry.seq}", field="prev")
        if entry.mesh_seq != (0 if mesh is None else mesh.seq):
            raise Conflict("conflict", "the mesh head has moved", field="mesh_seq")
        if any(entry.epoch < other.epoch for other in (head, mesh) if other is not None):
            raise Conflict("conflict", f"epoch {entry.epoch} is over", field="epoch")
        after[entry.namespace] = leaf_of(signed)
    return after


def check_new_commands(entries: Sequence[SignedEntry], known: Iterable[tuple[str, str]]) -> None:
    """Raises Conflict where ``known`` (namespace, command id) pairs have one of these."""
    mine = {(s.entry.namespace, s.entry.command_id) for s in entries}
    if any(pair in mine for pair in known):
        raise Conflict("conflict", "a command of that id is in the log", field="command_id")


def check_stored(
    stored: Iterable[tuple[int, SignedEntry]], *, mesh: str, index: int = 0, heads: Mapping[str, Leaf] | None = None
) -> tuple[int, dict[str, Leaf]]:
    """What a store holds, from its beginning or on from ``index`` and ``heads``, is a log: its index and heads.

    1. Every entry is of this mesh.  2. Indexes start at 1, skip none and never fall; namespaces and seqs rise inside
    a commit.  3. Every namespace chains from its first entry.  4. No command id stands twice.
    Raises Integrity: ``foreign-mesh``, or ``broken-log``.
    """
    begun, last = index, ("", 0)
    heads = dict(heads or {})
    commands: set[tuple[str, str]] = set()
    for at, signed in stored:
        entry = signed.entry
        if entry.mesh != mesh:
            raise Integrity("foreign-mesh", f"the log of mesh {entry.mesh[:64]!r}", field="mesh")
        place = (entry.namespace, entry.seq)
        if at not in (index, index + 1) or at == begun or (at == index and place <= last):
            raise Integrity("broken-log", f"index {at} after {index}", field="index")
        head = heads.get(entry.namespace)
        seq, prev = (0, ZERO_DIGEST) if head is None else (head.seq, head.entry_hash)
        if entry.seq != seq + 1 or entry.prev != prev:
            raise Integrity("broken-log", f"{entry.namespace}:{entry.seq} does not follow {seq}", field="prev")
        if (entry.namespace, entry.command_id) in commands:
            raise Integrity("broken-log", f"{entry.namespace}:{entry.seq} repeats a command", field="command_id")
        commands.add((entry.namespace, entry.command_id))
        heads[entry.namespace] = leaf_of(signed)
        index, last = at, place
    return index, heads


def take(rows: Iterable[tuple[int, SignedEntry]], limit: int | None) -> list[tuple[int, SignedEntry]]:
    """Whole commits from ``rows``, until ``limit`` entries are reached."""
    if limit is None:
        return list(rows)
    found: list[tuple[int, SignedEntry]] = []
    for index, signed in rows:
        if found and len(found) >= limit and found[-1][0] != index:
            break
        found.append((index, signed))
    return found
