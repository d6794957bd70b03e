"""One keep-alive HTTP/1.1 connection that posts JSON and reads a bounded answer: what etcd's gateway needs, no more.

Decides what an answer looks like (RFC 9112: a length or chunks, trailers ignored); not what it means, and not which
failures may be tried again: anything but a whole answer is ``Broken``.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Final, Self

HEAD_MAX_BYTES: Final = 16 * 1024
LINE_MAX_BYTES: Final = 1024
TRAILERS_MAX: Final = 32
ANSWER_MAX_BYTES: Final = 24 * 1024 * 1024
_SPACE: Final = b" \t"


class Broken(Exception):
    """No whole answer: the connection is of no more use."""


class JsonConnection:
    """One exchange at a time.  After ``Broken``, or a cancelled exchange, it must be closed."""

    __slots__ = ("_host", "_reader", "_writer")

    def __init__(self, host: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._host = host.encode("ascii")
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, host: str, port: int, *, tls: ssl.SSLContext) -> Self:
        """Raises OSError (``ssl.SSLError`` among them).  The caller bounds the time."""
        reader, writer = await asyncio.open_connection(
            host, port, ssl=tls, server_hostname=host, limit=HEAD_MAX_BYTES, happy_eyeballs_delay=0.25
        )
        name = f"[{host}]" if ":" in host else host
        return cls(f"{name}:{port}", reader, writer)

    @property
    def usable(self) -> bool:
        """Whether nothing has come, or ended, since the last answer."""
        return not (self._writer.is_closing() or self._reader.at_eof() or self._reader.exception() is not None)

    def close(self) -> None:
        """At once, without a farewell."""
        self._writer.transport.abort()

    async def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        """(status, body).  Raises Broken."""
        head = b"POST %b HTTP/1.1\r\nHost: %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        try:
            self._writer.write(head % (path.encode("ascii"), self._host, len(body)) + body)
            await self._writer.drain()
            return await self._answer()
        except (OSError, EOFError, asyncio.LimitOverrunError, ValueError) as bad:
            raise Broken(f"{type(bad).__name__}: {bad}") from bad

    async def _answer(self) -> tuple[int, bytes]:
        raw = await self._reader.readuntil(b"\r\n\r\n")
        status_line, *lines = raw[:-4].split(b"\r\n")
        status = _status(status_line)
        headers = _headers(lines)
        length, coding = headers.get(b"content-length"), headers.get(b"transfer-encoding")
        if coding is not None and (length is not None or coding.lower() != b"chunked"):
            raise Broken("an answer of two lengths, or of a coding not asked for")
        if coding is not None:
            content = await self._chunks()
        elif length is not None:
            content = await self._reader.readexactly(_size(length, 10))
        else:
            raise Broken("an answer without a length")
        if headers.get(b"connection", b"").lower() == b"close":
            self._writer.close()
        return status, content

    async def _chunks(self) -> bytes:
        content = bytearray()
        while True:
            size = _size((await self._line()).partition(b";")[0].strip(_SPACE), 16)
            if len(content) + size > ANSWER_MAX_BYTES:
                raise Broken(f"an answer of more than {ANSWER_MAX_BYTES} bytes")
            if size == 0:
                break
            content += await self._reader.readexactly(size)
            if await self._reader.readexactly(2) != b"\r\n":
                raise Broken("a chunk that does not end")
        for _ in range(TRAILERS_MAX):
            if not await self._line():
                return bytes(content)
        raise Broken("too many trailers")

    async def _line(self) -> bytes:
        line = await self._reader.readuntil(b"\r\n")
        if len(line) > LINE_MAX_BYTES:
            raise Broken("a line too long")
        return line[:-2]


def _status(line: bytes) -> int:
    version, _, rest = line.partition(b" ")
    code = rest[:3]
    if version != b"HTTP/1.1" or len(code) != 3 or not code.isdigit() or rest[3:4] not in (b"", b" ") or code < b"200":
        raise Broken("not an HTTP/1.1 answer")
    return int(code)


def _headers(lines: list[bytes]) -> dict[bytes, bytes]:
    """Names in lower case.  Raises Broken for a malformed one, and for one of those that frame the body said twice."""
    found: dict[bytes, bytes] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        name = name.lower()
        if not colon or not name or name.strip() != name:
            raise Broken("a malformed header")
        if name in found and name in (b"content-length", b"transfer-encoding"):
            raise Broken("an answer of two lengths")
        found[name] = value.strip(_SPACE)
    return found


def _size(digits: bytes, base: int) -> int:
    """A length within bounds.  Raises Broken."""
    if not 1 <= len(digits) <= 9 or not digits.isalnum():
        raise Broken("a malformed length")
    size = int(digits, base)  # ValueError is Broken, too
    if size > ANSWER_MAX_BYTES:
        raise Broken(f"an answer of more than {ANSWER_MAX_BYTES} bytes")
    return size
