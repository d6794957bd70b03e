"""The engine's store over the Core's store of sealed objects: sealed on the way in, opened on the way out.

An object whose key version may not be used now is not found by a Locate, and is out of reach by its identifier: other
objects stay in reach.  A new object's home is this region; a change keeps the home that it has.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final, Protocol

from keymesh.app.core_kmip_keys import ServiceKeys
from keymesh.kmip import sealed as form
from keymesh.kmip.objects import ManagedObject
from keymesh.kmip.ports import Chance, Change, Conflict, Scope
from keymesh.model.errors import Integrity, Unavailable
from keymesh.orbital.objects import Conflict as StoreConflict
from keymesh.orbital.objects import SealedObject

log = logging.getLogger("keymesh.kmip.store")

NOT_LOADED: Final = "not-loaded"
OPEN_AT_ONCE: Final = 32
"""Objects that one Locate opens before others have their turn."""
REMEMBERED_MAX: Final = 1_024
REMEMBERED_MAX_BYTES: Final = 4_096
"""Objects that stay open, and how large one may be: 4 MiB at most."""


class Objects(Protocol):
    """What ``CoreObjects`` offers; named here so that tests need no process.  Raises ``orbital.objects.Conflict``."""

    def durability_of(self, namespace: str, service: str) -> str: ...

    async def get(self, namespace: str, service: str, uid: str) -> SealedObject | None: ...

    async def find(self, namespace: str, service: str, name: bytes | None) -> Sequence[SealedObject]: ...

    async def commit(
        self, namespace: str, service: str, changes: Sequence[tuple[int, SealedObject]], *, durability: str
    ) -> None: ...


class SealedStore:
    """The engine's ``Store``, of one region."""

    def __init__(self, objects: Objects, keys: ServiceKeys, chance: Chance, *, region: str) -> None:
        self._objects = objects
        self._keys = keys
        self._chance = chance
        self._region = region
        self._seen: OrderedDict[tuple[Scope, str], tuple[SealedObject, ManagedObject]] = OrderedDict()
        self.unreadable = 0
        """Objects that did not open though their key may be used: evidence, and an alarm."""

    async def get(self, scope: Scope, uid: str) -> ManagedObject | None:
        """Raises Integrity where it does not open, Unavailable where its key may not be used now."""
        found = await self._objects.get(scope.tenant, scope.service, uid)
        return None if found is None else self._opened(scope, found)

    async def find(self, scope: Scope, *, name: str | None) -> Sequence[ManagedObject]:
        found: dict[str, SealedObject] = {}
        for token in [None] if name is None else self._keys.tokens_to_find(scope, name):
            for each in await self._objects.find(scope.tenant, scope.service, token):
                found[each.uid] = each
        opened: list[ManagedObject] = []
        for n, each in enumerate(found.values(), start=1):
            try:
                opened.append(self._opened(scope, each))
            except Integrity:
                continue
            except Unavailable as away:
                if away.code == NOT_LOADED:  # it comes: what is there now is not all
                    raise
            if n % OPEN_AT_ONCE == 0:
                await asyncio.sleep(0)
        return [held for held in opened if name is None or name in held.names()]

    async def commit(self, scope: Scope, changes: Sequence[Change]) -> None:
        """Raises Conflict, Refused, Unavailable as the store of sealed objects does."""
        sealed = [(change.expected, await self._sealed(scope, change)) for change in changes]
        durability = self._objects.durability_of(scope.tenant, scope.service)
        try:
            await self._objects.commit(scope.tenant, scope.service, sealed, durability=durability)
        except StoreConflict as lost:
            raise Conflict(lost.message, name_taken=lost.name_taken) from lost

    async def _sealed(self, scope: Scope, change: Change) -> SealedObject:
        held, version, home = change.after, change.expected + 1, self._region
        if change.expected > 0:
            before = await self._objects.get(scope.tenant, scope.service, held.uid)
            if before is None or before.version != change.expected:
                raise Conflict("the object is another version")
            home = before.home
        gone = held.sealed is None
        return SealedObject(
            namespace=scope.tenant,
            service=scope.service,
            uid=held.uid,
            home=home,
            version=version,
            names=() if gone else self._keys.tokens_to_store(scope, held.names()),
            gone=gone,
            sealed=form.seal_object(self._keys.newest(scope), scope, held, version, self._chance),
        )

    def forget(self) -> None:
        """Nothing that was opened is remembered any more: keys left memory."""
        self._seen.clear()

    def _opened(self, scope: Scope, found: SealedObject) -> ManagedObject:
        """Opened once and remembered, its attributes and what its key bytes are sealed in; the key is asked for each
        time all the same."""
        under = self._keys.of(scope, form.kid_in(found.sealed))
        seen = self._seen.get((scope, found.uid))
        if seen is not None and seen[0] == found:
            return seen[1]
        held = self._open(under, scope, found)
        if len(found.sealed) <= REMEMBERED_MAX_BYTES:
            self._seen[scope, found.uid] = found, held
            self._seen.move_to_end((scope, found.uid))
            if len(self._seen) > REMEMBERED_MAX:
                self._seen.popitem(last=False)
        return held

    def _open(self, under: form.Wrapping, scope: Scope, found: SealedObject) -> ManagedObject:
        try:
            return form.open_object(under, scope, found.uid, found.version, found.sealed)
        except Integrity:
            self.unreadable += 1
            log.error("a stored object does not open", extra={"fields": {"uid": found.uid, "tenant": scope.tenant}})
            raise
