"""The Edge's rules, one small function each, so that a simulator can break them one by one (DESIGN sections 3 and 5).

A machine calls them through the module: ``rules.lease_deadline(...)``.
"""

from __future__ import annotations

from typing import Final

from keymesh.control.rows import ServiceRow
from keymesh.edge.snapshot import EdgeConfig, LeaseSnapshot
from keymesh.edge.state import Pending
from keymesh.model.limits import EDGE_TTL_MAX_MS
from keymesh.model.machine import Address
from keymesh.model.states import Custody
from keymesh.model.time import Instant, is_live
from keymesh.orbital.edge_messages import ANNOUNCED, LeaseGrant, LeaseReady, Revocation

VERSIONS_MAX: Final = 1_024
BACKOFF_FIRST_MS: Final = 250
BACKOFF_MAX_MS: Final = 15_000
RETRY_MAX_MS: Final = 24_000  # and a quarter of spread: 30 s
RETRY_MIN_MS: Final = 100
PATIENCE_MIN_MS: Final = 500
HINT_GAP_MS: Final = 250
HINT_GAP_MAX_MS: Final = 30_000
HINT_QUIET_MS: Final = 300_000
KEY_WANTED_GAP_MS: Final = 1_000
KEY_WANTED_GAP_MAX_MS: Final = 60_000


def answers(pending: Pending | None, sender: Address, nonce: str) -> bool:
    """Whether this answers the one request in flight: a nonce is good for one answer, from whom it was sent to."""
    return pending is not None and pending.nonce == nonce and pending.to == sender


def lease_deadline(sent_at: Instant, received_at: Instant, ttl_ms: int) -> Instant:
    """A lease is counted from when the request was *sent*; ``received_at`` only shows what is not to be used."""
    del received_at
    return Instant(sent_at + ttl_ms)


def lease_ttl(grant: LeaseGrant) -> int:
    """Never more than the service's own policy, nor than the mesh allows any Edge."""
    return min(grant.ttl_ms, grant.policy.edge_ttl_ms, EDGE_TTL_MAX_MS)


def is_usable(lease: LeaseSnapshot | None, now: Instant) -> bool:
    return lease is not None and is_live(lease.deadline, now)


def keeps_policy(held: ServiceRow | None, offered: ServiceRow) -> bool:
    """A policy never falls to an older version, and one version has one content."""
    if held is None or offered.version > held.version:
        return True
    return offered == held


def grant_fault(grant: LeaseGrant, tenant: str, service: str) -> str | None:
    """Why a grant is not one for this Edge, or None."""
    kids = [version.kid for version in grant.versions]
    if (grant.tenant, grant.service) != (tenant, service):
        return "other-service"
    if grant.ttl_ms <= 0:
        return "ttl"
    if len(kids) > VERSIONS_MAX or len(set(kids)) != len(kids):
        return "versions"
    if sum(version.may_wrap for version in grant.versions) > 1:
        return "two-wrapping-versions"
    if grant.policy.custody == Custody.CORE_HELD.value and kids:
        return "keys-under-core-held-custody"
    return None


def names_edge(said: Revocation | LeaseReady, config: EdgeConfig, sender: Address) -> bool:
    """Whether one of this Edge's Cores says it, of this Edge's service."""
    return sender in config.cores and (said.tenant, said.service) == (config.tenant, config.service)


def names_lease(revocation: Revocation, lease: LeaseSnapshot | None) -> bool:
    return lease is not None and lease.lease_id in revocation.lease_ids


def refusal_drops(code: str) -> bool:
    """Only a restriction takes a live lease away; any other refusal leaves it to its deadline."""
    return code == "restricted"


def may_ask_elsewhere(code: str) -> bool:
    """Whether another Core may know better.  One that says *restricted* is believed: nobody shops for a Core that has
    not heard."""
    return code != "restricted"


def refresh_after_ms(ttl_ms: int, spread: int) -> int:
    """Between 50 and 80 % of the ttl; ``spread`` is 0 to 999, by hash."""
    return ttl_ms // 2 + ttl_ms * 3 * spread // 10_000


def patience_ms(limit_ms: int, ttl_ms: int) -> int:
    """How long one request may stay unanswered: a fifth of the lease, so that a silent Core leaves time for another."""
    return min(limit_ms, max(PATIENCE_MIN_MS, ttl_ms // 5))


def refused_wait_ms(code: str, retry_after_ms: int, refusals: int) -> int:
    """What the Core asked for, doubling while it keeps refusing: up to the limit where the Core says when to come back
    (that word can be lost), else up to four times, so that a service that is new there is noticed within seconds."""
    wait = min(max(retry_after_ms, RETRY_MIN_MS), RETRY_MAX_MS)
    doublings = 8 if code in ANNOUNCED else 2
    return min(wait << min(max(refusals - 1, 0), doublings), RETRY_MAX_MS)


def heeds_hint(lease: LeaseSnapshot | None, failures: int) -> bool:
    """Whether "you may ask again" is of use: nothing is held, or what is held was not renewed."""
    return lease is None or failures > 0


def hint_gap_ms(hints: int) -> int:
    """How long after the last request a hint may bring the next one: doubles with each since the last grant, so that
    no Core makes an Edge spin."""
    return min(HINT_GAP_MAX_MS, HINT_GAP_MS << min(hints, 8))


def hints_that_count(hints: int, last_at: Instant | None, now: Instant) -> int:
    """How many were heeded; none where nobody gave any, heeded or not, for a long time."""
    return 0 if last_at is None or now >= last_at + HINT_QUIET_MS else hints


def backoff_ms(failures: int, spread: int) -> int:
    """Doubles up to a limit; between half and the whole of it, ``spread`` being 0 to 999, by hash."""
    whole = min(BACKOFF_MAX_MS, BACKOFF_FIRST_MS << min(max(failures - 1, 0), 8))
    return whole // 2 + whole * spread // 2_000
