"""Runs seeds: builds the mesh, hangs the checkers in, runs the safety phase, heals, demands convergence.

``run_seed`` is pure in its arguments: the same seed and plan give the same outcome, trace hash included, anywhere.
"""

from __future__ import annotations

import gc
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any, Final

from keymesh.model.machine import REGISTRY
from keymesh.sim.checkers.certificates import Certificates
from keymesh.sim.checkers.convergence import Convergence
from keymesh.sim.checkers.delivery import Delivery
from keymesh.sim.checkers.leases import Leases
from keymesh.sim.checkers.records import Records
from keymesh.sim.checkers.uses import Uses
from keymesh.sim.coverage import TRANSITIONS, Coverage
from keymesh.sim.mesh import Mesh
from keymesh.sim.options import FAULT_CLASSES, HOUR_MS, Options, options_of
from keymesh.sim.plan import COMMANDS, Item, plan_of
from keymesh.sim.purges import Purges
from keymesh.sim.world import Violation

SAMPLE_MS: Final = 20_000
_SELDOM: Final = 3
_CHUNK: Final = 4
SEEDS_FOR_ALL: Final = 1_000
"""So many reach every kind of fault and every transition."""


@dataclass(frozen=True, slots=True)
class Failure:
    """One violated invariant.  ``line`` replays it."""

    seed: int
    invariant: str
    t: int
    detail: str

    @property
    def line(self) -> str:
        return f"{self.invariant} at {self.t} ms: {self.detail} -- keymesh sim replay {self.seed} --explain"


@dataclass(slots=True)
class Outcome:
    """What one seed came to.  ``virtual_ms`` is how far it got."""

    seed: int
    virtual_ms: int
    steps: int
    trace: str
    commands: int
    faults: Counter[str]
    sometimes: Counter[str]
    notes: Counter[str]
    transitions: frozenset[str]
    failure: Failure | None = None
    explained: list[str] = field(default_factory=list)


class Run:
    """A mesh with its checkers."""

    def __init__(self, options: Options, plan: tuple[Item, ...]) -> None:
        self.options = options
        self.mesh = mesh = Mesh(options, plan)
        self.world = mesh.world
        self.samples = 0
        self.coverage = Coverage(mesh)
        mesh.on_publish.append(self.coverage.published)
        self.uses = Uses(mesh)
        self.leases = Leases(mesh)
        Records(mesh, self.uses)
        Delivery(mesh)
        Certificates(mesh, self.uses)
        self.purges = Purges(mesh)
        self.convergence = Convergence(mesh)

    def execute(self, until: int | None = None) -> None:
        """The whole hour, or up to true time ``until``.  Raises Violation."""
        o, world = self.options, self.world
        end = o.end_ms if until is None else min(until, o.end_ms)
        world.at(o.heal_at_ms, self._heal)
        world.schedule(SAMPLE_MS, self._sample)
        self.mesh.start()
        world.run_until(end)
        if until is None:
            self.convergence.everything()
            self.purges.ended()
            registry = world.machines[REGISTRY]
            self.coverage.ended(registry.state)

    def _heal(self, a: Any, b: Any) -> None:
        self.mesh.faults.heal()
        self.convergence.schedule(self.world.t)

    def _sample(self, a: Any, b: Any) -> None:
        self.samples += 1
        self.coverage.sample()
        if self.samples % _SELDOM == 0:
            self.uses.sample()
            self.leases.sample()
            self.purges.sample()
        self.world.schedule(SAMPLE_MS, self._sample)


