"""Acknowledgements go together when there are many, and a replica that does not take them loses them alone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from keymesh.app import ack_post
from keymesh.app.ack_post import KEPT_MAX, TOGETHER_MAX, WAITING_MAX, AckPost
from keymesh.model.errors import Unavailable


class Registry:
    """Answers when ``gate`` is open."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.bodies: list[bytes] = []
        self.away = False

    async def post(self, body: bytes) -> None:
        self.bodies.append(body)
        await self.gate.wait()
        if self.away:
            raise Unavailable("unreachable", "away")


@asynccontextmanager
async def posting(registry: Registry) -> AsyncIterator[AckPost]:
    acks = AckPost(registry.post)
    running = asyncio.create_task(acks.run())
    try:
        yield acks
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


async def until(registry: Registry, bodies: int) -> None:
    async with asyncio.timeout(10):
        while len(registry.bodies) < bodies:  # noqa: ASYNC110 - a condition of the test's
            await asyncio.sleep(0)


async def test_one_goes_alone_and_what_comes_meanwhile_together() -> None:
    registry = Registry()
    async with posting(registry) as acks:
        acks.put(b"1")
        await until(registry, 1)
        for n in (b"2", b"3"):
            acks.put(n)
        registry.gate.set()
        await until(registry, 2)
    assert registry.bodies == [b"[1]", b"[2,3]"]


async def test_what_waits_has_a_limit() -> None:
    registry = Registry()
    async with posting(registry) as acks:
        for n in range(WAITING_MAX - 1):
            acks.put(b"%d" % n)
        assert not acks.is_full()
        for n in range(KEPT_MAX + 10):
            acks.put(b"%d" % n)
        assert acks.is_full()
        registry.gate.set()
        await until(registry, KEPT_MAX // TOGETHER_MAX)
    assert max(body.count(b",") for body in registry.bodies) == TOGETHER_MAX - 1
    assert registry.bodies[-1].endswith(b"%d]" % (KEPT_MAX + 9))


async def test_those_that_do_not_arrive_are_forgotten() -> None:
    registry = Registry()
    registry.gate.set()
    async with posting(registry) as acks:
        registry.away = True
        acks.put(b"1")
        await until(registry, 1)
        registry.away = False
        acks.put(b"2")
        await until(registry, 2)
    assert registry.bodies == [b"[1]", b"[2]"]


async def test_what_comes_soon_after_a_request_waits_for_company(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ack_post, "GATHER_S", 0.5)
    registry = Registry()
    registry.gate.set()
    async with posting(registry) as acks:
        acks.put(b"1")
        await until(registry, 1)
        for n in (b"2", b"3"):
            acks.put(n)
            for _ in range(10):
                await asyncio.sleep(0)
        await until(registry, 2)
    assert registry.bodies == [b"[1]", b"[2,3]"]


async def test_lane_0_waits_for_no_company_and_takes_along_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it came while a request was under way, or stands behind more than one request takes."""
    monkeypatch.setattr(ack_post, "GATHER_S", 3_600.0)
    registry = Registry()
    async with posting(registry) as acks:
        acks.put(b"1")
        await until(registry, 1)
        acks.put(b"2", at_once=True)
        registry.gate.set()
        await until(registry, 2)
        acks.put(b"3")
        acks.put(b"4", at_once=True)
        await until(registry, 3)
        for _ in range(2 * TOGETHER_MAX):
            acks.put(b"5")
        acks.put(b"6", at_once=True)
        await until(registry, 6)
    assert registry.bodies[1:3] == [b"[2]", b"[3,4]"]
    assert registry.bodies[-1] == b"[6]"


async def test_a_full_request_waits_for_no_company(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ack_post, "GATHER_S", 3_600.0)
    registry = Registry()
    registry.gate.set()
    async with posting(registry) as acks:
        acks.put(b"1")
        await until(registry, 1)
        for _ in range(TOGETHER_MAX):
            acks.put(b"2")
        await until(registry, 2)
    assert registry.bodies[1].count(b"2") == TOGETHER_MAX
