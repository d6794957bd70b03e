"""What an operation is given: the request's caller, version and instant, the objects, and the world's ports."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from keymesh.kmip.enums import Operation, ResultReason, UniqueIdentifierEnumeration
from keymesh.kmip.faults import Fault, Version, not_found
from keymesh.kmip.items import Fields, checked, text_of, word_of
from keymesh.kmip.objects import ManagedObject, in_state, state_at
from keymesh.kmip.ports import Caller, Chance, Gate, Journal, Sealer, SecondClock, Store
from keymesh.kmip.states import may
from keymesh.kmip.streams import Streams
from keymesh.kmip.tags import Tag
from keymesh.kmip.ttlv import Item, ItemType
from keymesh.kmip.work import Work

UID_MAX_CHARS: Final = 128


@dataclass(frozen=True, slots=True)
class World:
    """The ports, and what this server says of itself."""

    store: Store
    sealer: Sealer
    gate: Gate
    chance: Chance
    journal: Journal
    clock: SecondClock
    vendor: str = "keymesh"
    lease_s: int = 3_600
    interop: bool = False  # the operation Interop, which only test servers have
    streams: Streams = field(default_factory=Streams)


@dataclass(slots=True)
class Placeholders:
    """What earlier items of the batch named: the ID placeholder, and by the operation that named it (2.x)."""

    current: str | None = None
    by_operation: dict[Operation, str] = field(default_factory=dict)

    def copy(self) -> Placeholders:
        return Placeholders(self.current, dict(self.by_operation))

    def become(self, other: Placeholders) -> None:
        self.current, self.by_operation = other.current, other.by_operation


@dataclass(frozen=True, slots=True)
class Context:
    """Of one batch item."""

    world: World
    caller: Caller
    version: Version
    now_s: int
    operation: Operation
    work: Work
    placeholders: Placeholders
    operations: tuple[Operation, ...] = ()  # what this version is served here: for Query

    async def target(self, fields: Fields) -> ManagedObject:
        """The object that the request names, or the ID placeholder's, in a state that allows the operation."""
        return await self.use(self._uid(fields.raw(Tag.UniqueIdentifier)), self.operation)

    async def use(self, uid: str, operation: Operation) -> ManagedObject:
        """An object of the caller's, admitted, in a state that allows ``operation``.  Raises Fault."""
        held = await self.work.get(uid)
        if held is None:
            raise not_found()
        await self.world.gate.admit(self.caller, operation, held)
        state = state_at(held, self.now_s)
        may(state, operation)
        return in_state(held, state)

    def _uid(self, item: Item | None) -> str:
        if item is None:
            uid = self.placeholders.current
        elif item.type is ItemType.ENUMERATION and self.version >= (2, 0) and isinstance(item.value, int):
            word = word_of(Tag.UniqueIdentifier, UniqueIdentifierEnumeration, item.value)
            if word is UniqueIdentifierEnumeration.IDPlaceholder:
                uid = self.placeholders.current
            else:
                uid = self.placeholders.by_operation.get(Operation.__members__.get(word.name, Operation.Query))
        else:
            uid = checked_uid(item)
        if uid is None:
            raise Fault(ResultReason.ItemNotFound, "UniqueIdentifier: none given, and none from this batch")
        return uid

    def named(self, uid: str) -> None:
        """This item's object is the ID placeholder from now on."""
        self.placeholders.current = uid
        self.placeholders.by_operation[self.operation] = uid

    async def name_taken(self, name: str, uid: str) -> bool:
        """Whether an object other than ``uid``, which is not destroyed, has a name."""
        found = await self.work.find(name=name)
        return any(held.uid != uid and held.sealed is not None and name in held.names() for held in found)

    async def material(self, held: ManagedObject) -> bytes:
        """The object's bytes in the clear."""
        if held.sealed is None:
            raise Fault(ResultReason.ObjectDestroyed, "the object is destroyed")
        return await self.world.sealer.open(self.caller.scope, held.uid, held.sealed)


def checked_uid(item: Item) -> str:
    """An identifier within the limits; whether it names anything is another question."""
    uid = text_of(checked(item))
    if not uid or len(uid) > UID_MAX_CHARS:
        raise not_found()
    return uid


Run = Callable[[Context, Fields], Awaitable[tuple[Item, ...]]]


@dataclass(frozen=True, slots=True)
class Served:
    """An operation that is served: since which version, and what answers it with the fields of the payload."""

    since: Version
    run: Run
