"""The simulated network: links with delay, loss, duplicates, re-ordering, corruption, replays, cuts one way or both.

Decides when and whether a message arrives; who may talk to whom is the world's to say.  The n-th message of a link
meets the same luck in every run of a seed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from keymesh.sim.draw import mix, stream_of
from keymesh.sim.options import Options

Deliver = Callable[[Any, Any], None]
Corrupt = Callable[[Any, int], Any]


class Link:
    """One direction between two processes."""

    __slots__ = ("base_ms", "cuts", "last", "n", "slow_ms", "stream")

    def __init__(self, name_a: str, name_b: str, base_ms: int) -> None:
        self.stream = stream_of(name_a, name_b)
        self.n = 0
        self.base_ms = base_ms
        self.cuts = 0
        self.slow_ms = 0
        self.last: Any = None  # an earlier message, for replays


class Network:
    """Hands messages to ``schedule(delay_ms, deliver, to, message)``; ``healed`` stops all faults but delay."""

    def __init__(
        self,
        options: Options,
        *,
        region_of: dict[str, str],
        schedule: Callable[[int, Deliver, Any, Any], None],
        corrupt: Corrupt,
        counts: Counter[str],
    ) -> None:
        self.options = options
        self._seed = options.seed
        self._region_of = region_of
        self._links: dict[tuple[str, str], Link] = {}
        self._schedule = schedule
        self._corrupt = corrupt
        self._counts = counts
        self._noisy = bool(options.loss or options.duplicate or options.reorder or options.corrupt or options.replay)
        self.quiet = True

    def link(self, a: str, b: str) -> Link:
        found = self._links.get((a, b))
        if found is None:
            found = self._links[a, b] = Link(a, b, self.options.delay_ms(self._region_of[a], self._region_of[b]))
        return found

    def connected(self, a: str, b: str) -> bool:
        """Both ways: what a request and its response need."""
        return a == b or (self.link(a, b).cuts == 0 and self.link(b, a).cuts == 0)

    def round_trip_ms(self, a: str, b: str) -> int:
        there, back = self.link(a, b), self.link(b, a)
        return there.base_ms + back.base_ms + there.slow_ms + back.slow_ms

    def send(self, a: str, b: str, deliver: Deliver, to: Any, message: Any) -> None:
        """``message`` from process ``a`` to process ``b``."""
        try:
            link = self._links[a, b]
        except KeyError:
            link = self.link(a, b)
        link.n += 1
        if link.cuts:
            return
        draw = mix(self._seed, link.stream, link.n)
        base = link.base_ms
        delay = base + link.slow_ms + ((draw & 0xFF) * (base + 2) >> 9)
        if self._noisy and not self.quiet:
            o = self.options
            if (draw >> 8) & 1023 < o.loss:
                self._counts["loss"] += 1
                return
            if (draw >> 18) & 1023 < o.duplicate:
                self._counts["duplicate"] += 1
                self._schedule(delay + 1 + ((draw >> 28) & 1023), deliver, to, message)
            if (draw >> 30) & 1023 < o.reorder:
                self._counts["reorder"] += 1
                delay += (draw >> 40) & 2047
            if (draw >> 44) & 1023 < o.corrupt:
                self._counts["corrupt"] += 1
                message = self._corrupt(message, draw >> 54)
                if message is None:
                    return
            elif (draw >> 50) & 1023 < o.replay and link.last is not None:
                self._counts["replay"] += 1
                self._schedule(delay + ((draw >> 20) & 0x3FFF), deliver, *link.last)
            if draw >> 61 == 0:
                link.last = (to, message)
        self._schedule(delay, deliver, to, message)

    def whole(self) -> bool:
        """No link is cut or slowed."""
        return not any(link.cuts or link.slow_ms for link in self._links.values())

    def heal(self) -> None:
        """All links whole and clean."""
        self.quiet = True
        for link in self._links.values():
            link.cuts = 0
            link.slow_ms = 0
