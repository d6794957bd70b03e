"""A tenant destroyed, late in the hour, with a stream of its own, so that it changes nothing else of a seed's plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from keymesh.sim.plan import Planner


def destruction(p: Planner) -> None:
    """A destruction, perhaps taken back and asked for again; while the wait ends a region that holds the tenant is cut
    off, dies around its wipe, or loses its disk, the Registry dies, or its clock is set ahead to shorten the wait."""
    tenant = p._tenant()
    region = p.rng.choice(tenant.regions)
    wait_ms = p.rng.choice((5_000, 30_000, 120_000))
    at = p.rng.randrange(p.o.heal_at_ms * 3 // 4, p.o.heal_at_ms - wait_ms - 90_000)
    p.add(at, "destroy", tenant.name, wait_ms)
    if p.rng.randrange(3) == 0:
        p.add(at + p.rng.randrange(1_000, wait_ms + 2_000), "cancel-destroy", tenant.name)
        at += wait_ms // 2 + 3_000
        p.add(at, "destroy", tenant.name, wait_ms)
    due = at + wait_ms
    p.fault("cut", due - 2_000, "cut", "registry", region, p.rng.choice((5_000, 60_000)))
    p.fault(
        "crash", due + p.rng.randrange(50, 1_500), "crash", region, p.rng.randrange(0, 7), p.rng.choice((300, 5_000))
    )
    p.fault("crash", at + wait_ms // 2, "crash", "registry", p.rng.randrange(0, 9), p.rng.choice((300, 20_000)))
    p.fault("clock-jump", at + wait_ms // 3, "clock-jump", "registry", wait_ms)
    p.fault("wipe", due + 40_000, "wipe", p.rng.choice(tenant.regions))
    p.add(due - 1_000, "want-key", tenant.name, "l2")
    p.add(due + 20_000, "cancel-destroy", tenant.name)
