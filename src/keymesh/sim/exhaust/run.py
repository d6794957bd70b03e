"""Searches all scenarios, or looks for one mutant, and says what came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from keymesh.sim.exhaust.mutants import MUTANTS, Mutant
from keymesh.sim.exhaust.scenarios import SCENARIOS, Scenario
from keymesh.sim.exhaust.search import WORLDS_MAX, Result, search

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Found:
    """One search: of a scenario, ``mutant`` is empty where the product is whole."""

    scenario: str
    mutant: str
    result: Result

    @property
    def line(self) -> str:
        r = self.result
        what = r.violation or ("right in every world" if r.complete else "right as far as it was looked")
        return f"{self.mutant or self.scenario}: {r.worlds} worlds, {r.depth} steps deep, {r.wall_s} s: {what}"

    def plain(self) -> dict[str, Any]:
        r = self.result
        return {
            "scenario": self.scenario,
            "mutant": self.mutant,
            "states": r.worlds,
            "transitions": r.transitions,
            "depth": r.depth,
            "complete": r.complete,
            "violation": r.violation,
            "trace": list(r.trace),
            "wall_s": r.wall_s,
        }


def look(
    scenario: Scenario, mutant: Mutant | None = None, *, deep: bool = False, worlds_max: int = WORLDS_MAX
) -> Found:
    """Search one scenario, with the mutant planted if there is one."""
    system = scenario.system(deep=deep)
    if mutant is None:
        return Found(scenario.name, "", search(system, worlds_max=worlds_max))
    with mutant.bug.planted():
        return Found(scenario.name, mutant.name, search(system, worlds_max=worlds_max))


def hunt(mutant: Mutant) -> Found:
    """Look for a mutant where it should be found."""
    return look(next(s for s in SCENARIOS if s.name == mutant.scenario), mutant)


def everything(*, deep: bool = False) -> Iterator[Found]:
    """The product in every scenario, then every mutant."""
    for scenario in SCENARIOS:
        yield look(scenario, deep=deep)
    for mutant in MUTANTS:
        yield hunt(mutant)


def summary(found: list[Found], wall_s: float) -> dict[str, Any]:
    """The figures of some searches."""
    whole = [f for f in found if not f.mutant]
    planted = [f for f in found if f.mutant]
    return {
        "scenarios": len(whole),
        "states": sum(f.result.worlds for f in found),
        "transitions": sum(f.result.transitions for f in found),
        "violations": sum(bool(f.result.violation) for f in whole),
        "incomplete": [f.scenario for f in whole if not f.result.complete and not f.result.violation],
        "mutants": len(planted),
        "mutants_caught": sum(bool(f.result.violation) for f in planted),
        "mutants_missed": [f.mutant for f in planted if not f.result.violation],
        "searches": [f.plain() for f in found],
        "wall_s": round(wall_s, 3),
    }


def is_right(found: list[Found]) -> bool:
    """Whether the product was right everywhere, to the end of each search, and every mutant was caught."""
    return all(bool(f.result.violation) if f.mutant else _is_whole(f.result) for f in found)


def _is_whole(result: Result) -> bool:
    return result.complete and not result.violation
