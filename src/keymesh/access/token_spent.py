"""Which tokens that serve once have, and how many of them each party may have alive, so that none keeps others out.

Pure.  A book is full for somebody by what they have in it themselves.  Each party may have so many tokens alive; the
fuller the book, the fewer, in proportion, and one at least while a place is free: so whoever has the most is refused
first, and who has none last.  Parties may be inside one another (a person in a tenant): each one's share is then of
what is left to the one around it.  Only who was proven to be a party is counted: spend a token once it is verified.
An id is kept until its token is dead, never dropped to make room: it could serve again.  Source: DESIGN section 6.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from keymesh.model.errors import Refused
from keymesh.model.time import Instant, is_live

FORGET_MAX: Final = 1_024
"""How many dead ids leave for each token that comes, so that no token waits for all of them."""


@dataclass(frozen=True, slots=True)
class Party:
    """Who has tokens, by a name without line ends, and at most how many alive in an empty book; ``most``: from 1."""

    name: str
    most: int


@dataclass(slots=True, eq=False)
class _Count:
    name: str
    alive: int = 0


class SpentTokens:
    """Ids of tokens that serve once and have, each until its token is dead; ``most``: of all parties together.

    What was spent before this process began is not in it: so a token counts only if it was issued after, at ``since``
    or later.
    """

    def __init__(self, *, since: Instant, most: int) -> None:
        self._since = since
        self._most = most
        self._spent: set[bytes] = set()
        self._ends: list[tuple[Instant, bytes, tuple[_Count, ...]]] = []
        self._counts: dict[str, _Count] = {}

    def spend(
        self, token_id: str, parties: Sequence[Party], *, issued_at: Instant, dead_at: Instant, now: Instant
    ) -> None:
        """Note the token as used by the last of ``parties``, which are from the widest to the one inside them all.

        Raises Refused where it has served, or might have, or one of the parties has too many alive.  It costs the
        logarithm of what is alive, for each dead id that leaves too, also where it refuses.
        """
        self._forget(now)
        if issued_at < self._since:
            raise Refused.bad_field("iat", "issued before this process began, so it may have served")
        mark = hashlib.sha256(f"{parties[-1].name}\n{token_id}".encode()).digest()  # ids are as long as others like
        if mark in self._spent:
            raise Refused.bad_field("jti", "has served")
        self._check_shares(parties)
        counts = tuple(self._counts.setdefault(party.name, _Count(party.name)) for party in parties)
        for count in counts:
            count.alive += 1
        self._spent.add(mark)
        heapq.heappush(self._ends, (dead_at, mark, counts))

    def _check_shares(self, parties: Sequence[Party]) -> None:
        left, most = self._most - len(self._spent), self._most
        for party in parties:
            share = -(-party.most * left // most)
            alive = self.alive(party.name)
            if alive >= share:
                raise Refused.bad_field(
                    "jti", f"{party.name} has {alive} tokens that serve once alive, may have {share}"
                )
            left, most = share - alive, party.most

    def _forget(self, now: Instant) -> None:
        for _ in range(FORGET_MAX):
            if not self._ends or is_live(self._ends[0][0], now):
                return
            _, mark, counts = heapq.heappop(self._ends)
            self._spent.discard(mark)
            for count in counts:
                count.alive -= 1
                if not count.alive:
                    del self._counts[count.name]

    def alive(self, name: str) -> int:
        """How many ids of that party are in the book."""
        count = self._counts.get(name)
        return 0 if count is None else count.alive

    @property
    def parties(self) -> int:
        """How many parties have ids in the book."""
        return len(self._counts)

    def __len__(self) -> int:
        return len(self._spent)
