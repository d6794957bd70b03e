"""What Crypto Edges and their Core say to each other: leases, their revocation and return, usage (ADR-602).

The plaintext L3 bytes of a grant are not in these types: the shells carry them beside ``LeaseGrant.versions``, in the
same order, straight from key page to key page.
"""

from __future__ import annotations

from typing import Final

from msgspec import UNSET, UnsetType

from keymesh.control.messages import Message, Sealed
from keymesh.control.rows import ServiceRow

ANNOUNCED: Final = frozenset({"restricted", "closed", "not-loaded"})
"""Refusals whose end the Core announces with ``LeaseReady``: something stands against a lease, and the Core sees it go.
"""

RETRY: Final = "retry"
"""Refused by chance: the record failed, or the keys changed meanwhile.  Nothing will announce that it is over."""


class LeaseRequest(Message):
    """``nonce`` is echoed.  ``signing_key``: raw Ed25519 public key (hex) that will sign acknowledgements."""

    tenant: str
    service: str
    nonce: str
    signing_key: str
    policy_version: int  # highest that this Edge has applied; 0: none
    wants: int | UnsetType = UNSET  # operations, where a budget is in force; unset: none held, 0: enough held


class LeasedVersion(Message):
    kid: str
    version: int
    may_wrap: bool  # this is the wrapping version


class SliceGrant(Message):
    """``ops`` operations of a budget, on top of what the Edge holds of the same ``window`` (ms since 1970, at which it
    ends); what it holds of another window it gives back.  ``more``: there was more to be had.  ``ahead_ms``: so long
    before the end the next window is granted as well."""

    ops: int
    window: int
    ends_in_ms: int
    ahead_ms: int
    more: bool


class LeaseGrant(Message):
    """Lives ``ttl_ms`` from the moment the Edge *sent* its request.  ``versions`` is empty for core-held custody.

    ``policy`` is the service's row; ``policy_entry`` is the Registry-signed entry envelope (JSON) that set it.
    ``slice``: unset where no budget is in force.
    """

    lease_id: str
    nonce: str
    tenant: str
    service: str
    ttl_ms: int
    versions: tuple[LeasedVersion, ...]
    policy: ServiceRow
    policy_entry: Sealed
    slice: SliceGrant | UnsetType = UNSET


class LeaseRefused(Message):
    """``code``: ``restricted`` (drop what you hold), ``closed``, ``not-loaded``, ``unknown``, ``too-many``, ``retry``;
    retry after a while."""

    nonce: str
    code: str
    retry_after_ms: int


class LeaseReady(Message):
    """Core to an Edge that it refused: ask again, the service can be leased now.  Said once; a hint, no promise."""

    tenant: str
    service: str


class Revocation(Message):
    """Core to Edge: drop the leases named (all their versions) and say so.  Repeated until acknowledged."""

    revocation_id: str
    lease_ids: tuple[str, ...]
    tenant: str
    service: str
    epoch: int
    seq: int
    correlation_id: str


class EdgeAck(Message):
    """Signed by the Edge with the key that it gave when it took the lease: gone from memory, by lease."""

    lease_id: str
    revocation_id: str
    edge: str
    dropped: bool


class EdgeAckMessage(Message):
    ack: Sealed


class LeaseReturned(Message):
    """Signed like an ``EdgeAck``, at an Edge's orderly end: gone from memory, and this life takes no lease any more."""

    lease_id: str
    edge: str


class LeaseReturnedMessage(Message):
    returned: Sealed


class SliceReturned(Message):
    """Signed like an ``EdgeAck``: of the operations granted with that lease so many, in all, will never be used."""

    lease_id: str
    edge: str
    unused: int


class SliceReturnedMessage(Message):
    returned: Sealed


class UsageReport(Message):
    """Counts since the last report; ``report_id`` makes a repeated one harmless."""

    report_id: str
    tenant: str
    service: str
    minted: int
    opened: int
    refused: int


class UsageRecorded(Message):
    report_id: str
