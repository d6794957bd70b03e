"""A lane's consumer against a source of the test's own: what it does with each answer, and when the link is lost."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest
from tests.unit.orbital.test_broker import BODY, TASK, ack

from keymesh.adapters.amqp import AmqpSource
from keymesh.adapters.mqtt import MqttSource
from keymesh.app import broker_consumer, broker_redial
from keymesh.app.broker_consumer import LaneConsumer, maker_of
from keymesh.app.config_broker import CoreBroker
from keymesh.app.config_endpoint import Endpoint
from keymesh.control.messages import Ack
from keymesh.model.errors import Refused, Unavailable
from keymesh.model.states import Lane
from keymesh.orbital.messages import Task
from keymesh.orbital.transport import Delivery
from keymesh.orbital.wire import MESSAGES


@dataclass
class Queue:
    """What a broker keeps: ``ready`` to be delivered, ``parked``; a source that ends without ``done`` gives back."""

    ready: deque[bytes] = field(default_factory=deque)
    parked: list[bytes] = field(default_factory=list)
    done: int = 0
    opened: int = 0
    refuses: int = 0
    silences: int = 0
    parks: bool = True
    cut: asyncio.Event = field(default_factory=asyncio.Event)


class FakeSource:
    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self.out: list[bytes] = []

    async def open(self) -> None:
        self.queue.opened += 1
        if self.queue.refuses:
            self.queue.refuses -= 1
            raise Refused("broker-login", "no")

    async def receive(self) -> Delivery:
        while not self.queue.ready:
            if self.queue.cut.is_set():
                self.queue.cut.clear()
                raise Unavailable("broker", "cut")
            await asyncio.sleep(0.001)
        self.out.append(self.queue.ready.popleft())
        return Delivery(self.out[-1], self.out[-1])

    async def done(self, delivery: Delivery) -> None:
        self.out.remove(delivery.tag)
        self.queue.done += 1

    async def park(self, delivery: Delivery, record: bytes) -> None:
        if self.queue.silences:
            self.queue.silences -= 1
            raise Unavailable("broker-silent", "no answer")
        await self.done(delivery)
        if not self.queue.parks:
            raise Refused("no-parking", "none")
        self.queue.parked.append(record)

    async def close(self) -> None:
        self.queue.ready.extendleft(reversed(self.out))
        self.out.clear()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for room, name, value in (
        (broker_redial, "BACKOFF_MIN_S", 0.001),
        (broker_redial, "BACKOFF_MAX_S", 0.004),
        (broker_consumer, "BACKOFF_MAX_S", 0.004),
        (broker_consumer, "RETRY_S", 0.001),
    ):
        monkeypatch.setattr(room, name, value)


@asynccontextmanager
async def consuming(
    queue: Queue, deliver: Callable[[Task], list[Ack]], busy: Callable[[], bool] = lambda: False
) -> AsyncIterator[LaneConsumer]:
    consumer = LaneConsumer(Lane.ROUTINE, lambda: FakeSource(queue), deliver, is_busy=busy)
    running = asyncio.create_task(consumer.run())
    try:
        yield consumer
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


async def until(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not check():  # noqa: ASYNC110 - a condition of the test's
            await asyncio.sleep(0.001)


def applied(task: Task) -> list[Ack]:
    return [ack("applied")]


async def test_a_task_is_acknowledged_after_the_machine_has() -> None:
    queue, seen = Queue(deque([BODY])), []

    def deliver(task: Task) -> list[Ack]:
        assert queue.done == 0
        seen.append(task)
        return applied(task)

    async with consuming(queue, deliver):
        await until(lambda: queue.done == 1)
    assert (seen, queue.parked) == ([TASK], [])


async def test_poison_is_parked_with_its_reason_and_delays_nobody() -> None:
    bad = [b"foreign", MESSAGES.encode(replace(TASK, force=True)), b"x" * 300_000]
    queue = Queue(deque([*bad, BODY]))
    async with consuming(queue, applied) as consumer:
        await until(lambda: queue.done == 4)
    reasons = [json.loads(record)["reason"] for record in queue.parked]
    assert reasons == ["bad-field", "forced", "bad-field"]
    assert (consumer.counts["parked"], consumer.counts["done"]) == (3, 1)


async def test_a_refused_task_is_tried_three_times_beside_the_others() -> None:
    other = replace(TASK, correlation_id="c2")
    queue, tries = Queue(deque([BODY, MESSAGES.encode(other)])), []

    def deliver(task: Task) -> list[Ack]:
        if task == other:
            return [ack("applied", correlation_id="c2")]
        tries.append(queue.done)
        return [ack("refused", "signature")]

    async with consuming(queue, deliver) as consumer:
        await until(lambda: queue.done == 2)
    assert tries == [0, 1, 1]  # the other was done in between
    assert json.loads(queue.parked[0])["reason"] == "signature"
    assert consumer.counts["again"] == 2


async def test_what_cannot_be_recorded_is_kept_until_it_can() -> None:
    queue, tries = Queue(deque([BODY])), []

    def deliver(task: Task) -> list[Ack]:
        tries.append(1)
        return applied(task) if len(tries) > 6 else []

    async with consuming(queue, deliver):
        await until(lambda: queue.done == 1)
    assert (len(tries), queue.parked) == (7, [])


async def test_a_lift_without_proof_is_dropped() -> None:
    queue = Queue(deque([BODY]))
    async with consuming(queue, lambda task: [ack("refused", "unproven-lift")]) as consumer:
        await until(lambda: queue.done == 1)
    assert (queue.parked, consumer.counts["drop"]) == ([], 1)


async def test_a_lost_link_is_made_again_and_what_was_not_done_comes_again() -> None:
    queue = Queue(deque([BODY]), refuses=3)
    answers: list[list[Ack]] = [[]]

    def deliver(task: Task) -> list[Ack]:
        return answers[0]

    async with consuming(queue, deliver) as consumer:
        await until(lambda: consumer.counts["wait"] >= 1)
        queue.cut.set()
        await until(lambda: queue.opened >= 5)
        answers[0] = applied(TASK)
        await until(lambda: queue.done == 1)
    assert consumer.counts["linked"] >= 2
    assert not queue.ready


async def test_a_delivery_that_fails_later_comes_again_though_nothing_else_does() -> None:
    """The third try wants to park it, and the broker does not answer; the link itself is not lost."""
    queue = Queue(deque([BODY]), silences=1)
    async with consuming(queue, lambda task: [ack("refused", "signature")]) as consumer:
        await until(lambda: len(queue.parked) == 1)
    assert (queue.opened, queue.done, consumer.counts["linked"]) == (2, 1, 2)


async def test_where_nothing_can_be_parked_it_is_let_go() -> None:
    queue = Queue(deque([b"foreign", BODY]), parks=False)
    async with consuming(queue, applied):
        await until(lambda: queue.done == 2)
    assert queue.parked == []


async def test_no_more_is_taken_than_can_be_answered() -> None:
    queue = Queue(deque([BODY] * 200))
    async with consuming(queue, applied, lambda: True):
        await until(lambda: queue.done >= 2)
        assert queue.done < 100
    assert queue.ready


async def test_a_bug_is_not_hidden() -> None:
    def deliver(task: Task) -> list[Ack]:
        raise ZeroDivisionError

    consumer = LaneConsumer(Lane.ROUTINE, lambda: FakeSource(Queue(deque([BODY]))), deliver)
    with pytest.raises(ZeroDivisionError):
        await consumer.run()


def test_a_region_chooses_its_protocol() -> None:
    where = {"ca_file": "/ca.pem", "cert_file": "/c.pem"}
    amqp = CoreBroker(protocol="amqp", endpoints=(Endpoint(url="amqps://h/v", **where),))
    mqtt = CoreBroker(protocol="mqtt", endpoints=(Endpoint(url="mqtts://h/v", **where),))
    assert isinstance(maker_of(amqp, "m", "us-east", Lane.ROUTINE)(), AmqpSource)
    assert isinstance(maker_of(mqtt, "m", "us-east", Lane.ROUTINE)(), MqttSource)
