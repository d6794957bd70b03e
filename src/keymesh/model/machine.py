"""What every protocol machine shares: how it is stepped, and the effects that all of them use.

A machine is ``step(state, now, event) -> effects``: no I/O, no clock, no chance, no key bytes.  The shell (or the
simulator) carries out the effects of one step strictly in order, and may crash between any two of them:
``Persist`` is durable before the next effect of the same step starts, and is answered at once by ``Persisted``
(or by ``PersistFailed``, after which the rest of that step's effects are *not* carried out).
"""

from __future__ import annotations

from typing import Any, NewType

from msgspec import Struct

from keymesh.model.time import NEVER, Instant

Address = NewType("Address", str)
"""``registry``, ``node:<region>/<node>``, ``edge:<region>/<tenant>/<service>/<instance>``."""

REGISTRY = Address("registry")


def node_address(region: str, node: str) -> Address:
    return Address(f"node:{region}/{node}")


def edge_address(region: str, tenant: str, service: str, instance: str) -> Address:
    return Address(f"edge:{region}/{tenant}/{service}/{instance}")


class BootMark(Struct, frozen=True):
    """Which boot of the kernel this is, and how far into it; tells a restart from a reboot."""

    boot_id: str
    boottime_ms: int


class Booted(Struct, frozen=True):
    """First event of every life of a machine.  ``records`` is what ``Persist`` left, as it was given."""

    records: dict[str, Any]
    mark: BootMark
    entropy: bytes  # 32 bytes, for nonces; machines draw from it by hashing a counter


class Tick(Struct, frozen=True):
    """A ``Wake`` came due (or a spurious wake-up, which changes nothing)."""


class Received(Struct, frozen=True):
    """An authenticated peer's message.  ``sender`` is its identity as the transport proved it, never its claim."""

    sender: Address
    message: Any


class Persisted(Struct, frozen=True):
    token: str


class PersistFailed(Struct, frozen=True):
    token: str


class ClockWentBack(Struct, frozen=True):
    """The wall clock fell by more than 1 s: drop keys and leases (DESIGN section 3)."""


class ClockWentAhead(Struct, frozen=True):
    """The wall clock gained ``by_ms`` on CLOCK_BOOTTIME, and Instants with it.

    For what this process holds, that is time passed.  For what it waits for others to let go, it is not: they may
    have seen no jump, so every such wait grows by as much.
    """

    by_ms: int


class Send(Struct, frozen=True):
    """Hand ``message`` to the transport: at most once, unordered, may be lost."""

    to: Address
    message: Any


class Persist(Struct, frozen=True):
    """Make ``puts`` and ``deletes`` durable in one transaction."""

    token: str
    puts: tuple[tuple[str, Any], ...]
    deletes: tuple[str, ...] = ()


class Wake(Struct, frozen=True):
    """Ask for a ``Tick`` at ``at`` or soon after, in place of the one asked for before; NEVER asks for none."""

    at: Instant


class Note(Struct, frozen=True):
    """Something worth a log line and a counter: ``name`` is a stable word, ``fields`` never hold a secret."""

    name: str
    correlation_id: str
    fields: tuple[tuple[str, str | int], ...] = ()


def ask_tick(asked: Instant, due: Instant, now: Instant, out: list[Any]) -> Instant:
    """Have the next ``Tick`` come at ``due``; what a machine keeps as ``asked`` until that tick (then NEVER again).

    A deadline that is due already is asked for once, for the next instant: later steps don't put it off.
    """
    if due != asked:
        out.append(Wake(NEVER if due >= NEVER else max(due, Instant(now + 1))))
    return due
