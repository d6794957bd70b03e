"""What the Registry's API shows of a region: its row, and what its nodes have said of themselves."""

from __future__ import annotations

from keymesh.app.registry_bodies import RegionView
from keymesh.app.registry_views import restriction_state
from keymesh.control.rows import Rows
from keymesh.model import strict_json
from keymesh.model.states import Lane
from keymesh.model.time import Instant
from keymesh.registry import heartbeats
from keymesh.registry.state import RegistryState


def show_region(state: RegistryState, now: Instant, mesh_rows: Rows, name: str) -> RegionView:
    """A region of the mesh: freshness, drift, lanes, internal key."""
    row = strict_json.loads(mesh_rows[f"region/{name}"], max_bytes=64 * 1024)
    sessions = [s for s in state.sessions.values() if s.region == name]
    heard = max((s.heard_at for s in sessions if s.heard_at is not None), default=None)
    offered = state.regions[name].show() if name in state.regions else {}
    reported = sessions[0].applied if sessions else {}
    behind = sorted(n for n, leaf in offered.items() if n in reported and reported[n].order < leaf.order)
    missing = sorted(n for n in offered if n not in reported)
    drift = sorted(
        n
        for n, leaf in offered.items()
        if n in reported and reported[n].order == leaf.order and reported[n].state != leaf.state
    )
    reachable = state.settings is not None and any(
        heartbeats.is_reachable(s, now, state.settings.heartbeat_ms) for s in sessions
    )
    restriction = mesh_rows.get(f"restriction/region:{name}")
    return RegionView(
        region=name,
        domain=row["domain"],
        failure_domain=row["failure_domain"],
        reachable=reachable,
        heartbeat_age_ms=None if heard is None else now - heard,
        ivk_wanted=row["ivk_generation"],
        ivk_generation=max((s.ivk_generation for s in sessions), default=0),
        keystore_wanted=row.get("keystore_schema", 0),
        keystore_schema=min((s.store_schema for s in sessions), default=0),
        keystore_newest=min((s.store_newest for s in sessions), default=0),
        voter=state.voters is not None and name in state.voters.regions,
        in_sync=reachable and not (behind or missing or drift),
        behind=tuple(behind),
        missing=tuple(missing),
        drift=tuple(drift),
        pending=sum(len(s.pending) for s in sessions),
        modes=dict(sessions[0].modes) if sessions else {},
        state="active" if restriction is None else restriction_state(restriction),
        queued={str(int(lane)): sum(s.queue.depth(lane) for s in sessions) for lane in Lane},
    )
