"""A namespace as it is handed around and held: its newest entry, its rows, and the entries that the rows rest on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from keymesh.control.entry import Leaf, SignedEntry, leaf_of
from keymesh.control.messages import Sealed
from keymesh.model.ids import Digest

ROOTED_KINDS: Final = frozenset(
    {"mesh.genesis", "region.join", "tenant.create", "l1.switch", "epoch.open", "voters.change", "trust.rotate"}
)
"""Kinds whose arguments a holder compares with the rows: their entries travel with the state for good."""

RESUME: Final = "resume"
CANCEL_DESTROY: Final = "tenant.cancel-destroy"
LIFTS: Final = frozenset({RESUME, CANCEL_DESTROY})
"""Kinds that end a restriction."""

AWAITED: Final = LIFTS | {"trust.rotate"}
"""Kinds that no node applies before a majority of voters has them."""

SET_SERVICE: Final = "service.set"
SET_TENANT: Final = "tenant.set"


@dataclass(frozen=True, slots=True)
class Supported:
    """An entry that rows of the state rest on, with the voters' countersignatures where it needed a commit."""

    signed: SignedEntry
    countersignatures: tuple[Sealed, ...] = ()


@dataclass(frozen=True, slots=True)
class NamespaceState:
    """A namespace whole: its newest entry, the rows whose root that entry attests, and what they rest on."""

    head: SignedEntry
    rows: dict[str, bytes]
    support: tuple[Supported, ...] = ()

    @property
    def leaf(self) -> Leaf:
        return leaf_of(self.head)


def support_after(support: tuple[Supported, ...], signed: SignedEntry) -> tuple[Supported, ...]:
    """What the rows after ``signed`` rest on: every rooted entry, for each scope its newest resume, if no
    restriction came after it, the newest word of the signers on the policy, and for each service the entry that set its
    policy (Edges ask for it)."""
    kind = signed.entry.kind
    if kind in ROOTED_KINDS:
        return (*support, Supported(signed))
    if kind == SET_SERVICE:
        name = signed.entry.body.args.get("service")
        kept = tuple(s for s in support if not _sets(s.signed, name))
        return (*kept, Supported(signed))
    if kind == SET_TENANT:
        return (*(s for s in support if s.signed.entry.kind != SET_TENANT), Supported(signed))
    scope = signed.entry.body.args.get("scope")
    if scope is None:
        return support
    others = tuple(s for s in support if s.signed.entry.body.args.get("scope") != scope)
    return (*others, Supported(signed)) if kind in LIFTS else others


def _sets(signed: SignedEntry, service: object) -> bool:
    return signed.entry.kind == SET_SERVICE and signed.entry.body.args.get("service") == service


def with_commit(
    support: tuple[Supported, ...], entry: Digest, countersignatures: tuple[Sealed, ...]
) -> tuple[Supported, ...]:
    """``support`` with the proof of commitment of the entry whose hash is ``entry``."""
    return tuple(replace(s, countersignatures=countersignatures) if s.signed.hash == entry else s for s in support)
