"""The manifest: the heads tree as this node really stores it (DESIGN section 4).

Every snapshot recomputes each namespace's state from what is stored and loaded.  One that differs from the applied
leaf's is drift: it stands in the manifest, so that the Registry sees it and force-syncs, until it is applied anew.
"""

from __future__ import annotations

from msgspec.structs import replace

from keymesh.control.entry import Leaf
from keymesh.core import regional
from keymesh.core.events import SnapshotTaken, TakeSnapshot
from keymesh.core.state import Holding, NodeState, Out, note
from keymesh.model.ids import ZERO_DIGEST, Digest
from keymesh.model.time import Instant

RETRY_MS = 60_000
DEFAULT_MS = 300_000


def reported(leaf: Leaf, stored: Digest | None) -> Leaf:
    """The leaf for the manifest: as applied, with the state as stored where that differs."""
    return leaf if stored is None or stored == leaf.state else replace(leaf, state=stored)


def on_applied(state: NodeState, now: Instant, holding: Holding) -> None:
    """``holding`` has a new leaf, or the same one anew: any drift of it is over."""
    state.drift.pop(holding.namespace, None)
    holding.applied_at = now
    state.leaves = {**state.leaves, holding.namespace: holding.leaf}
    state.manifest.put(holding.namespace, holding.leaf)


def plan(state: NodeState, now: Instant) -> None:
    """Have the next snapshot taken one interval from now, or sooner where it was planned sooner."""
    settings = state.mesh_view.settings
    at = Instant(now + (DEFAULT_MS if settings is None else settings.snapshot_ms))
    if at < state.snapshot_at or state.snapshot_at <= now:
        state.snapshot_at = at
        state.at(at, "snapshot")


def on_timer(state: NodeState, now: Instant, _: str, out: Out) -> None:
    if now >= state.snapshot_at:
        plan(state, now)
        ask(state, now, out)


def ask(state: NodeState, now: Instant, out: Out) -> None:
    """Have the shell recompute, unless it is at it."""
    asked = state.snapshot_asked_at
    if asked is None or now >= asked + RETRY_MS:
        state.snapshot_asked_at = now
        out.append(TakeSnapshot())


def on_taken(state: NodeState, event: SnapshotTaken, out: Out) -> None:
    """Report drift.  A namespace applied since the snapshot was asked for is left to the next one."""
    asked, state.snapshot_asked_at = state.snapshot_asked_at, None
    if asked is None:
        return
    regional.report(state, out)
    for name in sorted(state.leaves):
        holding = state.holding(name)
        if holding is not None and holding.applied_at < asked:
            _compare(state, holding, Digest(event.states.get(name, ZERO_DIGEST)), out)


def _compare(state: NodeState, holding: Holding, stored: Digest, out: Out) -> None:
    name, leaf = holding.namespace, holding.leaf
    if stored == leaf.state:
        if state.drift.pop(name, None) is not None:
            state.manifest.put(name, leaf)
    elif state.drift.get(name) != stored:
        state.drift[name] = stored
        state.manifest.put(name, reported(leaf, stored))
        note(out, "drift", namespace=name)
