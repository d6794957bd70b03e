"""How regions bring each other a tenant's sealed objects: what is asked and answered, and what follows from an answer.

Each region reads every other one's changes by a cursor, tenant by tenant, so that no tenant waits for another.  Lost
answers are asked for again, repeated ones change nothing.  Both regions must be allowed the tenant, by what each has
applied at that moment: neither asks nor answers otherwise (I5).

Small answers are JSON; objects travel in MessagePack, each as its own bytes, so that one that cannot be read spoils no
other.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, TypeVar

import msgspec
from msgspec import Struct

from keymesh.control.rows import PolicyRow
from keymesh.model.errors import Integrity, Refused
from keymesh.model.limits import OBJECT_COMMIT_MAX, OBJECT_HEADS_MAX, OBJECT_PAGE_MAX
from keymesh.orbital.objects import Changes, SealedObject, Verdict, object_from_bytes, object_to_bytes

HEADS_PATH: Final = "/v1/objects/heads"
CHANGES_PATH: Final = "/v1/objects/changes/{tenant}"
OFFER_PATH: Final = "/v1/objects/offer/{tenant}"
COMMIT_PATH: Final = "/v1/objects/commit/{tenant}/{service}"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a peer's changes of one tenant are stored here.  ``origin``: of the peer's store."""

    origin: str
    position: int


START: Final = Cursor("", 0)


class HeadsAnswer(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Tenants that changed, of those that both regions are allowed, and the place of each one's last change.

    ``upto``: ask for those after it next; ``more``: there are some already.
    """

    origin: str
    heads: tuple[tuple[str, int], ...]
    upto: int
    more: bool


class PageAnswer(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One tenant's changes, in order.  ``upto``: ask for those after it next."""

    origin: str
    upto: int
    more: bool
    objects: tuple[bytes, ...]


class OfferBody(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    objects: tuple[bytes, ...]


class OfferAnswer(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One verdict for each object."""

    verdicts: tuple[str, ...]


class ForwardBody(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A commit for its writer.  ``id`` is its own however often it is sent."""

    id: str
    changes: tuple[tuple[int, bytes], ...]


class ForwardAnswer(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The objects as their writer has them now."""

    objects: tuple[bytes, ...]


_pack: Final = msgspec.msgpack.Encoder().encode


def to_octets(body: PageAnswer | OfferBody | ForwardBody | ForwardAnswer) -> bytes:
    return _pack(body)


def from_octets(raw: bytes, shape: type[T]) -> T:
    """Raises Refused where ``raw`` is no such body.  Its size is bounded by whoever received it."""
    try:
        return msgspec.msgpack.decode(raw, type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError) as bad:
        raise Refused.bad_field("body", "not a body of this request") from bad


def offer_of(objects: Iterable[SealedObject]) -> OfferBody:
    return OfferBody(tuple(object_to_bytes(one) for one in objects))


def forward_of(forward_id: str, changes: Changes) -> ForwardBody:
    return ForwardBody(forward_id, tuple((expected, object_to_bytes(after)) for expected, after in changes))


def changes_of(body: ForwardBody) -> list[tuple[int, SealedObject]]:
    """Raises Refused: too many; Integrity: one that is none."""
    if len(body.changes) > OBJECT_COMMIT_MAX:
        raise Refused.bad_field("changes", f"1 to {OBJECT_COMMIT_MAX}")
    return [(expected, object_from_bytes(raw)) for expected, raw in body.changes]


def readable(raws: Iterable[bytes], tenant: str) -> tuple[list[SealedObject], int]:
    """(the objects of ``tenant``, how many were none: cut, beyond a limit, or another tenant's)."""
    found, bad = [], 0
    for raw in raws:
        try:
            one = object_from_bytes(raw)
        except Integrity:
            bad += 1
            continue
        if one.namespace == tenant:
            found.append(one)
        else:
            bad += 1
    return found, bad


# --- what follows --------------------------------------------------------------------------------------------------


def may_exchange(policy: PolicyRow, *, here: str, there: str) -> bool:
    """Whether these two regions may speak of that tenant's objects."""
    return here != there and here in policy.regions and there in policy.regions


def read_from(asked: Cursor, *, origin: str, head: int) -> int:
    """Where the answer to ``asked`` begins: from the start where it speaks of another store, or of a place that this
    one never reached (it is an older copy)."""
    return asked.position if asked.origin == origin and 0 <= asked.position <= head else 0


def next_cursor(asked: Cursor, page: PageAnswer) -> Cursor:
    """Where to read on.  Raises Integrity for an answer that cannot be one: going on with it might never end."""
    same = page.origin == asked.origin
    if not page.origin or len(page.objects) > OBJECT_PAGE_MAX or page.upto < 0:
        raise Integrity("object-page", "no page of changes")
    if page.more and same and page.upto == asked.position:
        raise Integrity("object-page", "a page that goes nowhere")
    return Cursor(page.origin, page.upto)


def is_behind(held: Cursor | None, *, origin: str, head: int) -> bool:
    """Whether there is something to read of a tenant whose last change is at ``head``."""
    return held is None or held.origin != origin or held.position != head


def check_heads(answer: HeadsAnswer, *, after: int) -> HeadsAnswer:
    """Raises Integrity for an answer that cannot be one."""
    if not answer.origin or len(answer.heads) > OBJECT_HEADS_MAX or (answer.more and answer.upto <= after):
        raise Integrity("object-heads", "no list of tenants")
    return answer


def is_held(verdict: str) -> bool:
    """Whether a region that says so of an object has it, or a newer version."""
    return verdict in (Verdict.STORE.value, Verdict.SAME.value, Verdict.STALE.value)


@dataclass(slots=True)
class Lag:
    """How old what is held here of one peer's objects may be, tenant by tenant.  Times are monotonic seconds.

    ``level_at``: when everything that the peer had then was here, but for ``behind``: tenant to when it last was.
    """

    began_at: float
    level_at: float | None = None
    behind: dict[str, float] = field(default_factory=dict)

    def fell_behind(self, tenant: str) -> None:
        self.behind.setdefault(tenant, self.began_at if self.level_at is None else self.level_at)

    def caught_up(self, tenant: str) -> None:
        self.behind.pop(tenant, None)

    def was_level(self, asked_at: float) -> None:
        """The peer's list, asked for at ``asked_at``, is whole: whoever is not on it, or was read, is up to date."""
        self.level_at = asked_at

    def seconds(self, tenant: str, now: float) -> float:
        at = self.behind.get(tenant, self.began_at if self.level_at is None else self.level_at)
        return max(0.0, now - at)
