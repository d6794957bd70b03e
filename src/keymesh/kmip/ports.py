"""What the engine needs of the world: who may, where objects lie, what seals their bytes, chance and time.

The Core's encrypted, replicated store is meant to fit behind ``Store`` and ``Sealer``; ``memory.py`` is for tests and
for the runner of the published cases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from keymesh.kmip.enums import Operation
from keymesh.kmip.objects import ManagedObject
from keymesh.model.errors import KeymeshError


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose objects: nothing is read, found or named across it."""

    tenant: str
    service: str


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, as the certificate of the connection says; ``name`` is what a Credential must repeat."""

    name: str
    scope: Scope


class Conflict(KeymeshError):
    """Somebody else changed the object first, or took the name: nothing of the commit was done."""

    def __init__(self, message: str, *, name_taken: bool = False) -> None:
        super().__init__("conflict", message)
        self.name_taken = name_taken


@dataclass(frozen=True, slots=True)
class Change:
    """An object as it shall be.  ``expected`` is the version that is there, 0 for a new object.

    The new version is ``expected`` + 1.
    """

    expected: int
    after: ManagedObject


class Store(Protocol):
    """Objects by scope and identifier.

    Attributes are as confidential as the object (a password's digest is as good as the password), so a store at rest
    encrypts both.
    """

    async def get(self, scope: Scope, uid: str) -> ManagedObject | None: ...

    async def find(self, scope: Scope, *, name: str | None) -> Sequence[ManagedObject]:
        """At least those that may match, the oldest first; with a ``name``, those that have it."""
        ...

    async def commit(self, scope: Scope, changes: Sequence[Change]) -> None:
        """All or nothing, durable on return.

        Raises Conflict where a version is not the expected one, or where an object that is not destroyed would have
        the name of another one.
        """
        ...


class Sealer(Protocol):
    """Key bytes to sealed bytes and back; an object's scope and identifier are bound."""

    async def seal(self, scope: Scope, uid: str, material: bytes) -> bytes: ...

    async def open(self, scope: Scope, uid: str, sealed: bytes) -> bytes:
        """Raises Integrity where it does not open, Unavailable where the key is out of reach."""
        ...


class Gate(Protocol):
    """Asked for every operation; stands above the state of any object."""

    async def admit(self, caller: Caller, operation: Operation, target: ManagedObject | None) -> None:
        """Asked before anything is read (no target) and again for each object that is named.  Raises Refused.

        No answer is given before it returned, so where what is released must be on record first, it is put there.
        """
        ...

    def still(self, caller: Caller) -> bool:
        """Whether the caller's tenant and service may be served at this very moment: asked after the last wait,
        right before an answer is given.  Doubt is no.
        """
        ...


class Chance(Protocol):
    def token(self, n_bytes: int) -> bytes: ...

    def seed(self, data: bytes) -> int | None:
        """How many bytes were mixed in; None where no client may seed."""
        ...


class Journal(Protocol):
    async def note(self, caller: Caller, message: str) -> None:
        """Keeps a client's Log message."""
        ...


class SecondClock(Protocol):
    def seconds(self) -> int:
        """Since 1970, UTC."""
        ...
