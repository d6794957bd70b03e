"""The Registry's replicas as one peer: asked in order, the next where one is away; the one that answered comes first.

Only for requests that may be carried out twice: reads, and commands under their id.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from keymesh.adapters.http_client import PeerClient
from keymesh.model.errors import Unavailable


class RegistryClient:
    """``urls`` in the order to try them; ``make_client(url)`` for those that are asked."""

    def __init__(self, urls: Sequence[str], make_client: Callable[[str], PeerClient]) -> None:
        self._order = list(urls)
        self._make = make_client
        self._clients: dict[str, PeerClient] = {}

    async def request(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> tuple[int, bytes]:
        """As ``PeerClient.request``.  Raises Unavailable as the first that was asked said, once all have failed."""
        first: Unavailable | None = None
        for url in list(self._order):
            client = self._clients.get(url)
            if client is None:
                client = self._clients[url] = self._make(url)
            try:
                return await client.request(method, path, body=body, headers=headers, timeout_s=timeout_s)
            except Unavailable as away:
                first = first or away
                self._order.remove(url)
                self._order.append(url)
        assert first is not None
        raise first

    async def close(self) -> None:
        for client in self._clients.values():
            await client.close()
