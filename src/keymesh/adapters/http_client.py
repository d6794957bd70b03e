"""One peer over HTTP: every outcome is an answer within limits or one of our errors.

Decides how failures of the network translate; retrying is the caller's.  ``unreachable`` was never sent;
``no-answer`` and ``timeout`` may have been carried out (the caller repeats it under the same idempotency key).
Environment, cookies, redirects and compression are not followed.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import aiohttp
from aiohttp.connector import Connection

from keymesh.adapters.http_messages import CORRELATION_HEADER, IDEMPOTENCY_HEADER, JSON, LINE_MAX_BYTES, raise_problem
from keymesh.adapters.tls import PeerSSLObject
from keymesh.model.errors import Unavailable

ANSWER_MAX_BYTES: Final = 8 * 1024 * 1024
KEEPALIVE_S: Final = 20.0  # below the server's, so that it is we who drop an idle connection


class PeerClient:
    """A pool of connections to ``base_url``.  Close it, or use it as an async context."""

    def __init__(
        self,
        base_url: str,
        tls: ssl.SSLContext | None = None,
        *,
        unix_socket: Path | None = None,
        timeout_s: float = 10.0,
        connect_s: float = 3.0,
        connections: int = 32,
        answer_max_bytes: int = ANSWER_MAX_BYTES,
        authorize: Callable[[PeerSSLObject], str] | None = None,
    ) -> None:
        """``authorize``: the Authorization header for a request on that connection, asked when it is sent."""
        if (tls is None) == (unix_socket is None):
            raise ValueError("give a TLS context or a Unix socket")
        if tls is not None and not base_url.startswith("https://"):
            raise ValueError("a TLS peer has an https:// address")
        self.base_url: Final = base_url.rstrip("/")
        self._tls = tls
        self._unix_socket = unix_socket
        self._timeout_s = timeout_s
        self._connect_s = connect_s
        self._connections = connections
        self._answer_max_bytes = answer_max_bytes
        self._authorize = authorize
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
        content_type: str = JSON,
        correlation_id: str | None = None,
        idempotency_key: str | None = None,
        timeout_s: float | None = None,
    ) -> tuple[int, bytes]:
        """(status, body) of a 2xx answer.

        Raises Refused or Integrity as the peer answered, Unavailable for everything else.
        """
        sent = _headers(headers, body, content_type, correlation_id, idempotency_key)
        status, content = await self.fetch(method, path, body, headers=sent, query=query, timeout_s=timeout_s)
        if not 200 <= status < 300:
            raise_problem(status, content)
        return status, content

    async def fetch(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        headers: Mapping[str, str],
        query: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> tuple[int, bytes]:
        """(status, body) of any answer, for a peer that words its errors in its own way.

        Raises Unavailable where there is no answer within the limits.
        """
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        async with self._exchange(method, path, body, headers, query, total_s=limit_s, silence_s=None) as answer:
            return answer.status, await self._read(answer)

    async def stream_lines(
        self,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        correlation_id: str | None = None,
        silence_s: float = 30.0,
    ) -> AsyncIterator[bytes]:
        """The lines of an NDJSON answer as they come, without their ends; it ends where the peer ends it.

        Close the iterator (``contextlib.aclosing``) to hang up.  Raises as ``request``, and Unavailable where the peer
        is silent for ``silence_s``, breaks off, or sends a line over 1 MiB.
        """
        sent = _headers(headers, None, JSON, correlation_id, None)
        async with self._exchange("GET", path, None, sent, query, total_s=None, silence_s=silence_s) as answer:
            if not 200 <= answer.status < 300:
                raise_problem(answer.status, await self._read(answer))
            rest = bytearray()
            async for chunk in answer.content.iter_any():
                rest += chunk
                *lines, tail = rest.split(b"\n")
                for line in lines:
                    yield bytes(line)
                rest = bytearray(tail)
                if len(rest) > LINE_MAX_BYTES:
                    raise Unavailable("peer-answer", f"a line of more than {LINE_MAX_BYTES} bytes")
            if rest:
                raise Unavailable("no-answer", "the peer broke off in the middle of a line")

    @asynccontextmanager
    async def _exchange(
        self,
        method: str,
        path: str,
        body: bytes | None,
        headers: Mapping[str, str],
        query: Mapping[str, str] | None,
        *,
        total_s: float | None,
        silence_s: float | None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        timeout = aiohttp.ClientTimeout(total=total_s, sock_connect=self._connect_s, sock_read=silence_s)
        try:
            async with self._open().request(
                method,
                self.base_url + path,
                data=body,
                headers=headers,
                params=query,
                timeout=timeout,
                allow_redirects=False,
            ) as answer:
                yield answer
        except aiohttp.ConnectionTimeoutError as late:
            raise Unavailable("unreachable", "no connection to the peer in time") from late
        except TimeoutError as late:
            raise Unavailable("timeout", "the peer did not answer in time") from late
        except (aiohttp.ClientConnectorError, ssl.SSLError) as failed:
            raise Unavailable("unreachable", f"no connection to the peer: {_reason(failed)}") from failed
        except (aiohttp.ClientError, OSError, asyncio.IncompleteReadError) as failed:
            raise Unavailable("no-answer", f"the connection broke: {_reason(failed)}") from failed

    async def _read(self, answer: aiohttp.ClientResponse) -> bytes:
        content = bytearray()
        async for chunk in answer.content.iter_any():
            content += chunk
            if len(content) > self._answer_max_bytes:
                raise Unavailable("peer-answer", f"an answer of more than {self._answer_max_bytes} bytes")
        return bytes(content)

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector: aiohttp.BaseConnector
            if self._unix_socket is not None:
                connector = aiohttp.UnixConnector(str(self._unix_socket), limit=self._connections)
            else:
                assert self._tls is not None
                connector = aiohttp.TCPConnector(
                    ssl=self._tls, limit=self._connections, keepalive_timeout=KEEPALIVE_S, use_dns_cache=False
                )
            self._session = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
                auto_decompress=False,
                skip_auto_headers=("User-Agent", "Accept-Encoding"),
                request_class=aiohttp.ClientRequest if self._authorize is None else _authorizing(self._authorize),
            )
        return self._session


def _authorizing(authorize: Callable[[PeerSSLObject], str]) -> type[aiohttp.ClientRequest]:
    """Requests that learn their Authorization only once they have a connection to go out on."""

    class Authorizing(aiohttp.ClientRequest):
        async def send(self, conn: Connection) -> aiohttp.ClientResponse:
            tls = None if conn.transport is None else conn.transport.get_extra_info("ssl_object")
            if not isinstance(tls, PeerSSLObject):
                raise aiohttp.ClientConnectionError("the connection has gone")
            self.headers["Authorization"] = authorize(tls)
            return await super().send(conn)

    return Authorizing


def _headers(
    given: Mapping[str, str] | None,
    body: bytes | None,
    content_type: str,
    correlation_id: str | None,
    idempotency_key: str | None,
) -> dict[str, str]:
    headers = dict(given or {})
    if body is not None:
        headers["Content-Type"] = content_type
    if correlation_id is not None:
        headers[CORRELATION_HEADER] = correlation_id
    if idempotency_key is not None:
        headers[IDEMPOTENCY_HEADER] = idempotency_key
    return headers


_REASONS: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (ssl.SSLError, "TLS failed"),
    (ConnectionRefusedError, "connection refused"),
    (TimeoutError, "timed out"),
    (socket.gaierror, "name not known"),
    (ConnectionResetError, "connection reset"),
    (BrokenPipeError, "connection reset"),
    (aiohttp.ServerDisconnectedError, "hung up"),
    (aiohttp.ClientPayloadError, "ended in the middle of the answer"),
    (asyncio.IncompleteReadError, "ended in the middle of the answer"),
    (FileNotFoundError, "no such socket"),
)


def _reason(failed: BaseException) -> str:
    """In words; what no row names has the system's own."""
    if isinstance(failed, aiohttp.ClientSSLError | ssl.SSLError):
        return "TLS failed"
    inner = failed.os_error if isinstance(failed, aiohttp.ClientConnectorError) else failed
    for kind, words in _REASONS:
        if isinstance(inner, kind):
            return words
    return (inner.strerror if isinstance(inner, OSError) else None) or "not as agreed"
