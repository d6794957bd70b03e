"""A Registry's hands on the broker: outbox lines claimed, made into tasks, published, confirmed.

Each lane has a link, a thread and a database connection of its own.  Nobody waits for the broker: commands, Lane 0 and
every pull go on beside it, and a line is only forgotten once the broker has confirmed its task.  Several replicas may
publish at once; each line is claimed by one.

1. A new link declares the queues of every region that receives by the broker, whether it ever connected or not.
2. When a commit was projected, and every ``LOOK_S``: the broker is asked whether it takes messages; then lines are
   claimed in batches, and published.
3. Every ``LOOK_S``: who consumes the queues, which says what a pull need not bring (``orbital.broker.Attachment``).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Final

from keymesh.adapters.amqp import AmqpPublisher
from keymesh.adapters.broker_address import PUBLISH_S
from keymesh.app.broker_redial import keep_linked
from keymesh.app.config_broker import RegistryBroker, addresses
from keymesh.app.read_model import ReadModel
from keymesh.model.errors import Unavailable
from keymesh.model.ids import Namespace
from keymesh.model.limits import TASK_MAX_BYTES
from keymesh.model.states import Lane
from keymesh.orbital.broker import Attachment, Protocol, queue_of, routing_key
from keymesh.orbital.messages import NamespaceState, Task
from keymesh.orbital.transport import Outgoing, Publisher, Seen
from keymesh.orbital.wire import MESSAGES
from keymesh.registry import outbox
from keymesh.registry.outbox import EVERYWHERE, Line, Turn
from keymesh.registry.state import RegistryState

log = logging.getLogger("keymesh.broker")

LOOK_S: Final = 1.0
BATCH: Final = 100
PASS_MAX: Final = 50_000
"""Lines looked at in one pass; the others come in the next."""
BREATH: Final = 8
"""Tasks made in one go before everything else has a turn."""
BODIES_KEPT: Final = 512
FULL_S: Final = 10.0
"""For how long a queue that refused is left alone."""
CLAIM_S: Final = PUBLISH_S + 1.0


class LanePublisher:
    """One lane.  ``state``: what the log says, as the machine has read it."""

    def __init__(
        self,
        lane: Lane,
        *,
        mesh: str,
        regions: dict[str, Protocol],
        make: Callable[[], Publisher],
        state: Callable[[], RegistryState],
        read_model: ReadModel,
    ) -> None:
        self.lane = lane
        self._mesh, self._regions, self._make, self._state = mesh, regions, make, state
        self._read_model = read_model
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"outbox-{int(lane)}")
        self._declared: set[str] = set()
        self._full_until: dict[str, float] = {}
        self._bodies: OrderedDict[str, tuple[NamespaceState, NamespaceState | None, bytes]] = OrderedDict()
        self.attached = {region: Attachment(lane) for region in regions}
        self.stirred = asyncio.Event()
        self.is_linked = False
        self.counts: Counter[str] = Counter()

    async def run(self) -> None:
        """For ever."""
        await keep_linked(self.lane, self._once, lost="not publishing")

    async def _once(self) -> None:
        link = self._make()
        try:
            await link.open()
            await self._begin(link)
            await self._serve(link)
        finally:
            self._lost()
            await link.close()

    async def _begin(self, link: Publisher) -> None:
        self._declared.clear()
        self._full_until.clear()
        await self._declare(link)
        await link.probe()
        heads = outbox.heads(self._state())
        for region in self._known():
            seen = await self._seen(link, region)
            self.attached[region].linked(heads, messages=seen.messages)
        self.is_linked = True
        self.counts["linked"] += 1

    def _lost(self) -> None:
        self.is_linked = False
        for attachment in self.attached.values():
            attachment.lost()

    def _known(self) -> list[str]:
        """Enrolled regions that receive by the broker."""
        return sorted(self._regions.keys() & self._state().regions.keys())

    async def _declare(self, link: Publisher) -> None:
        for region in self._known():
            if region not in self._declared:
                await link.declare(self._regions[region], self._mesh, region)
                self._declared.add(region)

    async def _serve(self, link: Publisher) -> None:
        look_at = 0.0
        while True:
            self.stirred.clear()
            if time.monotonic() >= look_at:
                await self._declare(link)
                await self._look(link)
                await link.probe()
                look_at = time.monotonic() + LOOK_S
            await self._pass(link)
            try:
                async with asyncio.timeout(max(0.0, look_at - time.monotonic())):
                    await self.stirred.wait()
            except TimeoutError:
                continue

    async def _look(self, link: Publisher) -> None:
        for region in self._known():
            seen = await self._seen(link, region)
            if self._takes_more(region):
                self.attached[region].looked(seen.consumers)

    async def _seen(self, link: Publisher, region: str) -> Seen:
        return await link.look(queue_of(self._regions[region], self._mesh, region, self.lane))

    def _takes_more(self, region: str) -> bool:
        return time.monotonic() >= self._full_until.get(region, 0.0)

    def _refused(self, region: str) -> None:
        """Its queue is full, or gone: what there is stays in the outbox for a while, and is pulled."""
        if self._takes_more(region):
            log.warning("queue refuses", extra={"fields": {"lane": int(self.lane), "region": region}})
        self._full_until[region] = time.monotonic() + FULL_S
        self.attached[region].lost()

    # --- publishing ------------------------------------------------------------------------------------------------

    async def _pass(self, link: Publisher) -> None:
        """All lines there are, in batches; those that cannot go yet stay, and hold up no other."""
        loop = asyncio.get_running_loop()
        after: tuple[int, str, int, str] | None = None
        for _ in range(PASS_MAX // BATCH):
            doing = loop.run_in_executor(self._thread, self._claim, link, loop, after)
            doing.add_done_callback(lambda done: done.cancelled() or done.exception())
            after, is_last = await doing
            if is_last:
                return

    def _claim(
        self, link: Publisher, loop: asyncio.AbstractEventLoop, after: tuple[int, str, int, str] | None
    ) -> tuple[tuple[int, str, int, str] | None, bool]:
        """In the lane's thread: one batch, held until the broker has it.  Raises Unavailable; then all lines stay."""
        kept: set[tuple[str, int, str]] = set()
        regions = (*filter(self._takes_more, self._known()), EVERYWHERE)
        with self._read_model.claimed(*regions, lane=int(self.lane), limit=BATCH, after=after, kept=kept) as rows:
            if rows:
                publishing: Future[Any] = asyncio.run_coroutine_threadsafe(self._publish(link, rows), loop)
                try:
                    kept.update(publishing.result(CLAIM_S))
                except TimeoutError as late:
                    publishing.cancel()
                    raise Unavailable("broker-silent", "the broker takes too long") from late
        if not rows:
            return after, True
        last = rows[-1]
        return (last["idx"], last["namespace"], last["seq"], last["region"]), len(rows) < BATCH

    async def _publish(self, link: Publisher, rows: Sequence[dict[str, Any]]) -> set[tuple[str, int, str]]:
        """Publish what may go; the keys of lines that stay."""
        kept: set[tuple[str, int, str]] = set()
        waiting: list[tuple[tuple[str, int, str], str, Outgoing]] = []
        for n, row in enumerate(rows):
            if n % BREATH == BREATH - 1:
                await asyncio.sleep(0)
            key = (row["namespace"], row["seq"], row["region"])
            line = Line(Namespace(row["namespace"]), row["seq"], row["region"], self.lane, row["correlation_id"])
            for region in self._known() if line.region == EVERYWHERE else (line.region,):
                made = outbox.task_of(self._state(), line, region)
                if made is Turn.LATER:
                    kept.add(key)
                elif isinstance(made, Task) and len(body := self._body(made)) <= TASK_MAX_BYTES:
                    where = routing_key(self._mesh, region, self.lane)
                    waiting.append((key, region, Outgoing(where, body, made.task_id, made.correlation_id)))
                else:
                    self.counts["needless"] += 1
        confirmed = await link.publish([message for _, _, message in waiting]) if waiting else []
        for (key, region, _), is_stored in zip(waiting, confirmed, strict=True):
            self.counts["published" if is_stored else "refused"] += 1
            if not is_stored:
                kept.add(key)
                self._refused(region)
        return kept

    def _body(self, task: Task) -> bytes:
        """Encoded once for all regions, unless proofs came meanwhile or another mesh state goes along."""
        held = self._bodies.get(task.task_id)
        if held is not None and held[0] is task.state and held[1] is task.mesh:
            return held[2]
        body = MESSAGES.encode(task)
        self._bodies[task.task_id] = (task.state, task.mesh, body)
        if len(self._bodies) > BODIES_KEPT:
            self._bodies.popitem(last=False)
        return body


