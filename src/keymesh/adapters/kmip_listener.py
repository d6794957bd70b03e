"""KMIP over TLS: whole requests in, answers out in their order, and nobody who takes too long or too much.

Decides which connections are kept, how much of one is read, and when it is ended; not what a request means (a handler
answers bytes with bytes) nor who may connect (the TLS context and ``peer_of`` say).  A connection is counted from its
first packet, before its handshake.  The size of a request is judged by its first 8 bytes, before any more is read.
Nothing of a request is ever logged.  Source: KMIP 1.4, section 9.1.1; profiles 2.1, section 3 (TLS).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import socket
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, TypeVar

from keymesh.adapters.tls import TLS12_CIPHERS
from keymesh.adapters.tls_stream import TlsStream
from keymesh.kmip.ttlv import DEFAULT_LIMITS, HEADER_BYTES, message_bytes
from keymesh.kmip.ttlv import Limits as MessageLimits
from keymesh.model.errors import Refused

log = logging.getLogger("keymesh.kmip")

P = TypeVar("P", bound=Hashable)

KMIP_PORT: Final = 5696


@dataclass(frozen=True, slots=True)
class Limits:
    """What connections may cost (I17); seconds, and how many."""

    connections: int = 4_096
    connections_of_one: int = 4_096
    """Of one peer, from the end of the handshake on."""
    handshake_s: float = 10.0
    idle_s: float = 300.0
    """Between an answer and the first byte of the next request."""
    request_s: float = 10.0
    """From a request's first byte to its last."""
    answer_s: float = 30.0
    """For the peer to take an answer."""
    message: MessageLimits = DEFAULT_LIMITS


class Listener(Generic[P]):
    """Serves one socket.  Make it on the loop that serves."""

    def __init__(
        self,
        handle: Callable[[bytes, P], Awaitable[bytes]],
        *,
        tls: ssl.SSLContext,
        peer_of: Callable[[ssl.SSLObject], P | None],
        limits: Limits | None = None,
    ) -> None:
        """``handle`` answers every request, bad ones too, and raises nothing; ``peer_of`` says who came, from what
        the handshake accepted: None ends the connection, also one made earlier (it is asked for each request).
        """
        self._handle = handle
        self._tls = tls
        self._peer_of = peer_of
        self._limits = limits or Limits()
        self._serving: set[asyncio.Task[None]] = set()
        self._waiting: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._draining = False
        self._of: Counter[P] = Counter()

    @property
    def connections(self) -> int:
        """How many there are, those in their handshake among them."""
        return len(self._serving)

    async def open(self, bound: socket.socket) -> None:
        """Serve on a bound TCP socket."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: TlsStream(self._tls, self._accept), sock=bound, backlog=1_024)

    async def close(self, within_s: float = 3.0) -> None:
        """Take no more connections, answer the requests that have come, then hang up."""
        self._draining = True
        if self._server is not None:
            self._server.close()
        for task in list(self._waiting):
            task.cancel()
        if self._serving:
            _, late = await asyncio.wait(self._serving, timeout=within_s)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)

    def _accept(self, stream: TlsStream) -> None:
        if self._draining or len(self._serving) >= self._limits.connections:
            stream.abort()
            return
        task = asyncio.get_running_loop().create_task(self._connection(stream))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _connection(self, stream: TlsStream) -> None:
        """One connection from its handshake to its end."""
        try:
            async with asyncio.timeout(self._limits.handshake_s):
                await stream.handshake()
            await self._peers_requests(stream)
        except (OSError, EOFError, TimeoutError):  # TLS errors are OSErrors; the peer is gone, late or a stranger
            pass
        except Exception:
            log.exception("a KMIP connection ends by a fault of ours")
        finally:
            stream.abort()

    async def _peers_requests(self, stream: TlsStream) -> None:
        """All requests of one connection, where its peer has not too many."""
        peer = self._peer_of(stream.tls)
        if peer is None or self._of[peer] >= self._limits.connections_of_one:
            return
        self._of[peer] += 1
        try:
            await self._requests(stream)
        finally:
            self._of[peer] -= 1
            if not self._of[peer]:
                del self._of[peer]

    async def _requests(self, stream: TlsStream) -> None:
        """Answer until the peer ends it, breaks a limit, or is admitted no longer."""
        limits, message_limits = self._limits, self._limits.message
        deadline = _Deadline(stream.abort, min(limits.idle_s, limits.request_s, limits.answer_s))
        try:
            is_last = False
            while not is_last and not self._draining:
                deadline.is_in(limits.idle_s)
                await self._first_byte(stream)
                if (peer := self._peer_of(stream.tls)) is None:
                    break
                deadline.is_in(limits.request_s)
                head = bytes((await stream.has(HEADER_BYTES))[:HEADER_BYTES])
                try:
                    size = message_bytes(head, limits=message_limits)
                except Refused:  # where the next request would begin, nobody knows
                    size, is_last = HEADER_BYTES, True
                await stream.has(size)
                request = stream.take(size)
                deadline.is_in(math.inf)  # how long an answer may take is not the peer's fault
                stream.write(await self._handle(request, peer))
                deadline.is_in(limits.answer_s)
                await stream.drained()
                if stream.holds:  # the next one is there already: others first
                    await asyncio.sleep(0)
        finally:
            deadline.stop()
        with contextlib.suppress(OSError, TimeoutError):  # in an orderly way, so that the peer has the last answer
            async with asyncio.timeout(limits.answer_s):
                await stream.close()

    async def _first_byte(self, stream: TlsStream) -> None:
        """Of a request.  Only here a connection may be ended without harm."""
        if stream.holds:
            return
        task = asyncio.current_task()
        assert task is not None
        self._waiting.add(task)
        try:
            await stream.has(1)
        except asyncio.CancelledError:
            raise EOFError("draining") from None
        finally:
            self._waiting.discard(task)


class _Deadline:
    """Calls ``end`` once the deadline has passed that is set at that time.

    One timer a connection, not three a request: it looks again at the deadline, or as soon as any that is set from now
    on could pass, which is after the ``shortest_s`` that one is ever set for.
    """

    def __init__(self, end: Callable[[], None], shortest_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._end = end
        self._shortest_s = shortest_s
        self._at = math.inf
        self._timer = self._loop.call_later(shortest_s, self._look)

    def is_in(self, seconds: float) -> None:
        """In place of the one before; ``inf`` is none."""
        self._at = self._loop.time() + seconds

    def stop(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        now = self._loop.time()
        if now >= self._at:
            self._end()
        else:
            self._timer = self._loop.call_at(min(self._at, now + self._shortest_s), self._look)


def server_context(identity_file: Path, trust_pem: bytes) -> ssl.SSLContext:
    """For ``Listener``: shows what is in ``identity_file``, takes clients whose chain ends in one of ``trust_pem``.

    TLS 1.2 as well as 1.3, because the profiles ask for 1.2 and common clients know no more; of 1.2 only what has
    forward secrecy and authenticated encryption.  Raises Refused where the files do not belong together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(TLS12_CIPHERS)
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 0
    try:
        context.load_verify_locations(cadata=trust_pem.decode("ascii"))
        context.load_cert_chain(identity_file)
    except (OSError, ssl.SSLError, ValueError) as bad:
        raise Refused.bad_field("certificate", "key, certificate and CA must be PEM and belong together") from bad
    return context
