"""How often a Core calls a customer's L1: so many calls a second for each account at its provider, and no burst beyond.

A provider throttles an account as a whole, and whoever is throttled is denied nothing: it is silence.  So a Core stays
below, spreads what comes at once, and goes slower by half where it was throttled all the same.  Loads, which somebody
may wait for, use the whole budget; routine probes leave a part of it to them.  Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from keymesh.model.time import Instant

CALLS_PER_S: Final = 500
CALLS_PER_S_MIN: Final = 5
BURST: Final = 500
LEFT_FOR_LOADS: Final = 200
PROBE_WAIT_MAX_MS: Final = 5_000
LOAD_WAIT_MAX_MS: Final = 20_000
RECOVERY_MS: Final = 60_000
"""From the least rate to the whole one."""
ACCOUNTS_MAX: Final = 10_000


@dataclass(slots=True)
class Account:
    """Calls that may be made now; below zero: calls that are promised and still wait for their turn."""

    at: Instant
    calls: float = BURST
    per_s: float = CALLS_PER_S


@dataclass(slots=True)
class Budget:
    """By account: its provider and where that is reached."""

    accounts: dict[str, Account] = field(default_factory=dict)

    def take(self, name: str, now: Instant, *, urgent: bool) -> int | None:
        """How long to wait, in ms, before the one call that is taken here; None: not within any reasonable time, and
        nothing is taken."""
        account = self._of(name, now)
        floor = 0 if urgent else LEFT_FOR_LOADS
        missing = floor + 1 - account.calls
        wait_ms = 0 if missing <= 0 else round(missing * 1_000 / account.per_s)
        if wait_ms > (LOAD_WAIT_MAX_MS if urgent else PROBE_WAIT_MAX_MS):
            return None
        account.calls -= 1
        return wait_ms

    def throttled(self, name: str, now: Instant) -> None:
        """The provider said so: half as quick from now on, and nothing saved up."""
        account = self._of(name, now)
        account.per_s = max(CALLS_PER_S_MIN, account.per_s / 2)
        account.calls = min(account.calls, 0.0)

    def _of(self, name: str, now: Instant) -> Account:
        account = self.accounts.get(name)
        if account is None:
            while len(self.accounts) >= ACCOUNTS_MAX:
                del self.accounts[next(iter(self.accounts))]
            account = self.accounts[name] = Account(now)
        passed_ms = max(0, now - account.at)
        account.at = Instant(max(now, account.at))
        account.calls = min(BURST, account.calls + passed_ms * account.per_s / 1_000)
        account.per_s = min(CALLS_PER_S, account.per_s + passed_ms * CALLS_PER_S / RECOVERY_MS)
        return account
