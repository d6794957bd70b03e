"""Usage reports (DESIGN section 8): counts in batches, one in flight, repeated under one id until it is recorded.

Counts that a dead Edge had not reported are lost: what the Cores' receipts say is a lower bound.
"""

from __future__ import annotations

from typing import Any

from keymesh.edge.snapshot import UsageCounted
from keymesh.edge.state import EdgeState
from keymesh.model.machine import Address, Send
from keymesh.model.time import Instant
from keymesh.orbital.edge_messages import UsageRecorded, UsageReport

RESEND_MS = 2_000


def on_counted(state: EdgeState, now: Instant, event: UsageCounted) -> list[Any]:
    usage = state.usage
    usage.minted += event.minted
    usage.opened += event.opened
    usage.refused += event.refused
    return report(state, now)


def report(state: EdgeState, now: Instant) -> list[Any]:
    """The report in flight once more where it is due, else a new one where there is something to say."""
    usage = state.usage
    if usage.in_flight is None:
        if not (usage.minted or usage.opened or usage.refused):
            return []
        usage.reports += 1
        usage.in_flight = UsageReport(
            report_id=f"{state.config.signing_key[:32]}.{usage.reports}",
            tenant=state.config.tenant,
            service=state.config.service,
            minted=usage.minted,
            opened=usage.opened,
            refused=usage.refused,
        )
        usage.minted = usage.opened = usage.refused = 0
    elif usage.sent_at is not None and now < usage.sent_at + RESEND_MS:
        return []
    usage.sent_at = now
    return [Send(recipient(state), usage.in_flight)]


def on_recorded(state: EdgeState, now: Instant, sender: Address, recorded: UsageRecorded) -> list[Any]:
    in_flight = state.usage.in_flight
    if in_flight is None or in_flight.report_id != recorded.report_id:
        return []
    state.usage.in_flight = None
    return report(state, now)


def recipient(state: EdgeState) -> Address:
    """The Core that granted the lease where there is one, or was: it knows this Edge."""
    if state.lease is not None:
        return state.lease.granted_by
    if state.usage_to is not None:
        return state.usage_to
    return state.config.cores[state.core_index]
