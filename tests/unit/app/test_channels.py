"""Mailboxes: in order, bounded, and nothing lost by a poll that gives up."""

from __future__ import annotations

import asyncio
import zlib

import pytest

from keymesh.app.channels import MAILBOX_MAX, Mailbox, Mailboxes, pack, unpack
from keymesh.model.errors import Refused


async def test_oldest_first_and_no_more_than_asked_for() -> None:
    box = Mailbox()
    for n in range(5):
        box.put(n)
    assert await box.take(timeout_s=1, max_items=2) == [0, 1]
    assert await box.take(timeout_s=1) == [2, 3, 4]
    assert await box.take(timeout_s=0.005) == []


async def test_a_waiting_poll_is_woken_by_the_first_message() -> None:
    box = Mailbox()
    waiting = asyncio.create_task(box.take(timeout_s=5))
    await asyncio.sleep(0)
    box.put("a")
    box.put("b")
    assert await waiting == ["a", "b"]


async def test_of_two_waiting_polls_one_gets_it_and_the_other_nothing() -> None:
    box = Mailbox()
    polls = [asyncio.create_task(box.take(timeout_s=0.2)) for _ in range(2)]
    await asyncio.sleep(0)
    box.put("a")
    assert sorted(await asyncio.gather(*polls)) == [[], ["a"]]


async def test_a_poll_that_is_given_up_takes_nothing_along() -> None:
    box = Mailbox()
    poll = asyncio.create_task(box.take(timeout_s=5))
    await asyncio.sleep(0)
    poll.cancel()
    await asyncio.gather(poll, return_exceptions=True)
    box.put("a")
    assert await box.take(timeout_s=1) == ["a"]


async def test_a_full_mailbox_drops_its_oldest() -> None:
    box = Mailbox()
    for n in range(MAILBOX_MAX + 3):
        box.put(n)
    taken = await box.take(timeout_s=1, max_items=2 * MAILBOX_MAX)
    assert (len(taken), taken[0], taken[-1]) == (MAILBOX_MAX, 3, MAILBOX_MAX + 2)


async def test_a_copy_takes_the_place_of_the_one_that_still_waits() -> None:
    box = Mailbox()
    box.put("a1", key="a")
    for n in range(2 * MAILBOX_MAX):
        box.put(f"b{n}", key="b")
    box.put("c1", key="c")
    box.put("a2", key="a")
    assert await box.take(timeout_s=1, max_items=2) == ["a2", f"b{2 * MAILBOX_MAX - 1}"]
    box.put("a3", key="a")  # the earlier one is taken: this one is behind
    assert await box.take(timeout_s=1) == ["c1", "a3"]
    assert box.is_empty()


async def test_what_has_no_key_is_never_a_copy() -> None:
    box = Mailbox()
    for _ in range(3):
        box.put("same")
    assert await box.take(timeout_s=1) == ["same"] * 3


async def test_an_answer_has_a_size_but_for_its_first_message() -> None:
    box = Mailbox()
    for size in (9, 2, 3, 4):
        box.put(b"x" * size)
    sizes = [[len(one) for one in await box.take(timeout_s=1, max_bytes=5)] for _ in range(3)]
    assert sizes == [[9], [2, 3], [4]]


async def test_a_poll_that_does_not_wait_is_answered_at_once() -> None:
    box = Mailbox()
    assert await box.take(timeout_s=0) == []
    box.put("a")
    assert await box.take(timeout_s=0) == ["a"]


async def test_each_peer_and_channel_has_its_own() -> None:
    boxes = Mailboxes()
    boxes.of("a", "lane0").put(1)
    assert boxes.of("a", "lane0") is boxes.of("a", "lane0")
    for peer, channel in (("a", "lane1"), ("b", "lane0")):
        assert await boxes.of(peer, channel).take(timeout_s=0.001) == []
    assert await boxes.of("a", "lane0").take(timeout_s=1) == [1]


async def test_the_longest_unused_empty_one_gives_way() -> None:
    boxes = Mailboxes(most=3)
    boxes.of("a", "lane0").put(1)
    idle = boxes.of("b", "lane0")
    boxes.of("c", "lane0")
    boxes.of("d", "lane0")
    assert len(boxes) == 3
    assert boxes.of("b", "lane0") is not idle
    assert await boxes.of("a", "lane0").take(timeout_s=1) == [1]


async def test_of_full_ones_the_longest_unused_gives_way() -> None:
    boxes = Mailboxes(most=2)
    for peer in "abc":
        boxes.of(peer, "lane0").put(peer)
    assert len(boxes) == 2
    assert await boxes.of("c", "lane0").take(timeout_s=1) == ["c"]
    assert await boxes.of("b", "lane0").take(timeout_s=1) == ["b"]
    assert await boxes.of("a", "lane0").take(timeout_s=0.001) == []


async def test_one_at_which_a_poll_waits_stays() -> None:
    boxes = Mailboxes(most=1)
    poll = asyncio.create_task(boxes.of("a", "stream").take(timeout_s=5))
    await asyncio.sleep(0)
    for n in range(10):
        boxes.of(f"p{n}", "stream").put(n)
    assert len(boxes) == 2
    boxes.of("a", "stream").put("told")
    assert await poll == ["told"]
    boxes.of("b", "stream")
    assert len(boxes) == 1


@pytest.mark.parametrize("body", [b"", b"[]", b'["' + b"a" * 100_000 + b'"]'])
def test_what_is_packed_comes_out_again(body: bytes) -> None:
    assert unpack(pack(body)) == body


def test_much_is_packed_small_and_little_is_left() -> None:
    assert pack(b"[]") == b"[]"
    assert len(pack(b'["' + b"a" * 100_000 + b'"]')) < 1_000


@pytest.mark.parametrize(
    "raw",
    [
        b"x",
        b"\x78\x9c\xff",
        zlib.compress(b"[" + b"1," * 1_000 + b"1]")[:-3],  # broken off
        zlib.compress(b"[]") + b"more",
        zlib.compress(b" " * 10_000),  # of more than the limit below
    ],
)
def test_what_is_no_packed_channel_is_refused(raw: bytes) -> None:
    with pytest.raises(Refused):
        unpack(raw, max_bytes=5_000)
