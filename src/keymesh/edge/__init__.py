"""Crypto Edge: L3 leases, L4 mint and open beside the application, revocations (ADR-602).

``Edge`` (asynchronous) and ``SyncEdge`` are the library; ``machine`` and ``rules`` the protocol; ``sidecar`` the same
operations over a Unix socket.  The library is imported on first use, so that the rules alone stay light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keymesh.edge.client import Edge, EdgeTrust
    from keymesh.edge.client_sync import SyncEdge
    from keymesh.edge.hot_lease import CreatedKey

__all__ = ["CreatedKey", "Edge", "EdgeTrust", "SyncEdge"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from keymesh.edge import client, client_sync, hot_lease

        homes = {"CreatedKey": hot_lease, "SyncEdge": client_sync}
        return getattr(homes.get(name, client), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
