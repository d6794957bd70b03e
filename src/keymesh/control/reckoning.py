"""The certificate's arithmetic: by when a holder is certainly done, who the holders are, and when all of them are.

Pure, and the same for whoever issues a certificate and whoever verifies one.  Source: DESIGN section 5.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from keymesh.control.messages import Ack, RestrictionAck
from keymesh.control.rows import PolicyRow, Rows, SettingsRow
from keymesh.model.machine import node_address
from keymesh.model.scope import Scope, ScopeKind

CLOCK_SLACK_MS: Final = 2_000


def stretched(duration_ms: int) -> int:
    """``duration_ms`` on a clock that runs up to 0.1 % slower, rounded up."""
    return duration_ms + -(-duration_ms // 1000)


def bound_end(committed_at: int, ttl_ms: int) -> int:
    """By when every lease that was alive at the commit is over: commit + ttl x 1.001 + 2 s."""
    return committed_at + stretched(ttl_ms) + CLOCK_SLACK_MS


def ack_end(received_at: int, edge_leases_end_in_ms: int, open_edge_leases: int) -> int:
    """By when the last Edge lease that the node granted is over; when its word came, where it has none."""
    return received_at + (stretched(edge_leases_end_in_ms) if open_edge_leases else 0)


def longest_ttl_ms(settings: SettingsRow, policy: PolicyRow | None) -> int:
    """The longest that a lease alive at the commit can carry."""
    if policy is None or policy.ttl_ms is None:
        return settings.ttl_ms
    return min(policy.ttl_ms, settings.ttl_ms)


def holders_of(scope: Scope, mesh_rows: Rows, policy: PolicyRow | None) -> tuple[str, ...]:
    """Addresses of every node that may hold keys under ``scope``, sorted: all enrolled nodes of the regions that it
    touches, connected or not."""
    regions: frozenset[str] | None
    match scope.kind:
        case ScopeKind.MESH:
            regions = None
        case ScopeKind.REGION:
            regions = frozenset({str(scope.region)})
        case ScopeKind.TENANT | ScopeKind.SERVICE | ScopeKind.KEY | ScopeKind.CLIENT | ScopeKind.DESTRUCTION:
            regions = frozenset() if policy is None else frozenset(policy.regions)
    found = []
    for name in mesh_rows:
        if name.startswith("node/"):
            _, region, node = name.split("/", 2)
            if regions is None or region in regions:
                found.append(node_address(region, node))
    return tuple(sorted(found))


def ack_word(ack: Ack, scope: str, seq: int, epoch: int, entry_hash: str) -> RestrictionAck | None:
    """What ``ack`` says of *this* entry's restriction, if it says: applied durably, in force; None otherwise."""
    if ack.outcome not in ("applied", "stale") or ack.leaf.order < (epoch, seq):
        return None
    if ack.leaf.order == (epoch, seq) and ack.leaf.entry_hash != entry_hash:
        return None
    for said in ack.restrictions:
        if said.scope == scope and said.seq == seq and said.entry_hash in (None, entry_hash):
            if said.edge_leases_end_in_ms >= 0 and said.open_edge_leases >= 0:
                return said
    return None


def certain_end(committed_at: int, ends: Iterable[int]) -> int:
    """T: when the entry is committed and every holder is certainly done."""
    return max([committed_at, *ends])
