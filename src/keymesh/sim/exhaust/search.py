"""Breadth first through every world of a system, until there is none left or one is wrong."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

WORLDS_MAX: Final = 500_000


@dataclass(frozen=True, slots=True)
class Result:
    """``violation`` is empty where every world is right; else ``trace`` leads to it.  ``complete``: no limit was hit.
    ``steps``: how many different steps of machines there were."""

    worlds: int
    transitions: int
    depth: int
    steps: int
    wall_s: float
    violation: str
    trace: tuple[str, ...]
    complete: bool


def search(system: Any, *, worlds_max: int = WORLDS_MAX) -> Result:
    """Every world that can be reached from the first one, nearest first; at most about ``worlds_max``."""
    began = time.perf_counter()
    judge, first = system.judge, system.first()
    came: dict[Any, Any] = {first: None}  # world -> the one that it was first reached from, and how
    level, depth, transitions = [first], 0, 0
    violation, wrong = judge.world(first), first
    with _no_collector():
        while level and not violation and len(came) < worlds_max:
            depth += 1
            found: list[Any] = []
            for before, name, after in _steps(system, level):
                transitions += 1
                violation = judge.way(before, after)
                if after not in came:
                    came[after] = (before, name)
                    found.append(after)
                    violation = violation or judge.world(after)
                elif violation:
                    came[after] = (before, name)
                if violation:
                    wrong = after
                    break
            level = found
    return Result(
        worlds=len(came),
        transitions=transitions,
        depth=depth,
        steps=system.cells.steps,
        wall_s=round(time.perf_counter() - began, 3),
        violation=violation,
        trace=_trace(came, wrong) if violation else (),
        complete=not violation and not level,
    )


def _steps(system: Any, level: list[Any]) -> Iterator[tuple[Any, str, Any]]:
    for before in level:
        for name, after in system.following(before):
            yield before, name, after


def _trace(came: dict[Any, Any], world: Any) -> tuple[str, ...]:
    out: list[str] = []
    while came[world] is not None:
        world, name = came[world]
        out.append(name)
    return tuple(reversed(out))


@contextmanager
def _no_collector() -> Iterator[None]:
    """All that a search makes it keeps: looking for cycles in it would double its time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