def run_seed(
    seed: int, *, plan: tuple[Item, ...] | None = None, until: int | None = None, explain: bool = False
) -> Outcome:
    """One virtual hour of ``seed``, with its own plan or another."""
    options = options_of(seed)
    items = plan_of(options) if plan is None else plan
    run = Run(options, items)
    world = run.world
    if explain:
        world.explain = []
    failure = None
    try:
        run.execute(until)
    except Violation as bad:
        failure = Failure(seed, bad.invariant, bad.t, bad.detail)
    except Exception as bug:
        where = traceback.extract_tb(bug.__traceback__)[-1]
        detail = f"{type(bug).__name__}: {bug} ({where.filename.rpartition('/')[2]}:{where.lineno})"
        failure = Failure(seed, "raised", world.t, detail)
        if explain and world.explain is not None:
            world.explain.append(traceback.format_exc())
    drifting = sum(bool(ppm) for _, ppm in options.ppm)
    return Outcome(
        seed=seed,
        virtual_ms=world.t,
        steps=world.steps,
        trace=f"{world.trace:016x}",
        commands=sum(i.what in COMMANDS for i in items) + 3 * len(options.tenants),
        faults=world.faults + Counter({"clock-drift": drifting}),
        sometimes=world.sometimes,
        notes=world.notes,
        transitions=frozenset(world.transitions & TRANSITIONS),
        failure=failure,
        explained=world.explain or [],
    )


@dataclass(slots=True)
class Report:
    """Sums over seeds."""

    seeds: int = 0
    violations: int = 0
    virtual_ms: int = 0
    wall_s: float = 0.0
    steps: int = 0
    commands: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    sometimes: Counter[str] = field(default_factory=Counter)
    transitions: set[str] = field(default_factory=set)
    failures: list[Failure] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        self.seeds += 1
        self.virtual_ms += outcome.virtual_ms
        self.steps += outcome.steps
        self.commands += outcome.commands
        self.faults += outcome.faults
        self.sometimes.update(outcome.sometimes.keys())  # in how many seeds
        self.transitions |= outcome.transitions
        if outcome.failure is not None:
            self.violations += 1
            self.failures.append(outcome.failure)

    def is_right(self) -> bool:
        """No invariant was violated; and where there were seeds enough for all of them, every kind of fault and every
        transition came up."""
        plain = self.plain()
        reached = not plain["faults_missed"] and not plain["transitions_missed"]
        return not self.violations and (reached or self.seeds < SEEDS_FOR_ALL)

    def plain(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "seeds": self.seeds,
            "violations": self.violations,
            "virtual_hours": round(self.virtual_ms / HOUR_MS, 3),
            "wall_s": round(self.wall_s, 2),
            "commands": self.commands,
            "steps": self.steps,
            "faults": dict(sorted(self.faults.items())),
            "faults_missed": sorted(set(FAULT_CLASSES) - self.faults.keys()),
            "transitions_covered": len(self.transitions),
            "transitions_total": len(TRANSITIONS),
            "transitions_missed": sorted(TRANSITIONS - self.transitions),
            "sometimes": dict(sorted(self.sometimes.items())),
            "failures": [f.line for f in self.failures],
        }


def _run_chunk(seeds: Sequence[int]) -> list[Outcome]:
    """A few seeds with the cycle collector off: a world is one big cycle, and goes in one piece afterwards."""
    gc.disable()
    try:
        return [run_seed(seed) for seed in seeds]
    finally:
        gc.enable()
        gc.collect()


def outcomes(seeds: Sequence[int], procs: int) -> Iterator[Outcome]:
    """Every seed's outcome, in order, on ``procs`` processes."""
    chunks = [seeds[i : i + _CHUNK] for i in range(0, len(seeds), _CHUNK)]
    if procs <= 1 or len(seeds) == 1:
        for chunk in chunks:
            yield from _run_chunk(chunk)
        return
    with ProcessPoolExecutor(procs, mp_context=get_context("spawn")) as pool:
        for found in pool.map(_run_chunk, chunks):
            yield from found


def run_seeds(seeds: Sequence[int], *, procs: int = 2) -> Report:
    """All of ``seeds``; the report's wall time includes starting the processes."""
    report = Report()
    started = time.perf_counter()
    for outcome in outcomes(seeds, procs):
        report.add(outcome)
    report.wall_s = time.perf_counter() - started
    return report


def first_failure(
    seeds: Sequence[int], patch: AbstractContextManager[Any] | None = None, *, until: int | None = None
) -> Failure | None:
    """The first failure among ``seeds``, run in this process under ``patch``."""
    with patch if patch is not None else nullcontext():
        for seed in seeds:
            found = run_seed(seed, until=until).failure
            if found is not None:
                return found
    return None
