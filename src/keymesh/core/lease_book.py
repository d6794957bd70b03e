"""Edge leases by their ids, and those of one Edge or one tenant without a look at all the others.

Decides nothing about leases; holds them in the order in which they came.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping, ValuesView
from itertools import chain
from typing import Generic, TypeVar

from keymesh.core.records import EdgeLeaseRecord, SliceRecord

L = TypeVar("L", EdgeLeaseRecord, SliceRecord)


class LeaseBook(MutableMapping[str, L], Generic[L]):
    """Lease id -> lease, or what was granted with it."""

    __slots__ = ("_all", "_edges", "_tenants")

    def __init__(self) -> None:
        self._all: dict[str, L] = {}
        self._edges: dict[str, dict[str, L]] = {}
        self._tenants: dict[str, dict[str, L]] = {}

    def __getitem__(self, lease_id: str) -> L:
        return self._all[lease_id]

    def __contains__(self, lease_id: object) -> bool:
        return lease_id in self._all

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def __setitem__(self, lease_id: str, lease: L) -> None:
        known = self._all.get(lease_id)
        if known is not None and (known.edge, known.tenant) != (lease.edge, lease.tenant):
            del self[lease_id]
        self._all[lease_id] = lease
        self._edges.setdefault(lease.edge, {})[lease_id] = lease
        self._tenants.setdefault(lease.tenant, {})[lease_id] = lease

    def __delitem__(self, lease_id: str) -> None:
        lease = self._all.pop(lease_id)
        for index, name in ((self._edges, lease.edge), (self._tenants, lease.tenant)):
            del index[name][lease_id]
            if not index[name]:
                del index[name]

    def of_edge(self, edge: str) -> ValuesView[L]:
        return self._edges.get(edge, {}).values()

    def newest_first(self, tenant: str | None) -> Iterator[L]:
        """Of ``tenant``, or of all tenants."""
        if tenant is not None:
            return reversed(self._tenants.get(tenant, {}).values())
        return chain.from_iterable(reversed(leases.values()) for leases in self._tenants.values())
