"""Where a sidecar meets its callers: listeners, routes, and the certificate shown over TCP.

A door runs on an event loop of its own where that is faster (uvloop), while the sidecar's Edges stay on asyncio's own
loop in another thread: uvloop aborts the process when a peer resets a client's connection in a TLS handshake
(docs/adr/0003-aiohttp.md), and Edges are clients of Cores.  Keys are minted and opened in the door's thread; whatever
needs the network is asked of the other loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from keymesh.access.callers import Names
from keymesh.edge.http1_server import CONNECTIONS_MAX, Server
from keymesh.edge.http_answers import Heads
from keymesh.edge.sidecar import FOLLOW_S, Sidecar
from keymesh.edge.sidecar_bind import bind_unix
from keymesh.edge.sidecar_callers import caller_context, tls_callers, unix_callers
from keymesh.edge.sidecar_routes import Routes
from keymesh.model.errors import Refused
from keymesh.orbital import edge_wire as wire

SHUTDOWN_S: Final = 3.0

T = TypeVar("T")


class EdgesThread:
    """An asyncio loop in a thread of its own, for the length of a ``with``."""

    def __init__(self) -> None:
        self.loop = asyncio.SelectorEventLoop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="edges", daemon=True)

    def __enter__(self) -> asyncio.AbstractEventLoop:
        self._thread.start()
        return self.loop

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(SHUTDOWN_S)
        if not self._thread.is_alive():
            self.loop.close()


class Door:
    """Serves ``sidecar``, whose loop is ``edges`` (by default the door's own)."""

    def __init__(
        self,
        sidecar: Sidecar,
        *,
        edges: asyncio.AbstractEventLoop | None = None,
        callers: Mapping[int, frozenset[Names]] | None = None,
        connections_max: int = CONNECTIONS_MAX,
    ) -> None:
        """``callers``: what other users may use, by uid.  Make it on the loop that serves."""
        self._sidecar = sidecar
        self._edges = edges or asyncio.get_running_loop()
        self._callers = dict(callers or {})
        self._showing: asyncio.Task[None] | None = None
        heads = Heads()
        routes = Routes(sidecar, heads, there=self.there)
        self._server = Server(
            routes.handle,
            routes.refuse,
            heads=heads,
            body_max=wire.BATCH_BODY_MAX_BYTES,
            connections_max=connections_max,
        )

    async def there(self, work: Coroutine[Any, Any, T]) -> T:
        """What ``work`` comes to on the Edges' loop."""
        if self._edges is asyncio.get_running_loop():
            return await work
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._edges))

    async def open(self, listening: Sequence[socket.socket], *, shown: Names | None = None) -> None:
        """Start the sidecar, and serve on bound sockets: Unix ones, or TCP ones with mutual TLS.

        ``shown``: the identity that is shown there.  Raises Refused where there is none to show.
        """
        try:
            await self.there(self._sidecar.open())
            for bound in listening:
                if bound.family == socket.AF_UNIX:
                    await self._server.listen(bound, peer_of=unix_callers(self._callers))
                else:
                    tls = self._shown(shown)
                    await self._server.listen(
                        bound, tls=tls, peer_of=tls_callers(self._sidecar.mesh, self._sidecar.region)
                    )
        except BaseException:
            for bound in listening:
                bound.close()
            await self.close()
            raise

    async def open_unix(self, path: Path) -> None:
        """Serve on a Unix socket of our own.  Raises Refused ``address-in-use`` where another process does."""
        await self.open([bind_unix(path, shared=bool(self._callers))])

    async def close(self) -> None:
        """Finish what is being served; then the sidecar closes."""
        if self._showing is not None:
            self._showing.cancel()
        await self._server.close(SHUTDOWN_S)
        await self.there(self._sidecar.close())

    def _shown(self, names: Names | None) -> ssl.SSLContext:
        """What callers over TCP see of us: by default the first identity that has a certificate."""
        store = self._sidecar.store
        able = [each for each in store if store.identity_file(*each).exists()]
        names = names or next(iter(able), None)
        if names is None or names not in able:
            raise Refused("not-found", "no identity with a certificate to show over TLS", field="tcp")
        file = store.identity_file(*names)
        context = caller_context(file, self._sidecar.ca_file, self._sidecar.mesh, self._sidecar.region)
        self._showing = asyncio.get_running_loop().create_task(_keep_shown(context, file))
        return context


async def _keep_shown(context: ssl.SSLContext, file: Path) -> None:
    """Show the renewed certificate on new connections."""
    shown = _stamp(file)
    while True:
        await asyncio.sleep(FOLLOW_S)
        with contextlib.suppress(OSError, ssl.SSLError):  # replaced just now, or foreign: the one before goes on
            if (now := _stamp(file)) != shown:
                context.load_cert_chain(file)
                shown = now


def _stamp(file: Path) -> int:
    return file.stat().st_mtime_ns
