"""Minting and re-wrapping key versions: one Core makes each, the log's compare decides (DESIGN section 1).

Only the home region's minter, and only while the Registry answers (SYNCED).  What was made is submitted again with
every heartbeat until its row exists; where the row names another key, ours is wiped.
"""

from __future__ import annotations

from keymesh.control.messages import SubmitRewrap, SubmitVersion
from keymesh.control.rows import L2_NAME, KeyRow
from keymesh.core import context
from keymesh.core.events import (
    KeyMinted,
    KeyRewrapped,
    MintFailed,
    MintKey,
    RewrapFailed,
    RewrapKey,
    WipeMinted,
)
from keymesh.core.loading import backoff_ms, key_ref
from keymesh.core.state import Holding, NodeState, Out, note
from keymesh.core.views import LIVE_STATES, TenantView, key_state
from keymesh.model.machine import REGISTRY, Send
from keymesh.model.time import Instant

IN_FLIGHT_MS = 60_000

Job = tuple[str, str, int]  # namespace, key, version


def missing_versions(view: TenantView) -> list[tuple[str, int]]:
    """(key, version) to be made next: one at a time for each key, L2 before L3."""
    missing = [(key, highest + 1) for key, wanted in view.wants.items() if wanted > (highest := view.highest(key))]
    return sorted(missing, key=lambda name: (name[0] != L2_NAME, name))


def missing_rewraps(view: TenantView) -> list[tuple[str, int, KeyRow, str]]:
    """(key, version, row, parent) of live versions that are wanted under another parent, L2 before L3."""
    found: list[tuple[str, int, KeyRow, str]] = []
    if not view.rewraps:
        return found
    for (key, version), row in sorted(view.keys.items(), key=lambda item: (item[0][0] != L2_NAME, item[0])):
        parent = view.rewraps.get(key)
        if parent is not None and row.parent != parent and key_state(row) in LIVE_STATES:
            found.append((key, version, row, parent))
    return found


def parent_for(holding: Holding, key: str) -> str | None:
    """What a new version of ``key`` is wrapped under: the active binding, or the wrapping L2 once it is loaded."""
    view = holding.view
    if key == L2_NAME:
        return view.active_binding()
    loaded = holding.loaded.get((L2_NAME, view.wrapping.get(L2_NAME, 0)))
    return None if loaded is None else loaded.kid


def lost_race(minted: KeyMinted, row: KeyRow) -> bool:
    """Whether the log chose another key for that version."""
    return minted.kid != row.kid


def still_fits(view: TenantView, key: str, parent: str) -> bool:
    """Whether the log can still take a wrap of ``key`` under ``parent``: a retired binding or a dead L2 never opens
    again, so a wrap that has no row by then will have none."""
    if key == L2_NAME:
        binding = view.bindings.get(parent)
        return binding is not None and binding.state != "retired"
    l2s = (row for name, row in view.keys.items() if name[0] == L2_NAME)
    return any(row.kid == parent and key_state(row) in LIVE_STATES for row in l2s)


# --- planning --------------------------------------------------------------------------------------------------------


def reconcile(state: NodeState, now: Instant, holding: Holding, out: Out) -> bool:
    """Settle what the applied rows decide, then ask for what is missing; whether nothing is."""
    _settle(state, holding, out)
    policy = holding.view.policy
    if not state.config.minter or policy is None or policy.home != state.config.region:
        return True
    versions, rewraps = missing_versions(holding.view), missing_rewraps(holding.view)
    for key, version in versions:
        _mint(state, now, holding, key, version, out)
    for key, version, row, parent in rewraps:
        _rewrap(state, now, holding, (key, version, row, parent), out)
    return not versions and not rewraps


def _settle(state: NodeState, holding: Holding, out: Out) -> None:
    work = state.mint
    for job in [job for job in work.minted if job[0] == holding.namespace]:
        row = holding.view.keys.get((job[1], job[2]))
        if row is not None:
            minted = work.minted.pop(job)
            if lost_race(minted, row):
                out.append(WipeMinted(holding.namespace, minted.kid))
                note(out, "mint-lost", tenant=holding.namespace, key=job[1], version=job[2])
        elif not still_fits(holding.view, job[1], work.minted[job].parent):
            out.append(WipeMinted(holding.namespace, work.minted.pop(job).kid))
            note(out, "mint-overtaken", tenant=holding.namespace, key=job[1], version=job[2])
    for job in [job for job in work.rewrapped if job[0] == holding.namespace]:
        row, ours = holding.view.keys.get((job[1], job[2])), work.rewrapped[job]
        if row is None or row.revision >= ours.revision or not still_fits(holding.view, job[1], ours.parent):
            del work.rewrapped[job]


def _idle(state: NodeState, job: Job, now: Instant, in_flight: dict[Job, Instant], done: dict[Job, object]) -> bool:
    since = in_flight.get(job)
    waiting = since is not None and now < since + IN_FLIGHT_MS
    return not waiting and job not in done and now >= state.mint.not_before.get(job, now)


