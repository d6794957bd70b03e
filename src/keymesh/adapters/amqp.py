"""AMQP 0-9-1 by aio-pika: publisher confirms on one side, acknowledgement by the consumer on the other.

A link is one connection with one channel.  It is never mended: what is lost raises, and the owner makes another.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractExchange, AbstractIncomingMessage
from aio_pika.exceptions import AMQPError, ChannelInvalidStateError, DeliveryError
from aiormq.exceptions import (
    AuthenticationError,
    ChannelAccessRefused,
    ChannelNotFoundEntity,
    ProbableAuthenticationError,
)

from keymesh.adapters.broker_address import CALL_S, CONNECT_S, PROBE_S, PUBLISH_S, BrokerAddress, first_that_serves
from keymesh.adapters.broker_limits import BoundedConnection, Window
from keymesh.model.errors import Refused, Unavailable
from keymesh.model.states import Lane
from keymesh.orbital import broker
from keymesh.orbital.broker import EXCHANGE, PARKED_MAX, QUEUE_MAX
from keymesh.orbital.transport import Delivery, Outgoing, Seen

DURABLE: Final = aio_pika.DeliveryMode.PERSISTENT
HEARTBEAT_S: Final = 10
TOGETHER: Final = 16
for _name in ("aio_pika", "aiormq"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)  # what goes wrong is raised here, and said by who owns the link


@asynccontextmanager
async def _speaking(what: str, limit_s: float = CALL_S) -> AsyncIterator[None]:
    """The library's errors as ours.  A broker that is short of memory just does not answer."""
    try:
        async with asyncio.timeout(limit_s):
            yield
    except TimeoutError as late:
        raise Unavailable("broker-silent", f"the broker does not answer: {what}") from late
    except (AuthenticationError, ProbableAuthenticationError) as no:
        raise Refused("broker-login", "the broker does not accept this login", field="username") from no
    except ChannelAccessRefused as no:
        raise Refused("broker-rights", f"the broker does not allow this user: {what}", field="username") from no
    except (AMQPError, ChannelInvalidStateError, OSError, RuntimeError) as lost:
        raise Unavailable("broker", f"{what}: {type(lost).__name__}") from lost


class AmqpLink:
    """``addresses`` in the order to try them."""

    def __init__(self, addresses: Sequence[BrokerAddress], *, name: str) -> None:
        self._addresses, self._name = addresses, name
        self._connection: AbstractConnection | None = None
        self._open_channel: AbstractChannel | None = None
        self.lost = asyncio.Event()

    async def open(self) -> None:
        """Raises Unavailable; Refused where every broker refuses the login."""
        await first_that_serves(self._addresses, self._connect, self.close)

    async def _connect(self, address: BrokerAddress) -> None:
        self._connection = await self._connected(address)
        async with _speaking("channel"):
            self._open_channel = await self._connection.channel(publisher_confirms=True, on_return_raises=True)
        self._connection.close_callbacks.add(self._gone)
        self._open_channel.close_callbacks.add(self._gone)
        self.lost.clear()

    async def _connected(self, address: BrokerAddress) -> AbstractConnection:
        login: dict[str, Any] = {"auth": "external"}
        secret = address.password()
        if address.username is not None and secret is not None:
            login = {"login": address.username, "password": secret.reveal()}
        async with _speaking(f"connecting to {address.host}:{address.port}", CONNECT_S):
            made: AbstractConnection = await aio_pika.connect(
                connection_class=BoundedConnection,
                host=address.host,
                port=address.port,
                virtualhost=address.vhost,
                ssl=True,
                ssl_context=address.tls(),
                heartbeat=HEARTBEAT_S,
                client_properties={"connection_name": self._name},
                **login,
            )
        return made

    def _gone(self, *_: Any) -> None:
        self.lost.set()

    def drop(self) -> None:
        """Of a broker that sends more than it was asked for: nothing more is read.  ``close`` is still to come."""
        self.lost.set()
        if isinstance(self._connection, BoundedConnection):
            self._connection.shut()

    @property
    def channel(self) -> AbstractChannel:
        if self._open_channel is None or self.lost.is_set():
            raise Unavailable("broker", "the link is lost")
        return self._open_channel

    async def close(self) -> None:
        """Also of a link that is lost, or was never there."""
        self.lost.set()
        connection, self._connection, self._open_channel = self._connection, None, None
        if connection is not None:
            try:
                async with _speaking("closing"):
                    await connection.close()
            except Unavailable:
                pass  # it is gone either way


