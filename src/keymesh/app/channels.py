"""Bounded mailboxes behind long polls: what a server wants to tell peers that only ever call in.

A message leaves its mailbox when a poll takes it; if that answer is lost, so is the message, and the machine that
sent it sends it again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

MAILBOX_MAX = 4096


class Mailbox:
    """At most ``MAILBOX_MAX`` messages; the oldest gives way."""

    def __init__(self) -> None:
        self._items: deque[Any] = deque(maxlen=MAILBOX_MAX)
        self._filled = asyncio.Event()

    def put(self, item: Any) -> None:
        self._items.append(item)
        self._filled.set()

    async def take(self, *, timeout_s: float, max_items: int = 64) -> list[Any]:
        """What is there, oldest first; waits up to ``timeout_s`` for the first one."""
        if not self._items:
            self._filled.clear()
            try:
                await asyncio.wait_for(self._filled.wait(), timeout_s)
            except TimeoutError:
                return []
        return [self._items.popleft() for _ in range(min(max_items, len(self._items)))]


class Mailboxes:
    def __init__(self) -> None:
        self._boxes: dict[tuple[str, str], Mailbox] = {}

    def of(self, peer: str, channel: str) -> Mailbox:
        return self._boxes.setdefault((peer, channel), Mailbox())
