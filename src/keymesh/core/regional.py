"""The region's IVK as the mesh wants it: a generation that the log names, brought about by the shell.

The life cycle of IVKs in the key store (grace, deprecation, rotation by age and use) is planned in ``ivk``.
"""

from __future__ import annotations

from keymesh.core.events import IvkRotated, RotateIvk
from keymesh.core.state import NodeState, Out, note
from keymesh.model.time import Instant

ROTATION_TIMEOUT_MS = 60_000


def wanted_generation(state: NodeState) -> int:
    """What the applied mesh names for this region, 0 where it names none."""
    row = state.mesh_view.regions.get(state.config.region)
    return 0 if row is None else row.ivk_generation


def reconcile(state: NodeState, now: Instant, out: Out) -> None:
    """Ask for the rotation that is due; one at a time, again after a minute without an outcome."""
    since = state.ivk_rotating_since
    busy = since is not None and now < since + ROTATION_TIMEOUT_MS
    generation = wanted_generation(state)
    if state.sealed or busy or not state.config.minter or generation <= state.ivk_generation:
        return
    state.ivk_rotating_since = now
    out.append(RotateIvk(generation))


def on_rotated(state: NodeState, event: IvkRotated, out: Out) -> None:
    state.ivk_rotating_since = None
    if event.generation > state.ivk_generation:
        state.ivk_generation = event.generation
        note(out, "ivk-rotated", generation=event.generation)