class AmqpPublisher:
    """A ``transport.Publisher``."""

    def __init__(self, addresses: Sequence[BrokerAddress], *, name: str) -> None:
        self._link = AmqpLink(addresses, name=name)
        self._exchange: AbstractExchange | None = None

    async def open(self) -> None:
        await self._link.open()
        async with _speaking("exchange"):
            self._exchange = await self._link.channel.get_exchange(EXCHANGE, ensure=False)

    async def close(self) -> None:
        await self._link.close()

    async def declare(self, protocol: broker.Protocol, mesh: str, region: str) -> None:
        limits: dict[str, Any] = {"x-max-length": QUEUE_MAX, "x-overflow": "reject-publish"}
        async with _speaking(f"declaring the queues of {region}"):
            for lane in Lane:
                key = broker.routing_key(mesh, region, lane)
                for each in broker.Protocol:
                    name = broker.queue_of(each, mesh, region, lane)
                    if each is protocol:
                        # RabbitMQ makes an MQTT session's queue without arguments, and takes one that is there
                        arguments = limits if each is broker.Protocol.AMQP else None
                        queue = await self._link.channel.declare_queue(name, durable=True, arguments=arguments)
                        await queue.bind(EXCHANGE, key)
                    else:
                        await self._forget(name, key)
            parking = broker.parking_key(mesh, region)
            queue = await self._link.channel.declare_queue(
                parking, durable=True, arguments={"x-max-length": PARKED_MAX, "x-overflow": "drop-head"}
            )
            await queue.bind(EXCHANGE, parking)

    async def _forget(self, name: str, key: str) -> None:
        """The queue of a protocol that the region does not use any more gets no more messages."""
        queue = await self._link.channel.get_queue(name, ensure=False)
        await queue.unbind(EXCHANGE, key)

    async def probe(self) -> None:
        """A message that no queue takes is confirmed all the same, unless the broker has stopped listening."""
        async with _speaking("probe", PROBE_S):
            await self._link.channel.default_exchange.publish(
                aio_pika.Message(b""), routing_key="keymesh.probe", mandatory=False
            )

    async def publish(self, messages: Sequence[Outgoing]) -> list[bool]:
        stored: list[bool] = []
        async with _speaking("publishing", PUBLISH_S):
            for start in range(0, len(messages), TOGETHER):  # so that other work has its turn in between
                some = messages[start : start + TOGETHER]
                stored += await asyncio.gather(*(self._publish(message) for message in some))
        return stored

    async def _publish(self, message: Outgoing) -> bool:
        assert self._exchange is not None
        made = aio_pika.Message(
            message.body,
            content_type=broker.CONTENT_TYPE,
            delivery_mode=DURABLE,
            correlation_id=message.correlation_id,
            headers={"task": message.task_id},
        )  # the library's own message id, by which it knows what is returned, must be unique
        try:
            await self._exchange.publish(made, routing_key=message.key, mandatory=True)
        except DeliveryError:  # returned for want of a queue, or refused because the queue is full
            return False
        return True

    async def look(self, queue: str) -> Seen:
        """Raises Unavailable where there is no such queue; the link is of no use then."""
        try:
            async with _speaking("look"):
                found = await self._link.channel.declare_queue(queue, passive=True)
        except Unavailable as failed:
            if isinstance(failed.__cause__, ChannelNotFoundEntity):
                raise Unavailable("broker-empty", f"the broker has lost the queue {queue}") from failed
            raise
        result = found.declaration_result
        return Seen(consumers=result.consumer_count or 0, messages=result.message_count or 0)


class AmqpSource:
    """A ``transport.Source``: one queue, ``prefetch`` messages out at most; a link that brings more is lost."""

    def __init__(
        self, addresses: Sequence[BrokerAddress], *, queue: str, parking: str, prefetch: int, name: str
    ) -> None:
        self._link = AmqpLink(addresses, name=name)
        self._queue, self._parking, self._prefetch = queue, parking, prefetch
        self._came: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()
        self._window = Window(prefetch, self._link.drop)

    async def _keep(self, message: AbstractIncomingMessage) -> None:
        if self._window.admits():
            self._came.put_nowait(message)

    async def open(self) -> None:
        """Raises Unavailable where the queue is not declared yet."""
        await self._link.open()
        async with _speaking(f"consuming {self._queue}"):
            await self._link.channel.set_qos(prefetch_count=self._prefetch)
            queue = await self._link.channel.get_queue(self._queue)
            await queue.consume(self._keep)
        self._exchange = await self._link.channel.get_exchange(EXCHANGE, ensure=False)

    async def close(self) -> None:
        await self._link.close()

    async def receive(self) -> Delivery:
        message = await first(self._came, self._link.lost)
        return Delivery(message.body, message, bool(message.redelivered))

    async def done(self, delivery: Delivery) -> None:
        await self._acknowledge(delivery, wait=False)  # for the socket: what is acknowledged together goes together

    async def _acknowledge(self, delivery: Delivery, *, wait: bool) -> None:
        async with _speaking("acknowledging"):
            message: AbstractIncomingMessage = delivery.tag
            self._window.settled()  # before the broker hears of it
            await message.channel.basic_ack(message.delivery_tag or 0, wait=wait)

    async def park(self, delivery: Delivery, record: bytes) -> None:
        """Raises Refused where there is no parking queue: then it is acknowledged all the same.

        Whatever else goes wrong, it is not acknowledged, and comes again.
        """
        async with _speaking("parking"):
            made = aio_pika.Message(record, content_type="application/json", delivery_mode=DURABLE)
            try:
                await self._exchange.publish(made, routing_key=self._parking, mandatory=True)
            except DeliveryError as lost:
                await self._acknowledge(delivery, wait=True)
                raise Refused("no-parking", "the broker has no parking queue for this region") from lost
        await self._acknowledge(delivery, wait=True)  # it is out when this returns: a close would keep it twice


async def first(came: asyncio.Queue[Any], lost: asyncio.Event) -> Any:
    """The next of ``came``.  Raises Unavailable once ``lost``: what came before cannot be acknowledged any more."""
    if lost.is_set():
        raise Unavailable("broker", "the link is lost")
    if not came.empty():
        return came.get_nowait()
    getting, losing = asyncio.ensure_future(came.get()), asyncio.ensure_future(lost.wait())
    try:
        await asyncio.wait((getting, losing), return_when=asyncio.FIRST_COMPLETED)
        if lost.is_set():
            raise Unavailable("broker", "the link is lost")
        return getting.result()
    finally:
        getting.cancel()
        losing.cancel()
