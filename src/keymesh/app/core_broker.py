"""Where a Core's machine and its broker consumer meet: a task in, the machine's durable word on it out.

The shell records while a task is handed in, so what the machine acknowledges in that call is durable; a task that it
does not acknowledge could not be recorded.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from keymesh.app.ack_post import AckPost
from keymesh.app.broker_consumer import BrokerConsumer
from keymesh.app.config_broker import CoreBroker
from keymesh.control.messages import Ack, AckMessage
from keymesh.model.states import Lane
from keymesh.orbital.broker import acks_in
from keymesh.orbital.messages import Task
from keymesh.orbital.wire import MESSAGES

if TYPE_CHECKING:
    from keymesh.app.core_app import CoreProcess


class BrokerDoor:
    """One Core's; ``run`` consumes until it is cancelled."""

    def __init__(self, core: CoreProcess, config: CoreBroker) -> None:
        self._core = core
        self._said: list[Any] | None = None  # by the machine, while it is handed a task of the broker's
        self._urgent = False  # that task is of Lane 0
        self._acks = [AckPost(link.post_now) for link in core.registries.links]
        self._consumer = BrokerConsumer(
            config, mesh=core.config.mesh, region=core.region, deliver=self._deliver, is_busy=self._is_busy
        )
        self.describe = self._consumer.describe

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._consumer.run())
            for acks in self._acks:
                group.create_task(acks.run())

    def hears(self, message: Any) -> bool:
        """What the machine sends, before it is sent; whether this door sends it."""
        if self._said is None:
            return False
        self._said.append(message)
        if not isinstance(message, AckMessage):
            return False
        raw = MESSAGES.encode(message)
        for acks in self._acks:
            acks.put(raw, at_once=self._urgent)
        return True

    def _is_busy(self) -> bool:
        """No replica of the Registry takes more: the broker can wait.  (One that stands still delays nobody.)"""
        return all(acks.is_full() for acks in self._acks)

    def _deliver(self, task: Task) -> list[Ack]:
        self._said, self._urgent = [], task.lane is Lane.RESTRICTION
        try:
            self._core.receive(task, "broker")
            return acks_in(self._said)
        finally:
            self._said = None


def applied_row(task: Task, via: str) -> dict[str, Any]:
    """A line of what ``/v1/applied`` shows; ``via``: ``pull`` or ``broker``."""
    return {
        "lane": int(task.lane),
        "task": task.task_id,
        "command_id": task.state.head.entry.command_id,
        "at_ns": time.time_ns(),
        "via": via,
    }
