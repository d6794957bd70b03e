"""What the Registry's machine asks of its shell beyond the shared effects, and what the shell tells it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from keymesh.control.entry import SignedEntry

# --- effects ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AppendLog:
    """One transaction: compare each namespace's head with the first entry's prev, the mesh head with ``mesh_seq``,
    every command id absent; put all entries.  Answered by ``Appended``, ``AppendConflict`` or ``AppendUnknown``."""

    token: str
    entries: tuple[SignedEntry, ...]


@dataclass(frozen=True, slots=True)
class ReadLog:
    """A linearizable read of the log, begun now: everything after ``after_index``.  Answered by ``LogRead``."""

    token: str
    after_index: int


@dataclass(frozen=True, slots=True)
class CommandDone:
    """Outcome of a ``Command``.  ``error`` None: committed to the log as (epoch, seq) at ``index``."""

    command_id: str
    namespace: str
    epoch: int
    seq: int
    index: int
    error: Exception | None = None
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class Project:
    """Entries now certain to be in the log, in order, for the projection (read model and outbox)."""

    index: int
    entries: tuple[SignedEntry, ...]


@dataclass(frozen=True, slots=True)
class CertificateReady:
    command_id: str
    certificate: Any


# --- events ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Command:
    """A wish to change the log, already admitted.  ``command_id`` is the Idempotency-Key."""

    command_id: str
    namespace: str
    kind: str
    args: dict[str, Any]
    actor: str
    correlation_id: str
    authority: tuple[dict[str, Any], ...] = ()
    words: tuple[Any, ...] = ()  # of a change of voters: who has sealed the old set


@dataclass(frozen=True, slots=True)
class Appended:
    token: str
    index: int


@dataclass(frozen=True, slots=True)
class AppendConflict:
    token: str


@dataclass(frozen=True, slots=True)
class AppendUnknown:
    """Sent, but the answer was lost: resolve by reading."""

    token: str


@dataclass(frozen=True, slots=True)
class LogRead:
    """``entries``: (index, entry) after the asked index, in order.  ``index``: the log's at the read."""

    token: str
    index: int
    entries: tuple[tuple[int, SignedEntry], ...]


@dataclass(frozen=True, slots=True)
class LogUnavailable:
    token: str


@dataclass(frozen=True, slots=True)
class LogMoved:
    """A hint: somebody has seen the log at ``index``.  Nothing rests on it; a false one costs a read."""

    index: int


@dataclass(frozen=True, slots=True)
class LogBroken:
    """The store says itself that it is not the log any more that this process knew."""

    reason: str
