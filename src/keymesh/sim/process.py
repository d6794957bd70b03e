"""Processes and the machines in them: what crashes, pauses and keeps its disk together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from keymesh.model.machine import Address
from keymesh.model.time import Instant
from keymesh.sim.clocks import HostClock, ProcessClock

Step = Callable[[Any, Instant, Any], list[Any]]


class Machine:
    """One protocol machine.  ``disk`` survives crashes; ``state`` does not; ``build`` makes the state of a new life."""

    __slots__ = ("address", "build", "disk", "kind", "number", "proc", "published", "state", "step", "wake_at")

    def __init__(
        self, number: int, kind: str, address: Address, proc: Process, build: Callable[[], Any], step: Step
    ) -> None:
        self.number = number
        self.kind = kind
        self.address = address
        self.proc = proc
        self.build = build
        self.step = step
        self.state: Any = None
        self.disk: dict[str, Any] = {}
        self.wake_at: Instant | None = None  # of the one tick that is asked for
        self.published: Any = None  # an Edge's lease snapshot, as its hot path sees it


class Process:
    """``fuse`` >= 0: dies before that many effects more.  ``paused``: overlapping SIGSTOPs; what arrives then waits."""

    __slots__ = (
        "alive", "clock", "disk_full", "fuse", "host", "inbox", "jump_in_write", "life", "machines", "name", "paused",
        "ppm", "region", "restart_at", "rotten", "torn",
    )  # fmt: skip

    def __init__(self, name: str, region: str, host: HostClock, t: int) -> None:
        self.name = name
        self.region = region
        self.host = host
        self.clock = ProcessClock(host, t)
        self.ppm = host.ppm
        self.machines: list[Machine] = []
        self.alive = False
        self.life = 0
        self.paused = 0
        self.inbox: list[tuple[Machine, Any]] = []
        self.fuse = -1
        self.disk_full = 0
        self.jump_in_write = 0  # ms by which the wall clock is set before the next record is answered
        self.torn = 0  # so many persists to come are lost whole, with the process
        self.rotten: set[str] = set()  # record keys whose stored bytes rotted
        self.restart_at = 0
