"""What every way of bringing tasks to a region must do: the pull's mailboxes, AMQP and MQTT on a real broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol

import pytest
from tests.servers.rabbitmq import PASSWORD, Rabbit

from keymesh.adapters.amqp import AmqpPublisher
from keymesh.app.broker_consumer import maker_of
from keymesh.app.channels import Mailboxes
from keymesh.app.config_broker import CoreBroker, addresses
from keymesh.app.servers.rabbitmq import region_user, registry_user
from keymesh.model.errors import Refused, Unavailable
from keymesh.model.states import Lane
from keymesh.orbital import broker
from keymesh.orbital.transport import Delivery, Outgoing, Source

pytestmark = pytest.mark.live
MESH = "prod.example"
EAST, WEST = "us-east", "us-west"
BODIES = [b"{}", b"\x00\xff not text", b"z" * 200_000]


class Transport(Protocol):
    async def offer(self, region: str, lane: Lane, *bodies: bytes) -> None: ...

    async def take(self, region: str, lane: Lane, count: int) -> list[bytes]:
        """The next ``count``, each acknowledged; the region is there only for so long."""
        ...


class Pull:
    def __init__(self) -> None:
        self.mailboxes = Mailboxes()

    async def offer(self, region: str, lane: Lane, *bodies: bytes) -> None:
        for body in bodies:
            self.mailboxes.of(region, f"lane{int(lane)}").put(body)

    async def take(self, region: str, lane: Lane, count: int) -> list[bytes]:
        found: list[bytes] = []
        while len(found) < count:
            box = self.mailboxes.of(region, f"lane{int(lane)}")
            taken = await box.take(timeout_s=5, max_items=count - len(found))
            assert taken, "nothing came"
            found += taken
        return found


@dataclass
class ByBroker:
    """East and west speak ``protocol``.  ``sources``: links that a test holds open."""

    rabbit: Rabbit
    protocol: broker.Protocol
    vhost: str
    publisher: AmqpPublisher
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    @classmethod
    async def begin(cls, rabbit: Rabbit, protocol: broker.Protocol) -> ByBroker:
        vhost = rabbit.new_vhost()
        rabbit.add_user(vhost, registry_user("registry", PASSWORD))
        for region in (EAST, WEST):
            rabbit.add_user(vhost, region_user(region, MESH, region, PASSWORD))
        where = addresses((rabbit.endpoint(vhost, "registry"),), scheme="amqps")
        made = cls(rabbit, protocol, vhost, AmqpPublisher(where, name="registry"))
        await made.publisher.open()
        made.stack.push_async_callback(made.publisher.close)
        for region in (EAST, WEST):
            await made.publisher.declare(protocol, MESH, region)
        return made

    def config(self, region: str, **changed: Any) -> CoreBroker:
        where = self.rabbit.endpoint(
            self.vhost, changed.pop("user", region), scheme=f"{self.protocol.value}s", **changed
        )
        return CoreBroker(protocol=self.protocol.value, endpoints=(where,), prefetch=8)

    def source(self, region: str, lane: Lane, **changed: Any) -> Source:
        return maker_of(self.config(region, **changed), MESH, region, lane)()

    async def opened(self, region: str, lane: Lane) -> Source:
        source = self.source(region, lane)
        self.stack.push_async_callback(source.close)
        await source.open()
        return source

    async def offer(self, region: str, lane: Lane, *bodies: bytes) -> None:
        key = broker.routing_key(MESH, region, lane)
        assert all(await self.publisher.publish([Outgoing(key, body, "t", "c") for body in bodies]))

    async def take(self, region: str, lane: Lane, count: int) -> list[bytes]:
        source = self.source(region, lane)
        await source.open()
        try:
            found = []
            for _ in range(count):
                delivery = await soon(source.receive())
                found.append(delivery.body)
                await source.done(delivery)
            await self.settled(region, lane, 0)
            return found
        finally:
            await source.close()

    async def settled(self, region: str, lane: Lane, count: int) -> None:
        """Until the broker itself says that the queue holds ``count``, ready and out."""
        name = broker.queue_of(self.protocol, MESH, region, lane)
        async with asyncio.timeout(20):
            while (await self.publisher.look(name)).messages != count or self._out(name):  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    def _out(self, name: str) -> int:
        return 0


async def soon(work: Awaitable[Any]) -> Any:
    async with asyncio.timeout(20):
        return await work


@pytest.fixture(params=["pull", "amqp", "mqtt"])
async def transport(request: pytest.FixtureRequest) -> AsyncIterator[Transport]:
    if request.param == "pull":
        yield Pull()
        return
    made = await ByBroker.begin(request.getfixturevalue("rabbit"), broker.Protocol(request.param))
    async with made.stack:
        yield made


@pytest.fixture(params=["amqp", "mqtt"])
async def by_broker(request: pytest.FixtureRequest, rabbit: Rabbit) -> AsyncIterator[ByBroker]:
    made = await ByBroker.begin(rabbit, broker.Protocol(request.param))
    async with made.stack:
        yield made


# --- all of them -----------------------------------------------------------------------------------------------------


async def test_what_was_offered_while_the_region_was_away_is_there_when_it_comes(transport: Transport) -> None:
    """Before it ever came, too; in order, byte for byte."""
    await transport.offer(EAST, Lane.ROUTINE, *BODIES)
    assert await transport.take(EAST, Lane.ROUTINE, len(BODIES)) == BODIES
    await transport.offer(EAST, Lane.ROUTINE, b"later")
    assert await transport.take(EAST, Lane.ROUTINE, 1) == [b"later"]


async def test_a_lane_waits_for_no_other(transport: Transport) -> None:
    await transport.offer(EAST, Lane.ROUTINE, *[b"bulk"] * 200)
    await transport.offer(EAST, Lane.RESTRICTION, b"stop")
    assert await transport.take(EAST, Lane.RESTRICTION, 1) == [b"stop"]


async def test_a_region_gets_its_own_alone(transport: Transport) -> None:
    await transport.offer(WEST, Lane.ROUTINE, b"west")
    await transport.offer(EAST, Lane.ROUTINE, b"east")
    assert await transport.take(EAST, Lane.ROUTINE, 1) == [b"east"]
    assert await transport.take(WEST, Lane.ROUTINE, 1) == [b"west"]


# --- the broker's ----------------------------------------------------------------------------------------------------


async def test_what_is_not_acknowledged_comes_again(by_broker: ByBroker) -> None:
    await by_broker.offer(EAST, Lane.ROUTINE, b"one", b"two")
    first = by_broker.source(EAST, Lane.ROUTINE)
    await first.open()
    got: list[Delivery] = [await soon(first.receive()), await soon(first.receive())]
    assert [d.body for d in got] == [b"one", b"two"]
    await first.done(got[1])
    await by_broker.settled(EAST, Lane.ROUTINE, 0)
    await first.close()
    second = await by_broker.opened(EAST, Lane.ROUTINE)
    again = await soon(second.receive())
    assert (again.body, again.redelivered) == (b"one", True)


async def test_a_parked_message_is_kept_aside_and_done(by_broker: ByBroker) -> None:
    await by_broker.offer(EAST, Lane.ROUTINE, b"poison")
    source = await by_broker.opened(EAST, Lane.ROUTINE)
    await source.park(await soon(source.receive()), b'{"reason":"x"}')
    (kept,) = by_broker.rabbit.peek(by_broker.vhost, broker.parking_key(MESH, EAST))
    assert kept["payload_bytes"] == len(b'{"reason":"x"}')
    await source.close()
    await by_broker.settled(EAST, Lane.ROUTINE, 0)


async def test_a_wrong_password_is_refused(by_broker: ByBroker) -> None:
    source = by_broker.source(EAST, Lane.ROUTINE, password="guessed")
    with pytest.raises(Refused) as refused:
        await source.open()
    await source.close()
    assert refused.value.code == "broker-login"
    assert "guessed" not in repr(refused.value) + repr(refused.value.__cause__)


@pytest.mark.parametrize("what", ["wrong CA", "another's certificate", "an expired one"])
async def test_certificates_that_do_not_fit_end_the_handshake(by_broker: ByBroker, what: str, tmp_path: Any) -> None:
    from tests.servers.etcd import TestCA

    stranger, ours = TestCA("stranger"), by_broker.rabbit.ca
    (by_broker.rabbit.root / "stranger.pem").write_bytes(stranger.pem)
    changed = {
        "wrong CA": lambda: {"ca": "stranger.pem"},
        "another's certificate": lambda: {"identity": str(stranger.leaf(tmp_path / "stranger.pem"))},
        "an expired one": lambda: {"identity": str(ours.leaf(tmp_path / "expired.pem", expired=True))},
    }[what]()
    source = by_broker.source(EAST, Lane.ROUTINE, **changed)
    with pytest.raises((Unavailable, Refused)):
        await soon(source.open())
    await source.close()


async def test_another_regions_user_gets_nothing(by_broker: ByBroker) -> None:
    await by_broker.offer(EAST, Lane.ROUTINE, b"for east alone")
    source = by_broker.source(EAST, Lane.ROUTINE, user=WEST)
    with pytest.raises((Refused, Unavailable)):
        await soon(source.open())
        await asyncio.wait_for(source.receive(), 2)
    await source.close()
    assert await by_broker.take(EAST, Lane.ROUTINE, 1) == [b"for east alone"]


async def test_the_next_address_is_tried(by_broker: ByBroker) -> None:
    good = by_broker.config(EAST).endpoints[0]
    bad = by_broker.rabbit.endpoint(by_broker.vhost, EAST, scheme=f"{by_broker.protocol.value}s", port=1)
    config = CoreBroker(protocol=by_broker.protocol.value, endpoints=(bad, good))
    await by_broker.offer(EAST, Lane.ROUTINE, b"x")
    source = maker_of(config, MESH, EAST, Lane.ROUTINE)()
    await source.open()
    assert (await soon(source.receive())).body == b"x"
    await source.close()


async def test_nobody_there_is_unavailable(by_broker: ByBroker) -> None:
    source = by_broker.source(EAST, Lane.ROUTINE, port=1)
    with pytest.raises(Unavailable):
        await source.open()
    await source.close()
    with pytest.raises(Unavailable):
        await source.receive()


async def test_whoever_takes_the_session_over_is_noticed(rabbit: Rabbit) -> None:
    """The same MQTT client id elsewhere: our link is lost, and what was not acknowledged comes again."""
    made = await ByBroker.begin(rabbit, broker.Protocol.MQTT)
    async with made.stack:
        await made.offer(EAST, Lane.ROUTINE, b"one")
        ours = await made.opened(EAST, Lane.ROUTINE)
        assert (await soon(ours.receive())).body == b"one"
        theirs = await made.opened(EAST, Lane.ROUTINE)
        with pytest.raises(Unavailable):
            await soon(ours.receive())
        again = await soon(theirs.receive())
        assert again.body == b"one"
        with pytest.raises(Unavailable):
            await ours.done(again)
        with pytest.raises(Unavailable):
            await ours.park(again, b"")


async def test_a_publisher_hears_of_queues_that_are_full_or_missing(rabbit: Rabbit) -> None:
    made = await ByBroker.begin(rabbit, broker.Protocol.AMQP)
    async with made.stack:
        key = broker.routing_key(MESH, EAST, Lane.ROUTINE)
        good, lost = Outgoing(key, b"x", "t", "c"), Outgoing("keymesh.prod.example.nowhere.lane2", b"x", "t", "c")
        assert await made.publisher.publish([good, lost, good]) == [True, False, True]
        policy = {"pattern": ".*lane2", "definition": {"max-length": 2}, "apply-to": "queues"}
        rabbit.call("PUT", f"/policies/{made.vhost}/small", policy)
        async with asyncio.timeout(20):
            while (await made.publisher.publish([good])) == [True]:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        with pytest.raises(Unavailable):
            await made.publisher.look("no.such.queue")


async def test_a_region_that_changes_its_protocol_gets_each_message_once(rabbit: Rabbit) -> None:
    made = await ByBroker.begin(rabbit, broker.Protocol.AMQP)
    async with made.stack:
        await made.publisher.declare(broker.Protocol.MQTT, MESH, EAST)
        await made.offer(EAST, Lane.ROUTINE, b"x")
        counts = {
            p: (await made.publisher.look(broker.queue_of(p, MESH, EAST, Lane.ROUTINE))).messages
            for p in (broker.Protocol.MQTT, broker.Protocol.AMQP)
        }
        assert counts == {broker.Protocol.MQTT: 1, broker.Protocol.AMQP: 0}


async def test_a_user_without_the_right_is_refused(rabbit: Rabbit) -> None:
    vhost = rabbit.new_vhost()
    rabbit.add_user(vhost, region_user(EAST, MESH, EAST, PASSWORD))
    publisher = AmqpPublisher(addresses((rabbit.endpoint(vhost, EAST),), scheme="amqps"), name="x")
    await publisher.open()
    with pytest.raises(Refused) as refused:
        await publisher.declare(broker.Protocol.AMQP, MESH, WEST)
    assert refused.value.code == "broker-rights"
    await publisher.close()


async def test_a_certificate_can_be_the_login(rabbit: Rabbit, tmp_path: Any) -> None:
    """Without a user name: SASL EXTERNAL, by the certificate's common name."""
    vhost = rabbit.new_vhost()
    rabbit.add_user(vhost, registry_user("registry-by-certificate"))
    identity = rabbit.ca.leaf(tmp_path / "registry-by-certificate.pem")
    publisher = AmqpPublisher(addresses((rabbit.endpoint(vhost, identity=str(identity)),), scheme="amqps"), name="x")
    await publisher.open()
    await publisher.declare(broker.Protocol.AMQP, MESH, EAST)
    await publisher.probe()
    await publisher.close()
