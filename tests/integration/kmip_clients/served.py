"""A KMIP server for clients of other makes: where it is, and what a client needs to be let in.

What a suite asks of it is no more than this, so that it runs against any server of the protocol.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from keymesh.app.kmip_loopback import CALLER, loopback, new_engine, serving
from keymesh.kmip.ttlv import HEADER_BYTES, message_bytes

ANSWER_S = 60.0


@dataclass(frozen=True)
class Served:
    """``identity_file``: the client's key and certificate; ``name``: what a Credential has to say.

    ``says_host``: whether the server's certificate says the host's name.
    """

    host: str
    port: int
    identity_file: Path
    ca_file: Path
    name: str
    says_host: bool = True

    def context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.ca_file))
        context.load_cert_chain(self.identity_file)
        context.check_hostname = self.says_host
        return context

    def connected(self) -> ssl.SSLSocket:
        raw = socket.create_connection((self.host, self.port), timeout=ANSWER_S)
        return self.context().wrap_socket(raw, server_hostname=self.host)


def answer(peer: ssl.SSLSocket) -> bytes:
    """One whole message."""
    head = exactly(peer, HEADER_BYTES)
    return head + exactly(peer, message_bytes(head) - HEADER_BYTES)


def exactly(peer: ssl.SSLSocket, n_bytes: int) -> bytes:
    got = b""
    while len(got) < n_bytes:
        more = peer.recv(n_bytes - len(got))
        if not more:
            raise EOFError(f"{n_bytes - len(got)} bytes are missing")
        got += more
    return got


@contextmanager
def on_loopback() -> Iterator[Served]:
    """The engine behind its listener, with nothing stored, in a thread of its own."""
    loop = asyncio.new_event_loop()
    port: int = 0
    is_up, is_over = threading.Event(), asyncio.Event()
    with loopback() as ends:

        async def serve() -> None:
            nonlocal port
            async with serving(ends, new_engine()) as port:
                is_up.set()
                await is_over.wait()

        thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
        thread.start()
        try:
            assert is_up.wait(ANSWER_S)
            yield Served("127.0.0.1", port, ends.client_file, ends.ca_file, CALLER.name)
        finally:
            loop.call_soon_threadsafe(is_over.set)
            thread.join()
            loop.close()
