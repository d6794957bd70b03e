"""A server with the customer's certificate that answers as it likes."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from tests.servers.openbao import OpenBaoServer

TOKEN = "s.canary-token-77aa"


def answer(status: int, body: Any, *headers: str) -> bytes:
    """One whole HTTP answer."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(raw)}", "Content-Type: application/json", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + raw


ACTIVE = answer(200, {"initialized": True, "sealed": False, "standby": False})
LOGGED_IN = answer(200, {"auth": {"client_token": TOKEN, "lease_duration": 60, "renewable": True}})


@dataclass
class Hostile:
    """``says`` is sent to every request but logins and health; ``endless`` repeats it until the client hangs up."""

    url: str = ""
    says: bytes = b""
    endless: bool = False
    silent: bool = False
    login: bytes = LOGGED_IN
    health: bytes = ACTIVE
    asked: list[bytes] = field(default_factory=list)
    sent_bytes: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError, ssl.SSLError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next((int(x[15:]) for x in head.split(b"\r\n") if x.lower().startswith(b"content-length:")), 0)
                await reader.readexactly(length)
                self.asked.append(head.split(b"\r\n")[0])
                if b"/sys/health " in self.asked[-1] or b"/login " in self.asked[-1]:
                    writer.write(self.login if b"/login " in self.asked[-1] else self.health)
                    await writer.drain()
                    continue
                if self.silent:
                    await reader.read()
                    break
                writer.write(self.says)
                await writer.drain()
                while self.endless and not writer.transport.is_closing():
                    writer.write(b"x" * 65_536)
                    self.sent_bytes += 65_536
                    await writer.drain()
                    await asyncio.sleep(0)  # ``drain`` may return at once, for ever, before a lost connection is told
                break
        writer.close()


@asynccontextmanager
async def hostile(server: OpenBaoServer, **more: Any) -> AsyncIterator[Hostile]:
    made = Hostile(**more)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server.directory / "server.pem")
    async with await asyncio.start_server(made.serve, "127.0.0.1", 0, ssl=context) as listener:
        made.url = f"https://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        yield made
