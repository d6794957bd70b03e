"""Which keys are in memory: planned from the applied rows, dropped before anything is loaded (DESIGN sections 1, 3).

Keys are named, never carried.  A load that comes back for what has been restricted, closed or replaced meanwhile is
wiped at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial

from msgspec import Struct

from keymesh.control.messages import PendingItem
from keymesh.control.rows import L2_NAME, KeyRow
from keymesh.core import context, l1_proof
from keymesh.core.events import DropKeys, KeyRef, KeysLoaded, LoadKeys
from keymesh.core.state import Holding, NodeState, Out, note, spread
from keymesh.core.views import LIVE_WORDS, TenantView
from keymesh.model.time import Instant

BACKOFF_MIN_MS = 1_000
BACKOFF_MAX_MS = 30_000
LOAD_TIMEOUT_MS = 30_000

KeyName = tuple[str, int]


class LoadPlan(Struct, frozen=True):
    """What to do with memory; ``drops`` come first, so that stopping half-way has only made the node safer."""

    drops: tuple[str, ...]  # kids
    loads: tuple[KeyRef, ...]  # L2 versions before L3


def key_ref(namespace: str, name: KeyName, row: KeyRow) -> KeyRef:
    return KeyRef(namespace, name[0], name[1], row.revision, row.kid, row.digest, row.parent)


def wanted(view: TenantView, restricted: Callable[[str, int], bool]) -> dict[KeyName, KeyRow]:
    """Key versions that belong in memory: live, and under no restriction."""
    return {name: row for name, row in sorted(view.keys.items()) if row.state in LIVE_WORDS and not restricted(*name)}


def plan(
    namespace: str, view: TenantView, restricted: Callable[[str, int], bool], loaded: Mapping[KeyName, KeyRef]
) -> LoadPlan:
    """Actions that take ``loaded`` to what is wanted.  An L3 waits until the L2 that it is wrapped under is loaded, and
    for no other: one L2 that can't be had keeps nothing but its own L3s away."""
    return _plan(namespace, wanted(view, restricted), loaded)


def _plan(namespace: str, want: Mapping[KeyName, KeyRow], loaded: Mapping[KeyName, KeyRef]) -> LoadPlan:
    gone = [name for name, ref in loaded.items() if name not in want or want[name].kid != ref.kid]
    drops = tuple([loaded[name].kid for name in sorted(gone)]) if gone else ()
    missing = [
        key_ref(namespace, name, row)
        for name, row in want.items()
        if name not in loaded or loaded[name].kid != row.kid or loaded[name].revision < row.revision
    ]
    if not missing:
        return LoadPlan(drops, ())
    l2s = tuple(ref for ref in missing if ref.key == L2_NAME)
    parents = {ref.kid for name, ref in loaded.items() if name[0] == L2_NAME and ref.kid not in drops}
    return LoadPlan(drops, (*l2s, *(ref for ref in missing if ref.parent in parents)))


def _wanted(state: NodeState, holding: Holding) -> Mapping[KeyName, KeyRow]:
    """``wanted`` of a tenant here.

    Remembered for the view that it was made of, until a restriction or a local suspension comes or goes
    (``NodeState.restrictions_changed``).
    """
    namespace, view = holding.namespace, holding.view
    if namespace in state.wanted and state.wanted[namespace][0] is view:
        return state.wanted[namespace][1]
    if len(state.wanted) >= context.COVERED_MAX:
        state.wanted.clear()
    want = wanted(view, partial(context.version_restricted, state, namespace))
    state.wanted[namespace] = (view, want)
    return want


# --- dropping --------------------------------------------------------------------------------------------------------


def drop_restricted(state: NodeState, holding: Holding, out: Out) -> None:
    """Wipe what a restriction now covers."""
    kids = _plan(holding.namespace, _wanted(state, holding), holding.loaded).drops
    _drop(holding, kids, out)


def _drop(holding: Holding, kids: tuple[str, ...], out: Out) -> None:
    if not kids:
        return
    if len(kids) == len(holding.loaded):
        drop_namespace(state=None, holding=holding, out=out)
        return
    gone = frozenset(kids)
    holding.steady = False
    holding.loaded = {name: ref for name, ref in holding.loaded.items() if ref.kid not in gone}
    out.append(DropKeys(holding.namespace, kids))


def drop_namespace(state: NodeState | None, holding: Holding, out: Out) -> None:
    """Wipe everything of a tenant; a load under way counts for nothing when it comes back."""
    if holding.loaded or holding.loading_since is not None:
        out.append(DropKeys(holding.namespace))
    _forget(holding)


def drop_all(state: NodeState, out: Out) -> None:
    """Wipe every key of every tenant."""
    out.append(DropKeys(None))
    for holding in state.tenants.values():
        _forget(holding)


def _forget(holding: Holding) -> None:
    holding.loaded.clear()
    holding.loading_since = None
    holding.steady = False


def doubt_all(holding: Holding) -> None:
    """A forced sync: what is loaded may be used on, but is all loaded anew."""
    holding.steady = False
    holding.loaded = {name: replace(ref, revision=0) for name, ref in holding.loaded.items()}


# --- reconciling -----------------------------------------------------------------------------------------------------


