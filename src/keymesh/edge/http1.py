"""HTTP/1.1 for the sidecar: httptools on the event loop, no framework; keep-alive, pipelining, limits, drain.

Decides how requests become answers in their order, and which connections are too slow, too big or too many.  Holds no
key: an answer passes through as bytes.  A handler answers at once, or returns a coroutine whose answer takes its
place in the order of its connection.

Limits (I17): the constants below.  A connection that breaks one gets one answer and is closed; one that does not read
its answers is cut off.  Listening, and what concerns all connections, is ``http1_server``'s.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, cast

import httptools

from keymesh.edge.http1_parts import BadRequest as BadRequest
from keymesh.edge.http1_parts import Later as Later
from keymesh.edge.http1_parts import Request as Request
from keymesh.edge.http1_parts import Slot, head_of
from keymesh.edge.http_answers import Answer, closing

if TYPE_CHECKING:
    from keymesh.edge.http1_server import Server

READ_BYTES: Final = 16 * 1024
"""Read at a time: what one connection can have done before the others have a turn."""
HEAD_MAX_BYTES: Final = 16 * 1024
HEADERS_MAX: Final = 64
PIPELINE_MAX: Final = 32
"""Answers of one connection that may wait; beyond, nothing more is read from it."""
RUNNING_MAX: Final = 4
"""Answers of one connection that are worked out at a time."""
WRITE_BYTES: Final = 256 * 1024
"""Given to a transport at a time."""
PENDING_MAX: Final = 1_024
"""Answers of all connections that may wait; beyond, 429."""
REQUEST_TICKS: Final = 10
"""Seconds that one request may take to arrive."""
ANSWER_TICKS: Final = 30
"""Seconds that answers may wait for the peer to read what came before them."""
IDLE_TICKS: Final = 75


class Connection(asyncio.BufferedProtocol):
    """One connection: requests in, answers out in their order."""

    def __init__(self, server: Server, peer_of: Callable[[asyncio.BaseTransport], Any] | None) -> None:
        self._server = server
        self._peer_of = peer_of
        self._peer: Any = None
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._out: list[bytes] = []
        self._slots: deque[Slot] = deque()
        self._is_full = self._is_slow = self._is_writing = self._closing = self._is_gone = False
        self._ends = False  # the last answer of this connection is decided on: nothing more is taken
        self._since = self._slow_since = server.ticks
        self._held: list[asyncio.Event] = []  # answers that are not worked on yet
        self._running = 0
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
        if server.draining or len(server.connections) >= server.connections_max:
            said = f"at most {server.connections_max} connections"
            self._transport.write(closing(server.refuse(503, "too-many", said)))
            self._transport.close()
        elif self._peer_of is not None and self._peer is None:
            self._transport.write(closing(server.refuse(403, "denied", "not admitted here")))
            self._transport.close()
        else:
            server.connections.add(self)
            return
        self._closing = True

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()
        self._server.gone(self)

    def _end(self) -> None:
        """Nothing more is taken, worked out or written."""
        self._closing = self._is_gone = True
        self._out.clear()
        self._release()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._server.view  # asyncio's TLS reads into slices of it, and a slice of a bytearray is a copy

    def buffer_updated(self, nbytes: int) -> None:
        if not self._closing and not self._ends:
            self._take(self._server.view[:nbytes])

    def _take(self, data: memoryview | bytes) -> None:
        """Parse what came, and answer what is whole."""
        try:
            self._parser.feed_data(data)
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
        self._slow_since = self._server.ticks
        self._pace()

    def resume_writing(self) -> None:
        self._is_slow = False
        self._since = self._server.ticks
        if self._is_gone:  # a transport that is cut off says this, too
            return
        self._flush()
        if not self._out:
            self._release()
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
            self._answer(head_of(answer) if is_head else answer, is_last=is_last)
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
        """Few of one connection are worked out at a time, and none for a peer that has not read what it was given."""
        try:
            while self._is_slow or self._out or self._running >= RUNNING_MAX:
                self._held.append(held := asyncio.Event())
                await held.wait()
                if self._is_gone:
                    return
            self._running += 1
            try:
                whole = await answer
            finally:
                self._running -= 1
        finally:
            answer.close()
        slot.answer = head_of(whole) if is_head else whole
        while self._slots and self._slots[0].answer is not None and not self._closing:
            first = self._slots.popleft()
            assert first.answer is not None
            self._out.append(closing(first.answer) if first.is_last else first.answer)
            self._closing = first.is_last
        self._since = self._server.ticks
        self._pace()
        self._flush()
        self._release()

    def _release(self) -> None:
        held, self._held = self._held, []
        for each in held:
            each.set()

    def _flush(self) -> None:
        """Write what the transport has room for; the rest when it has been taken, so that what is left is counted."""
        transport = self._transport
        if transport is None or self._is_writing:
            return
        if self._out and not self._is_slow:
            out = self._out
            whole = out[0] if len(out) == 1 else b"".join(out)
            transport.write(whole[:WRITE_BYTES])
            out.clear()
            if len(whole) > WRITE_BYTES:
                out.append(whole[WRITE_BYTES:])
                self._is_writing = True
                asyncio.get_running_loop().call_soon(self._write_on)
        if self._closing and not self._out and not transport.is_closing():
            self._slow_since = self._server.ticks
            transport.close()

    def _write_on(self) -> None:
        self._is_writing = False
        if not self._is_gone:
            self._flush()
            if not self._out:
                self._release()

    def _fail(self, status: int, code: str, message: str) -> None:
        """One last answer; those that are still waited for go out before it."""
        if not self._closing:
            self._in_request = False
            self._answer(self._server.refuse(status, code, message), is_last=True)

    # --- the server's side -----------------------------------------------------------------------------------------

    def look(self, ticks: int) -> None:
        """Once a second: end what takes too long."""
        transport = self._transport
        if transport is not None and (self._is_slow or transport.is_closing()):
            if ticks - self._slow_since > ANSWER_TICKS:
                self.abort()
        elif self._slots or self._closing:
            return
        elif self._in_request and ticks - self._since > REQUEST_TICKS:
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

    def unread_bytes(self) -> int:
        """Answers that the peer has not read, and the system has not taken off us."""
        if self._transport is None or self._is_gone:
            return 0
        waiting = sum(map(len, self._out)) + sum(len(slot.answer or b"") for slot in self._slots)
        return waiting + self._transport.get_write_buffer_size()

    def abort(self) -> None:
        """At once: what is written and unread goes with it."""
        self._end()
        if self._transport is not None:
            self._transport.abort()
