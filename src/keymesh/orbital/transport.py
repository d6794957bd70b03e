"""Ports of the broker transport: who publishes tasks, who receives them.  Adapters hold no rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from keymesh.orbital import broker


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One message: ``key`` says for whom, ``body`` is all that counts; the ids are for people who look."""

    key: str
    body: bytes
    task_id: str
    correlation_id: str


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message as it came.  ``tag`` is the adapter's own; nobody believes ``redelivered``, the broker's word."""

    body: bytes
    tag: Any
    redelivered: bool = False


@dataclass(frozen=True, slots=True)
class Seen:
    """A look at one queue."""

    consumers: int
    messages: int


class Publisher(Protocol):
    """One link of the Registry to the broker.  Every method raises Unavailable where the link is lost or blocked, and
    Refused for what the broker forbids; after either it is closed and another is made."""

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def declare(self, protocol: broker.Protocol, mesh: str, region: str) -> None:
        """The region's durable queues, one for each lane, and its parking queue; what is there stays."""
        ...

    async def probe(self) -> None:
        """Returns once the broker takes messages on this link (it stops doing so when short of memory or disk)."""
        ...

    async def publish(self, messages: Sequence[Outgoing]) -> list[bool]:
        """Which of ``messages`` the broker has confirmed as stored; False where a queue is full or missing."""
        ...

    async def look(self, queue: str) -> Seen: ...


class Source(Protocol):
    """One link of a region to its queue of one lane.  Methods raise as ``Publisher``'s."""

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def receive(self) -> Delivery:
        """The next message; it comes again on a later link until it is ``done``."""
        ...

    async def done(self, delivery: Delivery) -> None: ...

    async def park(self, delivery: Delivery, record: bytes) -> None:
        """``record`` is stored in the region's parking queue, then ``delivery`` is done."""
        ...
