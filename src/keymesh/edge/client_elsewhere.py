"""Other regions' Cores for an Edge: who it is there, and one transport over all of them.

In each region an Edge is what that region's CA says: it has an identity there, of the same service, which that region's
Core gave it after an administrator asked.  So a region that the tenant does not allow never knows it, and a restriction
on a region covers those who are served there.  Decides nothing: ``choice`` says whom it asks.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keymesh.access.identity import EdgeIdentity
from keymesh.edge.client_tls import EdgeCredentials
from keymesh.edge.client_transport import CoreTransport
from keymesh.edge.hot_lease import CreatedKey
from keymesh.model.errors import Refused


@dataclass(frozen=True, slots=True, kw_only=True)
class Elsewhere:
    """``identity``: PEM with key, leaf and intermediate of that region; ``cores``: base URLs of its Cores."""

    identity: str | Path
    cores: Sequence[str]


def credentials_there(other: Elsewhere, ca: Path, here: EdgeIdentity) -> EdgeCredentials:
    """Raises Refused unless they are of the same service, in another region."""
    credentials = EdgeCredentials(Path(other.identity), ca)
    there = credentials.identity
    if there.region == here.region or (there.mesh, there.tenant, there.service) != (
        here.mesh,
        here.tenant,
        here.service,
    ):
        raise Refused.bad_field("elsewhere", f"{there} is not of the same service in another region")
    return credentials


class ManyTransports:
    """As ``CoreTransport``, each Core by the transport of its region.  ``by_url`` is not changed afterwards."""

    def __init__(self, by_url: Mapping[str, CoreTransport]) -> None:
        self._by_url = by_url

    async def close(self) -> None:
        await asyncio.gather(*(transport.close() for transport in set(self._by_url.values())))

    async def post(self, core: str, message: Any) -> Any:
        return await self._by_url[core].post(core, message)

    def stream(self, core: str) -> AbstractAsyncContextManager[AsyncIterator[Any]]:
        return self._by_url[core].stream(core)

    async def ready(self, core: str) -> None:
        await self._by_url[core].ready(core)

    async def create(self, core: str, count: int, context: Mapping[str, str], *, plaintext: bool) -> list[CreatedKey]:
        return await self._by_url[core].create(core, count, context, plaintext=plaintext)

    async def open_keys(self, core: str, blobs: tuple[bytes, ...], context: Mapping[str, str]) -> list[bytes]:
        return await self._by_url[core].open_keys(core, blobs, context)

    async def renew(self, core: str, csr_pem: str) -> str:
        return await self._by_url[core].renew(core, csr_pem)
