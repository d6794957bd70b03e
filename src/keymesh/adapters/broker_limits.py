"""How much of a broker's a process keeps at once, whatever the broker sends: it is trusted with nothing, so not with
our memory either.

Beyond a limit the link is dropped; tasks come by pull.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

import aio_pika
from aiormq.connection import TLSTransportFactory
from aiormq.exceptions import AMQPConnectionError
from paho.mqtt.client import Client

from keymesh.model.limits import TASK_MAX_BYTES

BODY_MAX_BYTES: Final = 4 * TASK_MAX_BYTES
"""Of one message.  Above ``TASK_MAX_BYTES``: what a broker of this limit can hold is still parked with its reason."""
MQTT_WINDOW: Final = 64
"""MQTT messages that are not acknowledged yet; RabbitMQ's ``mqtt.prefetch`` must not be above."""
FRAME_MAX_BYTES: Final = 1024 * 1024
"""Of one AMQP frame; RabbitMQ's ``frame_max`` is 128 KiB."""
PACKET_MAX_BYTES: Final = BODY_MAX_BYTES + 64 * 1024
"""Of one MQTT packet: a topic goes before the body."""
_HEADER_FRAME: Final = 2  # AMQP 0-9-1, 2.3.5.2: class (2), weight (2), body size (8)
_PUBLISH: Final = 3
_EXPECTED: Final = frozenset({2, _PUBLISH, 4, 9, 11, 13})
"""CONNACK, PUBLISH, PUBACK, SUBACK, UNSUBACK, PINGRESP (MQTT 3.1.1, 2.2.1): all that a server has for us at QoS 1."""


class Window:
    """Messages that have come and are not settled.  ``overrun`` is called once, with the first that is too many."""

    def __init__(self, most: int, overrun: Callable[[], None]) -> None:
        self._most, self._overrun = most, overrun
        self._held = 0
        self.is_overrun = False

    def admits(self) -> bool:
        """Whether one more may be kept; never again once one could not."""
        if self._held >= self._most and not self.is_overrun:
            self.is_overrun = True
            self._overrun()
        if self.is_overrun:
            return False
        self._held += 1
        return True

    def settled(self) -> None:
        self._held -= 1


# --- AMQP ----------------------------------------------------------------------------------------------------------


class BoundedReader:
    """What aiormq reads its frames from.  A frame, or a body that its header announces, above the limit is an error
    before any of it is collected."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._kind = b""
        self.is_shut = False

    def at_eof(self) -> bool:
        return self._reader.at_eof()

    async def readexactly(self, size: int) -> bytes:
        """As aiormq calls it for each frame: 1 byte (the kind), 6 (channel and length), then the rest."""
        if self.is_shut or size > FRAME_MAX_BYTES:
            raise AMQPConnectionError("more than was asked for")
        found = await self._reader.readexactly(size)
        if size == 1:
            self._kind = found
        elif size > 12 and self._kind == bytes([_HEADER_FRAME]) and int.from_bytes(found[4:12]) > BODY_MAX_BYTES:
            raise AMQPConnectionError("a body above the limit")
        return found


class _Transport(TLSTransportFactory):
    """``reader`` once there is a connection."""

    reader: BoundedReader | None = None

    async def create(self, url: Any, **how: Any) -> Any:
        reader, writer = await super().create(url, **how)
        self.reader = BoundedReader(reader)
        return self.reader, writer


class BoundedConnection(aio_pika.Connection):
    """As its base, over a ``BoundedReader``."""

    def __init__(self, *args: Any, **how: Any) -> None:
        super().__init__(*args, **how)
        self._bounded = _Transport()
        self.kwargs["transport_factory"] = self._bounded

    def shut(self) -> None:
        """Nothing more is read."""
        if self._bounded.reader is not None:
            self._bounded.reader.is_shut = True


# --- MQTT ----------------------------------------------------------------------------------------------------------


def bound(client: Client, is_shut: Callable[[], bool]) -> None:
    """Let ``client`` lose its connection at a packet that is too large, of a kind that we never asked for, or once
    ``is_shut``.

    Paho has no such limit of its own (MQTT 3.1.1 lets a packet be 256 MiB), and asks for all of one at once.
    """
    receive = client._sock_recv

    def bounded(size: int) -> bytes:
        command = client._in_packet["command"]  # 0 before its first byte
        kind, qos = command >> 4, command >> 1 & 3
        foreign = command != 0 and (kind not in _EXPECTED or (kind == _PUBLISH and qos > 1))
        if is_shut() or foreign or size > PACKET_MAX_BYTES:
            raise ConnectionError("more than was asked for")
        return receive(size)

    client._sock_recv = bounded  # type: ignore[method-assign, assignment]
