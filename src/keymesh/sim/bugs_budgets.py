"""Planted bugs of budgets: each must be found by the checkers of ``budgets`` (see ``bugs``)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from keymesh.core import budget, slices
from keymesh.edge import budgets as edge_budgets
from keymesh.edge.purse import Purse
from keymesh.model.time import NEVER
from keymesh.sim.bugs import Bug

_current, _touched, _draw, _take = budget.current, budget.touched, slices.draw, slices.take
_come_back, _terms_of, _turn = slices._come_back, edge_budgets.terms_of, Purse.turn


def _by_the_clock_alone(account: Any, row: Any, now: Any) -> Any:
    """A clock that was set back opens the old period again, as if nothing had been spent in it."""
    fresh = _current(None, row, now)
    return fresh if account is None or fresh.floor < account.floor else _current(account, row, now)


def _the_whole(total: int, region: str, regions: Any, home: str) -> int:
    return total


def _this_period_alone(account: Any, until: Any) -> Any:
    return _touched(account, until)[:1]


def _not_recorded(*args: Any, **kwargs: Any) -> Any:
    _take(*args, **kwargs)
    return ()


def _again_and_again(state: Any, record: Any, unused: int) -> Any:
    """What is said twice comes back twice."""
    return _come_back(state, replace(record, unused=0), unused)


def _surely_unused(state: Any, now: Any, tenant: str, service: str, wants: Any) -> Any:
    """Who asks for a further slice has surely not used the last one."""
    for held in list(state.slices.values()):
        if (held.tenant, held.service) == (tenant, service):
            _come_back(state, held, held.ops)
    return _draw(state, now, tenant, service, wants)


def _without_end(state: Any, now: Any, sent_at: Any, core: Any, grant: Any) -> Any:
    terms = _terms_of(state, now, sent_at, core, grant)
    if terms is not None:
        state.budget.until = NEVER
        state.budget.left = 0
    return terms


def _own_alone(state: Any, tenant: str, service: str) -> Any:
    row = state.tenants[tenant].view.budgets.get(service)
    return [(service, row)] if row is not None and row.limits else []


def _nothing(*args: Any, **kwargs: Any) -> None:
    return None


def _kept_over(self: Any, window: int) -> Any:
    """What is left of one window is used in the next."""
    self.window = window
    return ()


BUDGET_BUGS: Final[tuple[Bug, ...]] = (
    Bug("every-region-has-it-all", ((budget, "share_of", _the_whole),)),
    Bug("slices-not-recorded", ((slices, "take", _not_recorded),)),
    Bug("given-back-twice", ((slices, "_come_back", _again_and_again),)),
    Bug("taken-for-unused", ((slices, "draw", _surely_unused),)),
    Bug("counted-in-one-period-alone", ((budget, "touched", _this_period_alone),)),
    Bug("slice-without-end", ((edge_budgets, "terms_of", _without_end),)),
    Bug("slice-kept-over", ((Purse, "turn", _kept_over),)),
    Bug("tenants-budget-forgotten", ((slices, "limits_on", _own_alone),)),
    Bug("clock-back-opens-the-old-period", ((budget, "current", _by_the_clock_alone),)),
    Bug("clock-ahead-ignored", ((slices, "extend_all", _nothing),)),
)
