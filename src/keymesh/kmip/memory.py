"""The ports in memory: for tests, and for the runner of the published cases.  Nothing of it outlives the process.

The store keeps what a store at rest would keep, packed and unpacked, so that what does not survive that is noticed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from keymesh.kmip.enums import Operation
from keymesh.kmip.objects import ManagedObject, packed, unpacked
from keymesh.kmip.ports import Caller, Change, Conflict, Scope
from keymesh.kmip.ttlv import decode, encode
from keymesh.model.errors import Refused


@dataclass(slots=True)
class MemoryStore:
    """Objects by scope, in the order in which they came."""

    held: dict[Scope, dict[str, tuple[bytes, int]]] = field(default_factory=dict, repr=False)

    async def get(self, scope: Scope, uid: str) -> ManagedObject | None:
        found = self.held.get(scope, {}).get(uid)
        return None if found is None else unpacked(decode(found[0]), found[1])

    async def find(self, scope: Scope, *, name: str | None) -> Sequence[ManagedObject]:
        every = [unpacked(decode(raw), version) for raw, version in self.held.get(scope, {}).values()]
        return [held for held in every if name is None or name in held.names()]

    async def commit(self, scope: Scope, changes: Sequence[Change]) -> None:
        mine = self.held.setdefault(scope, {})
        for change in changes:
            if mine.get(change.after.uid, (b"", 0))[1] != change.expected:
                raise Conflict("the object is another version")
        live = [change.after for change in changes if change.after.sealed is not None]
        wanted = [name for held in live for name in set(held.names())]
        changed = {change.after.uid for change in changes}
        others = await self.find(scope, name=None) if wanted else ()
        for held in others:
            if held.uid not in changed and held.sealed is not None and not set(held.names()).isdisjoint(wanted):
                raise Conflict("the name is another object's", name_taken=True)
        if len(set(wanted)) < len(wanted):
            raise Conflict("two objects of one name", name_taken=True)
        for change in changes:
            mine[change.after.uid] = (encode(packed(change.after)), change.expected + 1)


@dataclass(slots=True)
class PlainSealer:
    """Seals nothing: the bytes and whose they are."""

    async def seal(self, scope: Scope, uid: str, material: bytes) -> bytes:
        return material

    async def open(self, scope: Scope, uid: str, sealed: bytes) -> bytes:
        return sealed


@dataclass(slots=True)
class OpenGate:
    """Lets everybody do everything, until it is closed."""

    closed: bool = False

    async def admit(self, caller: Caller, operation: Operation, target: ManagedObject | None) -> None:
        if self.closed:
            raise Refused("closed", "not served")

    def still(self, caller: Caller) -> bool:
        return not self.closed


@dataclass(slots=True)
class MemoryJournal:
    notes: list[tuple[str, str]] = field(default_factory=list)

    async def note(self, caller: Caller, message: str) -> None:
        self.notes.append((caller.name, message))
