"""Acknowledgements of tasks that came by the broker, many in one request to one replica of the Registry.

One request is under way at a time, and what comes meanwhile goes with the next: alone when there is little to do,
together when there is much.  For ``GATHER_S`` after a request the next one waits for company, but not with an
acknowledgement of Lane 0, nor once it is full.  One that fails is forgotten: the Registry repeats the tasks, or a
heartbeat tells it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final

from keymesh.model.errors import KeymeshError

log = logging.getLogger("keymesh.broker")

GATHER_S: Final = 0.02
TOGETHER_MAX: Final = 64
WAITING_MAX: Final = 128
KEPT_MAX: Final = 8 * WAITING_MAX


class AckPost:
    """``post``: one request.  Raises KeymeshError where it does not arrive."""

    def __init__(self, post: Callable[[bytes], Awaitable[Any]]) -> None:
        self._post = post
        self._waiting: deque[bytes] = deque(maxlen=KEPT_MAX)
        self._came = asyncio.Event()
        self._hurry = asyncio.Event()

    def put(self, raw: bytes, *, at_once: bool = False) -> None:
        """One encoded message, to go with the next request; where too many wait, the oldest gives way.

        ``at_once``: that request does not wait for more.
        """
        self._waiting.append(raw)
        self._came.set()
        if at_once or len(self._waiting) >= TOGETHER_MAX:
            self._hurry.set()

    def is_full(self) -> bool:
        return len(self._waiting) >= WAITING_MAX

    async def run(self) -> None:
        """For ever."""
        while True:
            await self._came.wait()
            self._came.clear()
            while self._waiting:
                together = [self._waiting.popleft() for _ in range(min(TOGETHER_MAX, len(self._waiting)))]
                if not self._waiting:
                    self._hurry.clear()
                try:
                    await self._post(b"[" + b",".join(together) + b"]")
                except KeymeshError as lost:
                    log.debug("acknowledgements not delivered", extra={"fields": {"reason": lost.code}})
                await self._gather()

    async def _gather(self) -> None:
        try:
            async with asyncio.timeout(GATHER_S):
                await self._hurry.wait()
        except TimeoutError:
            pass