def reconcile(state: NodeState, now: Instant, holding: Holding, out: Out) -> bool:
    """Drop what must not be in memory, ask for what is missing, and have the end of the leases watched; whether all
    that is wanted is there."""
    namespace = holding.namespace
    may_load, may_keep = context.may_load_and_keep(state, now, namespace)
    lapsed = holding.l1.until is not None and not may_keep.allowed
    closed = not may_load.allowed and not may_load.reason.startswith("restricted")
    if closed or (lapsed and holding.loaded):
        drop_namespace(state, holding, out)
    planned = _plan(namespace, _wanted(state, holding), holding.loaded)
    _drop(holding, planned.drops, out)
    if not may_load.allowed:
        return False
    _watch(state, now, holding, may_load.until)
    if planned.loads and not _is_loading(holding, now):
        _load(state, now, holding, planned.loads, out)
    return not planned.loads and next(_pending(state, holding), None) is None


def _watch(state: NodeState, now: Instant, holding: Holding, until: Instant) -> None:
    """Have ``on_close_timer`` look when the first of the leases ends."""
    if holding.l1.until is not None and holding.l1.until > now:
        until = min(until, holding.l1.until)
    if until < holding.close_timer or holding.close_timer <= now:
        holding.close_timer = until
        state.at(until, "close", holding.namespace)


def on_close_timer(state: NodeState, now: Instant, namespace: str, out: Out) -> None:
    holding = state.tenants.get(namespace)
    if holding is not None:
        reconcile(state, now, holding, out)


def on_load_timer(state: NodeState, now: Instant, namespace: str, out: Out) -> None:
    on_close_timer(state, now, namespace, out)


def _is_loading(holding: Holding, now: Instant) -> bool:
    since = holding.loading_since
    return since is not None and now < since + LOAD_TIMEOUT_MS


def _load(state: NodeState, now: Instant, holding: Holding, refs: tuple[KeyRef, ...], out: Out) -> None:
    if now < holding.load_not_before:
        return
    holding.loading_since = now
    state.at(Instant(now + LOAD_TIMEOUT_MS), "load", holding.namespace)
    bindings = tuple(
        (name, row.provider, row.descriptor)
        for name, row in sorted(holding.view.bindings.items())
        if row.state != "retired"
    )
    corr = "" if holding.applied is None else holding.applied.head.entry.correlation_id
    out.append(LoadKeys(holding.namespace, refs, bindings, corr))


def on_loaded(state: NodeState, now: Instant, event: KeysLoaded, out: Out) -> bool:
    """Take note of what is in memory now; whether L1 denied.

    What must not be in memory by now is wiped.  A load proves L1 like a probe, from the moment that its earliest L1
    call was sent.
    """
    holding = state.tenants.get(event.namespace)
    if holding is None or holding.loading_since is None:
        held = set() if holding is None else {ref.kid for ref in holding.loaded.values()}
        kids = tuple(sorted({ref.kid for ref in event.loaded} - held))
        if kids:
            out.append(DropKeys(event.namespace, kids))
        return False
    holding.loading_since = None
    if event.l1 == "ok" and holding.l1.denied_at is None:
        l1_proof.prove(state, holding, event.l1_started_at)
    for ref in event.loaded:
        old = holding.loaded.get((ref.key, ref.version))
        if old is None or old.kid != ref.kid or old.revision <= ref.revision:
            holding.loaded[ref.key, ref.version] = ref
    if event.failed or event.l1 in ("denied", "unreachable"):
        _back_off(state, now, holding, event, out)
    elif event.loaded:
        holding.load_failures = 0
    return event.l1 == "denied"


def backoff_ms(namespace: str, address: str, failures: int) -> int:
    """1 s to 30 s, doubling, spread by hash over the upper half."""
    ceiling = min(BACKOFF_MAX_MS, BACKOFF_MIN_MS << min(failures, 5))
    return spread(f"{address}/{namespace}/{failures}", max(BACKOFF_MIN_MS, ceiling // 2), ceiling)


def _back_off(state: NodeState, now: Instant, holding: Holding, event: KeysLoaded, out: Out) -> None:
    delay_ms = backoff_ms(holding.namespace, state.config.address, holding.load_failures)
    holding.load_failures += 1
    holding.load_not_before = Instant(now + delay_ms)
    state.at(holding.load_not_before, "load", holding.namespace)
    reason = event.failed[0][1] if event.failed else event.l1
    note(out, "load-failed", tenant=holding.namespace, failed=len(event.failed), reason=reason)


def pending_items(state: NodeState) -> list[PendingItem]:
    """Live key revisions, under no restriction, that are not loaded: grants still in work."""
    return [
        item
        for name in sorted(state.tenants)
        if not (holding := state.tenants[name]).steady
        for item in _pending(state, holding)
    ]


def _pending(state: NodeState, holding: Holding) -> Iterator[PendingItem]:
    loaded, want = holding.loaded, _wanted(state, holding)
    for name, row in holding.view.keys.items():
        if name in loaded and loaded[name].kid == row.kid and loaded[name].revision >= row.revision:
            continue
        if name in want:
            yield PendingItem(namespace=holding.namespace, key=name[0], version=name[1], revision=row.revision)
