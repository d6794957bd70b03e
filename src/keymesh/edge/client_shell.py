"""The shell that drives one Edge's machine: clock in, effects out, requests and revocation streams on asyncio.

Decides nothing about leases.  It turns a published lease into what the hot path works on, within the same step, so
that an acknowledgement which follows is true.  One shell belongs to one event loop; the hot path to every thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Protocol

from keymesh.crypto.kid import kid_bytes
from keymesh.crypto.xaes import XaesKey
from keymesh.edge.client_budget import LOOK_EVERY_S, ShellBudget
from keymesh.edge.client_clock import Clock, boot_id, boot_ns, wall_ns
from keymesh.edge.client_farewell import say, tell_usage
from keymesh.edge.client_measure import Measuring, spread
from keymesh.edge.client_transport import GrantedKeys
from keymesh.edge.hot import HotPath
from keymesh.edge.hot_lease import HotLease, LeasedKey, no_lease
from keymesh.edge.machine import EdgeState, new_edge, step
from keymesh.edge.snapshot import (
    Closing,
    Connected,
    EdgeConfig,
    KeyWanted,
    LeaseSnapshot,
    Publish,
    SendFailed,
    Trim,
    UsageCounted,
)
from keymesh.model.errors import KeymeshError
from keymesh.model.machine import Address, Booted, BootMark, ClockWentBack, Note, Received, Send, Tick, Wake
from keymesh.model.states import Custody
from keymesh.model.time import NEVER, WALL_BACK_LIMIT_MS, Instant, Timekeeper
from keymesh.orbital.edge_messages import LeaseReady, LeaseRequest, Revocation

log = logging.getLogger("keymesh.edge")

USAGE_EVERY_S: Final = 1.0
RECONNECT_FIRST_S: Final = 0.1
RECONNECT_MAX_S: Final = 5.0
STEADY_S: Final = 3.0
SENDS_MAX: Final = 256
NOTES_MAX: Final = 256
_MS_NS: Final = 1_000_000

_shells: weakref.WeakSet[EdgeShell] = weakref.WeakSet()


class Transport(Protocol):
    """What the shell needs of ``client_transport.CoreTransport``."""

    async def post(self, core: str, message: Any) -> Any: ...

    def stream(self, core: str) -> AbstractAsyncContextManager[AsyncIterator[Any]]: ...

    async def ready(self, core: str) -> None: ...


class EdgeShell:
    """Start it on the loop that is to drive it.  ``cores``: the base URL behind each address of the machine."""

    def __init__(
        self,
        config: EdgeConfig,
        transport: Transport,
        *,
        cores: dict[Address, str],
        boot_clock: Clock = boot_ns,
        wall_clock: Clock = wall_ns,
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self.config: Final = config
        self.hot: Final = HotPath(boot_ns=boot_clock, wall_ns=wall_clock, entropy=entropy, on_death=self._on_death)
        self.notes: Final[Counter[str]] = Counter()
        self.totals: Final[Counter[str]] = Counter()
        self.state: Final[EdgeState] = new_edge(config)
        self._transport = transport
        self._cores = cores
        self._boot_clock = boot_clock
        self._wall_clock = wall_clock
        self._keeper = Timekeeper(boot_zero_ms=boot_clock() // _MS_NS, wall_zero_ms=wall_clock() // _MS_NS)
        self._arrived: GrantedKeys | None = None
        self._lease: LeaseSnapshot | None = None
        self._published = asyncio.Event()
        self.budget: Final = ShellBudget(self.hot, self._tell, boot_clock)
        self._measuring = Measuring(cores, self._transport.ready, self.feed, boot_clock, name=self.state.address)
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._leave: Callable[[Send], None] | None = None
        self._now = self._keeper.observe(boottime_ms=boot_clock() // _MS_NS, wall_ms=wall_clock() // _MS_NS)[0]
        self.stopped = False
        _shells.add(self)

    # --- life ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Boot the machine on the running loop; it asks for a lease at once."""
        self._loop = asyncio.get_running_loop()
        mark = BootMark(boot_id=boot_id(), boottime_ms=self._boot_clock() // _MS_NS)
        self.feed(Booted(records={}, mark=mark, entropy=os.urandom(32)))
        for address in self.config.cores:
            self._spawn(self._listen(address))
            if len(self.config.cores) > 1:
                self._spawn(self._measuring.run(address))
        self._spawn(self._count_usage())

    async def stop(self) -> None:
        """Drop everything, then give the leases back and tell the last usage, as far as the Core answers in time.

        Cancelled, it ends its tasks all the same.  The transport stays its owner's.
        """
        if self.stopped:
            return
        now = self.now()
        returns: list[Send] = []
        self._leave = returns.append
        self._run(now, Closing())
        self.orphan("edge-closed")
        self.budget.end()
        self._leave = _leave
        self._run(now, self._take_usage())
        try:
            await asyncio.gather(
                say(returns, self._transport, self._cores),
                tell_usage(self.state, self._hear_last, self._transport, self._cores),
            )
        finally:  # also where whoever waits for this gives up
            await self._end_tasks()

    def _hear_last(self, core: Address, answer: Any) -> None:
        self._run(self.now(), Received(core, answer))

    async def _end_tasks(self) -> None:
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def orphan(self, reason: str) -> None:
        """Hold nothing and do nothing from now on."""
        self.stopped = True
        self.hot.publish(no_lease(reason))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._arrived is not None:
            self._arrived.wipe()
            self._arrived = None

    # --- the machine ---------------------------------------------------------------------------------------------

    def now(self) -> Instant:
        """The current instant; a wall clock that went back reaches the machine first."""
        ahead, lead = self._keeper.ahead_ms, self._keeper.lead_ms
        boot_ms, wall_ms = self._boot_clock() // _MS_NS, self._wall_clock() // _MS_NS
        now, back = self._keeper.observe(boottime_ms=boot_ms, wall_ms=wall_ms)
        if back:
            log.error("the wall clock went back: leases dropped")
            self._run(now, ClockWentBack())
        elif (ahead, lead) != (self._keeper.ahead_ms, self._keeper.lead_ms) and self._lease is not None:
            self._bound(self.hot.lease, self._lease.deadline)
        return now

    def feed(self, event: Any) -> None:
        """One event in, its effects carried out in order.  After ``stop`` nothing happens any more."""
        if not self.stopped:
            self._run(self.now(), event)

    def _tell(self, event: Any) -> None:
        """In the middle of a step, or right after the last one."""
        self._run(self._now, event)

    def _run(self, now: Instant, event: Any) -> None:
        """One step; at the end ``_leave`` takes its messages in place of the tasks that carry them."""
        self._now = now
        send = self._leave or self._send
        for effect in step(self.state, now, event):
            match effect:
                case Publish():
                    self._publish(effect)
                case Send():
                    send(effect)
                case Wake():
                    self._wake(effect.at, now)
                case Trim():
                    self.budget.trim(effect.keep)
                case Note():
                    self._note(effect)
                case _:
                    raise TypeError(f"no handler for {type(effect).__name__}")

    def _publish(self, effect: Publish) -> None:
        if effect.lease is None:
            self._lease = None
            self.hot.publish(no_lease(effect.reason))
        else:
            self.hot.publish(self._make_ready(effect.lease))
            self._lease = effect.lease
        self._published.set()

    def _make_ready(self, lease: LeaseSnapshot) -> HotLease:
        """The arrived keys as ciphers; their pages are wiped, OpenSSL holds the key schedules from here on."""
        meter = self.budget.meter(lease, self._now)
        if lease.policy.custody == Custody.CORE_HELD.value:
            return no_lease("core-held")
        arrived, self._arrived = self._arrived, None
        assert arrived is not None and arrived.grant.nonce == lease.nonce
        keys: list[LeasedKey] = []
        for version, secret in zip(lease.versions, arrived.secrets, strict=True):
            with secret:
                keys.append(LeasedKey(XaesKey(secret.reveal()), kid_bytes(version.kid), self.config.tenant))
        wrapping = next((k for k, v in zip(keys, lease.versions, strict=True) if v.may_wrap), None)
        hot = HotLease(keys=keys, wrapping=wrapping, meter=meter)
        self._bound(hot, lease.deadline)
        return hot

    def _bound(self, hot: HotLease, deadline: Instant) -> None:
        """The deadline in readings of the raw clocks (``model.time.Timekeeper`` turned round)."""
        keeper = self._keeper
        hot.set_bounds(
            boot_end_ms=deadline - keeper.wall_zero_ms - keeper.ahead_ms + keeper.boot_zero_ms,
            wall_end_ms=deadline - keeper.ahead_ms + keeper.lead_ms,
            lead_floor_ms=keeper.wall_zero_ms - keeper.boot_zero_ms + keeper.lead_ms - WALL_BACK_LIMIT_MS,
        )

    def _wake(self, at: Instant, now: Instant) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._loop is not None and at < NEVER:
            self._timer = self._loop.call_later(max(0, at - now) / 1_000 + 0.001, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self.feed(Tick())

    def _note(self, note: Note) -> None:
        self.notes[note.name] += 1
        fields = {"tenant": self.config.tenant, "service": self.config.service, **dict(note.fields)}
        log.info(note.name, extra={"correlation_id": note.correlation_id, "fields": fields})

    def _on_death(self, reason: str) -> None:
        """Some thread saw that the lease is over: let the machine look, soon."""
        if self._loop is not None and not self.stopped:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._wake_up)

    def _wake_up(self) -> None:
        self.feed(Tick())
        self._look()

    def _look(self) -> None:
        used = self.budget.look()
        if used is not None:
            self.feed(used)

    # --- what an application waits for ---------------------------------------------------------------------------

    async def changed(self, timeout_s: float) -> bool:
        """Whether a lease was published or dropped within ``timeout_s``."""
        self._published.clear()
        try:
            async with asyncio.timeout(timeout_s):
                await self._published.wait()
        except TimeoutError:
            return False
        return True

    @property
    def asking(self) -> bool:
        """Whether a request for a lease is in flight."""
        return self.state.pending is not None

    @property
    def urls(self) -> dict[Address, str]:
        """Every Core's base URL."""
        return self._cores

    def want_key(self) -> bool:
        """Ask for a fresh lease because of an unknown kid; False where none will be asked for yet."""
        self.feed(KeyWanted())
        return self.asking or self.state.wanted_kids is not None

    # --- the network -----------------------------------------------------------------------------------------------

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        assert self._loop is not None
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _send(self, send: Send) -> None:
        if len(self._tasks) >= SENDS_MAX:
            self.notes["edge.send-dropped"] += 1
            return
        self._spawn(self._exchange(send.to, send.message))

    def _count(self, what: str, code: str) -> None:
        """``code`` may be a Core's word: only so many different ones are counted by name."""
        name = f"{what}.{code}"
        self.notes[name if name in self.notes or len(self.notes) < NOTES_MAX else f"{what}.other"] += 1

    async def _exchange(self, to: Address, message: Any) -> None:
        try:
            answer = await self._transport.post(self._cores[to], message)
        except KeymeshError as failed:
            self._count("edge.send-failed", failed.code)
            log.debug("send failed", extra={"fields": {"message": type(message).__name__, "code": failed.code}})
            if isinstance(message, LeaseRequest):
                self.feed(SendFailed(message.nonce))
            return
        if isinstance(answer, GrantedKeys):
            self._arrive(to, answer)
        elif answer is not None:
            self.feed(Received(to, answer))
        elif isinstance(message, LeaseRequest):
            self.feed(SendFailed(message.nonce))

    def _arrive(self, to: Address, granted: GrantedKeys) -> None:
        """Keys stay only where this very grant is published."""
        self._arrived = granted
        try:
            self.feed(Received(to, granted.grant))
        finally:
            self._arrived = None
            granted.wipe()

    async def _listen(self, core: Address) -> None:
        """Keep the revocation stream of ``core`` open; reconnect after a while that doubles, spread by hash, until a
        stream was steady."""
        loop = asyncio.get_running_loop()
        wait = RECONNECT_FIRST_S
        attempts = 0
        while not self.stopped:
            opened: float | None = None
            try:
                async with self._transport.stream(self._cores[core]) as messages:
                    opened = loop.time()
                    self.feed(Connected(core))
                    async for message in messages:
                        if isinstance(message, Revocation | LeaseReady):
                            self.feed(Received(core, message))
            except KeymeshError as failed:
                self._count("edge.stream-failed", failed.code)
            self._measuring.stream_broke(core)
            if opened is not None and loop.time() >= opened + STEADY_S:
                wait = RECONNECT_FIRST_S
            attempts += 1
            await asyncio.sleep(wait * (0.5 + spread(f"{self.state.address}/{attempts}") / 2))
            wait = min(RECONNECT_MAX_S, wait * 2)

    async def _count_usage(self) -> None:
        """Also the heartbeat by which a clock that went back is noticed on an idle Edge."""
        while not self.stopped:
            for _ in range(round(USAGE_EVERY_S / LOOK_EVERY_S)):
                await asyncio.sleep(LOOK_EVERY_S)
                self._look()
            self._feed_usage()

    def _feed_usage(self) -> None:
        self.feed(self._take_usage())

    def _take_usage(self) -> UsageCounted:
        minted, opened, refused = self.hot.take_usage()
        self.totals.update(minted=minted, opened=opened, refused=refused)
        return UsageCounted(minted, opened, refused)


def _leave(send: Send) -> None:
    """At the end: ``tell_usage`` says it, or nobody."""


def _forget_in_child() -> None:
    """A fork holds no lease and drives no machine: its keys were wiped with their pages, its ciphers go here."""
    for shell in list(_shells):
        shell.orphan("forked")


os.register_at_fork(after_in_child=_forget_in_child)


def addresses(urls: Sequence[str]) -> dict[Address, str]:
    """A machine address for each Core's base URL, in order of preference."""
    return {Address(f"core:{url}"): url for url in urls}
