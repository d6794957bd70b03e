"""When what goes wrong: each kind of fault comes by its own rate, from a stream of its own.

So another rate of one kind changes nothing of the others.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Final

from keymesh.sim.ask.question import WARM_MS, Question, Rate
from keymesh.sim.options import HOUR_MS, EdgeSpec
from keymesh.sim.plan import Arg, Item, edge_name

_LONGEST: Final = 10  # times the mean

Draw = Callable[[Question, random.Random, tuple[EdgeSpec, ...], int], tuple[Arg, ...]]


def arrivals(rng: random.Random, per_hour: float, start_ms: int, end_ms: int) -> Iterator[int]:
    """Instants of a Poisson process, in order."""
    t = float(start_ms)
    while per_hour > 0:
        t += rng.expovariate(per_hour / HOUR_MS)
        if t >= end_ms:
            return
        yield int(t)


def strikes(question: Question, edges: tuple[EdgeSpec, ...], seed: int) -> tuple[Item, ...]:
    """Every fault of one seed, in order."""
    items: list[Item] = []
    for kind, rate in sorted(question.rates.items()):
        rng = random.Random(f"{seed}/ask/{kind}")
        for at in arrivals(rng, rate.per_hour, WARM_MS, question.asked_until_ms):
            items.append(Item(at, kind, _DRAWS[kind](question, rng, edges, _length(rng, rate))))
    return tuple(sorted(items, key=lambda item: item.at_ms))


def _length(rng: random.Random, rate: Rate) -> int:
    return max(1, min(int(rng.expovariate(1 / rate.lasts_ms)), _LONGEST * rate.lasts_ms))


def _link(q: Question, rng: random.Random) -> tuple[str, str]:
    places = ("registry", *q.regions)
    links = [(a, b) for n, a in enumerate(places) for b in places[n + 1 :]]
    a, b = rng.choice(links)
    return (a, b) if rng.randrange(2) else (b, a)


def _process(q: Question, rng: random.Random, edges: tuple[EdgeSpec, ...]) -> str:
    return rng.choice(("registry", *q.regions, *map(edge_name, edges)))


def _server(q: Question, rng: random.Random) -> str:
    return rng.choice(("registry", *q.regions))


def _tenant_and_region(q: Question, rng: random.Random) -> tuple[str, str]:
    tenant = rng.choice(q.tenants)
    return tenant.name, rng.choice(tenant.regions)


def _retired(q: Question, rng: random.Random, edges: tuple[EdgeSpec, ...], length_ms: int) -> tuple[Arg, ...]:
    return (edge_name(rng.choice(edges)), rng.choice((0, 1_000, 30_000))) if edges else ()


_DRAWS: Final[dict[str, Draw]] = {
    "cut": lambda q, rng, edges, ms: (*_link(q, rng), ms),
    "cut-one-way": lambda q, rng, edges, ms: (*_link(q, rng), ms),
    "slow-link": lambda q, rng, edges, ms: (*_link(q, rng), rng.randrange(200, 5_000), ms),
    "crash": lambda q, rng, edges, ms: (_process(q, rng, edges), 0, ms),
    "pause": lambda q, rng, edges, ms: (_process(q, rng, edges), ms),
    "disk-full": lambda q, rng, edges, ms: (_server(q, rng), ms),
    "log-unavailable": lambda q, rng, edges, ms: (ms,),
    "l1-disabled": lambda q, rng, edges, ms: (rng.choice(q.tenants).name, ms),
    "l1-unreachable": lambda q, rng, edges, ms: (*_tenant_and_region(q, rng), ms),
    "kms-outage": lambda q, rng, edges, ms: (rng.choice(q.tenants).name, ms),
    "wipe": lambda q, rng, edges, ms: (rng.choice(q.regions), ms),
    "region-death": lambda q, rng, edges, ms: (rng.choice(q.regions), ms),
    "registry-death": lambda q, rng, edges, ms: (ms,),
    "retire": _retired,
    "reboot": lambda q, rng, edges, ms: (rng.choice(q.regions),),
    "clock-jump": lambda q, rng, edges, ms: (_server(q, rng), rng.randrange(1_100, 60_000)),
    "clock-back": lambda q, rng, edges, ms: (_server(q, rng), rng.randrange(1_100, 60_000)),
    "clock-in-write": lambda q, rng, edges, ms: (
        rng.choice(q.regions),
        rng.choice((1, -1)) * rng.randrange(1_100, 60_000),
    ),
    "torn-write": lambda q, rng, edges, ms: (_server(q, rng),),
    "log-conflict": lambda q, rng, edges, ms: (rng.choice(q.tenants).name,),
    "log-unknown": lambda q, rng, edges, ms: (1,),
    "bit-rot": lambda q, rng, edges, ms: _tenant_and_region(q, rng)[::-1],
}
