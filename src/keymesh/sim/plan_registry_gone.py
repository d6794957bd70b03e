"""A directed scenario with a stream of its own, so that it changes nothing else of a seed's plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keymesh.sim.options import FAULTS_FROM_MS, REGIONS, VOTERS

if TYPE_CHECKING:
    from keymesh.sim.plan import Planner


def registry_gone(p: Planner) -> None:
    """The Registry dies for longer than the ttl, just after a restriction that one region has not heard of; that
    region may be an island, or have beside it only a voter that lost its disk."""
    tenant = p._tenant()
    region = p.rng.choice(tenant.regions)
    scope = p._scope(tenant)
    length = p.o.ttl_ms * 2 + p.rng.randrange(p.o.ttl_ms)
    at = p.rng.randrange(FAULTS_FROM_MS, max(FAULTS_FROM_MS + 1, p.o.heal_at_ms - length - 60_000))
    p.add(at, "cut", "registry", region, length + 20_000)
    if p.o.registries > 1:
        p.add(at, "cut", "registry-2", region, length + 20_000)
    p.add(at + 500, "suspend", scope)
    dies_at = at + 4_000
    others = [voter for voter in VOTERS if voter != region]
    p.rng.shuffle(others)
    variant = p.rng.randrange(4)
    if variant == 1:
        for other in [r for r in REGIONS if r != region]:
            p.add(at, "cut", other, region, length)
    elif variant >= 2:
        for other in [r for r in REGIONS if r not in (region, others[0])]:
            p.add(at, "cut", other, region, length)
        if variant == 3:
            p.add(at + 2_500, "wipe", others[0])
            dies_at = at + 14_000
    for n in range(p.o.registries):
        p.add(dies_at, "crash", f"registry-{n + 1}", 0, length)
    p.add(dies_at + length + 40_000, "resume", scope)
