"""Internal keys as secrets of OpenBao's KV version 2: ``ivks/<generation>``, each change a compare-and-set."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Final

import msgspec

from keymesh.adapters.openbao import gather_bounded
from keymesh.adapters.openbao_kv import RACES_MAX, Kv, contended, damaged, from_base64, to_base64
from keymesh.core.keystore import StoredIvk
from keymesh.model.ids import Kid
from keymesh.model.states import IvkState
from keymesh.model.time import Instant

_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,9}")


class _Ivk(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    generation: int
    kid: str
    state: str
    created_at: int
    wraps: int
    blob: str


class OpenBaoIvks:
    """The part of ``core.keystore.KeyStore`` that is about internal keys."""

    def __init__(self, kv: Kv) -> None:
        self._kv: Final = kv

    async def all(self) -> tuple[StoredIvk, ...]:
        """Newest generation first."""
        return tuple(ivk for _, ivk in await self._all())

    async def put(self, stored: StoredIvk) -> None:
        for _ in range(RACES_MAX):
            version, there = await self._one(stored.generation)
            if there is not None and there.kid != stored.kid:
                return
            if await self._write(stored if there is None else replace(there, state=stored.state), version):
                return
        raise contended()

    async def count_wraps(self, kid: str, n: int) -> None:
        for _ in range(RACES_MAX):
            found = next(((version, ivk) for version, ivk in await self._all() if ivk.kid == kid), None)
            if found is None:
                return
            version, ivk = found
            if await self._write(replace(ivk, wraps=ivk.wraps + n), version):
                return
        raise contended()

    async def _all(self) -> list[tuple[int, StoredIvk]]:
        """(version of the secret, internal key), newest generation first."""
        names = await self._kv.names("ivks")
        generations = sorted((int(name) for name in names if _NUMBER.fullmatch(name)), reverse=True)
        rows = await gather_bounded(self._one, generations)
        return [(version, ivk) for version, ivk in rows if ivk is not None]

    async def _one(self, generation: int) -> tuple[int, StoredIvk | None]:
        version, found = await self._kv.read(f"ivks/{generation}", _Ivk)
        if found is None:
            return version, None
        try:
            state = IvkState(found.state)
        except ValueError:
            raise damaged() from None
        if found.generation != generation:
            raise damaged()
        return version, StoredIvk(
            generation=generation,
            kid=Kid(found.kid),
            state=state,
            created_at=Instant(found.created_at),
            wraps=found.wraps,
            blob=from_base64(found.blob),
        )

    async def _write(self, ivk: StoredIvk, version: int) -> bool:
        row = _Ivk(
            generation=ivk.generation,
            kid=ivk.kid,
            state=ivk.state.value,
            created_at=ivk.created_at,
            wraps=ivk.wraps,
            blob=to_base64(ivk.blob),
        )
        return await self._kv.write(f"ivks/{ivk.generation}", row, cas=version)
