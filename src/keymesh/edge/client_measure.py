"""How near an Edge's Cores are, and whether they serve: a short question to each, now and then.

Decides nothing: ``choice`` says what follows.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from keymesh.edge.snapshot import Measured
from keymesh.model.errors import KeymeshError
from keymesh.model.machine import Address

EVERY_S: Final = 5.0
TIMEOUT_S: Final = 2.0
FIRST_ROUNDS: Final = 4
FIRST_PAUSE_S: Final = 0.25
"""So that an Edge knows its Cores before it needs another one."""
_MS_NS: Final = 1_000_000


class Measuring:
    """``ready(url)`` asks a Core; ``feed`` tells the machine.  ``name``: whose pauses these are, to spread them."""

    def __init__(
        self,
        cores: Mapping[Address, str],
        ready: Callable[[str], Awaitable[None]],
        feed: Callable[[Measured], None],
        clock_ns: Callable[[], int],
        *,
        name: str,
    ) -> None:
        self._cores, self._ready, self._feed, self._clock_ns, self._name = cores, ready, feed, clock_ns, name
        self._broke = {core: asyncio.Event() for core in cores}

    def stream_broke(self, core: Address) -> None:
        """Its stream ended: ask it at once."""
        self._broke[core].set()

    async def run(self, core: Address) -> None:
        """For ever."""
        rounds = 0
        while True:
            took_ms = await self._ask(core)
            self._feed(Measured(core, took_ms))  # the first opened the connection, which takes longer the farther it is
            rounds += 1
            pause_s = EVERY_S * (0.5 + spread(f"{self._name}/{core}/{rounds}") / 2)
            self._broke[core].clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._broke[core].wait(), pause_s if rounds > FIRST_ROUNDS else FIRST_PAUSE_S)

    async def _ask(self, core: Address) -> int | None:
        began_ns = self._clock_ns()
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await self._ready(self._cores[core])
        except (KeymeshError, TimeoutError):
            return None
        return (self._clock_ns() - began_ns) // _MS_NS


def spread(word: str) -> float:
    """0 to 1, by hash."""
    return int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big") / 2**32
