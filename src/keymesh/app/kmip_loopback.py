"""A KMIP server on loopback with nothing stored, over mutual TLS with certificates of a CA made for it.

For the conformance runner and for tests: the real engine behind the real listener; only the store is in memory.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from keymesh.adapters.kmip_listener import Limits, Listener, server_context
from keymesh.adapters.system import SystemClock, SystemEntropy
from keymesh.app.servers.infra_ca import InfraCa
from keymesh.kmip.context import World
from keymesh.kmip.engine import Engine
from keymesh.kmip.memory import MemoryJournal, MemoryStore, OpenGate, PlainSealer
from keymesh.kmip.ports import Caller, Scope, Sealer, Store
from keymesh.kmip.ttlv import HEADER_BYTES, message_bytes

ANSWER_S: Final = 60.0
CALLER: Final = Caller("client", Scope("acme", "files"))


@dataclass(frozen=True, slots=True)
class Loopback:
    """Certificates of both ends."""

    server: ssl.SSLContext
    client: ssl.SSLContext
    client_file: Path
    ca_file: Path


@contextmanager
def loopback() -> Iterator[Loopback]:
    """Certificates that last as long as the ``with``."""
    with tempfile.TemporaryDirectory(prefix="keymesh-kmip-") as directory:
        ca = InfraCa.make("KMIP on loopback")
        ca_file = Path(directory) / "ca.pem"
        ca_file.write_bytes(ca.pem)
        server_file = ca.issue(Path(directory) / "server.pem", "server", server=True)
        client_file = ca.issue(Path(directory) / "client.pem", CALLER.name)
        client = ssl.create_default_context(cafile=str(ca_file))
        client.load_cert_chain(client_file)
        yield Loopback(server_context(server_file, ca.pem), client, client_file, ca_file)


class _Chance(SystemEntropy):
    def seed(self, data: bytes) -> int | None:
        return len(data)  # nothing waits for it: the system's own generator is seeded


class _Seconds(SystemClock):
    def seconds(self) -> int:
        return self.wall_ms() // 1_000


def seconds() -> int:
    """Since 1970."""
    return _Seconds().seconds()


def new_world(*, store: Store, sealer: Sealer, interop: bool = False) -> World:
    """A world without a gate, with the system's chance and time."""
    return World(
        store=store,
        sealer=sealer,
        gate=OpenGate(),
        chance=_Chance(),
        journal=MemoryJournal(),
        clock=_Seconds(),
        interop=interop,
    )


def new_engine() -> Engine:
    """One with nothing stored, and with Interop."""
    return Engine(new_world(store=MemoryStore(), sealer=PlainSealer(), interop=True))


@asynccontextmanager
async def serving(ends: Loopback, engine: Engine, limits: Limits | None = None) -> AsyncIterator[int]:
    """The port where ``engine`` is served."""
    listener = Listener(engine.handle, tls=ends.server, peer_of=lambda _: CALLER, limits=limits)
    bound = socket.create_server(("127.0.0.1", 0))
    port: int = bound.getsockname()[1]
    try:
        await listener.open(bound)
        yield port
    finally:
        await listener.close()
        bound.close()


@asynccontextmanager
async def connected(ends: Loopback, port: int) -> AsyncIterator[Callable[[bytes], Awaitable[bytes]]]:
    """Sends one request and gives its answer, over one connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=ends.client)

    async def send(request: bytes) -> bytes:
        async with asyncio.timeout(ANSWER_S):
            writer.write(request)
            await writer.drain()
            head = await reader.readexactly(HEADER_BYTES)
            return head + await reader.readexactly(message_bytes(head) - HEADER_BYTES)

    try:
        yield send
    finally:
        writer.transport.abort()


@asynccontextmanager
async def fresh(ends: Loopback) -> AsyncIterator[Callable[[bytes], Awaitable[bytes]]]:
    """A connection to a server with nothing stored."""
    async with serving(ends, new_engine()) as port, connected(ends, port) as send:
        yield send
