"""What an operator asks of a mesh: its shape, its timings, what is asked of it, and how often what goes wrong.

The rates are of the whole mesh, per virtual hour; which link, region or tenant is struck is drawn.  Bounds are those of
DESIGN section 5, reckoned here from the settings alone, as a reader of the documents would.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from keymesh.model.machine import Address, edge_address
from keymesh.sim.options import HOUR_MS, EdgeSpec, Options, TenantSpec

WARM_MS: Final = 180_000
"""Before anything goes wrong or is asked: tenants are onboarded, keys minted and leased."""
SETTLE_MS: Final = 120_000
SLACK_MS: Final = 2_000

LASTING: Final = (
    "cut", "cut-one-way", "slow-link", "crash", "pause", "disk-full", "log-unavailable", "l1-disabled",
    "l1-unreachable", "wipe", "region-death", "registry-death", "kms-outage",
)  # fmt: skip
AT_ONCE: Final = (
    "retire", "reboot", "clock-jump", "clock-back", "clock-in-write", "torn-write", "log-conflict", "log-unknown",
    "bit-rot",
)  # fmt: skip
OF_MESSAGES: Final = ("loss", "duplicate", "reorder", "corrupt", "replay")
SHARES: Final = 1_024


@dataclass(frozen=True, slots=True)
class Rate:
    """``per_hour`` in the whole mesh; it lasts ``lasts_ms`` on the average, exponentially distributed (``LASTING``)."""

    per_hour: float
    lasts_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """``edges``: region -> how many for each service of each tenant allowed there.  ``shares``: of messages, by kind.

    ``delays``: two regions -> ms one way.  ``operation_every_ms``: how often the users of one service in one region ask
    for one encryption and one decryption; who is not answered waits ``timeout_ms`` and tries the next region.
    """

    regions: tuple[str, ...]
    registry_regions: tuple[str, ...]
    voters: tuple[str, ...]
    delays: Mapping[frozenset[str], int]
    edges: Mapping[str, int]
    tenants: tuple[TenantSpec, ...]
    ttl_ms: int
    heartbeat_ms: int
    edge_ttl_ms: int
    l1_probe_ms: int
    l1_ttl_ms: int
    snapshot_ms: int
    drift_ppm: int = 0
    operation_every_ms: int = 1_000
    timeout_ms: int = 1_000
    kill_switches_per_hour: float = 4.0
    writes_per_hour: float = 4.0
    rates: Mapping[str, Rate] = field(default_factory=dict)
    shares: Mapping[str, float] = field(default_factory=dict)
    hours: float = 1.0

    @property
    def asked_until_ms(self) -> int:
        """Until then things go wrong and operations are asked."""
        return WARM_MS + round(self.hours * HOUR_MS)

    @property
    def end_ms(self) -> int:
        """Until then every order has met its bound."""
        return self.asked_until_ms + self.governance_bound_ms(None) + SETTLE_MS

    def ttl_of(self, tenant: str | None) -> int:
        own = next((t.ttl_ms for t in self.tenants if t.name == tenant), None)
        return self.ttl_ms if own is None else min(own, self.ttl_ms)

    def governance_bound_ms(self, tenant: str | None) -> int:
        """After the commit, nobody uses it."""
        return stretched(self.ttl_of(tenant)) + SLACK_MS

    def closing_bound_ms(self, tenant: str) -> int:
        """After the cut, a node that no voters help has closed the tenant."""
        return stretched(self.ttl_of(tenant))

    @property
    def lease_bound_ms(self) -> int:
        """After its Core applied a restriction, no Edge of it uses anything under it."""
        return stretched(self.edge_ttl_ms) + SLACK_MS

    @property
    def root_bound_ms(self) -> int:
        """After the customer disabled L1, nobody uses anything of the tenant."""
        return stretched(self.l1_ttl_ms) + SLACK_MS


def stretched(ms: int) -> int:
    """``ms`` on a clock that is slow by the 0.1 % that DESIGN section 3 allows."""
    return -(-ms * 1_001 // 1_000)


def edges_of(options: Options) -> dict[Address, EdgeSpec]:
    """Every Edge by its address."""
    return {edge_address(e.region, e.tenant, e.service, e.instance): e for e in options.edges}


def options_for(question: Question, seed: int) -> Options:
    """The simulated world's options of one seed; only the clock rates are drawn from it."""
    q = question
    rng = random.Random(f"{seed}/ask-clocks")
    share = {kind: round(q.shares.get(kind, 0.0) * SHARES) for kind in OF_MESSAGES}
    return Options(
        seed=seed,
        ttl_ms=q.ttl_ms,
        heartbeat_ms=q.heartbeat_ms,
        l1_probe_ms=q.l1_probe_ms,
        l1_ttl_ms=q.l1_ttl_ms,
        snapshot_ms=q.snapshot_ms,
        edge_ttl_ms=q.edge_ttl_ms,
        tenants=q.tenants,
        edges=tuple(
            EdgeSpec(region, tenant.name, service, f"e{n + 1}")
            for region in q.regions
            for tenant in q.tenants
            if region in tenant.regions
            for service in tenant.services
            for n in range(q.edges[region])
        ),
        classes=frozenset(),
        loss=share["loss"],
        duplicate=share["duplicate"],
        reorder=share["reorder"],
        corrupt=share["corrupt"],
        replay=share["replay"],
        ppm=tuple((host, rng.randint(-q.drift_ppm, q.drift_ppm)) for host in ("registry", *q.regions)),
        commands=0,
        faults=0,
        directed=0,
        heal_at_ms=q.end_ms,
        end_ms=q.end_ms,
        registries=len(q.registry_regions),
        regions=q.regions,
        voters=q.voters,
        registry_regions=q.registry_regions,
        delays=q.delays,
    )
