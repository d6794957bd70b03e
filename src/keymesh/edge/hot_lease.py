"""What the hot path works on: a published lease made ready, its counters, and the errors of having none.

Decides nothing: the machine says what is leased until when, ``hot`` what one operation may do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from operator import length_hint
from typing import Final, NoReturn

import msgspec

from keymesh.crypto.aad import l4_aad
from keymesh.crypto.blob import L4_VERSION, SCHEME_XAES
from keymesh.crypto.xaes import XaesKey
from keymesh.model.errors import KeymeshError, Refused, Unavailable

UNLIMITED: Final = 2**62

Octets = bytes | bytearray | memoryview
_NS: Final = 1_000_000


class CreatedKey(msgspec.Struct, frozen=True, eq=False, gc=False):
    """A new data key: ``blob`` to keep beside the data, ``plaintext`` (32 bytes) only where it was asked for."""

    blob: bytes
    plaintext: bytes | None = None

    def __repr__(self) -> str:
        return f"CreatedKey(blob={self.blob.hex()}, plaintext={'none' if self.plaintext is None else 'withheld'})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a created key has no pickle or copy form")

    __copy__ = __reduce__


class UnknownKid(Unavailable):
    """The blob names a key version that this lease does not hold: worth one question to the Core."""

    def __init__(self) -> None:
        super().__init__("unknown-key", "no key here opens that blob", retry_after_ms=1_000)


class BudgetSpent(Unavailable):
    """Nothing is left of what this Edge holds of a budget.  ``more``: the Core had more when it was last asked."""

    def __init__(self, message: str, *, more: bool = False, retry_after_ms: int = 1_000) -> None:
        super().__init__("budget-spent", message, retry_after_ms=retry_after_ms)
        self.more = more


class CoreHeld(KeymeshError):
    """The service's keys stay at the Core: ask it."""

    def __init__(self) -> None:
        super().__init__("core-held", "this service's keys are used at the Core")


class LeasedKey:
    """One leased L3 made ready: its cipher, the 18 bytes that head its blobs, and the AAD up to the context."""

    __slots__ = ("aad", "aad_empty", "head", "open_", "seal")

    def __init__(self, xkey: XaesKey, kid: bytes, tenant: str) -> None:
        self.seal = xkey.seal
        self.open_ = xkey.open
        self.head = bytes((L4_VERSION, SCHEME_XAES)) + kid
        self.aad_empty = l4_aad(tenant, kid, {})
        self.aad = self.aad_empty[:-4]

    def __repr__(self) -> str:
        return "<LeasedKey>"


@dataclass(frozen=True, slots=True)
class Budget:
    """What mints and opens share of a period's budget: a step for each, how many are ``left``, until when on the raw
    boot clock, and whether the Core had ``more``."""

    steps: Iterator[bool]
    left: Callable[[], int]
    end_ns: int
    more: bool


class Meter:
    """Counts and budgets that threads can share: taking one from an iterator is a single step of the interpreter."""

    __slots__ = ("_budget", "_counts", "_gates", "_seen", "mints", "opens", "retired")

    def __init__(self, mint_budget: int | None, open_budget: int | None, budget: Budget | None = None) -> None:
        self._budget = budget
        self._gates = tuple(None if limit is None else repeat(True, limit) for limit in (mint_budget, open_budget))
        self._counts = (repeat(True, UNLIMITED), repeat(True, UNLIMITED))
        self.mints, self.opens = (self._steps(gate, n) for gate, n in zip(self._gates, self._counts, strict=True))
        self._seen = (0, 0)
        self.retired = False

    def _steps(self, gate: Iterator[bool] | None, counted: Iterator[bool]) -> Iterator[object]:
        """Steps through the lease's own limit, then through the budget, then counted: as few as there are."""
        through = [one for one in (gate, self._budget and self._budget.steps, counted) if one is not None]
        return counted if len(through) == 1 else zip(*through, strict=False)

    def take(self) -> tuple[int, int]:
        """(minted, opened) since the last call."""
        used = (UNLIMITED - length_hint(self._counts[0]), UNLIMITED - length_hint(self._counts[1]))
        seen, self._seen = self._seen, used
        return used[0] - seen[0], used[1] - seen[1]

    def is_short(self, count: int) -> bool:
        """Whether the budget has less than ``count`` operations left, so that a batch should not begin."""
        return self._budget is not None and self._budget.left() < count

    def spent(self, boot_ns: int) -> BudgetSpent:
        """Why nothing more may be used: the lease's own budget, or that of the period."""
        budget = self._budget
        if budget is None or any(gate is not None and not length_hint(gate) for gate in self._gates):
            return BudgetSpent("this lease's budget is spent; the next lease brings a new one")
        if budget.more:
            return BudgetSpent("more of the budget is being asked for", more=True)
        left_ms = (budget.end_ns - boot_ns) // _NS
        return BudgetSpent("the budget of this period is spent", retry_after_ms=max(1_000, left_ms))


class HotLease:
    """What a published lease comes down to: keys by blob head, and three comparisons of raw clocks in ns."""

    __slots__ = ("boot_end", "lead_floor", "meter", "mints", "opens", "reason", "versions", "wall_end", "wrapping")

    def __init__(
        self, *, keys: Sequence[LeasedKey], wrapping: LeasedKey | None, meter: Meter, reason: str = ""
    ) -> None:
        self.versions = {key.head: key for key in keys}
        self.wrapping = wrapping
        self.meter = meter
        self.mints = meter.mints
        self.opens = meter.opens
        self.reason = reason
        self.boot_end = self.wall_end = self.lead_floor = 0

    def set_bounds(self, *, boot_end_ms: int, wall_end_ms: int, lead_floor_ms: int) -> None:
        """Dead from these raw readings on, and where the wall clock leads boot time by less than the floor."""
        self.wall_end = wall_end_ms * _NS
        self.lead_floor = lead_floor_ms * _NS
        self.boot_end = boot_end_ms * _NS

    def kill(self, reason: str) -> None:
        """For good, whoever still holds this lease: deadline first, then the keys."""
        self.boot_end = 0
        self.reason = self.reason or reason
        self.versions = {}
        self.wrapping = None

    def __repr__(self) -> str:
        return f"<HotLease {len(self.versions)} keys>"


def no_lease(reason: str) -> HotLease:
    """Nothing may be used; ``reason`` is what callers are told."""
    return HotLease(keys=(), wrapping=None, meter=Meter(0, 0), reason=reason)


FINAL_REASONS: Final = {
    "restricted": "this service is suspended or revoked",
    "unknown": "the Core does not know this service",
}
_REASONS: Final = {
    "starting": "no lease yet",
    "revoked": "the lease was revoked",
    "expired": "the lease has run out and the Core has not renewed it",
    "clock": "the clock went back",
    "forked": "this process is a fork: connect anew",
    "edge-closed": "this Edge is closed",
}


def refusal(reason: str) -> KeymeshError:
    """The error for a use without a lease."""
    if reason == "core-held":
        return CoreHeld()
    if reason in FINAL_REASONS:
        return Refused(reason, FINAL_REASONS[reason])
    return Unavailable(reason or "no-lease", _REASONS.get(reason, f"no lease: {reason or 'none'}"))
