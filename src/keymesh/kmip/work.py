"""What one batch item, or a batch that is undone as a whole, has changed so far; nothing is stored until ``commit``.

Reads see the changes.  A commit compares each object's version with the one that was read.
"""

from __future__ import annotations

from collections.abc import Sequence

from keymesh.kmip.objects import ManagedObject
from keymesh.kmip.ports import Change, Scope, Store


class Work:
    """One unit of work in one scope."""

    def __init__(self, store: Store, scope: Scope) -> None:
        self._store = store
        self._scope = scope
        self._changes: dict[str, Change] = {}

    async def get(self, uid: str) -> ManagedObject | None:
        change = self._changes.get(uid)
        return change.after if change is not None else await self._store.get(self._scope, uid)

    async def find(self, *, name: str | None = None) -> Sequence[ManagedObject]:
        """Objects that may match, changes of this work included, each once."""
        stored = await self._store.find(self._scope, name=name)
        kept = [held for held in stored if held.uid not in self._changes]
        changed = (change.after for change in self._changes.values())
        return [*kept, *(held for held in changed if name is None or name in held.names())]

    def put(self, after: ManagedObject) -> None:
        """``after`` in place of the object of its version (0: a new one)."""
        before = self._changes.get(after.uid)
        self._changes[after.uid] = Change(before.expected if before is not None else after.version, after)

    async def commit(self) -> None:
        """Raises Conflict where somebody was first: then nothing was done."""
        if self._changes:
            await self._store.commit(self._scope, tuple(self._changes.values()))
        self._changes = {}
