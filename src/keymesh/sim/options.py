"""What one seed's world looks like: timings, tenants, Edges, and which classes of faults are on (swarm testing)."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from keymesh.model.limits import LEAVES_IN_FULL_MAX

REGIONS: Final = ("us-east", "us-west", "eu-central", "eu-west")
VOTERS: Final = ("us-east", "us-west", "eu-central")
NODE: Final = "n1"
HOUR_MS: Final = 3_600_000
NEAR_MS: Final = 1
DELAYS_MS: Final[Mapping[frozenset[str], int]] = {
    frozenset(("us-east", "us-west")): 32,
    frozenset(("us-east", "eu-central")): 45,
    frozenset(("us-east", "eu-west")): 40,
    frozenset(("us-west", "eu-central")): 75,
    frozenset(("us-west", "eu-west")): 70,
    frozenset(("eu-central", "eu-west")): 12,
}
FAULTS_FROM_MS: Final = 60_000

FAULT_CLASSES: Final = (
    "cut",
    "cut-one-way",
    "slow-link",
    "crash",
    "retire",
    "pause",
    "clock-jump",
    "clock-back",
    "clock-in-write",
    "clock-drift",
    "disk-full",
    "torn-write",
    "log-unavailable",
    "log-conflict",
    "log-unknown",
    "l1-disabled",
    "l1-unreachable",
    "wipe",
    "bit-rot",
    "loss",
    "duplicate",
    "reorder",
    "corrupt",
    "replay",
)


@dataclass(frozen=True, slots=True)
class TenantSpec:
    name: str
    home: str
    regions: tuple[str, ...]
    services: tuple[str, ...]
    ttl_ms: int | None
    standby: bool = True


@dataclass(frozen=True, slots=True)
class EdgeSpec:
    region: str
    tenant: str
    service: str
    instance: str


@dataclass(frozen=True, slots=True)
class Options:
    """All that a seed fixes before the first event.  Rates are per 1024 messages."""

    seed: int
    ttl_ms: int
    heartbeat_ms: int
    l1_probe_ms: int
    l1_ttl_ms: int
    snapshot_ms: int
    edge_ttl_ms: int
    tenants: tuple[TenantSpec, ...]
    edges: tuple[EdgeSpec, ...]
    classes: frozenset[str]
    loss: int
    duplicate: int
    reorder: int
    corrupt: int
    replay: int
    ppm: tuple[tuple[str, int], ...]  # host -> clock rate
    commands: int
    faults: int
    directed: int  # per 100 scenarios
    heal_at_ms: int
    end_ms: int
    leaves_in_full: int = LEAVES_IN_FULL_MAX
    watch_clock: bool = True
    registries: int = 1  # replicas of the Registry over the one log; a second costs half as much again
    regions: tuple[str, ...] = REGIONS
    voters: tuple[str, ...] = VOTERS
    registry_regions: tuple[str, ...] = ("us-east", "us-west")  # of each replica
    delays: Mapping[frozenset[str], int] = field(default_factory=lambda: DELAYS_MS)  # two regions -> ms, one way

    def on(self, fault: str) -> bool:
        return fault in self.classes

    def delay_ms(self, region_a: str, region_b: str) -> int:
        """One way."""
        return NEAR_MS if region_a == region_b else self.delays[frozenset((region_a, region_b))]


_TENANTS: Final = (
    ("acme", "us-east", ("us-east", "us-west")),
    ("berlin", "eu-central", ("eu-central", "eu-west")),
    ("globex", "us-west", REGIONS),
    ("solo", "eu-west", ("eu-west",)),
)


def options_of(seed: int) -> Options:
    """The options of ``seed``.  About half of the fault classes are on, and a different half for each seed."""
    rng = random.Random(seed * 2 + 1)
    classes = frozenset(c for c in FAULT_CLASSES if rng.random() < 0.6) | {"crash" if seed % 2 else "cut"}
    heartbeat = rng.choice((40_000, 50_000, 60_000, 75_000))
    ttl = min(225_000, rng.choice((3, 4)) * heartbeat)
    l1_probe = rng.choice((60_000, 90_000, 120_000))
    tenants = tuple(_tenant(rng, spec, ttl) for spec in _pick_tenants(rng))

    def rate(name: str, top: int) -> int:
        return rng.randrange(1, top) if name in classes else 0

    drift = "clock-drift" in classes
    hosts = ("registry", *REGIONS)
    edges = _edges(rng, tenants)
    return Options(
        seed=seed,
        ttl_ms=ttl,
        heartbeat_ms=heartbeat,
        l1_probe_ms=l1_probe,
        l1_ttl_ms=max(3 * l1_probe, rng.choice((ttl, 180_000, 300_000))),
        snapshot_ms=rng.choice((180_000, 300_000)),
        edge_ttl_ms=rng.choice((ttl // 2, ttl, ttl * 2)),
        tenants=tenants,
        edges=edges,
        classes=classes,
        loss=rate("loss", 200),
        duplicate=rate("duplicate", 300),
        reorder=rate("reorder", 200),
        corrupt=rate("corrupt", 60),
        replay=rate("replay", 40),
        ppm=tuple((h, rng.randrange(-480, 481) if drift else 0) for h in hosts),
        commands=rng.randrange(97, 104),
        faults=rng.randrange(21, 30),
        directed=rng.choice((30, 60, 90)),
        heal_at_ms=HOUR_MS - 480_000,
        end_ms=HOUR_MS,
        leaves_in_full=0 if seed % 8 == 5 else LEAVES_IN_FULL_MAX,
        registries=2 if seed % 10 == 0 else 1,
    )


def _pick_tenants(rng: random.Random) -> list[tuple[str, str, tuple[str, ...]]]:
    count = rng.choice((2, 2, 2, 3, 4))
    return sorted(rng.sample(_TENANTS, count))


def _tenant(rng: random.Random, spec: tuple[str, str, tuple[str, ...]], ttl: int) -> TenantSpec:
    name, home, regions = spec
    services = ("db", "files")[: rng.choice((1, 1, 2))]
    return TenantSpec(name, home, regions, services, rng.choice((None, None, ttl * 2 // 3)), name != "solo")


def _edges(rng: random.Random, tenants: tuple[TenantSpec, ...]) -> tuple[EdgeSpec, ...]:
    """A few Edges, never more than five."""
    every = [EdgeSpec(r, t.name, s, "e1") for t in tenants for r in t.regions for s in t.services]
    chosen = rng.sample(every, min(len(every), rng.choice((2, 3, 4, 5))))
    return tuple(sorted(chosen, key=lambda e: (e.region, e.tenant, e.service)))
