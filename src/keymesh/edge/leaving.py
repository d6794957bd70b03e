"""An Edge's orderly end: everything dropped, then the leases given back, so that no certificate waits for them.

Source: DESIGN section 5; why the Core may settle them at once: ``core.revoking.gives_back``, which rests on this order.
"""

from __future__ import annotations

from typing import Any

from keymesh.edge import leasing
from keymesh.edge.snapshot import Closing
from keymesh.edge.state import EdgeState, address_at
from keymesh.model.machine import Send
from keymesh.model.time import Instant, is_live
from keymesh.orbital.edge_messages import LeaseReturned, LeaseReturnedMessage


def on_closing(state: EdgeState, now: Instant, event: Closing) -> list[Any]:
    """1. Drop what is held.  2. Take nothing any more: a grant that is on its way is for nobody.  3. Say so of every
    lease of this life that a Core still counts, to the Core that granted it.

    Usage that is not yet reported goes on being reported to the Core that granted the last lease.
    """
    effects = leasing.drop(state, "edge-closed")
    state.closed = True
    state.pending = state.next_request_at = state.hint = None
    held, state.granted = state.granted, {}
    for lease_id, (core, deadline) in held.items():
        state.usage_to = core
        if is_live(deadline, now):
            returned = LeaseReturned(lease_id=lease_id, edge=address_at(state, core))
            effects.append(Send(core, LeaseReturnedMessage(returned=state.config.suite.seal(returned))))
    return effects
