"""Runs what an operator asked: a mesh of that shape, its faults, people and users, and the observers beside them.

``ask_seed`` is pure in its arguments; seeds add up in their order, whatever number of processes ran them.
"""

from __future__ import annotations

import gc
import signal
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

from keymesh.sim.ask.closings import Closings
from keymesh.sim.ask.orders import Orders
from keymesh.sim.ask.people import People
from keymesh.sim.ask.question import WARM_MS, Question, options_for
from keymesh.sim.ask.seen import Seen
from keymesh.sim.ask.strikes import strikes
from keymesh.sim.ask.users import Users
from keymesh.sim.ask.writes import Writes
from keymesh.sim.mesh import Mesh
from keymesh.sim.plan import Item
from keymesh.sim.world import Violation


class AskRun:
    """One seed's mesh with its observers.  ``plan``: other faults than those that the rates give."""

    def __init__(self, question: Question, seed: int, plan: tuple[Item, ...] | None = None) -> None:
        options = options_for(question, seed)
        items = strikes(question, options.edges, seed) if plan is None else plan
        self.question = question
        self.seen = seen = Seen(seed, question.asked_until_ms - WARM_MS)
        self.mesh = mesh = Mesh(options, items)
        mesh.faults.spares_last_copies = False
        self.orders = Orders(mesh, question, seen)
        self.closings = Closings(mesh, question, seen)
        self.users = Users(mesh, question, self.orders, seen)
        self.people = People(mesh, question, self.orders, seed)
        Writes(mesh, seen)

    def execute(self) -> Seen:
        """All of it.  What breaks a rule of the world ends the seed, and stands in ``violation``."""
        seen, world = self.seen, self.mesh.world
        try:
            self.mesh.start()
            world.run_until(self.question.end_ms)
        except Violation as bad:
            seen.violation = str(bad)
        except Exception as bug:
            where = traceback.extract_tb(bug.__traceback__)[-1]
            name = where.filename.rpartition("/")[2]
            seen.violation = f"raised at {world.t} ms: {type(bug).__name__}: {bug} ({name}:{where.lineno})"
        self.orders.finish()
        self.closings.finish()
        self.users.finish()
        seen.faults = world.faults
        return seen


def ask_seed(question: Question, seed: int) -> Seen:
    """One seed, with the cycle collector off: a world is one big cycle, and goes in one piece afterwards."""
    gc.disable()
    try:
        return AskRun(question, seed).execute()
    finally:
        gc.enable()
        gc.collect()


def ask_seeds(question: Question, seeds: Sequence[int], procs: int) -> Iterator[Seen]:
    """What each seed showed, in order, on ``procs`` processes."""
    if procs <= 1 or len(seeds) == 1:
        yield from map(partial(ask_seed, question), seeds)
        return
    pool = ProcessPoolExecutor(
        min(procs, len(seeds)),
        mp_context=get_context("spawn"),
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_IGN),
    )
    with pool:
        yield from pool.map(partial(ask_seed, question), seeds)
