"""What ``keymesh doctor`` observes of a dependency: reachable, which version, whose certificate, which time.

Each kind is one exchange as any client of it begins, with the credentials of the role that uses it; nothing is
written.  A failure of the network is an answer, not an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, Final

from cryptography import x509

ANSWER_MAX_BYTES: Final = 256 * 1024
_PG_TLS: Final = struct.pack(">II", 8, 80877103)
_AMQP_HEADER: Final = b"AMQP\x00\x00\x09\x01"
_AMQP_VERSION: Final = b"\x07versionS"


@dataclass(slots=True)
class Seen:
    """What one exchange showed.

    ``time_s``: (theirs in unix seconds, how coarse it is), ``sent`` and ``received``: ours around it.  ``trouble``:
    why it is not in service though it answers.
    """

    version: str = ""
    certificate: x509.Certificate | None = None
    time_s: tuple[float, float] | None = None
    sent: float = 0.0
    received: float = 0.0
    trouble: str = ""
    notes: list[str] = field(default_factory=list)


@asynccontextmanager
async def connected(
    host: str, port: int, tls: ssl.SSLContext, seen: Seen, *, preface: bytes = b""
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A TLS connection, whose server's certificate is noted; ``preface``: PostgreSQL asks for TLS in words first."""
    name = host if tls.check_hostname else ""
    if preface:
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(preface)
        if await reader.readexactly(1) != b"S":
            writer.close()
            raise OSError("it does not speak TLS")
        await writer.start_tls(tls, server_hostname=name)
    else:
        reader, writer = await asyncio.open_connection(host, port, ssl=tls, server_hostname=name)
    try:
        der = writer.get_extra_info("ssl_object").getpeercert(True)
        seen.certificate = None if der is None else x509.load_der_x509_certificate(der)
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError, ssl.SSLError):
            await writer.wait_closed()


async def see_tls(host: str, port: int, tls: ssl.SSLContext) -> Seen:
    """A handshake and no more."""
    seen = Seen()
    async with connected(host, port, tls, seen):
        return seen


async def see_http(
    host: str, port: int, tls: ssl.SSLContext, path: str, *, post: bytes | None = None
) -> tuple[Seen, int, Any]:
    """(what was seen, status, JSON answer or None) of one request."""
    seen = Seen()
    async with connected(host, port, tls, seen) as (reader, writer):
        seen.sent = time.time()
        method, body = ("GET", b"") if post is None else ("POST", post)
        asked = f"{method} {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n"
        asked += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(asked.encode() + body)
        answer = await _read_answer(reader)
        seen.received = time.time()
    head, _, content = answer.partition(b"\r\n\r\n")
    first, *headers = head.split(b"\r\n")
    words = first.split(b" ")
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        raise OSError("the answer is not HTTP")
    for line in headers:
        key, _, value = line.partition(b":")
        if key.strip().lower() == b"date":
            with contextlib.suppress(ValueError):
                seen.time_s = (parsedate_to_datetime(value.strip().decode("ascii")).timestamp(), 1.0)
    start = content.find(b"{")
    try:
        said = json.loads(content[start : content.rfind(b"}") + 1]) if start >= 0 else None
    except ValueError:
        said = None
    return seen, int(words[1]), said


async def _read_answer(reader: asyncio.StreamReader) -> bytes:
    """Until the server closes, or there is too much of it."""
    answer = bytearray()
    with contextlib.suppress(ssl.SSLError, ConnectionError):  # closed without a farewell: what came, came
        while chunk := await reader.read(64 * 1024):
            answer += chunk
            if len(answer) > ANSWER_MAX_BYTES:
                raise OSError("the answer is too long")
    if not answer:
        raise OSError("closed without an answer: it may not know our certificate")
    return bytes(answer)


async def see_etcd(host: str, port: int, tls: ssl.SSLContext) -> Seen:
    seen, status, said = await see_http(host, port, tls, "/v3/maintenance/status", post=b"{}")
    if status != 200 or not isinstance(said, dict):
        seen.trouble = f"answered {status}"
        return seen
    seen.version = str(said.get("version", ""))
    if int(str(said.get("leader", "0"))) == 0:
        seen.trouble = "knows no leader: fewer than half of the members reach each other"
    return seen


async def see_openbao(host: str, port: int, tls: ssl.SSLContext) -> Seen:
    seen, status, said = await see_http(host, port, tls, "/v1/sys/health")
    seen.version = str(said.get("version", "")) if isinstance(said, dict) else ""
    states = {200: "", 429: "", 472: "", 473: "", 501: "not initialised", 503: "sealed"}
    seen.trouble = states.get(status, f"answered {status}")
    if status == 429:
        seen.notes.append("stands by")
    return seen


async def see_role(host: str, port: int, tls: ssl.SSLContext) -> Seen:
    """A Registry or a Core."""
    seen, status, said = await see_http(host, port, tls, "/readyz")
    if status != 200:
        reasons = said.get("reasons", []) if isinstance(said, dict) else []
        seen.trouble = f"not ready: {', '.join(map(str, reasons)) or status}"
    return seen


async def see_postgres(host: str, port: int, tls: ssl.SSLContext, conninfo: dict[str, Any]) -> Seen:
    """Its certificate by one connection, everything else by another, as libpq makes it."""
    import psycopg

    seen = Seen()
    async with connected(host, port, tls, seen, preface=_PG_TLS):
        pass
    try:
        async with await psycopg.AsyncConnection.connect(**conninfo) as db:
            seen.sent = time.time()
            query = (
                "SELECT current_setting('server_version'), extract(epoch from clock_timestamp()), pg_is_in_recovery()"
            )
            row = await (await db.execute(query)).fetchone()
            seen.received = time.time()
    except psycopg.Error as refused:
        seen.trouble = str(refused).strip().splitlines()[-1][:200]
        return seen
    assert row is not None
    seen.version, seen.time_s = str(row[0]).split(" ")[0], (float(row[1]), 0.0)
    if row[2]:
        seen.notes.append("a standby")
    return seen


async def see_amqp(host: str, port: int, tls: ssl.SSLContext) -> Seen:
    """The broker's greeting; nobody logs in."""
    seen = Seen()
    async with connected(host, port, tls, seen) as (reader, writer):
        writer.write(_AMQP_HEADER)
        kind, _, size = struct.unpack(">BHI", await reader.readexactly(7))
        if kind != 1 or size > ANSWER_MAX_BYTES:
            raise OSError("the answer is not AMQP 0-9-1")
        greeting = await reader.readexactly(size)
    at = greeting.find(_AMQP_VERSION)
    if at >= 0:
        start = at + len(_AMQP_VERSION)
        length = int.from_bytes(greeting[start : start + 4])  # fewer bytes where the greeting was cut short
        seen.version = greeting[start + 4 : start + 4 + length].decode(errors="replace")
    return seen
