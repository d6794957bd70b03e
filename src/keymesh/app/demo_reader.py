"""Somebody who uses a key all the time: when the last use worked, when the first was refused."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from keymesh.app.demo_world import Customer, World, need
from keymesh.model.errors import KeymeshError

PAUSE_S: Final = 0.003
"""Between two uses: the resolution of an instant, without the readers starving what they measure."""
LOST: Final = frozenset({"unreachable", "timeout", "no-answer", "peer-answer"})
"""The Edge process did not answer: neither a success nor a refusal."""


@dataclass(slots=True)
class Seen:
    """Since the last ``mark``; instants are wall clock in ns, ``started`` of a request or of its answer."""

    successes: int = 0
    refusals: int = 0
    lost: int = 0
    first_success_ns: int | None = None
    last_success_started_ns: int = 0
    last_success_ns: int = 0
    first_refusal_ns: int | None = None
    code: str = ""
    successes_after_refusal: int = 0

    def succeeded(self, started_ns: int) -> None:
        self.successes += 1
        self.last_success_started_ns, self.last_success_ns = started_ns, time.time_ns()
        self.first_success_ns = self.first_success_ns or self.last_success_ns
        self.successes_after_refusal += self.first_refusal_ns is not None

    def refused(self, code: str) -> None:
        self.refusals += 1
        if self.first_refusal_ns is None:
            self.first_refusal_ns, self.code = time.time_ns(), code

    @property
    def ended_ns(self) -> int:
        """By when use had ended: the first refusal, or a success that came later still."""
        return max(self.first_refusal_ns or 0, self.last_success_ns)


@dataclass(slots=True)
class Reader:
    """Decrypts one blob at one region's Edge, over and over, and compares."""

    world: World
    region: str
    customer: Customer
    blob: str
    plaintext: str
    seen: Seen = field(default_factory=Seen)
    wrong: int = 0

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            seen, started_ns = self.seen, time.time_ns()
            try:
                answer = await self.world.edge(self.region, self.customer, "decrypt-key", {"blob": self.blob})
            except KeymeshError as bad:
                if bad.code in LOST:
                    seen.lost += 1
                else:
                    seen.refused(bad.code)
            else:
                seen.succeeded(started_ns)
                self.wrong += answer["plaintext"] != self.plaintext
            await asyncio.sleep(PAUSE_S)

    def mark(self) -> None:
        """Count afresh; a use that is under way still counts for what was."""
        self.seen = Seen()

    async def wait_served(self, timeout_s: float = 30.0) -> int:
        """The instant of the first success since the mark."""

        async def served() -> int | None:
            return self.seen.first_success_ns

        return await self._until(served, f"a key used again in {self.region}", timeout_s)

    async def wait_refused(self, timeout_s: float = 30.0) -> int:
        """The instant of the first refusal since the mark."""

        async def refused() -> int | None:
            return self.seen.first_refusal_ns

        return await self._until(refused, f"a refusal in {self.region}", timeout_s)

    async def _until(self, check: Callable[[], Awaitable[int | None]], what: str, timeout_s: float) -> int:
        return int(await self.world.until(check, what=what, timeout_s=timeout_s, pause_s=0.01))


@asynccontextmanager
async def reading(
    world: World, customer: Customer, regions: Iterable[str], *, served: bool = True
) -> AsyncIterator[dict[str, Reader]]:
    """Readers of the customer's one demo key at the Edges of ``regions``; with ``served``, each has had it once."""
    if customer.tenant not in world.probes:
        made = await world.edge(customer.home, customer, "create-key", {"plaintext": True})
        world.probes[customer.tenant] = made["blob"], made["plaintext"]
    readers = {r: Reader(world, r, customer, *world.probes[customer.tenant]) for r in regions}
    tasks = [asyncio.create_task(reader.run()) for reader in readers.values()]
    try:
        for reader in readers.values() if served else ():
            await reader.wait_served()
            reader.mark()
        yield readers
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    need(not any(reader.wrong for reader in readers.values()), "an Edge answered with another key")
