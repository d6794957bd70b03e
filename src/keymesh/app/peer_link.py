"""A region's Cores as another Core reaches them: an ordered list of addresses, the first that is reached is asked.

An address that was reached is kept to; one that is not gives way to the next.  Only what was never sent goes to
another: an answer that is missing may stand for something done.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keymesh.adapters.http_client import PeerClient
from keymesh.model.errors import Unavailable


class PeerLink:
    """``clients``: one for each address, in the order to try them."""

    def __init__(self, clients: Sequence[PeerClient]) -> None:
        self._clients = list(clients)
        self._current = 0

    async def request(self, method: str, path: str, body: bytes | None = None, **more: Any) -> tuple[int, bytes]:
        """As ``PeerClient.request``.  Raises Unavailable ``unreachable`` where no address is reached."""
        for tried in range(len(self._clients)):
            at = self._current
            try:
                return await self._clients[at].request(method, path, body, **more)
            except Unavailable as failed:
                if self._current == at:  # else another request has gone on already
                    self._current = (at + 1) % len(self._clients)
                if failed.code != "unreachable" or tried == len(self._clients) - 1:
                    raise
        raise AssertionError("no address")

    async def close(self) -> None:
        """Hang up everywhere."""
        for client in self._clients:
            await client.close()
