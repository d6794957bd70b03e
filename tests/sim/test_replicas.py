"""Two replicas of the Registry in the simulated world: what only they can get wrong."""

from __future__ import annotations

import pytest

from keymesh.registry import spaces
from keymesh.sim.options import options_of
from keymesh.sim.plan import Item
from keymesh.sim.run import run_seed

SEED = 10
OTHER = "registry-2"


def behind(tenant: str, service: str, region: str) -> tuple[Item, ...]:
    """One replica's disk fills up before a resume; a region hears that replica alone when a restriction follows."""
    return (
        Item(100_000, "suspend", (f"service:{tenant}/{service}",)),
        Item(300_000, "disk-full", (OTHER, 2_000_000)),
        Item(305_000, "cut", ("registry-1", region, 2_000_000)),
        Item(310_000, "resume", (f"service:{tenant}/{service}",)),
        Item(340_000, "suspend", (f"tenant:{tenant}",)),
    )


def the_plan() -> tuple[Item, ...]:
    options = options_of(SEED)
    assert options.registries == 2
    tenant = next(t for t in options.tenants if len(t.regions) > 1)
    return behind(tenant.name, tenant.services[0], tenant.regions[-1])


def test_a_lease_of_the_replica_that_lags_lacks_no_restriction() -> None:
    outcome = run_seed(SEED, plan=the_plan())
    assert outcome.failure is None, outcome.failure.line
    assert outcome.sometimes["certificate"] >= 2


def test_and_the_checkers_would_see_one_that_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spaces, "shown_seq", spaces.offered_seq)
    outcome = run_seed(SEED, plan=the_plan())
    assert outcome.failure is not None
    assert outcome.failure.invariant == "I12"


def test_both_replicas_take_part() -> None:
    outcome = run_seed(SEED, until=1_200_000)
    assert outcome.failure is None, outcome.failure.line
    assert outcome.sometimes["old-answer"] > 0, "the second answer to a nonce is accepted by nobody"
    assert options_of(1).registries == 1
