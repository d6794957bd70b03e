"""A server's side of one TLS connection over asyncio's TCP transport; the protocol is OpenSSL's, on buffers in memory.

Decides how much of a peer lies here and when it has to wait; not who may connect (the context says) nor how long
anything may take (the caller does).  asyncio's own ``start_tls`` keeps a quarter of a megabyte for each connection, a
gigabyte for four thousand idle ones, and passes each request through two more layers.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from typing import Final

RECORD_BYTES: Final = 16 * 1024
"""What one TLS record holds at most."""
READ_AHEAD_BYTES: Final = 64 * 1024
"""Of one connection, beyond what is waited for; with more, the peer is told to wait."""


class TlsStream(asyncio.Protocol):
    """For one task, which waits here for one thing at a time.

    Nothing is read of the peer before ``handshake``.
    """

    tls: ssl.SSLObject
    """From ``handshake`` on."""

    def __init__(self, context: ssl.SSLContext, accept: Callable[[TlsStream], None]) -> None:
        """``accept`` is called once, when the connection is there."""
        self._context = context
        self._accept = accept
        self._loop = asyncio.get_running_loop()
        self._from_peer, self._to_peer = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._plain = bytearray()
        self._most = READ_AHEAD_BYTES
        self._waiter: asyncio.Future[None] | None = None
        self._is_open = False
        self._is_over = False  # the peer sends no more
        self._is_lost = False  # and takes no more
        self._is_full = False  # it does not take what was written
        self._is_held = False  # it may send no more for now

    async def handshake(self) -> None:
        """Raises OSError (of TLS, too) and EOFError."""
        self.tls = self._context.wrap_bio(self._from_peer, self._to_peer, server_side=True)
        self._transport.resume_reading()
        try:
            while True:
                try:
                    self.tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    self._flush()
                    await self._more()
        finally:
            self._flush()  # where it failed, the alert that says so
        self._is_open = True
        self._decrypt()

    @property
    def holds(self) -> int:
        """Bytes that have come and were not taken."""
        return len(self._plain)

    async def has(self, n_bytes: int) -> bytearray:
        """What has come, once it is so many bytes, still in its place.  Raises EOFError where that does not happen."""
        self._most = max(READ_AHEAD_BYTES, n_bytes)
        while len(self._plain) < n_bytes:
            if self._is_held:
                self._decrypt()
                if len(self._plain) >= n_bytes:
                    break
            await self._more()
        return self._plain

    def take(self, n_bytes: int) -> bytes:
        """Bytes that ``has`` said are there."""
        found = bytes(self._plain[:n_bytes])
        del self._plain[:n_bytes]
        if self._is_held:
            self._decrypt()
        return found

    def write(self, data: bytes) -> None:
        """Raises OSError."""
        left = memoryview(data)
        while left:  # a record at a time: OpenSSL's buffer never shrinks again
            left = left[self.tls.write(left[:RECORD_BYTES]) :]
            self._flush()

    async def drained(self) -> None:
        """Until the peer has taken nearly everything.  Raises ConnectionError."""
        while self._is_full and not self._is_lost:
            await self._something()
        if self._is_lost:
            raise ConnectionResetError

    async def close(self) -> None:
        """Says that it is over, and waits until the peer has everything or is gone."""
        with contextlib.suppress(ssl.SSLError):  # it wants the peer to say so too; nobody waits for that
            self.tls.unwrap()
        self._flush()
        self._transport.close()
        while not self._is_lost:
            await self._something()

    def abort(self) -> None:
        self._transport.abort()

    # --- what the transport calls -------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.pause_reading()
        self._accept(self)

    def data_received(self, data: bytes) -> None:
        self._from_peer.write(data)
        if self._is_open:
            self._decrypt()
        self._wake()

    def eof_received(self) -> bool:
        self._is_over = True
        self._wake()
        return True  # who sends no more may still be told the answers

    def connection_lost(self, error: Exception | None) -> None:
        self._is_over = self._is_lost = True
        self._wake()

    def pause_writing(self) -> None:
        self._is_full = True
        self._pace()

    def resume_writing(self) -> None:
        self._is_full = False
        self._pace()
        self._wake()

    # --- inside -------------------------------------------------------------------------------------------------------

    def _decrypt(self) -> None:
        """As much of what has come as may lie here."""
        try:
            while len(self._plain) < self._most:
                found = self.tls.read(RECORD_BYTES)
                if not found:  # the peer says that it is over
                    self._is_over = True
                    break
                self._plain += found
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError:  # a record that does not open, or an alert
            self._is_over = True
        self._flush()
        self._pace()

    def _pace(self) -> None:
        """A peer that sends more than is taken, or takes nothing of what it asked for, is read no further."""
        hold = self._is_full or len(self._plain) >= self._most
        if hold is not self._is_held:
            self._is_held = hold
            if hold:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def _flush(self) -> None:
        if self._to_peer.pending:
            self._transport.write(self._to_peer.read())

    async def _more(self) -> None:
        if self._is_over:
            raise EOFError
        await self._something()

    async def _something(self) -> None:
        """Until anything happened on the connection."""
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
