"""A broker that sends what nobody asked for: the link is lost, and no more is kept than a window of bounded bodies."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pamqp.frame
import pytest
from pamqp import commands
from pamqp.body import ContentBody
from pamqp.header import ContentHeader

from keymesh.adapters.amqp import AmqpSource
from keymesh.adapters.broker_address import BrokerAddress
from keymesh.adapters.broker_limits import BODY_MAX_BYTES, FRAME_MAX_BYTES, MQTT_WINDOW, PACKET_MAX_BYTES, Window
from keymesh.adapters.mqtt import MqttSource
from keymesh.app.servers.infra_ca import InfraCa
from keymesh.model.errors import Unavailable

PREFETCH = 3
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(directory: Path, scheme: str, talk: Talk) -> AsyncIterator[BrokerAddress]:
    """``talk`` over TLS, to each that connects."""
    ca = InfraCa.make("ca")
    (directory / "ca.pem").write_bytes(ca.pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ca.issue(directory / "server.pem", "server", server=True))

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await talk(reader, writer)
        writer.transport.abort()

    server = await asyncio.start_server(one, "127.0.0.1", 0, ssl=context)
    try:
        yield BrokerAddress(scheme, "127.0.0.1", server.sockets[0].getsockname()[1], "v", directory / "ca.pem")
    finally:
        server.close()


async def until_lost(source: Any) -> int:
    """How many come before the link is lost."""
    found = 0
    async with asyncio.timeout(20):
        with pytest.raises(Unavailable):
            while True:
                await source.receive()
                found += 1
    return found


# --- the window -----------------------------------------------------------------------------------------------------


def test_a_window_says_once_that_it_is_overrun_and_admits_nothing_more() -> None:
    said: list[None] = []
    window = Window(2, lambda: said.append(None))
    assert [window.admits(), window.admits()] == [True, True]
    window.settled()
    assert window.admits() and not said
    assert [window.admits(), window.admits()] == [False, False] and len(said) == 1
    window.settled()
    assert not window.admits() and window.is_overrun


# --- AMQP -----------------------------------------------------------------------------------------------------------


Push = Callable[[str], bytes]
"""What is sent to the consumer of this tag."""


def delivery(consumer: str, number: int, body: bytes, *, announced: int | None = None) -> bytes:
    deliver = commands.Basic.Deliver(consumer, number, False, "amq.topic", "key")
    header = ContentHeader(0, len(body) if announced is None else announced, commands.Basic.Properties())
    parts: tuple[Any, ...] = (deliver, header, *([ContentBody(body)] if body else []))
    return b"".join(pamqp.frame.marshal(part, 1) for part in parts)


def amqp_broker(push: Push) -> Talk:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def say(channel: int, frame: Any) -> None:
            writer.write(pamqp.frame.marshal(frame, channel))

        await reader.readexactly(8)
        capabilities: Any = {"capabilities": {"publisher_confirms": True}}
        say(0, commands.Connection.Start(0, 9, capabilities, "EXTERNAL", "en_US"))
        while True:
            head = await reader.readexactly(7)
            rest = await reader.readexactly(int.from_bytes(head[3:7]) + 1)
            _, channel, frame = pamqp.frame.unmarshal(head + rest)
            match frame:
                case commands.Connection.StartOk():
                    say(0, commands.Connection.Tune(0, 131_072, 10))
                case commands.Connection.Open():
                    say(0, commands.Connection.OpenOk())
                case commands.Channel.Open():
                    say(channel, commands.Channel.OpenOk())
                case commands.Confirm.Select():
                    say(channel, commands.Confirm.SelectOk())
                case commands.Basic.Qos():
                    say(channel, commands.Basic.QosOk())
                case commands.Queue.Declare():
                    say(channel, commands.Queue.DeclareOk("q", 0, 0))
                case commands.Basic.Consume():
                    say(channel, commands.Basic.ConsumeOk(frame.consumer_tag))
                    writer.write(push(frame.consumer_tag))
                case commands.Connection.Close():
                    say(0, commands.Connection.CloseOk())

    return talk


@asynccontextmanager
async def amqp(directory: Path, push: Push) -> AsyncIterator[AmqpSource]:
    async with serving(directory, "amqps", amqp_broker(push)) as address:
        source = AmqpSource([address], queue="q", parking="p", prefetch=PREFETCH, name="x")
        await source.open()
        try:
            yield source
        finally:
            await source.close()


async def test_amqp_beyond_the_prefetch_loses_the_link(tmp_path: Path) -> None:
    def many(consumer: str) -> bytes:
        return b"".join(delivery(consumer, number, b"x" * 1000) for number in range(1, 2000))

    async with amqp(tmp_path, many) as source:
        assert await until_lost(source) <= PREFETCH
        assert source._came.qsize() <= PREFETCH


async def test_amqp_a_full_window_is_no_reason(tmp_path: Path) -> None:
    def full(consumer: str) -> bytes:
        return b"".join(delivery(consumer, number, b"x") for number in range(1, PREFETCH + 1))

    async with amqp(tmp_path, full) as source:
        async with asyncio.timeout(20):
            came = [await source.receive() for _ in range(PREFETCH)]
        assert [each.body for each in came] == [b"x"] * PREFETCH
        for each in came:
            await source.done(each)
        assert not source._link.lost.is_set()


async def test_amqp_a_body_that_is_announced_too_large_is_not_collected(tmp_path: Path) -> None:
    async with amqp(tmp_path, lambda c: delivery(c, 1, b"x" * 100_000, announced=BODY_MAX_BYTES + 1)) as source:
        assert await until_lost(source) == 0
    largest = b"".join(pamqp.frame.marshal(ContentBody(b"x" * 65_536), 1) for _ in range(BODY_MAX_BYTES // 65_536))
    async with amqp(tmp_path, lambda c: delivery(c, 1, b"", announced=BODY_MAX_BYTES) + largest) as source:
        async with asyncio.timeout(20):
            assert len((await source.receive()).body) == BODY_MAX_BYTES


async def test_amqp_a_frame_that_is_announced_too_large_is_not_read(tmp_path: Path) -> None:
    async with amqp(tmp_path, lambda c: b"\x03\x00\x01" + FRAME_MAX_BYTES.to_bytes(4)) as source:
        assert await until_lost(source) == 0


# --- MQTT -----------------------------------------------------------------------------------------------------------


def length(size: int) -> bytes:
    """MQTT 3.1.1, 2.2.3."""
    found = bytearray()
    while True:
        size, digit = divmod(size, 128)
        found.append(digit | (128 if size else 0))
        if not size:
            return bytes(found)


def publish(number: int, body: bytes, *, qos: int = 1) -> bytes:
    rest = b"\x00\x01t" + (number.to_bytes(2) if qos else b"") + body
    return bytes([0x30 | qos << 1]) + length(len(rest)) + rest


def mqtt_broker(push: bytes) -> Talk:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            kind = (await reader.readexactly(1))[0] >> 4
            size, place = 0, 0
            while True:
                digit = (await reader.readexactly(1))[0]
                size, place = size | (digit & 127) << place, place + 7
                if digit < 128:
                    break
            rest = await reader.readexactly(size)
            if kind == 1:
                writer.write(b"\x20\x02\x00\x00")
            elif kind == 8:
                writer.write(b"\x90\x03" + rest[:2] + b"\x01" + push)
            elif kind == 14:
                return

    return talk


@asynccontextmanager
async def mqtt(directory: Path, push: bytes) -> AsyncIterator[MqttSource]:
    async with serving(directory, "mqtts", mqtt_broker(push)) as address:
        source = MqttSource([address], client_id="c", topic="t", parking="p")
        try:
            with contextlib.suppress(Unavailable):  # it may be lost by then
                await source.open()
            yield source
        finally:
            await source.close()


async def test_mqtt_beyond_the_window_loses_the_link(tmp_path: Path) -> None:
    many = b"".join(publish(number, b"x" * 1000) for number in range(1, 10 * MQTT_WINDOW))
    async with mqtt(tmp_path, many) as source:
        assert await until_lost(source) <= MQTT_WINDOW
        assert source._came.qsize() <= MQTT_WINDOW


async def test_mqtt_a_full_window_is_no_reason(tmp_path: Path) -> None:
    many = b"".join(publish(number, b"x") for number in range(1, MQTT_WINDOW + 1))
    async with mqtt(tmp_path, many) as source:
        async with asyncio.timeout(20):
            came = [await source.receive() for _ in range(MQTT_WINDOW)]
        for each in came:
            await source.done(each)
        assert not source._lost.is_set()


async def test_mqtt_the_largest_body_is_read(tmp_path: Path) -> None:
    async with mqtt(tmp_path, publish(1, b"x" * BODY_MAX_BYTES)) as source, asyncio.timeout(20):
        assert len((await source.receive()).body) == BODY_MAX_BYTES


@pytest.mark.parametrize(
    "push",
    [
        b"\x32" + length(PACKET_MAX_BYTES + 1),
        b"\x32\xff\xff\xff\x7f",
        publish(1, b"x", qos=2),
        b"\x62\x02\x00\x01",
        b"\xc0\x00",
        b"\x00\x00",
    ],
    ids=["too-large", "largest-of-all", "qos-2", "pubrel", "pingreq", "kind-0"],
)
async def test_mqtt_what_was_not_asked_for_loses_the_link(push: bytes, tmp_path: Path) -> None:
    async with mqtt(tmp_path, push + publish(2, b"after")) as source:
        assert await until_lost(source) == 0
