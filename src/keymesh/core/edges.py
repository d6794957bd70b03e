"""Leases of service keys to Edges, and the end E of those that may still be held (DESIGN sections 3 and 5).

A lease never outlives the node's own governance and L1 leases, counts from the Edge's sending (which is before now),
and is durable before it is granted.  Revocations and what settles a lease are in ``revoking``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from msgspec import UNSET

from keymesh.control.evidence import stretched
from keymesh.control.rows import KeyRow, ServiceRow, l3_name
from keymesh.core import context, slices, waiting
from keymesh.core.records import EdgeLeaseRecord, edge_lease_name
from keymesh.core.state import START, Holding, NodeState, Out, note
from keymesh.core.views import key_state, policy_entry
from keymesh.model.errors import Refused
from keymesh.model.ids import RegionId, ServiceName, TenantId, check_hex
from keymesh.model.limits import EDGE_TTL_MAX_MS
from keymesh.model.machine import Address, BootMark, Send, edge_address
from keymesh.model.scope import Scope, ScopeKind
from keymesh.model.states import Custody, Operation, state_allows
from keymesh.model.time import Instant
from keymesh.orbital.edge_messages import ANNOUNCED, RETRY, LeasedVersion, LeaseGrant, LeaseRefused, LeaseRequest

RETRY_MS = 1_000
_LEASED = Custody.LEASED.value
LEASES_PER_EDGE_MAX = 64


@dataclass(frozen=True, slots=True)
class GrantPending:
    """A lease that is granted once its record is durable."""

    record: EdgeLeaseRecord
    request: LeaseRequest
    drawn: slices.Draw | None = None


# --- rules -----------------------------------------------------------------------------------------------------------


def edge_ttl(service_ttl_ms: int, now: Instant, own_until: Iterable[Instant]) -> int:
    """The lease's life: the service's, within the limit, and never beyond any of the node's own leases."""
    return min(service_ttl_ms, EDGE_TTL_MAX_MS, *(until - now for until in own_until))


def held_for(ttl_ms: int) -> int:
    """How long, by this node's clock, an Edge may hold a lease of ``ttl_ms``: its clock may run 0.1 % slower."""
    return stretched(ttl_ms)


def end_after_restart(record: EdgeLeaseRecord, mark: BootMark, now: Instant) -> Instant:
    """By when a lease of an earlier life is over: by the same kernel boot's clock, else its whole life from now."""
    if record.boot_id == mark.boot_id:
        return Instant(now + min(record.boottime_end_ms - mark.boottime_ms, held_for(record.ttl_ms)))
    return Instant(now + held_for(record.ttl_ms))


def under(scope: Scope, region: str, lease: EdgeLeaseRecord) -> bool:
    """Whether ``lease`` released something that ``scope`` covers."""
    if scope.kind is ScopeKind.KEY:
        return scope.tenant == lease.tenant and scope.service == lease.service and scope.version in lease.versions
    return scope.covers(
        region=RegionId(region), tenant=TenantId(lease.tenant), service=ServiceName(lease.service), version=None
    )


def open_leases(state: NodeState, scope: Scope, now: Instant) -> list[EdgeLeaseRecord]:
    """Unsettled leases under ``scope`` that an Edge may still hold."""
    return list(newest_open(state, scope, now))


def newest_open(state: NodeState, scope: Scope, now: Instant) -> Iterator[EdgeLeaseRecord]:
    """As ``open_leases``, one by one; of each tenant the newest first, which most often ends last."""
    region = state.config.region
    leases = state.edge_leases.newest_first(scope.tenant)
    return (lease for lease in leases if now < lease.end and under(scope, region, lease))


def leases_end_in_ms(leases: Iterable[EdgeLeaseRecord], now: Instant) -> int:
    """E, as a duration from now."""
    last_ms = 0
    for lease in leases:
        if lease.end - now > last_ms:
            last_ms = lease.end - now
    return last_ms


# --- boot ------------------------------------------------------------------------------------------------------------


def restore(state: NodeState, record: EdgeLeaseRecord, now: Instant) -> None:
    """Take up a lease of an earlier life."""
    end = end_after_restart(record, state.mark, now)
    if now < end:
        state.edge_leases[record.lease_id] = replace(record, end=end)
        state.at(end, "edge-end", record.lease_id)
    else:
        state.edge_gone.append(edge_lease_name(record.lease_id))


