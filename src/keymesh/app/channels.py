"""Bounded mailboxes behind long polls: what a server wants to tell peers that only ever call in; and the poll.

A message leaves its mailbox when a poll takes it; if that answer is lost, so is the message, and the machine that
sent it sends it again.  What is sent again while its earlier copy still waits takes that copy's place: a peer that was
away finds each thing once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import zlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from itertools import islice
from typing import Any, Final

from keymesh.adapters.http_client import PeerClient
from keymesh.model import strict_json
from keymesh.model.errors import Integrity, Refused, Unavailable

log = logging.getLogger("keymesh.channels")

MAILBOX_MAX = 4096
MAILBOXES_MAX = 65_536
_LOOK_AT = 64

ANSWER_MAX_BYTES: Final = 4 * 1024 * 1024
POLL_TIMEOUT_S: Final = 30.0
PROBE_TIMEOUT_S: Final = 5.0
BACKOFF_MIN_S, BACKOFF_MAX_S = 0.05, 1.0
CATCH_UP_S: Final = 3.0
PACK_FROM_BYTES: Final = 512
_NOTHING_BYTES: Final = 2  # "[]"


class Mailbox:
    """At most ``MAILBOX_MAX`` messages; the oldest gives way."""

    def __init__(self) -> None:
        self._items: OrderedDict[Hashable, Any] = OrderedDict()
        self._filled = asyncio.Event()
        self._waiting = 0

    def put(self, item: Any, *, key: Hashable = None) -> None:
        """Behind the others; or, where one with the same ``key`` still waits, in that one's place."""
        self._items[object() if key is None else key] = item
        if len(self._items) > MAILBOX_MAX:
            self._items.popitem(last=False)
        self._filled.set()

    async def take(self, *, timeout_s: float, max_items: int = 64, max_bytes: int | None = None) -> list[Any]:
        """What is there, oldest first; waits up to ``timeout_s`` for the first one.

        Where ``max_bytes`` is given the items are bytes; the first is taken however large it is.
        """
        if not self._items and timeout_s > 0:
            self._filled.clear()
            self._waiting += 1
            try:
                await asyncio.wait_for(self._filled.wait(), timeout_s)
            except TimeoutError:
                return []
            finally:
                self._waiting -= 1
        taken: list[Any] = []
        size = 0
        while self._items and len(taken) < max_items:
            if max_bytes is not None:
                size += len(next(iter(self._items.values())))
                if taken and size > max_bytes:
                    break
            taken.append(self._items.popitem(last=False)[1])
        return taken

    def clear(self) -> None:
        """What is there is out of date: whoever put it sends what counts now."""
        self._items.clear()

    def is_empty(self) -> bool:
        return not self._items

    def is_awaited(self) -> bool:
        """Whether a poll waits at it."""
        return self._waiting > 0


class Mailboxes:
    """At most ``MAILBOXES_MAX``, beside those at which a poll waits.

    Of those that have gone longest without use an empty one gives way, else the oldest at which nobody waits: it is
    of a peer that is gone, and what is in it is sent again should the peer come back.
    """

    def __init__(self, *, most: int = MAILBOXES_MAX) -> None:
        self._boxes: OrderedDict[tuple[str, str], Mailbox] = OrderedDict()
        self._most = most

    def __len__(self) -> int:
        return len(self._boxes)

    def of(self, peer: str, channel: str) -> Mailbox:
        """That peer's mailbox; good for one put or take, for it may give way between two."""
        key = (peer, channel)
        box = self._boxes.get(key)
        if box is None:
            while len(self._boxes) >= self._most and self._drop_one():
                pass
            box = self._boxes[key] = Mailbox()
        self._boxes.move_to_end(key)
        return box

    def _drop_one(self) -> bool:
        idle = [key for key in islice(self._boxes, _LOOK_AT) if not self._boxes[key].is_awaited()]
        if idle:
            del self._boxes[next((key for key in idle if self._boxes[key].is_empty()), idle[0])]
        return bool(idle)


def pack(body: bytes) -> bytes:
    """``body`` as it travels to a peer that asked for ``form=zlib``: packed where that pays.

    Nothing in a channel is secret to the one who reads it, and nobody else's text is beside it.
    """
    return zlib.compress(body) if len(body) > PACK_FROM_BYTES else body


def unpack(body: bytes, *, max_bytes: int = ANSWER_MAX_BYTES) -> bytes:
    """What ``pack`` was given.  Raises Refused: not whole, or of more than ``max_bytes``."""
    if not body or body.startswith(b"["):
        return body
    unpacker = zlib.decompressobj()
    try:
        plain = unpacker.decompress(body, max_bytes)
    except zlib.error as bad:
        raise Refused.bad_field("channel", "an array of messages") from bad
    if not unpacker.eof or unpacker.unused_data:
        raise Refused.bad_field("channel", f"an array of messages of at most {max_bytes} bytes")
    return plain


def split_messages(body: bytes, *, max_bytes: int = ANSWER_MAX_BYTES) -> list[Any]:
    """The array of messages that a channel answered with.  Raises Refused for anything else."""
    plain = strict_json.loads(body, max_bytes=max_bytes) if body else []
    if not isinstance(plain, list):
        raise Refused.bad_field("channel", "an array of messages")
    return plain


class Catching:
    """Whether a Core that lost a replica of the Registry has heard since what waited there in Lane 0.

    Until it has, its other lanes do not ask that replica; but no longer than ``CATCH_UP_S``, for none may be held up by
    another that stands still.
    """

    def __init__(self) -> None:
        self._heard = asyncio.Event()
        self._heard.set()

    def lost(self) -> None:
        self._heard.clear()

    def caught_up(self) -> None:
        self._heard.set()

    async def wait(self) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._heard.wait(), CATCH_UP_S)


async def follow(
    client: PeerClient,
    channel: str,
    *,
    receive: Callable[[bytes], None],
    on_return: Callable[[], Awaitable[None]] | None = None,
    catching: Catching,
) -> None:
    """Long polls of the Registry's ``channel``, for ever; ``receive`` gets each answer.

    After a loss the first poll is answered at once; a Registry that still reads its log is not there yet.  The channel
    with ``on_return``, Lane 0's, leads: it calls that before its ``receive``, takes all that waits, and only then do
    the others ask again.
    """
    backoff = BACKOFF_MIN_S
    is_lost = is_behind = False
    while True:
        if is_lost and on_return is None:
            await catching.wait()
        hurried = is_lost or is_behind
        query, limit_s = ({"wait": "no"}, PROBE_TIMEOUT_S) if hurried else (dict[str, str](), POLL_TIMEOUT_S)
        try:
            _, raw = await client.request(
                "GET", f"/v1/channels/{channel}", query={**query, "form": "zlib"}, timeout_s=limit_s
            )
            body = unpack(raw)
            if is_lost and on_return is not None:
                await on_return()
                is_behind = True
            is_lost = False
            backoff = BACKOFF_MIN_S
            receive(body)
            if is_behind and len(body) <= _NOTHING_BYTES:
                is_behind = False
                catching.caught_up()
        except (Unavailable, Refused, Integrity) as lost:
            is_lost = True
            if on_return is not None:
                catching.lost()
            log.info("channel lost", extra={"fields": {"channel": channel, "reason": lost.code}})
            await asyncio.sleep(backoff * random.uniform(0.5, 1.0))
            backoff = min(BACKOFF_MAX_S, backoff * 2)
