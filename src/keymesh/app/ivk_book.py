"""A region's internal keys as last read from its key store, and the wraps that this node has put by.

Every seal and every load asks for them, so they are read once and kept for a few seconds; what counts is what the
store says, so a key that the book does not name is looked up anew, and a list that has become shorter is no list.
Wraps are counted in blocks, before they are made: what a crash leaves unused has been counted all the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from keymesh.core import ivk
from keymesh.core.keystore import KeyStore, StoredIvk
from keymesh.model.errors import Integrity, Unavailable
from keymesh.model.states import IvkState

FRESH_S: Final = 5.0


class IvkBook:
    """``monotonic_s``: seconds of a clock that never goes back."""

    def __init__(self, store: KeyStore, monotonic_s: Callable[[], float]) -> None:
        self._store = store
        self._monotonic_s = monotonic_s
        self._ivks: tuple[StoredIvk, ...] = ()
        self._read_at_s: float | None = None
        self._put_by: dict[str, int] = {}
        self._counting = asyncio.Lock()
        self._reading = asyncio.Lock()

    async def fresh(self) -> tuple[StoredIvk, ...]:
        """As the store has them now, newest generation first.

        Raises Integrity ``store-lost`` where it has gone back behind what was read before.
        """
        asked_at_s = self._monotonic_s()
        ivks = await self._store.ivks()
        if _newest(ivks) < _newest(self._ivks):
            raise Integrity("store-lost", "the key store has lost internal keys")
        self._ivks, self._read_at_s = ivks, asked_at_s
        return ivks

    async def known(self) -> tuple[StoredIvk, ...]:
        """As read within the last seconds."""
        async with self._reading:
            if self._read_at_s is None or self._monotonic_s() - self._read_at_s >= FRESH_S:
                return await self.fresh()
            return self._ivks

    async def sealer(self, kid: str) -> StoredIvk | None:
        """The internal key of that kid; one that the book does not name is looked for in the store.

        While the store is away what was last read goes on opening what it sealed.
        """
        try:
            found = _of(await self.known(), kid)
        except Unavailable:
            found = _of(self._ivks, kid)
            if found is None:
                raise
            return found
        return found or _of(await self.fresh(), kid)

    async def active(self) -> StoredIvk:
        """The newest that may wrap.  Raises Unavailable where there is none."""
        for read in (self.known, self.fresh):
            found = next((one for one in await read() if ivk.may_wrap(one)), None)
            if found is not None:
                return found
        raise Unavailable("no-ivk", "this region has no active internal key")

    async def take_wrap(self, kid: str) -> None:
        """Count one wrap by ``kid``, before it is made."""
        async with self._counting:
            left = self._put_by.get(kid, 0)
            if left == 0:
                await self._store.count_wraps(kid, ivk.WRAPS_RESERVED)
                left = ivk.WRAPS_RESERVED
                self._ivks = tuple(
                    replace(one, wraps=one.wraps + left) if one.kid == kid else one for one in self._ivks
                )
            self._put_by[kid] = left - 1

    async def put(self, stored: StoredIvk) -> None:
        """New, or with another state."""
        await self._store.put_ivk(stored)
        if stored.state is not IvkState.ACTIVE:
            self._put_by.pop(stored.kid, None)
        await self.fresh()


def _newest(ivks: tuple[StoredIvk, ...]) -> int:
    return max((one.generation for one in ivks), default=0)


def _of(ivks: tuple[StoredIvk, ...], kid: str) -> StoredIvk | None:
    return next((one for one in ivks if one.kid == kid), None)
