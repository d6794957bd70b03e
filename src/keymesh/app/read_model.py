"""Keeps the projection beside the Registry's machine: in one thread of its own, so the event loop never waits for it.

What the machine reports is taken at once; whatever goes wrong there (a database that is away, a gap, a place lost to
another replica) is made good by reading the log on from where the projection is.  While the database is away commands,
leases and restrictions go on; only reads say so.  Everything is done in the order in which it was asked for, so a read
sees what was reported before it.

1. At start: take the writer's place, read on, and verify all that is held against the whole log.
2. Every second: if something is missing, read on.  A replica without the place only looks on, and takes it once the
   projection has stood still behind the log for ``GRACE_S``; the time decides who works, never whether it is right.
3. Every ``SAMPLE_S``: compare some namespaces with the log's heads, in turn.  What does not follow from the log answers
   nobody, is reported, and is made anew by whoever has the place.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, TypeVar

from keymesh.adapters.sql_projection import Read, SqlProjection
from keymesh.app.lifeline import die
from keymesh.control.entry import SignedEntry
from keymesh.control.log import ControlLog
from keymesh.model.errors import Integrity, KeymeshError, Unavailable
from keymesh.registry.projection import Commit, Fenced
from keymesh.registry.records import KillRecord

log = logging.getLogger("keymesh.registry")

GRACE_S: Final = 2.0
GRACE_DOUBTED_S: Final = 30.0
SAMPLE_S: Final = 5.0
SAMPLE_NAMESPACES: Final = 8
PENDING_MAX: Final = 256
WATCH_S: Final = 1.0
REBUILD_WAIT_MAX_S: Final = 60.0
READ_S: Final = 10.0
SWITCH_S: Final = 0.0005
"""How long the thread may keep the interpreter from the event loop, which gives it up at every signature and send; the
interpreter's own 5 ms make commands wait for the projection."""

T = TypeVar("T")


