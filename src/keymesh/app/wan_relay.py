"""Links that can be cut: bytes carried from a listening port to a target, each link for itself and one way.

Decides nothing about the mesh.  A cut resets a link's connections and refuses new ones; ``app.wan`` is the process
around it, and how it is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from keymesh.model.errors import Refused
from keymesh.model.ids import check_label

DELAY_MAX_MS: Final = 60_000
CONNECT_S: Final = 3.0
_CHUNK_BYTES: Final = 64 * 1024
_QUEUE_CHUNKS: Final = 256
_RESET: Final = struct.pack("ii", 1, 0)


class Link(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``listen_port`` 0: any free port, told by ``status``."""

    src: str
    dst: str
    target_port: int
    target_host: str = "127.0.0.1"
    listen_port: int = 0


class WanPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    links: tuple[Link, ...]


class LinkStatus(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    src: str
    dst: str
    port: int
    cut: bool
    delay_ms: int
    connections: int


@dataclass(slots=True)
class _LinkState:
    link: Link
    port: int = 0
    cut: bool = False
    delay_ms: int = 0
    server: asyncio.Server | None = None
    connections: dict[asyncio.Task[None], list[asyncio.StreamWriter]] = field(default_factory=dict)

    def matches(self, src: str, dst: str) -> bool:
        return src in ("*", self.link.src) and dst in ("*", self.link.dst)

    def status(self) -> LinkStatus:
        return LinkStatus(
            src=self.link.src,
            dst=self.link.dst,
            port=self.port,
            cut=self.cut,
            delay_ms=self.delay_ms,
            connections=len(self.connections),
        )


class Wan:
    """All links.  ``cut``, ``heal`` and ``delay`` act at once and say how many links they met."""

    def __init__(self, links: Sequence[Link]) -> None:
        for link in links:
            check_label("src", link.src)
            check_label("dst", link.dst)
        self._links = {(link.src, link.dst): _LinkState(link) for link in links}
        if len(self._links) != len(links):
            raise Refused.bad_field("links", "each pair once")

    async def start(self) -> None:
        """Listen.  Raises Refused ``address-in-use`` naming the link."""
        for state in self._links.values():
            link = state.link
            try:
                state.server = await asyncio.start_server(
                    self._handler(state), "127.0.0.1", link.listen_port, limit=_CHUNK_BYTES
                )
            except OSError as taken:
                await self.close()
                where = f"127.0.0.1:{link.listen_port} for {link.src} to {link.dst}"
                raise Refused("address-in-use", f"cannot listen on {where}: {taken.strerror}", field="port") from taken
            state.port = state.server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        for state in self._links.values():
            if state.server is not None:
                state.server.close()
            _reset_all(state)
        tasks = [task for state in self._links.values() for task in state.connections]
        await asyncio.gather(*tasks, return_exceptions=True)

    def port(self, src: str, dst: str) -> int:
        """Where ``src`` reaches ``dst``."""
        return self._links[src, dst].port

    def cut(self, src: str = "*", dst: str = "*") -> int:
        """Reset the links' connections and refuse new ones until ``heal``."""
        met = self._matching(src, dst)
        for state in met:
            state.cut = True
            _reset_all(state)
        return len(met)

    def isolate(self, region: str) -> int:
        """Cut every link from and to ``region``."""
        return self.cut(region, "*") + self.cut("*", region)

    def heal(self, src: str = "*", dst: str = "*") -> int:
        met = self._matching(src, dst)
        for state in met:
            state.cut = False
        return len(met)

    def delay(self, ms: int, src: str = "*", dst: str = "*") -> int:
        """Hold every chunk back for ``ms`` (0..60000), each way; open connections too."""
        if not 0 <= ms <= DELAY_MAX_MS:
            raise Refused.bad_field("ms", f"0..{DELAY_MAX_MS}")
        met = self._matching(src, dst)
        for state in met:
            state.delay_ms = ms
        return len(met)

    def status(self) -> list[LinkStatus]:
        return [state.status() for _, state in sorted(self._links.items())]

    def _matching(self, src: str, dst: str) -> list[_LinkState]:
        met = [state for state in self._links.values() if state.matches(src, dst)]
        if not met:
            raise Refused("not-found", f"no link from {src!r} to {dst!r}", field="src")
        return met

    def _handler(self, state: _LinkState) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if state.cut:
                _reset(writer)
                return
            task = asyncio.current_task()
            assert task is not None
            ends = state.connections[task] = [writer]
            try:
                await _carry(state, reader, writer, ends)
            except (OSError, TimeoutError):
                pass  # one end is gone: so is the connection
            finally:
                del state.connections[task]
                for end in ends:
                    _reset(end)

        return serve


async def _carry(
    state: _LinkState, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, ends: list[asyncio.StreamWriter]
) -> None:
    """Both ways until both ends have closed, or one broke."""
    target = state.link.target_host, state.link.target_port
    async with asyncio.timeout(CONNECT_S):
        far_reader, far_writer = await asyncio.open_connection(*target, limit=_CHUNK_BYTES)
    ends.append(far_writer)
    if state.cut:
        return
    ways = [
        asyncio.create_task(_one_way(state, reader, far_writer)),
        asyncio.create_task(_one_way(state, far_reader, writer)),
    ]
    try:
        await asyncio.gather(*ways)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
    for end in ends:
        end.close()
        with contextlib.suppress(OSError):
            await end.wait_closed()


async def _one_way(state: _LinkState, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Chunks in order, each sent when its delay has passed; the queue is bounded, and so is what a slow end holds."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[tuple[float, bytes | None]] = asyncio.Queue(_QUEUE_CHUNKS)

    async def read() -> None:
        try:
            while data := await reader.read(_CHUNK_BYTES):
                await queue.put((loop.time() + state.delay_ms / 1_000, data))
            await queue.put((loop.time() + state.delay_ms / 1_000, b""))
        except OSError:
            await queue.put((0.0, None))

    reading = asyncio.create_task(read())
    try:
        while True:
            due, data = await queue.get()
            if (wait_s := due - loop.time()) > 0:
                await asyncio.sleep(wait_s)
            if data is None:
                raise ConnectionResetError("the other end broke off")
            if not data:
                if writer.can_write_eof():
                    writer.write_eof()
                return
            writer.write(data)
            await writer.drain()
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


def _reset_all(state: _LinkState) -> None:
    for ends in list(state.connections.values()):
        for end in ends:
            _reset(end)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST, dropping what is unsent."""
    sock = writer.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
