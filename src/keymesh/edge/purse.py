"""What an Edge holds of a budget: slices, used up in their order by any number of threads, given back in parts.

A slice is cut into blocks; an operation takes one step of one iterator, which is a single step of the interpreter, so
that nothing is taken twice and the hot path needs no lock.  What is given back was never started.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, repeat
from operator import length_hint
from typing import Final

BLOCKS: Final = 64
Unused = tuple[tuple[str, int], ...]
"""(lease id, operations of its slice that will never be used, in all)."""


class _Slice:
    __slots__ = ("_blocks", "_order", "lease_id", "ops", "unused")

    def __init__(self, lease_id: str, granted: int) -> None:
        self.lease_id = lease_id
        self.unused = 0
        size = max(1, granted // BLOCKS)
        sizes = [size] * (granted // size) + ([granted % size] if granted % size else [])
        self._blocks = [repeat(True, n) for n in sizes]
        self._order = iter(self._blocks)
        self.ops: Iterator[bool] = chain.from_iterable(self._order)

    @property
    def left(self) -> int:
        return sum(map(length_hint, self._blocks))

    def give_back(self, ops: int) -> int:
        """Up to so many, in whole blocks from the end.

        A block counts only if another one before it has still not been reached once it is out: then nobody has it.
        """
        given = 0
        while length_hint(self._order) > 1 and given + length_hint(self._blocks[-1]) <= ops:
            block = self._blocks.pop()
            given += length_hint(block) if length_hint(self._order) else 0
        self.unused += given
        return given

    def end(self) -> None:
        """Nothing of it is used any more."""
        self.unused += self.left
        self._blocks.clear()


class Purse:
    """Slices of one window.  ``window`` 0: no budget is in force."""

    def __init__(self) -> None:
        self.window = 0
        self.more = True
        self._slices: list[_Slice] = []
        self._filled = 0

    def turn(self, window: int) -> Unused:
        """Whatever is held is of another window than this one, or of none: what of it comes back."""
        ended, self._slices = self._slices, []
        for held in ended:
            held.end()
        self.window = window
        self._filled = 0
        return tuple((held.lease_id, held.unused) for held in ended if held.unused)

    def add(self, lease_id: str, ops: int) -> None:
        """A slice on top of what is held."""
        self._slices = [held for held in self._slices if held.left]
        if ops:
            self._slices.append(_Slice(lease_id, ops))
            self._filled = self.left

    def stream(self) -> Iterator[bool]:
        """One step for each operation, until all of it is used."""
        return chain.from_iterable([held.ops for held in self._slices])

    @property
    def left(self) -> int:
        return sum(held.left for held in self._slices)

    @property
    def low(self) -> bool:
        """Less than half is left of what there was when the last slice came."""
        return 2 * self.left < self._filled or not self._filled

    def trim(self, keep: int) -> Unused:
        """Give back what is more than ``keep``, the newest first."""
        spare = self.left - keep
        changed = []
        for held in reversed(self._slices):
            given = held.give_back(spare) if spare > 0 else 0
            spare -= given
            if given:
                changed.append((held.lease_id, held.unused))
        if changed:
            self._filled = self.left
        return tuple(changed)
