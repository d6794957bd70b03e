"""The schedule of one line of backups, beside everything else: a store that is away or hangs delays nobody.

Every ``interval_s`` an incremental backup, if anything changed; every ``full_every_s`` a full one.  What goes wrong is
an alarm (log, metric, status) and is tried again at the next turn; nothing waits for it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from typing import Any, Final, Protocol, TypeVar

from msgspec import Struct

from keymesh.app.backup_writer import BackupWriter, Draft, Position, Raced, Totals
from keymesh.control.backup_chunks import Item
from keymesh.control.backup_manifest import FUTURE_MAX_MS
from keymesh.control.purge_messages import BackupLine
from keymesh.model.errors import Integrity, KeymeshError, Unavailable

log = logging.getLogger("keymesh.backup")

CALL_MAX_S: Final = 60.0
RACES_MAX: Final = 5

T = TypeVar("T")


class Source(Protocol):
    """What there is to back up; lives on the event loop."""

    def pieces(self, after: Position | None) -> AsyncIterator[tuple[str, Sequence[Item]]]:
        """(kind, items) of what is new since ``after`` (None: of everything), in the order to be read back.

        Raises Unavailable, Integrity (what is here is behind ``after``, or is another history).
        """
        ...

    def knows(self, after: Position) -> bool:
        """Whether it can tell what is new since ``after``; else it needs a full backup."""
        ...

    def totals(self) -> Totals:
        """Of everything up to the last piece given."""
        ...

    def kept(self, position: Position) -> None:
        """All that was given is in the backup at ``position``."""
        ...


class BackupView(Struct, frozen=True, kw_only=True):
    """Where backups stand.  ``age_ms``: how old the newest state is that is known to be in the store; ``failing``: why
    the last turn failed, empty where it did not."""

    store: str
    seq: int
    epoch: int
    index: int
    entries: int
    blobs: int
    missing: int
    age_ms: int
    failing: str


class BackupKeeper:
    """``run`` for ever; ``once`` for whoever asks."""

    def __init__(
        self,
        writer: BackupWriter,
        source: Source,
        *,
        interval_s: float,
        full_every_s: float,
        now_ms: Callable[[], int],
        call_max_s: float = CALL_MAX_S,
    ) -> None:
        self._writer, self._source = writer, source
        self._interval_s, self._full_every_ms = interval_s, int(full_every_s * 1000)
        self._now_ms, self._call_max_s = now_ms, call_max_s
        self._lock = asyncio.Lock()
        self._thread: threading.Thread | None = None
        self._current_at = time.monotonic()
        self.failing = ""
        self.failures: Counter[str] = Counter()
        self.written = 0

    # --- what is shown -----------------------------------------------------------------------------------------------

    @property
    def age_s(self) -> float:
        """Since the newest state that is in the store was what there is; before the first, since the start."""
        return time.monotonic() - self._current_at

    def view(self) -> BackupView:
        """For status answers."""
        position = self._writer.position
        m = None if position is None else position.manifest
        return BackupView(
            store=self._writer.address,
            seq=0 if m is None else m.seq,
            epoch=0 if m is None else m.epoch,
            index=0 if m is None else m.index,
            entries=0 if m is None else m.entries,
            blobs=0 if m is None else m.blobs,
            missing=0 if m is None else m.missing,
            age_ms=int(self.age_s * 1000),
            failing=self.failing,
        )

    async def lines(self) -> tuple[BackupLine, ...]:
        """Every line of backups in the store, whoever writes it.  Raises Unavailable, Integrity."""
        async with self._lock:
            return await self._aside(self._writer.lines)

    # --- the schedule ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            with suppress(KeymeshError):  # said and counted in there
                await self.once()
            await asyncio.sleep(self._interval_s)

    async def once(self, *, full: bool = False) -> Position:
        """A backup of what there is now; the newest one where nothing changed.  Raises what stood in the way."""
        async with self._lock:
            try:
                position = await self._turn(full)
            except KeymeshError as failed:
                self._failed(failed)
                raise
            if self.failing:
                log.info("backups work again", extra={"fields": {"store": self._writer.address}})
                self.failing = ""
            return position

    async def _turn(self, full: bool) -> Position:
        for _ in range(RACES_MAX):
            with suppress(Raced):
                began = time.monotonic()
                position = await self._write(full)
                self._current_at = began
                return position
        raise Unavailable("raced", "other writers were first each time")

    async def _write(self, full: bool) -> Position:
        position = await self._aside(self._writer.look)
        whole = full or position is None or self._is_full_due(position) or not self._source.knows(position)
        draft: Draft | None = self._writer.begin(position, full=True) if whole else None
        try:
            async for kind, items in self._source.pieces(None if whole else position):
                if draft is None:
                    draft = self._writer.begin(position, full=False)
                await self._aside(draft.add, kind, items)
            totals = self._source.totals()
            if draft is None:
                assert position is not None
                if totals.missing == position.manifest.missing:
                    return position
                draft = self._writer.begin(position, full=False)
            written = await self._aside(draft.commit, totals)
        finally:
            if draft is not None:
                draft.drop()
        self._source.kept(written)
        self.written += 1
        return written

    def _is_full_due(self, position: Position) -> bool:
        age_ms = self._now_ms() - position.full_at
        return age_ms >= self._full_every_ms or age_ms < -FUTURE_MAX_MS  # made under a clock that was wrong

    def _failed(self, failed: KeymeshError) -> None:
        """Counted each time, said once."""
        self.failures[failed.code] += 1
        if failed.code != self.failing:
            self.failing = failed.code
            say = log.critical if isinstance(failed, Integrity) else log.error
            fields = {"code": failed.code, "reason": failed.message, "store": self._writer.address}
            say("backups fail", extra={"fields": fields})

    # --- the store ---------------------------------------------------------------------------------------------------

    async def _aside(self, work: Callable[..., T], *args: Any) -> T:
        """``work`` in a thread that nobody waits for at the end of the process.

        Raises Unavailable ``store-stuck`` where it does not come back in time; until it does nothing else is begun.
        """
        if self._thread is not None and self._thread.is_alive():
            raise Unavailable("store-stuck", "the backup store still has not answered an earlier call")
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()

        def settle(result: T | None, failed: BaseException | None) -> None:
            if done.done():
                return
            if failed is not None:
                done.set_exception(failed)
            else:
                done.set_result(result)  # type: ignore[arg-type]

        def run() -> None:
            result, failed = None, None
            try:
                result = work(*args)
            except BaseException as bad:
                failed = bad
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(settle, result, failed)

        thread = threading.Thread(target=run, name="backup", daemon=True)
        thread.start()
        try:
            result = await asyncio.wait_for(asyncio.shield(done), self._call_max_s)
        except (TimeoutError, asyncio.CancelledError) as late:
            self._thread = thread
            done.add_done_callback(lambda d: d.cancelled() or d.exception())
            if isinstance(late, asyncio.CancelledError):
                raise
            raise Unavailable("store-stuck", "the backup store does not answer") from late
        return result
