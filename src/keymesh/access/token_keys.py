"""Which keys of an issuer count now, and when they may be asked for again.

Pure.  A key counts by its id, for ``max_age`` after the request that last brought the set was *sent*; an issuer that
can no longer be asked is thus believed for that long and then not at all.  A set that the issuer answered with
replaces the one before whole: a key that it left out is gone.  Source: DESIGN section 6, RFC 7517.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from keymesh.model.time import Instant, is_live

K = TypeVar("K")

REFRESH_MIN_MS: Final = 10_000


@dataclass(slots=True)
class IssuerKeys(Generic[K]):
    """The keys of one issuer.  ``refresh_min_ms``: an unknown key id has them asked for again no sooner than that."""

    max_age_ms: int
    refresh_min_ms: int = REFRESH_MIN_MS
    keys: Mapping[str, K] = field(default_factory=dict)
    asked_at: Instant | None = None
    believed_until: Instant | None = None

    def find(self, kid: str, now: Instant) -> K | None:
        """The key of that id, while it counts."""
        if self.believed_until is None or not is_live(self.believed_until, now):
            return None
        return self.keys.get(kid)

    def may_ask(self, now: Instant) -> bool:
        """Whether the issuer may be asked because of a key id that is not known."""
        return self.asked_at is None or now >= self.asked_at + self.refresh_min_ms

    def asking(self, now: Instant) -> None:
        """A request is about to be sent."""
        self.asked_at = now

    def answered(self, keys: Mapping[str, K], *, sent_at: Instant) -> None:
        """The set that the request sent at ``sent_at`` brought, unless a later request has been answered."""
        until = Instant(sent_at + self.max_age_ms)
        if self.believed_until is None or until >= self.believed_until:
            self.keys, self.believed_until = dict(keys), until
