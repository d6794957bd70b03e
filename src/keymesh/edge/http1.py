"""HTTP/1.1 for the sidecar: httptools on the event loop, no framework; keep-alive, pipelining, limits, drain.

Decides how requests become answers in their order, and which connections are too slow, too big or too many.  Holds no
key: an answer passes through as bytes.  A handler answers at once, or returns a coroutine whose answer takes its
place in the order of its connection.

Limits (I17): the constants below.  A connection that breaks one gets one answer and is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final, cast

import httptools

from keymesh.edge.http_answers import Answer, Heads, closing

READ_BYTES: Final = 16 * 1024
"""Read at a time: what one connection can have done before the others have a turn."""
HEAD_MAX_BYTES: Final = 16 * 1024
HEADERS_MAX: Final = 64
CONNECTIONS_MAX: Final = 1_024
PIPELINE_MAX: Final = 32
"""Answers of one connection that may wait; beyond, nothing more is read from it."""
PENDING_MAX: Final = 1_024
"""Answers of all connections that may wait; beyond, 429."""
REQUEST_TICKS: Final = 10
"""Seconds that one request may take to arrive."""
IDLE_TICKS: Final = 75
TICK_S: Final = 1.0


class Request:
    """One whole request.  ``path`` with its query, as it came; ``peer`` is what the listener says of the connection."""

    __slots__ = ("body", "content_type", "correlation_id", "method", "path", "peer")

    def __init__(
        self, method: bytes, path: bytes, content_type: bytes, correlation_id: bytes, body: bytes, peer: Any
    ) -> None:
        self.method = method
        self.path = path
        self.content_type = content_type
        self.correlation_id = correlation_id
        self.body = body
        self.peer = peer


Later = Coroutine[Any, Any, Answer]
Handle = Callable[[Request], Answer | Later]
Refuse = Callable[[int, str, str], Answer]
"""(status, code, message) -> an answer in the API's one error form."""


class Slot:
    """The place of an answer that is on its way."""

    __slots__ = ("answer", "is_last")

    def __init__(self, answer: Answer | None, *, is_last: bool) -> None:
        self.answer = answer
        self.is_last = is_last


class Server:
    """What all connections of one worker share.  ``handle`` may raise nothing."""

    def __init__(
        self,
        handle: Handle,
        refuse: Refuse,
        *,
        heads: Heads,
        body_max: int,
        connection: type[Connection] | None = None,
    ) -> None:
        """``connection``: of the connections' own class, where their requests hold more than ours do."""
        self._connection = connection or Connection
        self.handle = handle
        self.refuse = refuse
        self.heads = heads
        self.body_max = body_max
        self.connections: set[Connection] = set()
        self.pending: set[asyncio.Task[None]] = set()
        self.draining = False
        self.ticks = 0
        self._listeners: list[asyncio.Server] = []
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

        options: dict[str, Any] = {} if tls is None else {"ssl": tls, "ssl_handshake_timeout": 10.0}
        if bound.family == socket.AF_UNIX:
            self._listeners.append(await loop.create_unix_server(connection, sock=bound, backlog=1_024, **options))
        else:
            self._listeners.append(await loop.create_server(connection, sock=bound, backlog=1_024, **options))

    async def close(self, within_s: float) -> None:
        """Take no more connections, finish the requests that have come, then hang up."""
        self.draining = True
        for listener in self._listeners:
            listener.close()
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


