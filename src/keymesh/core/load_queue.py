"""Which tenant's keys a Core loads next: those that somebody waits for first, and only so many at a time.

A region that takes over thousands of tenants, or starts cold, asks the customers' L1s for all of them.  At any moment
at most ``most`` loads run; a tenant has one at most; of a tenant that waits only the newest wish counts.  Pure: the
machine says what is to be loaded, the shell runs it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from keymesh.core.events import LoadKeys

WANTED_MAX: Final = 4_096


@dataclass(slots=True)
class LoadQueue:
    """``waiting`` in the order of arrival, ``wanted`` in the order of asking."""

    most: int
    waiting: dict[str, LoadKeys] = field(default_factory=dict)
    wanted: dict[str, None] = field(default_factory=dict)
    running: set[str] = field(default_factory=set)

    def offer(self, effect: LoadKeys) -> None:
        """Have it loaded; it takes the place of what waited of that tenant.

        What runs of it is left to its end, and this one follows: nobody knows what was wiped in between.
        """
        self.waiting[effect.namespace] = effect

    def want(self, namespace: str) -> None:
        """Somebody waits for this tenant: it goes before all that nobody waits for."""
        if len(self.wanted) < WANTED_MAX:
            self.wanted.setdefault(namespace)

    def drop(self, namespace: str | None) -> None:
        """All of that tenant, or of every one, leaves memory: what waited counts for nothing."""
        if namespace is None:
            self.waiting.clear()
            self.wanted.clear()
        else:
            self.waiting.pop(namespace, None)

    def take(self) -> LoadKeys | None:
        """What to load now, which then runs; None where nothing waits or enough runs."""
        if len(self.running) >= self.most:
            return None
        found = next((n for n in self.wanted if n in self.waiting and n not in self.running), None)
        if found is None:
            found = next((n for n in self.waiting if n not in self.running), None)
        if found is None:
            return None
        self.running.add(found)
        self.wanted.pop(found, None)
        return self.waiting.pop(found)

    def done(self, namespace: str) -> None:
        self.running.discard(namespace)
