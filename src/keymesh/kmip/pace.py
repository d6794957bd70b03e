"""How fast one client may ask: so many requests a second on average, a second's worth at once; who is early waits.

Pure: says how long, and waits for nothing.  The generic cell rate algorithm (ITU-T I.371) in nanoseconds.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Final

SECOND_NS: Final = 1_000_000_000
REMEMBERED_MAX: Final = 8_192


class Pace:
    """Of all clients; of the least recent of too many it forgets what they asked, in their favour."""

    def __init__(self, per_s: int) -> None:
        self._step_ns = max(1, SECOND_NS // per_s)
        self._due: OrderedDict[Hashable, int] = OrderedDict()

    def wait_ns(self, who: Hashable, now_ns: int) -> int:
        """Counts one request of ``who`` at ``now_ns``; how long it has to wait, 0 for not at all."""
        due = max(self._due.pop(who, 0), now_ns) + self._step_ns
        self._due[who] = due
        if len(self._due) > REMEMBERED_MAX:
            self._due.popitem(last=False)
        return max(0, due - now_ns - SECOND_NS)
