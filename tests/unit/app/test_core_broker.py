"""Between a Core's machine and its broker consumer: what is answered meanwhile is the machine's word on the task."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import Any, cast

from tests.unit.control.world import real_key
from tests.unit.orbital.test_broker import POLL, TASK, ack

from keymesh.app.ack_post import WAITING_MAX
from keymesh.app.config_broker import CoreBroker
from keymesh.app.config_endpoint import Endpoint
from keymesh.app.core_broker import BrokerDoor, applied_row
from keymesh.control.messages import AckMessage
from keymesh.model.states import Lane

CONFIG = CoreBroker(
    protocol="amqp", endpoints=(Endpoint(url="amqps://127.0.0.1:1/v", ca_file="/none", cert_file="/none"),)
)
ACK = AckMessage(ack=real_key("node").seal(ack("applied")))


class Link:
    """One replica."""

    def __init__(self, *, stands_still: bool = False) -> None:
        self.bodies: list[bytes] = []
        self.stands_still = stands_still

    async def post_now(self, raw: bytes) -> None:
        self.bodies.append(raw)
        if self.stands_still:
            await asyncio.Event().wait()


class Core:
    """Its machine answers each task with what ``says`` holds."""

    def __init__(self, *links: Link) -> None:
        self.region = "us-east"
        self.config = cast(Any, type("Config", (), {"mesh": "m"}))
        self.registries = cast(Any, type("Links", (), {"links": links}))
        self.says: list[Any] = [POLL, ACK]
        self.sent: list[Any] = []
        self.door: BrokerDoor | None = None

    def receive(self, message: Any, via: str) -> None:
        assert via == "broker"
        assert self.door is not None
        self.sent += [said for said in self.says if not self.door.hears(said)]


def door_of(core: Core) -> BrokerDoor:
    core.door = BrokerDoor(cast(Any, core), CONFIG)
    return core.door


async def test_the_machines_word_is_heard_and_posted_to_every_replica() -> None:
    links = Link(), Link()
    core = Core(*links)
    door = door_of(core)
    assert door._deliver(TASK) == [ack("applied")]
    assert core.sent == [POLL]  # all else goes its own way
    running = asyncio.create_task(door.run())
    async with asyncio.timeout(10):
        while not all(link.bodies for link in links):  # noqa: ASYNC110 - a condition of the test's
            await asyncio.sleep(0.001)
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    assert links[0].bodies == links[1].bodies


def test_an_acknowledgement_hurries_where_its_task_is_of_lane_0_alone() -> None:
    core = Core(Link())
    door = door_of(core)
    for lane in Lane:
        door._acks[0]._hurry.clear()
        door._deliver(replace(TASK, lane=lane))
        assert door._acks[0]._hurry.is_set() is (lane is Lane.RESTRICTION)


def test_what_is_said_at_other_times_is_not_its_business() -> None:
    assert not door_of(Core(Link())).hears(ACK)


def test_no_word_is_no_word() -> None:
    core = Core(Link())
    core.says = []
    assert door_of(core)._deliver(TASK) == []


def test_one_replica_that_takes_answers_is_enough() -> None:
    core = Core(Link(), Link())
    door = door_of(core)
    for _ in range(WAITING_MAX):
        door._deliver(TASK)
    assert door._is_busy()
    door._acks[0]._waiting.clear()
    assert not door._is_busy()


def test_every_lane_is_described() -> None:
    assert door_of(Core(Link())).describe() == {f"lane{int(lane)}": {"up": 0} for lane in Lane}


def test_a_row_says_how_a_task_came() -> None:
    row = applied_row(TASK, "broker")
    assert (row["lane"], row["via"], row["command_id"]) == (2, "broker", TASK.state.head.entry.command_id)
