"""What the Edge's machine tells its shell, and what the shell tells it, beside the shared events and effects.

Keys are named, never carried: the shell keeps the bytes that came beside a grant in locked pages until the machine
publishes that grant's lease, and wipes them where it does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from msgspec import Struct

from keymesh.control.rows import ServiceRow
from keymesh.control.signing import Suite
from keymesh.model.machine import Address
from keymesh.model.time import Instant
from keymesh.orbital.edge_messages import LeasedVersion, LeaseGrant

REQUEST_TIMEOUT_MS: Final = 5_000


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeConfig:
    """One Edge: a single service of a single tenant.

    ``cores``: the first is asked first, then whichever is nearest (``choice``).  ``signing_key`` (raw Ed25519 public
    key, hex) is this life's own, ``suite`` signs with it.  ``verify_policy`` raises Integrity or Refused where the
    grant's policy is not the Registry's word.  ``known_as``: by which address a Core of another region knows this Edge.
    """

    region: str
    tenant: str
    service: str
    instance: str
    cores: tuple[Address, ...]
    suite: Suite
    signing_key: str
    verify_policy: Callable[[LeaseGrant], None]
    request_timeout_ms: int = REQUEST_TIMEOUT_MS
    known_as: Mapping[Address, Address] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Terms:
    """Of a budget: ``ops`` more of ``window``, until ``until``; ``more``: the Core had more to give."""

    ops: int
    window: int
    until: Instant
    more: bool


@dataclass(frozen=True, slots=True)
class LeaseSnapshot:
    """An immutable lease: what the hot path may use, until ``deadline`` (whose own instant is expired).

    ``versions`` is empty under core-held custody; ``terms`` None: no budget is in force.
    """

    lease_id: str
    nonce: str
    granted_by: Address
    versions: tuple[LeasedVersion, ...]
    deadline: Instant
    policy: ServiceRow
    terms: Terms | None = None

    @property
    def wrapping_kid(self) -> str | None:
        """The version that protects new data."""
        return next((version.kid for version in self.versions if version.may_wrap), None)

    @property
    def kids(self) -> frozenset[str]:
        return frozenset(version.kid for version in self.versions)


# --- effects ---------------------------------------------------------------------------------------------------------


class Publish(Struct, frozen=True):
    """Replace what the hot path uses, at once.  ``lease`` None: nothing may be used; wipe the keys.

    ``reason``: ``granted``, or why there is no lease: ``revoked``, ``expired``, ``clock``, ``edge-closed`` or the
    code of a refusal.  Carried out whole before the next effect: an acknowledgement behind it is true.
    """

    lease: LeaseSnapshot | None
    reason: str


class Trim(Struct, frozen=True):
    """Give back what is held of a budget beyond ``keep``; answered by ``SlicesUnused`` where that was anything."""

    keep: int


# --- events ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Connected:
    """The revocation stream from that Core is open (again)."""

    core: Address


@dataclass(frozen=True, slots=True)
class Measured:
    """What a short question to that Core came to.  ``rtt_ms`` None: it did not answer, or is not ready to serve."""

    core: Address
    rtt_ms: int | None


@dataclass(frozen=True, slots=True)
class SendFailed:
    """The lease request with that nonce certainly or probably did not get its answer."""

    nonce: str


@dataclass(frozen=True, slots=True)
class KeyWanted:
    """An unknown kid was presented: fetch once (DESIGN section 1)."""


@dataclass(frozen=True, slots=True)
class Closing:
    """The orderly end: this life takes nothing any more, and gives back what it holds."""


@dataclass(frozen=True, slots=True)
class UsageCounted:
    """What the hot path did since the last count."""

    minted: int
    opened: int
    refused: int


@dataclass(frozen=True, slots=True)
class BudgetUsed:
    """What is ``left`` of the slices held, what was ``used`` since the last time, and whether that asks for more."""

    left: int
    used: int
    low: bool


@dataclass(frozen=True, slots=True)
class SlicesUnused:
    """Of the slices that came with these leases so many operations, in all, will never be used."""

    unused: tuple[tuple[str, int], ...]