def extend_all(state: NodeState, by_ms: int) -> None:
    """Our clock jumped ahead; the Edges' clocks may not have: their leases end so much later by ours.

    Also those that are still being recorded, which an Edge counts from its sending.  ``boottime_end_ms`` counts on a
    clock that did not jump, and stays.
    """
    for lease_id, lease in state.edge_leases.items():
        end = Instant(lease.end + by_ms)
        state.edge_leases[lease_id] = replace(lease, end=end)
        state.at(end, "edge-end", lease_id)
    for token, pending in state.persisting.items():
        if isinstance(pending, GrantPending):
            later = replace(pending.record, end=Instant(pending.record.end + by_ms))
            state.persisting[token] = replace(pending, record=later)


# --- requests --------------------------------------------------------------------------------------------------------


def on_request(state: NodeState, now: Instant, sender: Address, request: LeaseRequest, out: Out) -> None:
    """Judge a request and, where it may be granted, record the lease; the grant follows the record."""
    code = _refusal(state, now, sender, request)
    if code is None and leases_of(state, sender) >= LEASES_PER_EDGE_MAX:
        code = "too-many"
    if code is None:
        row = state.tenants[request.tenant].view.services[request.service]
        ttl_ms = _ttl(state, now, request.tenant, row)
        versions = leased_versions(state, request.tenant, request.service)
        record = EdgeLeaseRecord(
            lease_id=state.draw("edge-lease"),
            tenant=request.tenant,
            service=request.service,
            edge=sender,
            signing_key=request.signing_key,
            versions=tuple(version.version for version in versions),
            ttl_ms=ttl_ms,
            end=Instant(now + held_for(ttl_ms)),
            boot_id=state.mark.boot_id,
            boottime_end_ms=state.mark.boottime_ms + (now - state.booted_at) + held_for(ttl_ms),
        )
        drawn, more = _slice_for(state, now, record, request, row)
        puts = ((edge_lease_name(record.lease_id), record), *more)
        state.persist("edge-lease", GrantPending(record, request, drawn), puts, (), out)
    else:
        _refuse(state, sender, request, code, out)


def _slice_for(
    state: NodeState, now: Instant, lease: EdgeLeaseRecord, request: LeaseRequest, row: ServiceRow
) -> tuple[slices.Draw | None, slices.Puts]:
    """What of a budget goes with the lease, counted from now on, and what is to be recorded of it."""
    if row.custody != _LEASED:
        return None, ()
    wants = None if request.wants is UNSET else max(0, request.wants)
    drawn = slices.draw(state, now, lease.tenant, lease.service, wants)
    if drawn is None:
        return None, ()
    return drawn, slices.take(
        state,
        now,
        drawn,
        lease_id=lease.lease_id,
        tenant=lease.tenant,
        service=lease.service,
        edge=lease.edge,
        key=lease.signing_key,
    )


def _refuse(state: NodeState, edge: Address, request: LeaseRequest, code: str, out: Out) -> None:
    """Refuse; an Edge that is refused for what may end is told when it has."""
    if code in ANNOUNCED:
        waiting.remember(state, edge, request.tenant, request.service)
    out.append(Send(edge, LeaseRefused(nonce=request.nonce, code=code, retry_after_ms=RETRY_MS)))


def announce(state: NodeState, now: Instant, tenant: str, out: Out) -> None:
    """Tell the Edges that were refused a lease of this tenant's services where one could be had now."""
    if tenant in state.waiting:
        waiting.tell(state, tenant, lambda service: _unleasable(state, now, tenant, service) is None, out)


def _refusal(state: NodeState, now: Instant, sender: Address, request: LeaseRequest) -> str | None:
    """Why not, or None.  What an Edge may not know of looks absent to it."""
    holding = state.tenants.get(request.tenant)
    prefix = edge_address(state.config.region, request.tenant, request.service, "")
    if not sender.startswith(prefix) or holding is None or _service(holding, request.service) is None:
        return "unknown"
    try:
        check_hex("signing_key", request.signing_key, hex_bytes=32)
    except Refused:
        return "unknown"
    return _unleasable(state, now, request.tenant, request.service)


def _unleasable(state: NodeState, now: Instant, tenant: str, service: str) -> str | None:
    """Why no Edge is granted a lease of that service now, or None."""
    holding = state.tenants.get(tenant)
    row = None if holding is None else _service(holding, service)
    if holding is None or row is None:
        return "unknown"
    if context.covered_kinds(state, tenant, service, None):
        return "restricted"  # in any mode, so that the Edge drops what it holds
    if not context.may_lease(state, now, tenant, service).allowed or _ttl(state, now, tenant, row) <= 0:
        return "closed"
    if row.custody == _LEASED and not leased_versions(state, tenant, service):
        return "restricted" if _all_restricted(state, holding, service) else "not-loaded"
    return None


