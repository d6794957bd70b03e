"""What a drill sees of a mesh from outside: an application at one door, and a tenant's mode in one region.

Nothing here judges.  Instants are monotonic seconds; a use counts from when it began, a refusal when it was heard.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, Protocol

from keymesh.app.admin_client import AdminClient
from keymesh.app.faults_load import Door
from keymesh.app.faults_record import Record
from keymesh.model.errors import KeymeshError

PAUSE_S: Final = 0.02
LOOK_S: Final = 0.03
STATUS_TIMEOUT_S: Final = 2.0
UNREACHED: Final = "unreachable"
"""In place of a mode where the region's Core does not answer."""


@dataclass(frozen=True, slots=True)
class Use:
    """One data key minted, and an old one opened."""

    began: float
    ended: float
    served: bool


@dataclass(slots=True)
class Application:
    """Uses one door without end, and remembers how each use went."""

    door: Door
    record: Record
    uses: list[Use] = field(default_factory=list)

    async def run(self) -> None:
        kept = self.record.minted.setdefault((self.door.tenant, self.door.service), [])
        while True:
            began = time.monotonic()
            try:
                blob, key = await self.door.mint()
                self.record.mint(self.door.tenant, self.door.service, blob, key)
                old_blob, old_key = kept[0]
                if await self.door.open(old_blob) != old_key:
                    self.record.violations.append(f"{self.door.region} opened a blob to another key")
                self.uses.append(Use(began, time.monotonic(), served=True))
            except KeymeshError:  # refused, or nobody there to refuse
                self.uses.append(Use(began, time.monotonic(), served=False))
            await asyncio.sleep(PAUSE_S)

    def first(self, *, served: bool, since: float) -> Use | None:
        """The first use that began at or after ``since`` and was served, or refused."""
        return next((use for use in self.uses if use.began >= since and use.served is served), None)

    def last_served(self, *, since: float, before: float) -> Use | None:
        return next((u for u in reversed(self.uses) if u.served and since <= u.began < before), None)


@dataclass(slots=True)
class ModeWatch:
    """The modes of a tenant in a region, one after the other, each with when it was first seen."""

    client: AdminClient
    region: str
    tenant: str
    seen: list[tuple[float, str]] = field(default_factory=list)

    async def run(self) -> None:
        while True:
            mode = await self._mode()
            if not self.seen or self.seen[-1][1] != mode:
                self.seen.append((time.monotonic(), mode))
            await asyncio.sleep(LOOK_S)

    async def _mode(self) -> str:
        try:
            status = await self.client.call("GET", "/v1/status", target=self.region, timeout_s=STATUS_TIMEOUT_S)
        except KeymeshError:
            return UNREACHED
        return str(status["tenants"].get(self.tenant, {"mode": "absent"})["mode"])

    @property
    def path(self) -> list[str]:
        return [mode for _, mode in self.seen]

    def since(self, mode: str, after: float) -> float | None:
        """When that mode was first seen at or after ``after``."""
        return next((at for at, found in self.seen if at >= after and found == mode), None)


class Runs(Protocol):
    async def run(self) -> None: ...


@asynccontextmanager
async def watching(watches: Iterable[Runs]) -> AsyncIterator[None]:
    """All of them run; the first that fails fails the drill."""
    tasks = [asyncio.create_task(watch.run()) for watch in watches]
    try:
        yield
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
