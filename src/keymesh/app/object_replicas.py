"""The pull of other regions' sealed objects: one loop for each peer, which asks what changed and reads it by cursor.

A tenant that cannot be read just now, or an object that is none, holds up nobody else: each tenant has its turns, of a
few pages, and is tried again in the next round.  A peer that is away is asked ever more rarely, up to ``PAUSE_MAX_S``.
Once a minute the whole list is asked for, so that a tenant that was allowed since then is not missed.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from keymesh.model import strict_json
from keymesh.model.errors import KeymeshError, Unavailable
from keymesh.orbital.object_sync import (
    CHANGES_PATH,
    HEADS_PATH,
    START,
    HeadsAnswer,
    Lag,
    PageAnswer,
    check_heads,
    from_octets,
    is_behind,
    next_cursor,
    readable,
)

if TYPE_CHECKING:
    from keymesh.app.core_objects import CoreObjects
    from keymesh.app.peer_link import PeerLink

log = logging.getLogger("keymesh.core.objects")

EVERY_S: Final = 2.0
PAUSE_MAX_S: Final = 15.0
JITTER: Final = 0.25
WHOLE_LIST_S: Final = 60.0
ASK_S: Final = 10.0
PAGES_A_TURN: Final = 4
LISTS_A_ROUND: Final = 100
SILENT_MAX: Final = 3  # tenants of whom nobody answers, and the peer is left alone for a while
READ_NOW_S: Final = 15.0
TURNS_A_ROUND: Final = 250
_HEADS_MAX_BYTES: Final = 1024 * 1024


class ObjectReplica:
    """What one peer has, as far as it is here.  ``tenants()``: those that this region holds."""

    def __init__(self, objects: CoreObjects, peer: str, tenants: Callable[[], Iterable[str]]) -> None:
        self.objects, self.peer = objects, peer
        self._tenants = tenants
        self._watermark = 0
        self._origin = ""
        self._whole_at: float | None = None
        self.lag = Lag(began_at=objects.monotonic_s())
        self.counts: Counter[str] = Counter()
        self._told: set[str] = set()

    @property
    def link(self) -> PeerLink:
        return self.objects.link(self.peer)

    def shared(self) -> list[str]:
        """Tenants of which the two regions may speak."""
        return [tenant for tenant in self._tenants() if self.objects.may_exchange(tenant, self.peer)]

    async def run(self) -> None:
        """For ever."""
        pause_s = EVERY_S
        while True:
            try:
                await self.round()
                pause_s = EVERY_S
            except KeymeshError as failed:
                log.debug("objects not read", extra={"fields": {"region": self.peer, "reason": failed.code}})
                pause_s = min(PAUSE_MAX_S, pause_s * 2)
            drawn = int.from_bytes(self.objects.token(2), "big") / 0xFFFF
            await asyncio.sleep(pause_s * (1 - JITTER + 2 * JITTER * drawn))

    async def round(self) -> None:
        """Ask what changed, and read it.  Raises where the peer does not answer, or answers nonsense."""
        shared = set(self.shared())
        for tenant in self.lag.behind.keys() - shared:
            self.lag.caught_up(tenant)
        self._told &= shared
        if not shared:
            return
        asked_at = self.objects.monotonic_s()
        if self._whole_at is None or asked_at - self._whole_at >= WHOLE_LIST_S:
            self._watermark, self._whole_at = 0, asked_at
        if await self._look(shared):
            self.lag.was_level(asked_at)
        await self._read_all()

    async def _look(self, shared: set[str]) -> bool:
        """Take note of who changed; whether that is the whole list."""
        path = HEADS_PATH
        for _ in range(LISTS_A_ROUND):
            query = {"after": str(self._watermark)}
            _, raw = await self.link.request("GET", path, query=query, timeout_s=ASK_S)
            answer = strict_json.decode(raw, HeadsAnswer, max_bytes=_HEADS_MAX_BYTES)
            check_heads(answer, after=self._watermark)
            if answer.origin != self._origin:
                is_new, self._origin = bool(self._origin or self._watermark), answer.origin
                if is_new:  # another store: its places mean nothing to what we asked
                    self._watermark = 0
                    continue
            for tenant, head in answer.heads:
                cursor = self.objects.store.cursor(tenant, self.peer) if tenant in shared else None
                if tenant in shared and is_behind(cursor, origin=answer.origin, head=head):
                    self.lag.fell_behind(tenant)
            self._watermark = answer.upto
            if not answer.more:
                return True
        return False

    async def _read_all(self) -> None:
        """Whoever could be read the last time has the first turns."""
        waiting = sorted(self.lag.behind, key=lambda tenant: (tenant in self._told, tenant))
        silent = 0
        for _ in range(TURNS_A_ROUND):
            if not waiting:
                return
            tenant = waiting.pop(0)
            try:
                if await self._turn(tenant):
                    self.lag.caught_up(tenant)
                    self._told.discard(tenant)
                else:
                    waiting.append(tenant)
            except KeymeshError as failed:
                self._not_read(tenant, failed)
                silent += failed.code in ("timeout", "no-answer")
                if failed.code == "unreachable" or silent == SILENT_MAX:
                    raise

    def _not_read(self, tenant: str, why: KeymeshError) -> None:
        """Said once, until it could be read again."""
        if tenant not in self._told:
            self._told.add(tenant)
            fields = {"tenant": tenant, "region": self.peer, "reason": why.code}
            log.warning("a tenant's objects could not be read", extra={"fields": fields})

    async def read_now(self, tenant: str) -> None:
        """All that the peer has of ``tenant`` at this moment.  Raises Unavailable ``catching-up``."""
        try:
            async with asyncio.timeout(READ_NOW_S):
                while not await self._turn(tenant):
                    pass
        except (KeymeshError, TimeoutError) as failed:
            raise Unavailable(
                "catching-up", f"region {self.peer} may have a newer version and could not be asked"
            ) from failed

    async def _turn(self, tenant: str) -> bool:
        """A few pages of one tenant; whether that was all."""
        for _ in range(PAGES_A_TURN):
            if not self.objects.may_exchange(tenant, self.peer):
                return True
            asked = self.objects.store.cursor(tenant, self.peer) or START
            query = {"origin": asked.origin, "after": str(asked.position)}
            path = CHANGES_PATH.format(tenant=tenant)
            _, raw = await self.link.request("GET", path, query=query, timeout_s=ASK_S)
            page = from_octets(raw, PageAnswer)
            cursor = next_cursor(asked, page)
            offered, bad = readable(page.objects, tenant)
            if bad:
                self.counts["unreadable"] += bad
                log.error("objects that are none", extra={"fields": {"tenant": tenant, "region": self.peer, "n": bad}})
            await self.objects.receive(tenant, offered, source=self.peer, cursor=cursor)
            if not page.more:
                return True
        return False
