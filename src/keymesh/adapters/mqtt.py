"""MQTT 3.1.1 by aiomqtt: one persistent session for each lane, QoS 1, acknowledged by hand.

The session is the queue: while the region is away the broker keeps what comes for its client id.  A link is never
mended: what is lost raises, and the owner makes another.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import aiomqtt
from paho.mqtt.client import MQTT_ERR_SUCCESS, MQTTMessage

from keymesh.adapters.amqp import first
from keymesh.adapters.broker_address import CALL_S, CONNECT_S, BrokerAddress, first_that_serves
from keymesh.adapters.broker_limits import MQTT_WINDOW, Window, bound
from keymesh.model.errors import Refused, Unavailable
from keymesh.orbital.transport import Delivery

KEEPALIVE_S: Final = 10
AT_LEAST_ONCE: Final = 1
_LOGIN_CODES: Final = (4, 5, 134, 135)  # CONNACK: bad user name or password, not authorised (also as MQTT 5 has them)
_log = logging.getLogger("keymesh.mqtt.wire")
_log.setLevel(logging.CRITICAL)  # what goes wrong is raised here, and said by who owns the link


@asynccontextmanager
async def _speaking(what: str, limit_s: float = CALL_S) -> AsyncIterator[None]:
    """The library's errors as ours."""
    try:
        async with asyncio.timeout(limit_s):
            yield
    except TimeoutError as late:
        raise Unavailable("broker-silent", f"the broker does not answer: {what}") from late
    except aiomqtt.MqttCodeError as no:
        code = getattr(no.rc, "value", no.rc)
        if isinstance(code, int) and code in _LOGIN_CODES:
            raise Refused("broker-login", "the broker does not accept this login", field="username") from no
        raise Unavailable("broker", f"{what}: {type(no).__name__} {code}") from no
    except (aiomqtt.MqttError, OSError, ValueError) as lost:
        raise Unavailable("broker", f"{what}: {type(lost).__name__}") from lost


class _Client(aiomqtt.Client):
    """A client that acknowledges only when told to."""

    def __init__(self, came: asyncio.Queue[MQTTMessage], window: Window, **how: Any) -> None:
        super().__init__(**how)
        self._window = window
        self._client.manual_ack_set(True)
        self._client.on_message = lambda client, userdata, message: (
            came.put_nowait(message) if window.admits() else None
        )
        bound(self._client, lambda: window.is_overrun)

    def acknowledge(self, message: MQTTMessage) -> None:
        """Raises Unavailable where the connection is gone."""
        self._window.settled()  # before the broker hears of it
        if self._client.ack(message.mid, message.qos) != MQTT_ERR_SUCCESS:
            raise Unavailable("broker", "the link is lost")

    def when_gone(self, then: Any) -> None:
        self._disconnected.add_done_callback(then)


class MqttSource:
    """A ``transport.Source``.  ``topic`` is the only one that this client id subscribes to."""

    def __init__(self, addresses: Sequence[BrokerAddress], *, client_id: str, topic: str, parking: str) -> None:
        self._addresses, self._client_id = addresses, client_id
        self._topic, self._parking = topic, parking
        self._came: asyncio.Queue[MQTTMessage] = asyncio.Queue()
        self._client: _Client | None = None
        self._lost = asyncio.Event()

    async def open(self) -> None:
        """Raises Unavailable; Refused where every broker refuses the login or the subscription."""
        await first_that_serves(self._addresses, self._connect, self.close)

    async def _connect(self, address: BrokerAddress) -> None:
        secret = address.password()
        self._came = asyncio.Queue()
        client = _Client(
            self._came,
            Window(MQTT_WINDOW, self._lost.set),
            hostname=address.host,
            port=address.port,
            username=None if address.username is None else f"{address.vhost}:{address.username}",
            password=None if secret is None else secret.reveal(),
            identifier=self._client_id,
            protocol=aiomqtt.ProtocolVersion.V311,
            clean_session=False,
            keepalive=KEEPALIVE_S,
            timeout=CONNECT_S,
            tls_context=address.tls(),
            logger=_log,
        )
        async with _speaking(f"connecting to {address.host}:{address.port}", 2 * CONNECT_S):
            await client.__aenter__()
        self._client = client
        self._lost.clear()
        client.when_gone(self._gone)
        async with _speaking("subscribing"):
            granted = await client.subscribe(self._topic, qos=AT_LEAST_ONCE)
        codes = [getattr(code, "value", code) for code in granted]
        if codes != [AT_LEAST_ONCE]:
            raise Refused("broker-login", "the broker does not grant this subscription at QoS 1", field="username")

    def _gone(self, how: asyncio.Future[None]) -> None:
        how.cancelled() or how.exception()  # why is not said again: whoever waits hears that the link is lost
        self._lost.set()

    async def close(self) -> None:
        """Also of a link that is lost, or was never there; the session stays with the broker."""
        self._lost.set()
        client, self._client = self._client, None
        if client is not None:
            try:
                async with _speaking("closing"):
                    await client.__aexit__(None, None, None)
            except (Unavailable, Refused):
                pass  # it is gone either way

    async def receive(self) -> Delivery:
        message: MQTTMessage = await first(self._came, self._lost)
        return Delivery(bytes(message.payload), message, bool(message.dup))

    def _linked(self) -> _Client:
        if self._client is None or self._lost.is_set():
            raise Unavailable("broker", "the link is lost")
        return self._client

    async def done(self, delivery: Delivery) -> None:
        async with _speaking("acknowledging"):
            self._linked().acknowledge(delivery.tag)

    async def park(self, delivery: Delivery, record: bytes) -> None:
        """Nobody says whether a queue took it: MQTT 3.1.1 confirms what it forgets."""
        async with _speaking("parking"):
            await self._linked().publish(self._parking, record, qos=AT_LEAST_ONCE)
        self._linked().acknowledge(delivery.tag)
