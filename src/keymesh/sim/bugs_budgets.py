"""Planted bugs of budgets: each must be found by the checkers of ``budgets`` (see ``bugs``).

What a clock that jumps, or a word that is said twice, could break is rare here; unit tests of the slices plant that.
"""

from __future__ import annotations

from typing import Any, Final

from keymesh.core import budget, slices
from keymesh.edge import budgets as edge_budgets
from keymesh.edge.purse import Purse
from keymesh.model.time import NEVER
from keymesh.sim.bugs import Bug

_touched, _draw, _take = budget.touched, slices.draw, slices.take
_come_back, _terms_of, _turn = slices._come_back, edge_budgets.terms_of, Purse.turn


def _the_whole(total: int, region: str, regions: Any, home: str) -> int:
    return total


def _this_period_alone(account: Any, until: Any) -> Any:
    return _touched(account, until)[:1]


def _not_recorded(*args: Any, **kwargs: Any) -> Any:
    _take(*args, **kwargs)
    return ()


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


def _kept_over(self: Any, window: int) -> Any:
    """What is left of one window is used in the next."""
    self.window = window
    return ()


BUDGET_BUGS: Final[tuple[Bug, ...]] = (
    Bug("every-region-has-it-all", ((budget, "share_of", _the_whole),)),
    Bug("slices-not-recorded", ((slices, "take", _not_recorded),)),
    Bug("taken-for-unused", ((slices, "draw", _surely_unused),)),
    Bug("counted-in-one-period-alone", ((budget, "touched", _this_period_alone),), seeds=(5,)),
    Bug("slice-without-end", ((edge_budgets, "terms_of", _without_end),), seeds=(4,)),
    Bug("slice-kept-over", ((Purse, "turn", _kept_over),), seeds=(5,)),
    Bug("tenants-budget-forgotten", ((slices, "limits_on", _own_alone),)),
)
