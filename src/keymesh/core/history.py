"""The entries that led to what a region applied: fetched after the newest state, recorded in the order of their seq.

A state applies whatever came before it (DESIGN section 2); the entries that it passed over are kept for evidence.
They prove themselves: each names its predecessor's hash, up to the applied head, whose signature was verified.  Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from msgspec import Struct

from keymesh.control.entry import SignedEntry
from keymesh.model.errors import Integrity

GAP_MAX: Final = 4_096
"""Entries fetched at most behind one head; of a longer absence the older ones stay with the log alone."""


class Place(Struct, frozen=True):
    """The newest recorded entry of a namespace."""

    seq: int
    hash: str
    epoch: int


def missing(last: Place | None, head: SignedEntry) -> int:
    """The first seq to fetch; above the head's where there is nothing.

    A head of a later epoch may be on another branch than the record: where it is not above the record, everything is.
    """
    other = last is None or (head.entry.epoch > last.epoch and head.entry.seq <= last.seq)
    first = 1 if last is None or other else last.seq + 1
    return max(first, head.entry.seq - GAP_MAX + 1)


def is_fork(last: Place | None, first: SignedEntry, head: SignedEntry) -> bool:
    """Whether ``first``, right behind the record, follows another entry than the recorded one, in a later epoch: the
    branch of ``head`` is then to be recorded beside it, from its beginning."""
    if last is None or head.entry.epoch <= last.epoch:
        return False
    return first.entry.seq == last.seq + 1 and first.entry.prev != last.hash


class Due(Struct, frozen=True):
    """What is to be recorded behind ``last``: ``run`` is at hand, and what lies before it from ``first`` on is not."""

    last: Place | None
    first: int
    run: tuple[SignedEntry, ...]

    @property
    def has_gap(self) -> bool:
        return self.first < self.run[0].entry.seq

    @property
    def is_beside(self) -> bool:
        """Whether it begins where something is recorded already: another branch, of which some may be the same."""
        return self.last is not None and self.first <= self.last.seq


def plan(last: Place | None, passed: Sequence[SignedEntry], head: SignedEntry) -> Due | None:
    """What brings the record up to the applied ``head``; None where it is there.

    ``passed``: heads that were applied before it, in that order.  Of them only those count that lead to ``head``
    without a hole, each by its hash: whatever else was applied once (a gap, another branch) is fetched.
    """
    first = missing(last, head)
    if first > head.entry.seq:
        return None
    run = [head]
    for earlier in reversed(passed):
        if earlier.entry.seq >= run[-1].entry.seq:
            continue
        if earlier.entry.seq < first or earlier.hash != run[-1].entry.prev:
            break
        run.append(earlier)
    return Due(last=last, first=first, run=tuple(reversed(run)))


def check_chain(last: Place | None, fetched: Sequence[SignedEntry], head: SignedEntry) -> None:
    """``fetched`` may be recorded behind ``last``: 1. it ends with the applied head; 2. it is of that namespace, one
    seq after the other; 3. each names its predecessor's hash; 4. the first names ``last``, where that comes right
    before it, and is not before it, but in a later epoch, which may go on from an earlier place.  Raises Integrity."""
    if not fetched or fetched[-1].hash != head.hash:
        raise Integrity("history-head", "the entries do not end with the applied one", field="entries")
    for earlier, later in pairwise(fetched):
        if later.entry.seq != earlier.entry.seq + 1 or later.entry.prev != earlier.hash:
            raise Integrity("history-chain", f"seq {later.entry.seq} does not follow what is before it", field="prev")
    if any(one.entry.namespace != head.entry.namespace for one in fetched):
        raise Integrity("history-chain", "entries of another namespace", field="namespace")
    first = fetched[0].entry
    if last is None or (first.seq <= last.seq and head.entry.epoch > last.epoch):
        return
    if first.seq <= last.seq or (first.seq == last.seq + 1 and first.prev != last.hash):
        raise Integrity("history-chain", f"seq {first.seq} does not follow what is recorded", field="prev")
