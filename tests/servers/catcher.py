"""A server that somebody put up to catch credentials: it has the right certificate and writes down what it is sent."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from tests.servers.openbao import CustomerCa

HEALTHY: Final = (
    b'{"initialized":true,"sealed":false,"standby":false}'  # says an active node, so that it is logged in to
)


class Catcher:
    """``connections``: those whose handshake was finished.  ``caught``: everything they sent."""

    def __init__(self) -> None:
        self.url = ""
        self.connections = 0
        self.caught = b""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"content-length: *(\d+)", head.lower())
                self.caught += head + await reader.readexactly(int(length[1]) if length else 0)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(HEALTHY), HEALTHY))
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):  # the other side went away
            pass
        finally:
            writer.close()


@asynccontextmanager
async def catching(directory: Path, ca: CustomerCa) -> AsyncIterator[Catcher]:
    """Under a certificate of ``ca``'s, whose file is left in ``directory``."""
    catcher = Catcher()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ca.issue(directory / "catcher.pem", "localhost", server=True))
    server = await asyncio.start_server(catcher.serve, "127.0.0.1", 0, ssl=context)
    catcher.url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield catcher
        server.close()
