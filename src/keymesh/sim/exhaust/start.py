"""Where every search starts: a small mesh that the simulated world has brought up, calm, everything SYNCED.

One tenant with one service and one Edge; its regions are not voters'.  A tick is a heartbeat interval; the ttl is
three ticks, an Edge's lease two.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from keymesh.core.records import local_name
from keymesh.sim.mesh import Mesh
from keymesh.sim.options import REGIONS, EdgeSpec, Options, TenantSpec

TICK_MS: Final = 60_000
TTL_TICKS: Final = 3
EDGE_TICKS: Final = 2
TENANT: Final = "acme"
SERVICE: Final = "db"
HOME: Final = "eu-west"
LOCAL_PREFIX: Final = local_name(TENANT, "")
_CALM_MS: Final = 350_000
_LONG_MS: Final = 3_600_000


@lru_cache(maxsize=3)
def calm_mesh(registries: int = 1, *, joining: bool = False) -> Mesh:
    """A mesh in which everything that was asked for is done, and nothing is under way.  Not to be stepped further.

    ``joining``: the tenant's home has a voter without a seat as well.
    """
    mesh = Mesh(
        Options(
            seed=1,
            registries=registries,
            ttl_ms=TTL_TICKS * TICK_MS,
            heartbeat_ms=TICK_MS,
            l1_probe_ms=_LONG_MS,
            l1_ttl_ms=6 * _LONG_MS,
            snapshot_ms=_LONG_MS,
            edge_ttl_ms=EDGE_TICKS * TICK_MS,
            tenants=(TenantSpec(TENANT, HOME, (HOME,), (SERVICE,), None),),
            edges=(EdgeSpec(HOME, TENANT, SERVICE, "e1"),),
            classes=frozenset(),
            loss=0,
            duplicate=0,
            reorder=0,
            corrupt=0,
            replay=0,
            ppm=tuple((host, 0) for host in ("registry", *REGIONS)),
            commands=0,
            faults=0,
            directed=0,
            heal_at_ms=_LONG_MS,
            end_ms=_LONG_MS,
            watch_clock=False,
        ),
        (),
    )
    if joining:
        mesh.add_voter(HOME)
    mesh.start()
    mesh.world.run_until(_CALM_MS)
    return mesh
