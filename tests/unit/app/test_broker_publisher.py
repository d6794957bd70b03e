"""A lane's publisher against a broker of the test's own and a real projection: what goes, what stays, what is lost."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.unit.registry.harness import Bench, node, with_tenant

from keymesh.adapters.sql_projection import SqlProjection
from keymesh.app import broker_publisher, broker_redial
from keymesh.app.broker_publisher import LanePublisher
from keymesh.app.read_model import ReadModel
from keymesh.model.errors import Refused, Unavailable
from keymesh.model.states import Lane
from keymesh.orbital.broker import Protocol, routing_key
from keymesh.orbital.messages import Task
from keymesh.orbital.transport import Outgoing, Seen
from keymesh.orbital.wire import MESSAGES

MESH = "m"
REGIONS = {"us-east": Protocol.AMQP, "us-west": Protocol.MQTT}


@dataclass
class Broker:
    """``blocked``: takes nothing and says so; ``full``: routing keys that it refuses."""

    queues: dict[str, list[bytes]] = field(default_factory=dict)
    declared: set[tuple[Protocol, str]] = field(default_factory=set)
    full: set[str] = field(default_factory=set)
    consumers: int = 1
    blocked: bool = False
    drops: bool = False
    refuses: bool = False
    opened: int = 0

    def tasks(self, region: str, lane: Lane = Lane.ROUTINE) -> list[Task]:
        return [MESSAGES.decode(raw, max_bytes=10**6) for raw in self.queues.get(routing_key(MESH, region, lane), [])]


class FakePublisher:
    def __init__(self, broker: Broker) -> None:
        self.broker = broker

    async def open(self) -> None:
        self.broker.opened += 1
        if self.broker.refuses:
            raise Refused("broker-login", "no")

    async def close(self) -> None:
        return

    async def declare(self, protocol: Protocol, mesh: str, region: str) -> None:
        self.broker.declared.add((protocol, region))

    async def probe(self) -> None:
        if self.broker.blocked:
            raise Unavailable("broker-silent", "blocked")

    async def publish(self, messages: Sequence[Outgoing]) -> list[bool]:
        if self.broker.drops:
            raise Unavailable("broker", "cut")
        for message in messages:
            if message.key not in self.broker.full:
                self.broker.queues.setdefault(message.key, []).append(message.body)
        return [message.key not in self.broker.full for message in messages]

    async def look(self, queue: str) -> Seen:
        return Seen(consumers=self.broker.consumers, messages=0)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for room, name, value in (
        (broker_redial, "BACKOFF_MIN_S", 0.001),
        (broker_redial, "BACKOFF_MAX_S", 0.004),
        (broker_publisher, "LOOK_S", 0.01),
        (broker_publisher, "FULL_S", 0.05),
    ):
        monkeypatch.setattr(room, name, value)


@dataclass
class World:
    bench: Bench
    broker: Broker
    read_model: ReadModel
    publisher: LanePublisher

    async def project(self) -> None:
        """The projection takes what the log has."""
        await self.read_model.start()
        self.publisher.stirred.set()

    async def forgotten(self, region: str) -> None:
        """No line is left, soon."""
        async with asyncio.timeout(20):
            while await self.lines(region):  # noqa: ASYNC110 - a condition of the test's
                await asyncio.sleep(0.002)

    async def lines(self, region: str) -> int:
        return len((await self.read_model.read("outbox", region=region, lane=int(Lane.ROUTINE))).rows)


@asynccontextmanager
async def publishing(tmp_path: Path, *, lane: Lane = Lane.ROUTINE) -> AsyncIterator[World]:
    """A mesh with a tenant that got three labels, not yet sent; nothing runs until the block does."""
    bench = await asyncio.to_thread(with_tenant)
    for n in range(3):
        await asyncio.to_thread(bench.ok, bench.label("acme", n))
    projection = SqlProjection(f"sqlite:///{tmp_path / 'p.db'}", mesh=str(bench.state.config.mesh))
    read_model = ReadModel(projection, bench.log)
    broker = Broker()
    publisher = LanePublisher(
        lane,
        mesh=MESH,
        regions=REGIONS,
        make=lambda: FakePublisher(broker),
        state=lambda: bench.state,
        read_model=read_model,
    )
    world = World(bench, broker, read_model, publisher)
    await world.project()
    running = asyncio.create_task(publisher.run())
    try:
        yield world
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        await read_model.close()


async def until(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not check():  # noqa: ASYNC110 - a condition of the test's
            await asyncio.sleep(0.002)


def seqs(tasks: list[Task]) -> list[int]:
    return [task.state.head.entry.seq for task in tasks if task.namespace == "acme"]


async def test_every_line_becomes_a_task_in_the_queue_of_its_region_and_is_forgotten(tmp_path: Path) -> None:
    async with publishing(tmp_path) as world:
        newest = world.bench.state.spaces["acme"].seq
        await until(lambda: all(len(seqs(world.broker.tasks(region))) >= 3 for region in REGIONS))
        assert seqs(world.broker.tasks("us-east"))[-3:] == [newest - 2, newest - 1, newest]
        assert world.broker.declared == {(how, region) for region, how in REGIONS.items()}
        for region in REGIONS:
            await world.forgotten(region)
        assert {task.lane for task in world.broker.tasks("us-east")} == {Lane.ROUTINE}


async def test_what_the_broker_does_not_take_stays_and_goes_later(tmp_path: Path) -> None:
    async with publishing(tmp_path) as world:
        world.broker.drops = True
        await until(lambda: world.broker.opened >= 3)
        assert await world.lines("us-east") >= 3
        assert not world.broker.queues
        world.broker.drops = False
        await until(lambda: len(seqs(world.broker.tasks("us-east"))) >= 3)


async def test_a_blocked_broker_is_not_given_anything(tmp_path: Path) -> None:
    async with publishing(tmp_path) as world:
        world.broker.blocked = True
        await until(lambda: world.broker.opened >= 3)
        assert not world.publisher.is_linked
        world.broker.queues.clear()
        await asyncio.to_thread(world.bench.ok, world.bench.label("acme", 9))
        await world.project()
        await until(lambda: world.broker.opened >= 6)
        assert not world.broker.queues
        world.broker.blocked = False
        newest = world.bench.state.spaces["acme"].seq
        await until(lambda: newest in seqs(world.broker.tasks("us-east")))


async def test_a_full_queue_holds_up_no_other_region(tmp_path: Path) -> None:
    async with publishing(tmp_path) as world:
        await until(lambda: len(seqs(world.broker.tasks("us-west"))) >= 3)
        full = routing_key(MESH, "us-east", Lane.ROUTINE)
        world.broker.full.add(full)
        world.broker.queues.clear()
        await asyncio.to_thread(world.bench.ok, world.bench.label("acme", 9))
        await world.project()
        await until(lambda: len(seqs(world.broker.tasks("us-west"))) >= 1)
        await until(lambda: world.publisher.counts["refused"] >= 1)
        assert await world.lines("us-east") >= 1
        assert not world.publisher.attached["us-east"].takes("acme", 10**6)
        world.broker.full.clear()
        await until(lambda: len(seqs(world.broker.tasks("us-east"))) >= 1)


async def test_a_login_that_is_refused_is_tried_again(tmp_path: Path) -> None:
    async with publishing(tmp_path) as world:
        world.broker.refuses = True
        world.broker.drops = True
        await until(lambda: world.broker.opened >= 4)
        world.broker.refuses = world.broker.drops = False
        await until(lambda: len(seqs(world.broker.tasks("us-east"))) >= 3)


async def test_what_a_region_has_already_is_not_published(tmp_path: Path) -> None:
    async with publishing(tmp_path) as world:
        world.broker.blocked = True
        await until(lambda: world.broker.opened >= 2)
        world.broker.queues.clear()
        world.bench.ack_tasks("us-east")
        world.bench.beat_in_step("us-east")
        assert world.bench.state.sessions[node("us-east")].applied
        await asyncio.to_thread(world.bench.ok, world.bench.label("acme", 9))
        world.bench.ack_tasks("us-east")
        await world.project()
        world.broker.blocked = False
        await until(lambda: len(seqs(world.broker.tasks("us-west"))) >= 1)
        assert seqs(world.broker.tasks("us-east")) == []
        await world.forgotten("us-east")


async def test_a_pull_is_spared_only_where_somebody_consumes(tmp_path: Path) -> None:
    async with publishing(tmp_path) as world:
        fresh = itertools.count(10**6)
        east, west = world.publisher.attached["us-east"], world.publisher.attached["us-west"]
        await until(lambda: east.takes("acme", next(fresh)))
        world.broker.consumers = 0
        await until(lambda: not west.takes("acme", next(fresh)))
        assert not west.takes("acme", next(fresh))
