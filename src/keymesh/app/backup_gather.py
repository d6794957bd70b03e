"""Gathering on an event loop that has more urgent things to do: in small steps, what is long in a thread."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Final

from keymesh.control.backup_chunks import CHUNK_TARGET_BYTES, Item
from keymesh.control.entry import Leaf
from keymesh.control.heads import HeadsTree
from keymesh.model.ids import Digest

MANY_HEADS: Final = 64


class Heads:
    """Leaves by namespace, whose root is kept current by ``settle``: by paths where few changed, else in a thread."""

    __slots__ = ("_moved", "_tree")

    def __init__(self, tree: HeadsTree | None = None, moved: dict[str, Leaf | None] | None = None) -> None:
        self._tree = tree or HeadsTree()
        self._moved: dict[str, Leaf | None] = moved or {}

    def copy(self) -> Heads:
        return Heads(self._tree.copy(), dict(self._moved))

    def put(self, namespace: str, leaf: Leaf) -> None:
        self._moved[namespace] = leaf

    def drop(self, namespace: str) -> None:
        self._moved[namespace] = None

    def get(self, namespace: str) -> Leaf | None:
        return self._moved[namespace] if namespace in self._moved else self._tree.get(namespace)

    async def settle(self) -> None:
        """``root`` and ``len`` tell of everything put so far."""
        moved, self._moved = self._moved, {}
        if len(moved) > MANY_HEADS:
            leaves = {name: leaf for name, leaf in (self._tree.leaves | moved).items() if leaf is not None}
            self._tree = await asyncio.to_thread(HeadsTree, leaves)
            return
        for name, leaf in moved.items():
            if leaf is None:
                self._tree.drop(name)
            else:
                self._tree.put(name, leaf)

    @property
    def root(self) -> Digest:
        return self._tree.root

    @property
    def names(self) -> set[str]:
        return set(self._tree)

    def __len__(self) -> int:
        return len(self._tree)


async def runs_of(items: Iterable[Item], *, target: int = CHUNK_TARGET_BYTES) -> AsyncIterator[list[Item]]:
    """``items`` in runs of about ``target`` bytes, none empty; others get their turn after each item."""
    run: list[Item] = []
    size = 0
    for item in items:
        run.append(item)
        size += sum(map(len, item))
        if size >= target:
            yield run
            run, size = [], 0
        await asyncio.sleep(0)
    if run:
        yield run
