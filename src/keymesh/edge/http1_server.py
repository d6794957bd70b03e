"""What the connections of one worker share: listeners, limits on all of them together, the tick, the drain.

Descriptors are kept back for what is not a connection, such as the way to the Core.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from typing import Any, Final

from keymesh.edge.http1 import READ_BYTES, Connection
from keymesh.edge.http1_accept import BACKLOG, HANDSHAKES_MAX, TlsListener, descriptors
from keymesh.edge.http1_parts import Handle, Refuse
from keymesh.edge.http_answers import Heads

CONNECTIONS_MAX: Final = 10_240
"""Of one worker, or as many as it has descriptors for; beyond, 503."""
DESCRIPTORS_KEPT: Final = 128
"""For files, and for connections to Cores."""
UNREAD_MAX_BYTES: Final = 32 * 1024 * 1024
"""Written and not yet read, of all connections; beyond, the one with the most is cut off."""
TICK_S: Final = 1.0


class Server:
    """What all connections of one worker share.  ``handle`` may raise nothing."""

    def __init__(
        self,
        handle: Handle,
        refuse: Refuse,
        *,
        heads: Heads,
        body_max: int,
        connection: type[Connection] = Connection,
        connections_max: int = CONNECTIONS_MAX,
    ) -> None:
        """``connection``: of the connections' own class, where their requests hold more than ours do."""
        self._connection = connection
        self.connections_max = min(connections_max, max(1, descriptors() - DESCRIPTORS_KEPT - HANDSHAKES_MAX))
        self.view = memoryview(bytearray(READ_BYTES))  # of whichever connection is being read, and its only for so long
        self.handle = handle
        self.refuse = refuse
        self.heads = heads
        self.body_max = body_max
        self.connections: set[Connection] = set()
        self.pending: set[asyncio.Task[None]] = set()
        self.draining = False
        self.ticks = 0
        self._listeners: list[asyncio.Server] = []
        self._tls: list[TlsListener] = []
        self._ticking: asyncio.Task[None] | None = None
        self._empty = asyncio.Event()

    async def listen(
        self,
        bound: socket.socket,
        *,
        tls: ssl.SSLContext | None = None,
        peer_of: Callable[[asyncio.BaseTransport], Any] | None = None,
    ) -> None:
        """Serve on a bound socket.  ``peer_of`` says who came; None from it closes the connection unheard."""
        loop = asyncio.get_running_loop()
        if self._ticking is None:
            self._ticking = loop.create_task(self._tick())

        def connection() -> Connection:
            return self._connection(self, peer_of)

        if tls is not None:
            self._tls.append(TlsListener(bound, tls, connection))
        elif bound.family == socket.AF_UNIX:
            self._listeners.append(await loop.create_unix_server(connection, sock=bound, backlog=BACKLOG))
        else:
            self._listeners.append(await loop.create_server(connection, sock=bound, backlog=BACKLOG))

    async def close(self, within_s: float) -> None:
        """Take no more connections, finish the requests that have come, then hang up."""
        self.draining = True
        for listener in self._listeners:
            listener.close()
        for over_tls in self._tls:
            over_tls.close()
        for connection in list(self.connections):
            connection.drain()
        if self.connections:
            self._empty.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(within_s):
                    await self._empty.wait()
        for connection in list(self.connections):
            connection.abort()
        for task in list(self.pending):
            task.cancel()
        if self._ticking is not None:
            self._ticking.cancel()

    def gone(self, connection: Connection) -> None:
        self.connections.discard(connection)
        if not self.connections:
            self._empty.set()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self.ticks += 1
            self.heads.tick()
            for connection in list(self.connections):
                connection.look(self.ticks)
            self._bound_unread()

    def _bound_unread(self) -> None:
        """Cut off who left the most unread, until the rest is little enough."""
        waiting = sorted((unread, id(each), each) for each in self.connections if (unread := each.unread_bytes()))
        total = sum(unread for unread, _, _ in waiting)
        while total > UNREAD_MAX_BYTES:
            unread, _, most = waiting.pop()
            total -= unread
            most.abort()