def leases_of(state: NodeState, edge: Address) -> int:
    """How many leases that Edge has, or will have once they are recorded, or gave back before their end: else an
    Edge that takes and returns would have records written without limit."""
    held = len(state.edge_leases.of_edge(edge)) + len(state.edge_returned.of_edge(edge))
    return held + sum(1 for p in state.persisting.values() if isinstance(p, GrantPending) and p.record.edge == edge)


def _service(holding: Holding, service: str) -> ServiceRow | None:
    return holding.view.services.get(service)


def _usable(row: KeyRow, operation: Operation) -> bool:
    found = key_state(row)
    return found is not None and state_allows(found, operation)


def _all_restricted(state: NodeState, holding: Holding, service: str) -> bool:
    key = l3_name(service)
    versions = [version for name, version in holding.view.keys if name == key]
    return bool(versions) and all(
        context.version_restricted(state, holding.namespace, key, version) for version in versions
    )


def leased_versions(state: NodeState, tenant: str, service: str) -> tuple[LeasedVersion, ...]:
    """The loaded versions that an Edge may open with, in order; only the wrapping one, while Active, may wrap.

    Empty for core-held custody.
    """
    holding = state.tenants[tenant]
    row = holding.view.services.get(service)
    if row is None or row.custody != _LEASED:
        return ()
    key = l3_name(service)
    wrapping = holding.view.wrapping.get(key)
    found: list[LeasedVersion] = []
    for version in sorted([version for name, version in holding.loaded if name == key]):
        known = holding.view.keys.get((key, version))
        if known is None or known.kid != holding.loaded[key, version].kid or not _usable(known, Operation.LEASE):
            continue
        if not context.version_restricted(state, tenant, key, version):
            may_wrap = version == wrapping and _usable(known, Operation.WRAP)
            found.append(LeasedVersion(kid=known.kid, version=version, may_wrap=may_wrap))
    return tuple(found)


def own_leases(state: NodeState, tenant: str) -> tuple[Instant, ...]:
    """Ends of the node's own leases that an Edge lease must not outlive: namespace, mesh, L1."""
    holding = state.tenants[tenant]
    governance = (START if lease is None else lease.until for lease in (holding.lease, state.mesh.lease))
    return (*governance, START if holding.l1.until is None else holding.l1.until)


def _ttl(state: NodeState, now: Instant, tenant: str, row: ServiceRow) -> int:
    return edge_ttl(row.edge_ttl_ms, now, own_leases(state, tenant))


def on_granted(state: NodeState, now: Instant, pending: GrantPending, out: Out) -> None:
    """The record is durable: grant, if nothing has come between; in any case the lease counts from here on."""
    record, request = pending.record, pending.request
    state.edge_leases[record.lease_id] = record
    state.at(record.end, "edge-end", record.lease_id)
    edge = Address(record.edge)
    holding = state.tenants[record.tenant]
    service = _service(holding, record.service)
    versions = leased_versions(state, record.tenant, record.service)
    ttl_ms = edge_ttl(record.ttl_ms, now, own_leases(state, record.tenant))  # the clock may have gone on meanwhile
    verdict = context.may_lease(state, now, record.tenant, record.service)
    same = tuple(version.version for version in versions) == record.versions
    if not verdict.allowed or service is None or holding.applied is None or not same or ttl_ms <= 0:
        if puts := slices.never_left(state, record.lease_id):
            state.persist("slice", None, puts, (), out)
        _refuse(state, edge, request, _unleasable(state, now, record.tenant, record.service) or RETRY, out)
        return
    waiting.forget(state, edge, record.tenant)
    signed = policy_entry(holding.applied, record.service)
    out.append(
        Send(
            edge,
            LeaseGrant(
                lease_id=record.lease_id,
                nonce=request.nonce,
                tenant=record.tenant,
                service=record.service,
                ttl_ms=ttl_ms,
                versions=versions,
                policy=service,
                policy_entry=None if signed is None else signed.envelope,
                slice=UNSET if pending.drawn is None else slices.granted(pending.drawn, now),
            ),
        )
    )


def on_grant_failed(state: NodeState, pending: GrantPending, out: Out) -> None:
    slices.never_left(state, pending.record.lease_id)
    _refuse(state, Address(pending.record.edge), pending.request, RETRY, out)
    note(out, "persist-failed", what="edge-lease")


def flush_gone(state: NodeState, out: Out) -> None:
    """Forget the records of leases that are over or settled.  Losing this only makes E larger than it need be."""
    if state.edge_gone:
        names, state.edge_gone = tuple(state.edge_gone), []
        state.persist("edge-gone", None, (), names, out)
