"""A control log in memory: for tests and for meshes that need not outlive their process."""

from __future__ import annotations

from collections.abc import Sequence

from keymesh.control import log
from keymesh.control.entry import Leaf, SignedEntry


class MemoryControlLog:
    """Everything happens within one step of the event loop, so every read is linearizable."""

    def __init__(self, mesh: str) -> None:
        self._mesh = mesh
        self._commits: list[list[SignedEntry]] = []
        self._heads: dict[str, Leaf] = {}
        self._commands: dict[tuple[str, str], tuple[int, SignedEntry]] = {}

    async def append(self, entries: Sequence[SignedEntry]) -> int:
        log.check_group(entries, mesh=self._mesh)
        heads = log.check_heads(entries, self._heads)
        log.check_new_commands(entries, self._commands)
        index = len(self._commits) + 1
        self._commits.append(log.in_order(entries))
        self._heads = heads
        self._commands |= {(s.entry.namespace, s.entry.command_id): (index, s) for s in entries}
        return index

    async def read(self, after_index: int, limit: int | None = None) -> tuple[int, list[tuple[int, SignedEntry]]]:
        start = max(after_index, 0)
        rows = ((start + n, signed) for n, commit in enumerate(self._commits[start:], 1) for signed in commit)
        return len(self._commits), log.take(rows, limit)

    async def find(self, namespace: str, command_id: str) -> tuple[int, SignedEntry] | None:
        return self._commands.get((namespace, command_id))

    async def heads(self) -> tuple[int, dict[str, Leaf]]:
        return len(self._commits), dict(self._heads)

    async def close(self) -> None:
        """Nothing to release."""
