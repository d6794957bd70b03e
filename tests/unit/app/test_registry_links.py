"""A Core's links to the Registry's replicas: all are told, and one that stands still delays nobody."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar, cast

import pytest

from keymesh.app import channels, registry_links
from keymesh.app.registry_links import CHANNELS, RegistryLinks
from keymesh.model.errors import Unavailable


class FakeClient:
    """``hangs``: it takes requests and never answers."""

    def __init__(self, url: str) -> None:
        self.base_url = url
        self.asked: list[tuple[str, str]] = []
        self.hangs = asyncio.Event()
        self.hangs.set()
        self.fails = False
        self.closed = False

    async def request(self, method: str, path: str, body: bytes | None = None, **_: Any) -> tuple[int, bytes]:
        self.asked.append((method, path))
        await self.hangs.wait()
        if self.fails:
            raise Unavailable("unreachable", "nobody there")
        if method == "GET":
            await asyncio.sleep(0.01)
        return 200, b"[]"

    async def close(self) -> None:
        self.closed = True


def links(*urls: str) -> tuple[RegistryLinks, list[FakeClient]]:
    made: list[FakeClient] = []

    def make(url: str) -> Any:
        made.append(FakeClient(url))
        return made[-1]

    return RegistryLinks(urls, make), made


async def test_each_replica_is_told_and_each_lane_of_each_is_listened_to() -> None:
    both, clients = links("https://a:1", "https://b:1")
    await asyncio.gather(*both.posts(b"{}"))
    posts = [c for c in clients if ("POST", "/v1/messages") in c.asked]
    assert [c.base_url for c in posts] == ["https://a:1", "https://b:1"]
    heard: list[bytes] = []
    polls = [asyncio.create_task(p) for p in both.follows(receive=heard.append, on_return=lambda: None)]
    await asyncio.sleep(0.05)
    for poll in polls:
        poll.cancel()
    asked = sorted((c.base_url, path) for c in clients for method, path in set(c.asked) if method == "GET")
    assert asked == sorted((u, f"/v1/channels/{n}") for u in ("https://a:1", "https://b:1") for n in CHANNELS)
    assert heard
    await both.close()
    assert all(c.closed for c in clients)


async def test_a_replica_that_stands_still_or_is_gone_delays_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_links, "IN_FLIGHT_MAX", 3)
    both, _ = links("https://a:1", "https://b:1")
    dead, alive = (link.post for link in both.links)
    dead.hangs.clear()  # type: ignore[attr-defined]
    out: list[asyncio.Task[None]] = []
    for _ in range(10):
        out += [asyncio.create_task(post) for post in both.posts(b"{}")]
        await asyncio.sleep(0.001)
    assert len(dead.asked) == 3  # type: ignore[attr-defined]
    assert len(alive.asked) == 10  # type: ignore[attr-defined]
    dead.fails = True  # type: ignore[attr-defined]
    dead.hangs.set()  # type: ignore[attr-defined]
    await asyncio.gather(*out)
    again = both.posts(b"{}")
    assert len(again) == 2, "there is room again"
    await asyncio.gather(*again)


async def test_one_that_is_back_is_greeted_once() -> None:
    one, clients = links("https://a:1")
    for client in clients:
        client.fails = True
    greetings: list[bool] = []
    polls = [
        asyncio.create_task(p) for p in one.follows(receive=lambda b: None, on_return=lambda: greetings.append(True))
    ]
    await asyncio.sleep(0.03)
    assert not greetings
    for client in clients:
        client.fails = False
    async with asyncio.timeout(10):
        while not greetings:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.2)
    assert greetings == [True]
    for poll in polls:
        poll.cancel()


class Scripted(FakeClient):
    """Lane 0 has ``waiting`` answers, then nothing; while ``away`` nobody is there.  ``order``: shared by all."""

    order: ClassVar[list[str]] = []
    away: ClassVar[bool] = False
    waiting: ClassVar[list[bytes]] = []

    async def request(self, method: str, path: str, body: bytes | None = None, **_: Any) -> tuple[int, bytes]:
        await asyncio.sleep(0.002)
        if Scripted.away:
            raise Unavailable("unreachable", "nobody there")
        name = path.rpartition("/")[2]
        if method == "POST":
            await asyncio.sleep(0.02)
        Scripted.order.append("hello" if method == "POST" else name)
        if name == "lane0" and Scripted.waiting:
            return 200, Scripted.waiting.pop(0)
        if method == "GET":
            await asyncio.sleep(0.05)
        return 200, b"[]"


async def test_after_a_loss_the_lower_lanes_ask_once_lane_0_is_empty_and_the_greeting_has_come() -> None:
    Scripted.order, Scripted.away, Scripted.waiting = [], True, [b'[{"n":1}]', b'[{"n":2}]']
    core = RegistryLinks(["https://a:1"], lambda url: cast(Any, Scripted(url)))
    posts: list[asyncio.Task[None]] = []

    def greet() -> None:
        posts.extend(asyncio.create_task(post) for post in core.posts(b"{}"))

    heard: list[bytes] = []
    polls = [asyncio.create_task(p) for p in core.follows(receive=heard.append, on_return=greet)]
    await asyncio.sleep(0.05)
    Scripted.away = False
    await asyncio.sleep(0.6)
    for task in (*polls, *posts):
        task.cancel()
    await asyncio.gather(*polls, *posts, return_exceptions=True)
    first_lower = min(Scripted.order.index(name) for name in ("lane1", "lane2", "control"))
    assert Scripted.order[:4] == ["lane0", "hello", "lane0", "lane0"] and first_lower >= 4
    assert heard[:2] == [b'[{"n":1}]', b'[{"n":2}]']


async def test_a_lane_0_that_stays_away_holds_up_the_others_for_a_while_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "CATCH_UP_S", 0.05)
    catching = channels.Catching()
    catching.lost()
    async with asyncio.timeout(5):
        await catching.wait()