def _mint(state: NodeState, now: Instant, holding: Holding, key: str, version: int, out: Out) -> None:
    job = (holding.namespace, key, version)
    parent = parent_for(holding, key)
    if parent is None or not _idle(state, job, now, state.mint.in_flight, dict(state.mint.minted)):
        return
    if context.may_mint(state, now, holding.namespace, context.service_of(key)).allowed:
        state.mint.in_flight[job] = now
        out.append(MintKey(holding.namespace, key, version, parent, _corr(holding)))


def _rewrap(state: NodeState, now: Instant, holding: Holding, work: tuple[str, int, KeyRow, str], out: Out) -> None:
    key, version, row, parent = work
    job = (holding.namespace, key, version)
    loaded = holding.loaded.get((key, version))
    if loaded is None or loaded.kid != row.kid or not _parent_ready(holding, key, parent):
        return
    if not _idle(state, job, now, state.mint.rewrapping, dict(state.mint.rewrapped)):
        return
    if context.may_mint(state, now, holding.namespace, context.service_of(key)).allowed:
        state.mint.rewrapping[job] = now
        ref = key_ref(holding.namespace, (key, version), row)
        out.append(RewrapKey(ref, row.revision + 1, parent, _corr(holding)))


def _parent_ready(holding: Holding, key: str, parent: str) -> bool:
    if key == L2_NAME:
        return still_fits(holding.view, key, parent)
    return any(ref.kid == parent for name, ref in holding.loaded.items() if name[0] == L2_NAME)


def _corr(holding: Holding) -> str:
    return "" if holding.applied is None else holding.applied.head.entry.correlation_id


# --- outcomes --------------------------------------------------------------------------------------------------------


def on_minted(state: NodeState, event: KeyMinted, out: Out) -> None:
    """Submit it, unless that version exists by now or another of ours is on its way: then it is wiped."""
    job = (event.namespace, event.key, event.version)
    state.mint.in_flight.pop(job, None)
    state.mint.failures.pop(job, None)
    holding = state.tenants.get(event.namespace)
    row = None if holding is None else holding.view.keys.get((event.key, event.version))
    earlier = state.mint.minted.get(job)
    if row is not None or (earlier is not None and earlier.kid != event.kid):
        if row is None or lost_race(event, row):
            out.append(WipeMinted(event.namespace, event.kid))
        return
    state.mint.minted[job] = event
    _submit(state, event, out)


def _submit(state: NodeState, minted: KeyMinted, out: Out) -> None:
    holding = state.tenants.get(minted.namespace)
    out.append(
        Send(
            REGISTRY,
            SubmitVersion(
                namespace=minted.namespace,
                key=minted.key,
                version=minted.version,
                kid=minted.kid,
                digest=minted.digest,
                parent=minted.parent,
                holders=minted.holders,
                correlation_id="" if holding is None else _corr(holding),
            ),
        )
    )


def on_mint_failed(state: NodeState, now: Instant, event: MintFailed, out: Out) -> None:
    job = (event.namespace, event.key, event.version)
    state.mint.in_flight.pop(job, None)
    _fail(state, now, job, event.reason, out)


def on_rewrapped(state: NodeState, event: KeyRewrapped, out: Out) -> None:
    job = (event.namespace, event.key, event.version)
    state.mint.rewrapping.pop(job, None)
    state.mint.failures.pop(job, None)
    holding = state.tenants.get(event.namespace)
    row = None if holding is None else holding.view.keys.get((event.key, event.version))
    if row is not None and row.revision < event.revision:
        state.mint.rewrapped[job] = event
        _submit_rewrap(state, event, out)


def on_rewrap_failed(state: NodeState, now: Instant, event: RewrapFailed, out: Out) -> None:
    job = (event.namespace, event.key, event.version)
    state.mint.rewrapping.pop(job, None)
    _fail(state, now, job, event.reason, out)


def _fail(state: NodeState, now: Instant, job: Job, reason: str, out: Out) -> None:
    failures = state.mint.failures.get(job, 0)
    state.mint.failures[job] = failures + 1
    state.mint.not_before[job] = Instant(now + backoff_ms(f"{job[0]}/{job[1]}", state.config.address, failures))
    note(out, "mint-failed", tenant=job[0], key=job[1], version=job[2], reason=reason)


def _submit_rewrap(state: NodeState, event: KeyRewrapped, out: Out) -> None:
    holding = state.tenants.get(event.namespace)
    out.append(
        Send(
            REGISTRY,
            SubmitRewrap(
                namespace=event.namespace,
                key=event.key,
                version=event.version,
                revision=event.revision,
                digest=event.digest,
                parent=event.parent,
                correlation_id="" if holding is None else _corr(holding),
            ),
        )
    )


def resubmit(state: NodeState, out: Out) -> None:
    """With every heartbeat, what the log has not yet decided."""
    for job in sorted(state.mint.minted):
        _submit(state, state.mint.minted[job], out)
    for job in sorted(state.mint.rewrapped):
        _submit_rewrap(state, state.mint.rewrapped[job], out)
