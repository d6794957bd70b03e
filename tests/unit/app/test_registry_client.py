"""The Registry's replicas as one peer."""

from __future__ import annotations

from typing import Any

import pytest

from keymesh.app.registry_client import RegistryClient
from keymesh.model.errors import Refused, Unavailable


class Fake:
    def __init__(self, url: str, asked: list[str], away: set[str]) -> None:
        self.url, self.asked, self.away, self.closed = url, asked, away, False

    async def request(self, method: str, path: str, **_: Any) -> tuple[int, bytes]:
        self.asked.append(self.url)
        if self.url in self.away:
            raise Unavailable("unreachable", f"{self.url} is away")
        if path == "/no":
            raise Refused("denied", "no")
        return 200, self.url.encode()

    async def close(self) -> None:
        self.closed = True


def three(away: set[str]) -> tuple[RegistryClient, list[str], list[Fake]]:
    asked: list[str] = []
    made: list[Fake] = []

    def make(url: str) -> Any:
        made.append(Fake(url, asked, away))
        return made[-1]

    return RegistryClient(("a", "b", "c"), make), asked, made


async def test_the_first_is_asked_while_it_answers() -> None:
    client, asked, made = three(set())
    for _ in range(3):
        assert await client.request("GET", "/") == (200, b"a")
    assert asked == ["a"] * 3
    assert len(made) == 1
    await client.close()
    assert made[0].closed


async def test_the_next_is_asked_where_one_is_away_and_kept_to() -> None:
    away = {"a"}
    client, asked, _ = three(away)
    assert (await client.request("GET", "/"))[1] == b"b"
    away.clear()
    assert (await client.request("GET", "/"))[1] == b"b"
    away |= {"b", "c"}
    assert (await client.request("GET", "/"))[1] == b"a"
    assert asked == ["a", "b", "b", "b", "c", "a"]


async def test_a_refusal_is_final_and_nobody_else_is_asked() -> None:
    client, asked, _ = three(set())
    with pytest.raises(Refused):
        await client.request("GET", "/no")
    assert asked == ["a"]


async def test_where_all_are_away_the_first_says_why() -> None:
    client, asked, _ = three({"a", "b", "c"})
    with pytest.raises(Unavailable, match="a is away"):
        await client.request("GET", "/")
    assert asked == ["a", "b", "c"]
