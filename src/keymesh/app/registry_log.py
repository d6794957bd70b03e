"""The control log beside the Registry's machine: appends, reads, what other replicas add, and what is no log of ours.

It decides nothing about entries.  The machine asks for appends and reads; here they are carried out, and answered in
its own words.  A log that others append to is looked at every ``follow_ms``, and a request is refused by no view of it
that is older than the request.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, Final, TypeVar

from keymesh.adapters.http_messages import Handler, Request, Response, Stream
from keymesh.app.config_log import LogConfig
from keymesh.app.control_logs import check_founded, is_shared, make_log
from keymesh.app.log_follow import follow_log
from keymesh.app.shell import Shell
from keymesh.control.log import Conflict, UnknownOutcome
from keymesh.control.state import LIFTS
from keymesh.model.errors import Integrity, Refused, Unavailable
from keymesh.registry.events import (
    AppendConflict,
    Appended,
    AppendLog,
    AppendUnknown,
    LogBroken,
    LogMoved,
    LogRead,
    LogUnavailable,
    ReadLog,
)

log = logging.getLogger("keymesh.registry")
T = TypeVar("T")

APPEND_TIMES_MAX: Final = 10_000
UNKNOWN_S, UNREAD_S = 0.1, 0.2
AWAY_S, START_S = 0.5, 60.0
CATCH_UP_S, CATCH_UP_CHECK_S = 5.0, 0.005

Times = OrderedDict[tuple[str, str], int]
"""(namespace, command id) -> Unix ns, of the newest."""


class RegistryLog:
    """``control`` is the log; ``machine`` gives the shell of the machine, once there is one.

    ``append_started`` and ``appended``: when entries were sent, and when the log had them.
    """

    def __init__(self, config: LogConfig | None, *, mesh: str, directory: Path, machine: Callable[[], Shell]) -> None:
        self.control = make_log(config, mesh=mesh, directory=directory)
        self._shell = machine
        self._follow_ms = config.follow_ms if config is not None and is_shared(config) else 0
        self.append_started: Times = OrderedDict()
        self.appended: Times = OrderedDict()

    @property
    def shared(self) -> bool:
        """Whether others may append to it too."""
        return self._follow_ms > 0

    # --- what the machine asks for -----------------------------------------------------------------------------------

    async def append(self, effect: AppendLog) -> None:
        names = [(e.entry.namespace, e.entry.command_id) for e in effect.entries]
        _note_time(self.append_started, names)
        try:
            index = await self.control.append(effect.entries)
        except Conflict:
            self._feed(AppendConflict(effect.token))
        except Integrity as bad:
            self.broken(bad)
        except (UnknownOutcome, Unavailable) as failed:
            log.error("append outcome unknown", extra={"fields": {"reason": str(failed)}})
            await asyncio.sleep(UNKNOWN_S)
            self._feed(AppendUnknown(effect.token))
        else:
            _note_time(self.appended, names)
            self._feed(Appended(effect.token, index))

    async def read(self, effect: ReadLog) -> None:
        try:
            index, entries = await self.control.read(effect.after_index)
        except Unavailable:
            await asyncio.sleep(UNREAD_S)
            self._feed(LogUnavailable(effect.token))
        except Integrity as bad:
            self.broken(bad)
        else:
            self._feed(LogRead(token=effect.token, index=index, entries=tuple(entries)))

    def broken(self, bad: Integrity) -> None:
        """Nothing rests on such a log from here on; it is people's to look at."""
        log.critical("the log is not what it was", extra={"fields": {"code": bad.code, "reason": bad.message}})
        self._feed(LogBroken(f"{bad.code}: {bad.message}"))

    def _feed(self, event: Any) -> None:
        self._shell().feed(event)

    # --- life --------------------------------------------------------------------------------------------------------

    async def check(self, genesis: str) -> None:
        """It is the log that begins with ``genesis``; one that is away is waited for, for ``START_S``.

        Raises as ``check_founded``.
        """
        deadline = time.monotonic() + START_S
        while True:
            try:
                return await check_founded(self.control, genesis)
            except Unavailable as away:
                if time.monotonic() > deadline:
                    raise
                log.warning("the log is away", extra={"fields": {"code": away.code, "reason": away.message}})
                await asyncio.sleep(AWAY_S)

    async def follow(self) -> None:
        """What others append becomes known to the machine, for ever."""
        if self.shared:
            await follow_log(
                self.control,
                every_ms=self._follow_ms,
                known=lambda: self._shell().state.index,
                moved=lambda index: self._feed(LogMoved(index)),
                broken=self.broken,
            )

    # --- requests ----------------------------------------------------------------------------------------------------

    async def when_current(self, work: Callable[[], Awaitable[T]]) -> T:
        """What ``work`` gives; where it refuses by a view of the log that another replica had moved on from, again.

        Raises Unavailable where it refuses and nobody can say whether the view was old.
        """
        began = self._shell().state.index
        try:
            return await work()
        except Refused as refused:
            if refused.code == "bad-field" or not await self.catch_up(began):
                raise
        return await work()

    def current(self, handler: Handler, method: str) -> Handler:
        """``handler``, where it only reads, refusing by no old view."""
        if method != "GET":
            return handler

        async def handle(request: Request) -> Response | Stream:
            return await self.when_current(lambda: handler(request))

        return handle

    async def for_command(self, kind: str, work: Callable[[], Awaitable[T]]) -> T:
        """``when_current``; but a resume is asked for on what the log has by now, and on that alone: tried again, it
        might lift what came after it."""
        if kind not in LIFTS:
            return await self.when_current(work)
        await self.catch_up(self._shell().state.index)
        return await work()

    async def catch_up(self, known: int) -> bool:
        """Whether the log went beyond ``known`` before now; all that it had is then taken.  Raises Unavailable.

        A log that nobody else appends to does not.
        """
        if not self.shared:
            return False
        index, _ = await self.control.read(known, 1)
        state = self._shell().state
        if index > state.index:
            self._feed(LogMoved(index))
        deadline = time.monotonic() + CATCH_UP_S
        while state.index < index:
            if state.halted or time.monotonic() > deadline:
                raise Unavailable("behind", "the log cannot be read on at present")
            await asyncio.sleep(CATCH_UP_CHECK_S)
        return index > known


def _note_time(times: Times, names: Iterable[tuple[str, str]]) -> None:
    """Now, for each of ``names``; only the newest are kept."""
    times.update(dict.fromkeys(names, time.time_ns()))
    while len(times) > APPEND_TIMES_MAX:
        times.popitem(last=False)