class Connection(asyncio.BufferedProtocol):
    """One connection: requests in, answers out in their order."""

    def __init__(self, server: Server, peer_of: Callable[[asyncio.BaseTransport], Any] | None) -> None:
        self._server = server
        self._peer_of = peer_of
        self._peer: Any = None
        self._view = memoryview(bytearray(READ_BYTES))
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._out: list[bytes] = []
        self._slots: deque[Slot] = deque()
        self._is_full = self._is_slow = self._closing = False
        self._ends = False  # the last answer of this connection is decided on: nothing more is taken
        self._since = server.ticks
        self._in_request = False
        self._reset()

    def _reset(self) -> None:
        self._url = self._content_type = self._correlation_id = b""
        self._body: bytes | bytearray = b""
        self._head_bytes = self._headers = 0
        self._expects = False

    # --- the transport's side --------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        server = self._server
        if self._peer_of is not None:
            self._peer = self._peer_of(transport)
        if server.draining or len(server.connections) >= CONNECTIONS_MAX:
            self._transport.write(closing(server.refuse(503, "too-many", f"at most {CONNECTIONS_MAX} connections")))
            self._transport.close()
        elif self._peer_of is not None and self._peer is None:
            self._transport.write(closing(server.refuse(403, "denied", "not admitted here")))
            self._transport.close()
        else:
            server.connections.add(self)
            return
        self._closing = True

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        self._server.gone(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._view  # asyncio's TLS reads into slices of it, and a slice of a bytearray is a copy

    def buffer_updated(self, nbytes: int) -> None:
        if self._closing or self._ends:
            return
        try:
            self._parser.feed_data(self._view[:nbytes])
        except httptools.HttpParserCallbackError as wrapped:
            cause = wrapped.__context__
            if not isinstance(cause, BadRequest):
                raise
            self._fail(cause.status, cause.code, str(cause))
        except httptools.HttpParserError:
            self._fail(400, "bad-field", "not HTTP/1.1")
        self._flush()

    def pause_writing(self) -> None:
        self._is_slow = True
        self._pace()

    def resume_writing(self) -> None:
        self._is_slow = False
        self._pace()

    def _pace(self) -> None:
        """Read only what can be answered."""
        transport = self._transport
        is_full = self._is_slow or len(self._slots) >= PIPELINE_MAX
        if transport is None or self._closing or is_full == self._is_full:
            return
        self._is_full = is_full
        if is_full:
            transport.pause_reading()
        else:
            transport.resume_reading()

    # --- the parser's side -----------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._url:
            self._reset()
        self._in_request = True
        self._since = self._server.ticks

    def on_url(self, url: bytes) -> None:
        self._url = self._url + url if self._url else url
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        size = len(name)
        self._headers += 1
        self._count(size + len(value))
        if size == 12 and name.lower() == b"content-type":
            self._content_type = value
        elif size == 16 and name.lower() == b"x-correlation-id":
            self._correlation_id = value
        elif size == 6 and name.lower() == b"expect":
            self._expects = value.lower() == b"100-continue"

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > HEAD_MAX_BYTES or self._headers > HEADERS_MAX:
            raise BadRequest(431, "too-large", f"at most {HEADERS_MAX} headers and {HEAD_MAX_BYTES} bytes of them")

    def on_headers_complete(self) -> None:
        if self._parser.should_upgrade():
            raise BadRequest(400, "bad-field", "no upgrade here")
        if self._expects and self._transport is not None and not self._slots:
            self._flush()
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, chunk: bytes) -> None:
        size = len(self._body) + len(chunk)
        if size > self._server.body_max:
            raise BadRequest(413, "too-large", f"at most {self._server.body_max} bytes")
        if not self._body:
            self._body = chunk
        else:
            if isinstance(self._body, bytes):
                self._body = bytearray(self._body)
            self._body += chunk

    def on_message_complete(self) -> None:
        """Have the request answered, at once or in its turn."""
        self._in_request = False
        if self._closing or self._ends:
            return
        server = self._server
        asked = self._request()
        is_last = server.draining or not self._parser.should_keep_alive()
        answer = server.handle(asked)
        is_head = asked.method == b"HEAD"
        if isinstance(answer, bytes):
            self._answer(_head_of(answer) if is_head else answer, is_last=is_last)
        elif len(server.pending) >= PENDING_MAX:
            answer.close()
            self._answer(server.refuse(429, "busy", f"at most {PENDING_MAX} requests may wait"), is_last=is_last)
        else:
            slot = Slot(None, is_last=is_last)
            self._slots.append(slot)
            self._ends = is_last
            waiting = asyncio.get_running_loop().create_task(self._wait(answer, slot, is_head=is_head))
            server.pending.add(waiting)
            waiting.add_done_callback(server.pending.discard)
            self._pace()

    def _request(self) -> Request:
        return Request(
            self._parser.get_method(),
            self._url,
            self._content_type,
            self._correlation_id,
            bytes(self._body),
            self._peer,
        )

    # --- answers ---------------------------------------------------------------------------------------------------

    def _answer(self, answer: Answer, *, is_last: bool) -> None:
        self._ends = self._ends or is_last
        if self._slots:
            self._slots.append(Slot(answer, is_last=is_last))
            self._pace()
        elif is_last:
            self._out.append(closing(answer))
            self._closing = True
        else:
            self._out.append(answer)

    async def _wait(self, answer: Later, slot: Slot, *, is_head: bool) -> None:
        whole = await answer
        slot.answer = _head_of(whole) if is_head else whole
        while self._slots and self._slots[0].answer is not None and not self._closing:
            first = self._slots.popleft()
            assert first.answer is not None
            self._out.append(closing(first.answer) if first.is_last else first.answer)
            self._closing = first.is_last
        self._since = self._server.ticks
        self._pace()
        self._flush()

    def _flush(self) -> None:
        transport = self._transport
        if transport is None:
            return
        if self._out:
            out = self._out
            transport.write(out[0] if len(out) == 1 else b"".join(out))
            out.clear()
        if self._closing:
            transport.close()

    def _fail(self, status: int, code: str, message: str) -> None:
        """One last answer; those that are still waited for go out before it."""
        if not self._closing:
            self._in_request = False
            self._answer(self._server.refuse(status, code, message), is_last=True)

    # --- the server's side -----------------------------------------------------------------------------------------

    def look(self, ticks: int) -> None:
        """Once a second: end what takes too long."""
        if self._slots or self._closing:
            return
        if self._in_request and ticks - self._since > REQUEST_TICKS:
            self._fail(408, "timeout", f"the request took more than {REQUEST_TICKS} seconds to arrive")
            self._flush()
        elif not self._in_request and ticks - self._since > IDLE_TICKS:
            self._closing = True
            self._flush()

    def drain(self) -> None:
        """Hang up if nothing is under way; else after that."""
        if self._slots:
            self._slots[-1].is_last = True
        elif not self._in_request:
            self._closing = True
            self._flush()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


def _head_of(answer: Answer) -> Answer:
    return answer[: answer.index(b"\r\n\r\n") + 4]


class BadRequest(Exception):
    """A connection's last request: the answer's status, code and text."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
