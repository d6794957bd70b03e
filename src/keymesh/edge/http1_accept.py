"""Connections over TLS as they come: handshakes are counted and limited, which an event loop's own server does not.

Whoever opens connections and never finishes a handshake takes no descriptor for long, and none from others.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import ssl
from collections.abc import Callable
from typing import Final

BACKLOG: Final = 1_024
HANDSHAKES_MAX: Final = 256
"""Under way; a further one ends the oldest, for an honest one takes milliseconds."""
HANDSHAKE_S: Final = 10.0
TLS_END_S: Final = 2.0
"""How long a peer may take to say goodbye."""
PAUSE_S: Final = 0.1


class TlsListener:
    """Accepts on ``bound`` until it is closed.  Make it on the loop that serves."""

    def __init__(
        self, bound: socket.socket, tls: ssl.SSLContext, connection: Callable[[], asyncio.BaseProtocol]
    ) -> None:
        bound.listen(BACKLOG)
        bound.setblocking(False)
        self._tls = tls
        self._connection = connection
        self._handshakes: dict[asyncio.Task[None], None] = {}
        self._accepting = asyncio.get_running_loop().create_task(self._accept(bound))

    def close(self) -> None:
        """Take no more; handshakes that are under way end."""
        for task in (self._accepting, *self._handshakes):
            task.cancel()

    async def _accept(self, bound: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with bound:
            while True:
                try:
                    accepted, _ = await loop.sock_accept(bound)
                except OSError:  # it is gone again, or no descriptor is left
                    await asyncio.sleep(PAUSE_S)
                    continue
                while len(self._handshakes) >= HANDSHAKES_MAX:
                    oldest = next(iter(self._handshakes))
                    del self._handshakes[oldest]
                    oldest.cancel()
                handshake = loop.create_task(self._shake(accepted))
                self._handshakes[handshake] = None
                handshake.add_done_callback(lambda done: self._handshakes.pop(done, None))

    async def _shake(self, accepted: socket.socket) -> None:
        """What fails is the peer's affair."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            await loop.connect_accepted_socket(
                self._connection,
                accepted,
                ssl=self._tls,
                ssl_handshake_timeout=HANDSHAKE_S,
                ssl_shutdown_timeout=TLS_END_S,
            )


def descriptors() -> int:
    """How many this process may have now."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 2**31 if soft == resource.RLIM_INFINITY else soft


def raise_descriptors(wanted: int) -> None:
    """As far as this process may by itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