class ReadModel:
    """``generation`` rises whenever what lies beside the log (kill-switch records, deliveries) may have to be shown
    again."""

    def __init__(self, projection: SqlProjection, control_log: ControlLog) -> None:
        self._projection, self._log = projection, control_log
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="projection")
        sys.setswitchinterval(SWITCH_S)
        self._mine = False
        self._behind = True
        self._pending = 0
        self._offered: deque[Commit] = deque()  # beyond what the thread has begun
        self._stalled: tuple[int, float] = (-1, 0.0)
        self._sampled_at = time.monotonic()
        self._next_sample = ""
        self._reported = ""
        self._rebuild_not_before, self._rebuild_wait_s = 0.0, 1.0
        self.generation = 0
        self.on_taken: Callable[[], None] = lambda: None  # called after each commit that was taken
        self.claimed = projection.claimed

    async def _do(self, work: Callable[..., T], *args: Any, **named: Any) -> T:
        """``work`` in its turn.  Who waits looks after the thread: a server that stands still must not keep it."""
        doing = asyncio.get_running_loop().run_in_executor(self._thread, partial(work, *args, **named))
        doing.add_done_callback(lambda done: done.cancelled() or done.exception())  # a caller may be gone by then
        while not (await asyncio.wait((doing,), timeout=WATCH_S))[0]:
            self._projection.interrupt_if_stuck()
        return doing.result()

    @property
    def behind(self) -> bool:
        """Whether something went wrong that is not made good yet; to look on is nothing wrong."""
        return self._behind and self._reported not in ("", "fenced")

    # --- what the Registry asks for ------------------------------------------------------------------------------

    def offer(self, index: int, entries: Sequence[SignedEntry]) -> None:
        """A commit that the machine has verified; taken soon, by whoever has the place."""
        if self._behind or not self._mine:
            return
        if self._pending >= PENDING_MAX:
            self._behind = True
            return
        self._pending += 1
        self._offered.append((index, entries))
        work = asyncio.get_running_loop().run_in_executor(self._thread, self._take_offered)
        work.add_done_callback(self._taken)

    def _take_offered(self) -> None:
        """In the thread: all that was offered by now, in one transaction, so that a busy database is not asked more
        often than it answers."""
        commits = []
        while self._offered:
            commits.append(self._offered.popleft())
        if commits:
            self._projection.apply_all(commits)

    def _taken(self, work: asyncio.Future[None]) -> None:
        self._pending -= 1
        if work.cancelled() or (failed := work.exception()) is None:
            self.on_taken()
            return
        if not isinstance(failed, KeymeshError):
            die("the projection failed", failed)
            return
        self._behind = True
        self._failed(failed)

    def _failed(self, failed: KeymeshError) -> None:
        """Say once what is wrong."""
        if isinstance(failed, Fenced):
            self._mine = False
        if failed.code != self._reported:
            self._reported = failed.code
            say = log.error if isinstance(failed, Integrity) else log.warning
            say("read model behind", extra={"fields": {"code": failed.code, "reason": failed.message}})

    async def read(self, table: str, *, at_least: int = 0, limit: int = 1_000, **equal: Any) -> Read:
        """As ``SqlProjection.read``; Unavailable also where the answer does not come in ``READ_S``."""
        try:
            async with asyncio.timeout(READ_S):
                return await self._do(self._projection.read, table, at_least=at_least, limit=limit, **equal)
        except TimeoutError as late:
            raise Unavailable("projection", "the read model's database does not answer") from late

    async def index(self) -> int:
        return await self._do(self._projection.index)

    async def put_kill(self, record: KillRecord) -> None:
        """Raises Fenced, Unavailable."""
        await self._beside(self._projection.put_kill, record)

    async def delivered(self, region: str, namespace: str, seq: int) -> None:
        """Raises Fenced, Unavailable."""
        await self._beside(self._projection.delivered, region, namespace, seq)

    async def undelivered(self) -> list[tuple[str, str, int]]:
        """As ``SqlProjection.undelivered``, for whoever has the place.  Raises Fenced, Unavailable."""
        return await self._beside(self._projection.undelivered)

    async def _beside(self, work: Callable[..., T], *args: Any) -> T:
        if not self._mine:
            raise Fenced("fenced", "another replica shows it", field="token")
        try:
            return await self._do(work, *args)
        except Fenced:
            self._mine = False
            raise

    # --- life ----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Bring the projection forward and verify it; a database that is away is waited for later.

        Raises Refused for a schema that is not this release's.
        """
        try:
            try:
                await self._take_place()
                await self._bring_forward()
                await self._do(self._projection.verify, await self._log.read(0))
            except Integrity as bad:
                await self._rebuild(bad.message)
        except (Unavailable, Fenced) as away:
            self._behind = True
            self._failed(away)

    async def tick(self) -> None:
        """What is due now; failures are reported and tried again at the next tick."""
        try:
            if not self._mine:
                await self._look_on()
            elif self._behind:
                await self._bring_forward()
            if time.monotonic() - self._sampled_at >= SAMPLE_S:
                self._sampled_at = time.monotonic()
                await self._sample()
        except KeymeshError as failed:
            self._behind = True
            self._failed(failed)

    async def close(self) -> None:
        """After what was asked for is done."""
        await self._do(self._projection.close)
        self._thread.shutdown()

    async def _take_place(self) -> None:
        await self._do(self._projection.take_place)
        self._mine = True
        self._behind = True

    async def _bring_forward(self) -> None:
        """Read the log on from where the projection is; make anew what does not follow from it."""
        self._behind = False  # what is offered from here on comes after what is read
        self.generation += 1
        wrong = await self._do(self._projection.doubt)
        if wrong is None:
            try:
                index = await self._do(self._projection.index)
                read = await self._log.read(index)
                if read[0] < index:
                    raise Integrity("projection-ahead", f"at {index}, the log is at {read[0]}", field="index")
                await self._do(self._projection.catch_up, read)
            except Integrity as bad:
                wrong = bad.code
        if wrong is not None:
            await self._rebuild(wrong)
        self._reported = ""

    async def _rebuild(self, wrong: str) -> None:
        """Raises Unavailable where the last try failed only just now: it costs a read of the whole log."""
        now = time.monotonic()
        if now < self._rebuild_not_before:
            raise Unavailable("doubted", f"the read model is to be made anew: {wrong}")
        self._rebuild_not_before = now + self._rebuild_wait_s
        self._rebuild_wait_s = min(REBUILD_WAIT_MAX_S, 2 * self._rebuild_wait_s)
        log.error("read model is made anew", extra={"fields": {"reason": wrong}})
        self._mine, self._behind = True, False
        await self._do(self._projection.rebuild, await self._log.read(0))
        self.generation += 1
        self._rebuild_not_before, self._rebuild_wait_s = 0.0, 1.0
        log.warning("read model was made anew", extra={"fields": {"index": await self.index()}})

    async def _look_on(self) -> None:
        """Another replica writes, as long as it does."""
        index, doubt = await self.index(), await self._do(self._projection.doubt)
        log_index, _ = await self._log.heads()
        self._reported = ""
        now = time.monotonic()
        if (index >= log_index and doubt is None) or index != self._stalled[0]:
            self._stalled = (index, now)
        elif now - self._stalled[1] >= (GRACE_S if doubt is None else GRACE_DOUBTED_S):
            await self._take_place()
            await self._bring_forward()

    async def _sample(self) -> None:
        """Some namespaces, in turn; and whether another replica found something."""
        if await self._do(self._projection.doubt) is not None:
            self._behind = True  # made anew at the next tick
            return
        log_index, heads = await self._log.heads()
        names = sorted(heads)
        later = [name for name in names if name >= self._next_sample]
        chosen = (later + names)[: min(SAMPLE_NAMESPACES, len(names))]
        for name in chosen:
            await self._do(self._projection.sample, log_index, heads, name)
        if chosen:
            self._next_sample = chosen[-1] + "\0"
