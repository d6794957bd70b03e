"""A Core's links to every replica of the Registry.

What the node or the voter says goes to all of them, and all are listened to: each replica can then answer, complete
commits and certify by itself, and none has to be found or chosen when another dies (docs/adr/0008).  What comes twice
is a no-op at the node.  Each replica has its own connections and its own bound: one that stands still delays nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from keymesh.adapters.http_client import PeerClient
from keymesh.app.channels import Catching, follow
from keymesh.model.errors import KeymeshError, Unavailable

log = logging.getLogger("keymesh.core")

CHANNELS: Final = ("lane0", "lane1", "lane2", "control")
IN_FLIGHT_MAX: Final = 128
POST_S: Final = 5.0
SAID_S: Final = 1.0


@dataclass(slots=True)
class Link:
    """One replica: a client to post with, one for each channel, and how many posts are out."""

    post: PeerClient
    channels: dict[str, PeerClient]
    out: int = 0
    catching: Catching = field(default_factory=Catching)
    _idle: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._idle.set()

    async def said(self) -> None:
        """What was to be posted here has been, as far as that is known within ``SAID_S``."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), SAID_S)

    def begin(self) -> None:
        self.out += 1
        self._idle.clear()

    def end(self) -> None:
        self.out -= 1
        if not self.out:
            self._idle.set()

    async def post_now(self, raw: bytes) -> None:
        """One request.  Raises KeymeshError."""
        await self.post.request("POST", "/v1/messages", raw, timeout_s=POST_S)


@dataclass(slots=True)
class RegistryLinks:
    """``make_client(url)`` for ``urls``, in the order of the configuration."""

    urls: Sequence[str]
    make_client: Callable[[str], PeerClient]
    links: list[Link] = field(default_factory=list)

    def __post_init__(self) -> None:
        for url in self.urls:
            self.links.append(Link(self.make_client(url), {name: self.make_client(url) for name in CHANNELS}))

    def posts(self, raw: bytes) -> list[Coroutine[Any, Any, None]]:
        """What brings ``raw`` to each replica that is not choked: all of it is to be run, beside everything else."""
        open_links = [link for link in self.links if link.out < IN_FLIGHT_MAX]
        for link in open_links:
            link.begin()
        return [self._post(link, raw) for link in open_links]

    async def _post(self, link: Link, raw: bytes) -> None:
        try:
            await link.post_now(raw)
        except KeymeshError as lost:  # the machine sends it again while it matters
            log.debug("message not delivered", extra={"fields": {"reason": lost.code, "to": link.post.base_url}})
        finally:
            link.end()

    async def ask(self, path: str, query: dict[str, str]) -> bytes:
        """The answer to a GET of whichever replica gives one.  Raises as the first that was asked, once all failed."""
        first: KeymeshError | None = None
        for link in self.links:
            try:
                _, body = await link.post.request("GET", path, query=query, timeout_s=POST_S)
                return body
            except KeymeshError as away:
                first = first or away
        raise first or Unavailable("unreachable", "no Registry is configured")

    def follows(
        self,
        *,
        receive: Callable[[bytes], None],
        on_return: Callable[[], None],
        channels: Sequence[str] = CHANNELS,
    ) -> list[Coroutine[Any, Any, None]]:
        """The long polls, for ever: one for each lane of each replica.

        ``on_return``: a replica is back, or another life of it.
        """

        def returned(link: Link) -> Callable[[], Awaitable[None]]:
            async def call() -> None:
                on_return()  # the machine greets the replica, which then sends only what counts
                await link.said()

            return call

        return [
            follow(
                client,
                name,
                receive=receive,
                on_return=returned(link) if name == CHANNELS[0] else None,
                catching=link.catching,
            )
            for link in self.links
            for name, client in link.channels.items()
            if name in channels
        ]

    async def close(self) -> None:
        clients = [c for link in self.links for c in (link.post, *link.channels.values())]
        await asyncio.gather(*(client.close() for client in clients))
