"""The loads of a Core: as many at a time as ``core.load_queue`` lets run, in its order."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

from keymesh.core.events import LoadKeys
from keymesh.core.load_queue import LoadQueue

LOADS_AT_ONCE: Final = 16


class CoreLoads:
    """``load`` does one and answers the machine; ``spawn`` runs it beside everything else."""

    def __init__(
        self, load: Callable[[LoadKeys], Awaitable[None]], spawn: Callable[[Coroutine[Any, Any, None]], None]
    ) -> None:
        self._load, self._spawn = load, spawn
        self.queue: Final = LoadQueue(LOADS_AT_ONCE)

    def offer(self, effect: LoadKeys) -> None:
        self.queue.offer(effect)
        self._go_on()

    def want(self, namespace: str) -> None:
        """Somebody waits for that tenant."""
        self.queue.want(namespace)

    def drop(self, namespace: str | None) -> None:
        self.queue.drop(namespace)

    def _go_on(self) -> None:
        while (effect := self.queue.take()) is not None:
            self._spawn(self._run(effect))

    async def _run(self, effect: LoadKeys) -> None:
        try:
            await self._load(effect)
        finally:
            self.queue.done(effect.namespace)
            self._go_on()
