"""One region's part of a tenant's budgets, for people: its share, what is spent of it, open rates and alarms."""

from __future__ import annotations

from typing import Any

from keymesh.core import budget, slices
from keymesh.core.open_rate import OpenRates
from keymesh.core.state import NodeState
from keymesh.model.time import Instant


def show_budgets(state: NodeState, now: Instant, tenant: str, rates: OpenRates) -> list[dict[str, Any]]:
    """Each budget that is set, the tenant's own first.  ``spent`` counts what Edges hold and have not used yet."""
    standing = rates.standing(now)
    shown = []
    for service, row in sorted(state.tenants[tenant].view.budgets.items()):
        one: dict[str, Any] = {"service": service or None, "version": row.version, "period": row.period}
        if row.limits:
            account = budget.current(state.accounts.get((tenant, service)), row, now)
            ops, nano = slices.shares(state, tenant, row)
            spent = account.of(account.floor)
            one |= {
                "share_ops": None if row.ops is None else ops,
                "share_money": None if row.money is None else nano // budget.NANO_PER_MICRO,
                "spent_ops": spent.ops,
                "spent_money": -(-spent.nano // budget.NANO_PER_MICRO),
                "left_ops": budget.left_in(account, account.floor, row, ops, nano),
                "ends_in_ms": max(0, budget.window_end(row, account) - now),
            }
        if service and row.alarm_opens is not None:
            one |= {
                "opens_per_minute": rates.per_minute(now, tenant, service),
                "alarm_opens": row.alarm_opens,
                "alarm": (tenant, service) in standing,
            }
        shown.append(one)
    return shown
