"""A Core's hands on the broker: one link for each lane, deliveries to the machine, acknowledgement after its answer.

``orbital.broker`` says what a delivery must be and what becomes of it.  While a link is away the pull goes on.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

from keymesh.adapters.amqp import AmqpSource
from keymesh.adapters.mqtt import MqttSource
from keymesh.app.broker_redial import BACKOFF_MAX_S, keep_linked
from keymesh.app.config_broker import CoreBroker, addresses
from keymesh.control.messages import Ack
from keymesh.model.errors import KeymeshError, Refused
from keymesh.model.states import Lane
from keymesh.orbital import broker
from keymesh.orbital.broker import Protocol, Verdict
from keymesh.orbital.messages import Task
from keymesh.orbital.transport import Delivery, Source

log = logging.getLogger("keymesh.broker")

RETRY_S: Final = 0.2
BUSY_S: Final = 0.005

Deliver = Callable[[Task], Sequence[Ack]]
"""Hands a task to the machine; its acknowledgements, of what is durable by then."""


class LaneConsumer:
    """One lane.  ``counts``: what became of deliveries, by verdict and reason.  ``is_busy``: answers pile up."""

    def __init__(
        self, lane: Lane, make: Callable[[], Source], deliver: Deliver, *, is_busy: Callable[[], bool] = lambda: False
    ) -> None:
        self.lane = lane
        self._make, self._deliver, self._is_busy = make, deliver, is_busy
        self.counts: Counter[str] = Counter()
        self.is_linked = False
        self._again: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """For ever."""
        await keep_linked(self.lane, self._once, lost="broker link lost")

    async def _once(self) -> None:
        source = self._make()
        try:
            await source.open()
            self.is_linked = True
            self.counts["linked"] += 1
            await self._serve(source)
        finally:
            self.is_linked = False
            await self._end(source)

    async def _end(self, source: Source) -> None:
        for task in self._again:
            task.cancel()
        self._again.clear()
        await source.close()

    async def _serve(self, source: Source) -> None:
        while True:
            delivery = await self._next(source)
            self.counts["redelivered"] += delivery.redelivered
            await self._take(source, delivery)
            await asyncio.sleep(
                BUSY_S if self._is_busy() else 0
            )  # whatever else there is, Lane 0's poll for one, comes in between

    async def _next(self, source: Source) -> Delivery:
        """Raises what a delivery failed with that was tried again: the link goes, so that it comes again as well."""
        if not self._again:
            return await source.receive()
        receiving = asyncio.ensure_future(source.receive())
        try:
            while not receiving.done():
                done, _ = await asyncio.wait({receiving, *self._again}, return_when=asyncio.FIRST_COMPLETED)
                for tried in self._again & done:
                    self._again.discard(tried)
                    tried.result()
            return receiving.result()
        finally:
            receiving.cancel()

    async def _take(self, source: Source, delivery: Delivery) -> None:
        try:
            task = broker.read_delivery(delivery.body, lane=self.lane)
        except KeymeshError as refusal:
            await self._park(source, delivery, *broker.why(refusal))
            return
        if not await self._try(source, delivery, task, 1):
            self._again.add(asyncio.create_task(self._keep_trying(source, delivery, task)))

    async def _keep_trying(self, source: Source, delivery: Delivery, task: Task) -> None:
        """Beside the others, so that none waits for this one."""
        tries, pause_s = 1, RETRY_S
        while True:
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
            tries += 1
            if await self._try(source, delivery, task, tries):
                return
            pause_s = min(BACKOFF_MAX_S, pause_s * 2)

    async def _try(self, source: Source, delivery: Delivery, task: Task, tries: int) -> bool:
        """Whether that was the last of it."""
        judged = broker.judge(task, self._deliver(task), tries=tries)
        match judged.verdict:
            case Verdict.DONE | Verdict.DROP:
                self.counts[judged.verdict.value] += 1
                await source.done(delivery)
                return True
            case Verdict.PARK:
                await self._park(source, delivery, judged.reason, task.task_id)
                return True
            case Verdict.WAIT | Verdict.AGAIN:
                self.counts[judged.verdict.value] += 1
                return False

    async def _park(self, source: Source, delivery: Delivery, reason: str, detail: str) -> None:
        self.counts["parked"] += 1
        self.counts[f"parked {reason}"] += 1
        fields = {"lane": int(self.lane), "reason": reason, "bytes": len(delivery.body)}
        log.warning("message parked", extra={"fields": fields})
        try:
            await source.park(delivery, broker.parked(delivery.body, lane=self.lane, reason=reason, detail=detail))
        except Refused as lost:
            log.error("parked message lost", extra={"fields": fields | {"code": lost.code}})


class BrokerConsumer:
    """All lanes of one region."""

    def __init__(
        self, config: CoreBroker, *, mesh: str, region: str, deliver: Deliver, is_busy: Callable[[], bool]
    ) -> None:
        self.lanes = {
            lane: LaneConsumer(lane, maker_of(config, mesh, region, lane), deliver, is_busy=is_busy) for lane in Lane
        }

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for consumer in self.lanes.values():
                group.create_task(consumer.run())

    def describe(self) -> dict[str, dict[str, int]]:
        """Counts, by lane."""
        return {f"lane{int(lane)}": {"up": int(c.is_linked), **c.counts} for lane, c in self.lanes.items()}


def maker_of(config: CoreBroker, mesh: str, region: str, lane: Lane) -> Callable[[], Source]:
    """Makes the links of one lane.  Raises Refused where the configuration names no broker."""
    where = addresses(config.endpoints, scheme=f"{config.protocol}s")
    key, parking = broker.routing_key(mesh, region, lane), broker.parking_key(mesh, region)
    if Protocol(config.protocol) is Protocol.MQTT:
        topic, aside = broker.topic_of(key), broker.topic_of(parking)
        who = broker.client_id(mesh, region, lane)
        return lambda: MqttSource(where, client_id=who, topic=topic, parking=aside)
    name = f"keymesh core {region} lane {int(lane)}"
    return lambda: AmqpSource(where, queue=key, parking=parking, prefetch=config.prefetch, name=name)
