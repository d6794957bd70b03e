"""A region whose clock runs 5 % off, in the whole simulated mesh: it takes no lease, and the others go on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from keymesh.core import leases
from keymesh.core.context import tenant_mode
from keymesh.core.state import NodeState
from keymesh.model.states import Mode
from keymesh.model.time import Instant
from keymesh.sim.mesh import Mesh
from keymesh.sim.options import options_of

pytestmark = pytest.mark.slow

MINUTES_20 = 1_200_000
DRIFTER = "us-west"


def modes_after(ppm: int, until: int) -> dict[str, Mode]:
    """Of the tenant in each of its regions, at true time ``until`` of a mesh without faults."""
    options = options_of(3)
    options = replace(
        options,
        classes=frozenset(),
        loss=0,
        duplicate=0,
        reorder=0,
        corrupt=0,
        replay=0,
        ppm=tuple((host, ppm if host == DRIFTER else 0) for host, _ in options.ppm),
        tenants=(replace(options.tenants[0], name="globex", home="us-east", regions=("us-east", "us-west")),),
        edges=(),
    )
    mesh = Mesh(options, ())
    mesh.start()
    mesh.world.run_until(until)
    found = {}
    for machine in mesh.world.machines.values():
        if isinstance(machine.state, NodeState) and "globex" in machine.state.tenants:
            now = Instant(mesh.world.t + mesh.world.t * machine.proc.ppm // 1_000_000 + machine.proc.clock.base)
            found[machine.state.config.region] = tenant_mode(machine.state, now, "globex")[0]
    return found


@pytest.mark.parametrize("ppm", [50_000, -50_000])
def test_the_region_closes_and_the_other_does_not(ppm: int) -> None:
    assert modes_after(ppm, MINUTES_20) == {"us-east": Mode.SYNCED, DRIFTER: Mode.CLOSED}


def test_within_the_assumption_both_serve() -> None:
    assert modes_after(950, MINUTES_20) == {"us-east": Mode.SYNCED, DRIFTER: Mode.SYNCED}


def test_without_the_watch_it_would_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    """So the first test sees what it says that it sees."""
    monkeypatch.setattr(leases, "keeps_time", lambda *_: True)
    assert modes_after(50_000, MINUTES_20) == {"us-east": Mode.SYNCED, DRIFTER: Mode.SYNCED}
