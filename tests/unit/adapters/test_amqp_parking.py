"""Parking over AMQP: a message is acknowledged once it is kept aside, or surely cannot be; a library's fake answers."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from aio_pika.exceptions import AMQPConnectionError, DeliveryError

from keymesh.adapters.amqp import AmqpSource
from keymesh.model.errors import Refused, Unavailable
from keymesh.orbital.transport import Delivery


class Wire:
    """The exchange and the channel: ``says`` is what a publish ends with, "hang": it does not."""

    def __init__(self, says: Exception | str | None) -> None:
        self.says = says
        self.acknowledged: list[int] = []

    async def publish(self, message: Any, **how: Any) -> None:
        if self.says == "hang":
            await asyncio.Event().wait()
        if isinstance(self.says, Exception):
            raise self.says

    async def basic_ack(self, tag: int, **how: Any) -> None:
        self.acknowledged.append(tag)


def delivered(wire: Wire) -> tuple[AmqpSource, Delivery]:
    source = AmqpSource([], queue="q", parking="p", prefetch=1, name="n")
    source._exchange = wire  # type: ignore[assignment]
    source._window.admits()
    return source, Delivery(b"poison", SimpleNamespace(channel=wire, delivery_tag=7))


async def test_kept_aside_then_acknowledged() -> None:
    wire = Wire(None)
    source, delivery = delivered(wire)
    await source.park(delivery, b"{}")
    assert wire.acknowledged == [7]
    assert source._window.admits()


async def test_without_a_parking_queue_it_is_let_go() -> None:
    wire = Wire(DeliveryError(None, SimpleNamespace()))  # type: ignore[arg-type]
    source, delivery = delivered(wire)
    with pytest.raises(Refused):
        await source.park(delivery, b"{}")
    assert wire.acknowledged == [7]


async def test_a_link_that_fails_meanwhile_loses_nothing() -> None:
    wire = Wire(AMQPConnectionError("gone"))
    source, delivery = delivered(wire)
    with pytest.raises(Unavailable):
        await source.park(delivery, b"{}")
    assert wire.acknowledged == []


async def test_a_process_that_stops_meanwhile_loses_nothing() -> None:
    wire = Wire("hang")
    source, delivery = delivered(wire)
    parking = asyncio.create_task(source.park(delivery, b"{}"))
    await asyncio.sleep(0)
    parking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await parking
    assert wire.acknowledged == []