class BrokerPublisher:
    """All lanes of one Registry replica."""

    def __init__(
        self, config: RegistryBroker, *, mesh: str, state: Callable[[], RegistryState], read_model: ReadModel
    ) -> None:
        where = addresses(config.endpoints, scheme="amqps")
        regions = {region: Protocol(how) for region, how in config.regions.items()}
        self.lanes = {
            lane: LanePublisher(
                lane,
                mesh=mesh,
                regions=regions,
                make=partial(AmqpPublisher, where, name=f"keymesh registry lane {int(lane)}"),
                state=state,
                read_model=read_model,
            )
            for lane in Lane
        }
        read_model.on_taken = self.stir

    def stir(self) -> None:
        """There may be new lines."""
        for lane in self.lanes.values():
            lane.stirred.set()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for lane in self.lanes.values():
                group.create_task(lane.run())

    def brings(self, region: str, task: Task) -> bool:
        """Whether a pull need not bring this send of ``task`` to ``region``."""
        attachment = self.lanes[task.lane].attached.get(region)
        if attachment is None or task.force:
            return False
        return attachment.takes(task.namespace, task.state.head.entry.seq)

    def describe(self) -> dict[str, dict[str, int]]:
        """By lane: whether it is linked, regions that consume their queue, counts."""
        return {
            f"lane{int(lane)}": {
                "up": int(p.is_linked),
                "attended": sum(each.is_attended for each in p.attached.values()),
                **p.counts,
            }
            for lane, p in self.lanes.items()
        }
