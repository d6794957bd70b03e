"""Links carry bytes faithfully until cut, each for itself, and again once healed."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from keymesh.app import wan
from keymesh.app.wan_relay import Link, Wan
from keymesh.model.errors import Refused


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@asynccontextmanager
async def bed() -> AsyncIterator[Wan]:
    """Two regions with a server each, and the links between them."""
    servers = {name: await asyncio.start_server(echo, "127.0.0.1", 0) for name in ("eu", "us")}
    ports = {name: server.sockets[0].getsockname()[1] for name, server in servers.items()}
    relay = Wan([Link(src=a, dst=b, target_port=ports[b]) for a, b in (("eu", "us"), ("us", "eu"))])
    await relay.start()
    try:
        yield relay
    finally:
        await relay.close()
        for server in servers.values():
            server.close()


async def say(relay: Wan, src: str, dst: str, data: bytes = b"hello") -> bytes:
    async with asyncio.timeout(5):
        reader, writer = await asyncio.open_connection("127.0.0.1", relay.port(src, dst))
        try:
            writer.write(data)
            writer.write_eof()
            return await reader.read()
        finally:
            writer.close()


async def test_bytes_pass_whole_and_both_ways_close() -> None:
    async with bed() as relay:
        data = bytes(range(256)) * 8_000  # 2 MB: far more than one chunk
        assert await say(relay, "eu", "us", data) == data
        await asyncio.sleep(0.05)
        assert [link.connections for link in relay.status()] == [0, 0]


async def test_a_cut_resets_what_lives_refuses_what_comes_and_is_one_way() -> None:
    async with bed() as relay:
        reader, writer = await asyncio.open_connection("127.0.0.1", relay.port("eu", "us"))
        writer.write(b"x")
        assert await reader.read(1) == b"x"
        assert relay.cut("eu", "us") == 1
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), 2)
        writer.close()
        with pytest.raises(OSError):
            if await say(relay, "eu", "us") == b"":
                raise ConnectionResetError
        assert await say(relay, "us", "eu") == b"hello"
        assert relay.heal("eu", "us") == 1
        assert await say(relay, "eu", "us") == b"hello"


async def test_isolation_cuts_both_ways() -> None:
    async with bed() as relay:
        assert relay.isolate("eu") == 2
        assert [link.cut for link in relay.status()] == [True, True]
        assert relay.heal() == 2
        assert await say(relay, "eu", "us") == await say(relay, "us", "eu") == b"hello"


async def test_delay_holds_each_way_and_keeps_the_order() -> None:
    async with bed() as relay:
        relay.delay(100, "eu")
        started = time.monotonic()
        assert await say(relay, "eu", "us", b"a" * 100_000 + b"b") == b"a" * 100_000 + b"b"
        assert time.monotonic() - started >= 0.2
        started = time.monotonic()
        assert await say(relay, "us", "eu") == b"hello"
        assert time.monotonic() - started < 0.2
        relay.delay(0)
        for ms in (-1, 60_001):
            with pytest.raises(Refused):
                relay.delay(ms)


async def test_an_absent_target_resets_and_the_link_stays() -> None:
    relay = Wan([Link(src="eu", dst="us", target_port=1)])
    await relay.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", relay.port("eu", "us"))
    with suppress(ConnectionResetError):
        assert await asyncio.wait_for(reader.read(), 2) == b""
    writer.close()
    assert [link.connections for link in relay.status()] == [0]
    await relay.close()


async def test_bad_links_and_taken_ports_are_refused() -> None:
    with pytest.raises(Refused):
        Wan([Link(src="eu", dst="us", target_port=1)] * 2)
    with pytest.raises(Refused):
        Wan([Link(src="EU", dst="us", target_port=1)])
    async with bed() as relay:
        taken = Wan([Link(src="eu", dst="us", target_port=1, listen_port=relay.port("eu", "us"))])
        with pytest.raises(Refused, match="eu to us"):
            await taken.start()
        with pytest.raises(Refused):
            relay.cut("mars")


async def test_the_control_socket(tmp_path: Path) -> None:
    path = tmp_path / "wan.sock"
    async with bed() as relay, wan.controlled(relay, path):
        assert path.stat().st_mode & 0o777 == 0o600
        states = await wan.ask(path, "cut", src="eu", dst="*")
        assert [(state.src, state.cut) for state in states] == [("eu", True), ("us", False)]
        assert [state.delay_ms for state in await wan.ask(path, "delay", ms=5)] == [5, 5]
        assert not any(state.cut for state in await wan.ask(path, "heal"))
        assert len(await wan.ask(path, "status")) == 2
        for op, src in (("explode", "*"), ("cut", "mars")):
            with pytest.raises(Refused):
                await wan.ask(path, op, src=src)
        reader, writer = await asyncio.open_unix_connection(str(path))
        for line in (b"", b"{", b"[]", b'{"op":"cut","more":1}', b'{"op":1}', b"\xff"):
            writer.write(line + b"\n")
            assert json.loads(await reader.readline())["ok"] is False
        writer.write(b"x" * 10_000 + b"\n")
        assert await reader.read() == b""
        writer.close()
        assert len(await wan.ask(path, "status")) == 2
    assert not path.exists()
