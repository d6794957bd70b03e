"""How long a success of the customer's L1 lasts (DESIGN section 3)."""

from __future__ import annotations

from keymesh.core.state import Holding, NodeState
from keymesh.model.time import Instant


def l1_end(started_at: Instant, l1_ttl_ms: int) -> Instant:
    """Counted from when the call was sent, as every lease."""
    return Instant(started_at + l1_ttl_ms)


def prove(state: NodeState, holding: Holding, started_at: Instant) -> None:
    """L1 opened the tenant's binding in a call sent at ``started_at``.  Never shortens; without settings, nothing."""
    settings = state.mesh_view.settings
    if settings is not None:
        until = l1_end(started_at, settings.l1_ttl_ms)
        holding.l1.until = until if holding.l1.until is None else max(until, holding.l1.until)
