"""What one batch item, or a batch that is undone as a whole, has changed so far; nothing is stored until ``commit``.

Reads see the changes.  A commit compares each object's version with the one that was read.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from keymesh.kmip.objects import ManagedObject
from keymesh.kmip.ports import Change, Conflict, Scope, Store
from keymesh.model.errors import Refused, Unavailable


class Work:
    """One unit of work in one scope."""

    def __init__(self, store: Store, scope: Scope) -> None:
        self._store = store
        self._scope = scope
        self._changes: dict[str, Change] = {}
        self._notes: set[str] = set()

    async def get(self, uid: str) -> ManagedObject | None:
        change = self._changes.get(uid)
        return change.after if change is not None else await self._store.get(self._scope, uid)

    async def find(self, *, name: str | None = None) -> Sequence[ManagedObject]:
        """Objects that may match, changes of this work included, each once."""
        stored = await self._store.find(self._scope, name=name)
        kept = [held for held in stored if held.uid not in self._changes]
        changed = (change.after for change in self._changes.values())
        return [*kept, *(held for held in changed if name is None or name in held.names())]

    def put(self, after: ManagedObject, *, may_fail: bool = False) -> None:
        """``after`` in place of the object of its version (0: a new one).

        With ``may_fail`` it is a note that no answer waits for: where the store does not take it (a region that is not
        the object's writer), the rest stands.
        """
        before = self._changes.get(after.uid)
        self._changes[after.uid] = Change(before.expected if before is not None else after.version, after)
        if not may_fail:
            self._notes.discard(after.uid)
        elif before is None:
            self._notes.add(after.uid)

    async def commit(self) -> None:
        """Raises Conflict where somebody was first: then nothing was done."""
        must = tuple(change for uid, change in self._changes.items() if uid not in self._notes)
        notes = tuple(change for uid, change in self._changes.items() if uid in self._notes)
        if must:
            await self._store.commit(self._scope, must)
        lost = (Refused, Unavailable, Conflict) if must else (Refused, Unavailable)
        if notes:
            with suppress(*lost):
                await self._store.commit(self._scope, notes)
        self._changes, self._notes = {}, set()
