"""A node that cannot record a restriction closes, and keeps trying (DESIGN section 2).

Grants that could not be recorded are simply not applied: the Registry offers them again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from keymesh.core import apply, loading, local, overlays, refusals, revoking, tails, upkeep
from keymesh.core.records import local_name, overlay_name, state_name
from keymesh.core.state import NodeState, Out, Unrecorded, note
from keymesh.model.ids import MESH_NAMESPACE
from keymesh.model.time import Instant

RETRY_MS = 1_000


def _key(pending: object) -> str | None:
    """What it is about; a later one about the same takes its place.  None for what needs no second try."""
    match pending:
        case apply.ApplyPending():
            return f"apply/{pending.states[-1].head.entry.namespace}"
        case overlays.OverlayPending():
            return f"overlay/{pending.record.namespace}"
        case refusals.EvidencePending():
            return f"evidence/{pending.namespace}"
        case local.LocalPending():
            return local_name(*pending.key)
        case _:
            return None


def _namespaces(state: NodeState, pending: object) -> tuple[str, ...]:
    """Namespaces that ``pending`` restricts beyond what is recorded; empty for a pure grant."""
    match pending:
        case apply.ApplyPending():
            left = {namespace for namespace, _ in pending.left.keys}
            names = [new.head.entry.namespace for new in pending.states]
            return tuple(name for name in names if name in left or _restricts(state, name))
        case overlays.OverlayPending():
            return (pending.record.namespace,)
        case refusals.EvidencePending():
            return (pending.namespace,)
        case local.LocalPending():
            held = state.locals.get(pending.key)
            return () if held is None else (str(held.scope.namespace),)
        case _:
            return ()


def _restricts(state: NodeState, namespace: str) -> bool:
    holding = state.holding(namespace)
    return holding is not None and holding.overlay is not None and not holding.overlay.recorded


def failed(state: NodeState, now: Instant, pending: object, out: Out) -> None:
    """Close what is restricted but not recorded, and try again in a second."""
    note(out, "persist-failed", what=type(pending).__name__)
    key, namespaces = _key(pending), _namespaces(state, pending)
    if key is None or not namespaces:
        return
    state.unrecorded[key] = Unrecorded(pending, namespaces)
    for namespace in namespaces:
        holding = state.holding_or_new(namespace)
        if namespace == MESH_NAMESPACE:
            loading.drop_all(state, out)
        else:
            loading.drop_namespace(state, holding, out)
        revoking.revoke(state, now, revoking.whole(namespace), holding.leaf.order, "", out)
    if not state.retrying:
        state.retrying = True
        state.at(Instant(now + RETRY_MS), "record")


def succeeded(state: NodeState, now: Instant, pending: object, out: Out) -> None:
    """``pending`` is recorded: what it kept closed may open, and the next one is tried."""
    key = _key(pending)
    if key in state.unrecorded:
        _open(state, now, key, out)
        _try_next(state, now, out)


def _open(state: NodeState, now: Instant, key: str, out: Out) -> None:
    for namespace in state.unrecorded.pop(key).namespaces:
        upkeep.settle_namespace(state, now, namespace, out)


def on_timer(state: NodeState, now: Instant, _: str, out: Out) -> None:
    """Try again, one after the other, each in its own transaction."""
    _try_next(state, now, out)
    state.retrying = bool(state.unrecorded)
    if state.retrying:
        state.at(Instant(now + RETRY_MS), "record")


def _try_next(state: NodeState, now: Instant, out: Out) -> None:
    for key in sorted(state.unrecorded):
        pending = state.unrecorded[key].pending
        puts = tuple(_puts(state, pending))
        if puts:
            state.persist("again", pending, puts, tuple(_deletes(state, pending)), out)
            return
        _open(state, now, key, out)  # nothing is left to record


def _deletes(state: NodeState, pending: object) -> Iterable[str]:
    """Overlays that what is recorded now has caught up with."""
    if isinstance(pending, apply.ApplyPending):
        for new in pending.states:
            holding = state.holding_or_new(new.head.entry.namespace)
            if holding.overlay is not None and overlays.supersedes(new, holding.overlay):
                yield overlay_name(holding.namespace)


def _puts(state: NodeState, pending: object) -> Iterable[tuple[str, Any]]:
    """What is still to be recorded: never anything older than what has been recorded since."""
    match pending:
        case apply.ApplyPending():
            for new in pending.states:
                holding = state.holding_or_new(new.head.entry.namespace)
                if new.leaf.order > holding.leaf.order:
                    yield state_name(holding.namespace), new
            yield from tails.puts(state, pending.left)
        case overlays.OverlayPending():
            overlay = state.holding_or_new(pending.record.namespace).overlay
            if overlay is not None and not overlay.recorded:
                yield overlay_name(overlay.record.namespace), overlay.record
        case refusals.EvidencePending():
            yield from pending.puts
        case local.LocalPending():
            held = state.locals.get(pending.key)
            if held is not None and not held.recorded:
                yield local_name(*pending.key), held.record
