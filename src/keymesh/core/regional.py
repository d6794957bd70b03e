"""The region's IVK and its key store's schema as the mesh wants them: numbers that the log names, brought about by
the shell.

The life cycle of IVKs in the key store (grace, deprecation, rotation by age and use) is planned in ``ivk``; how a store
is migrated is its adapter's.
"""

from __future__ import annotations

from keymesh.core.events import IvkRotated, MigrateStore, RotateIvk, StoreSeen
from keymesh.core.state import NodeState, Out, note
from keymesh.model.machine import REGISTRY, Send
from keymesh.model.time import Instant
from keymesh.orbital.messages import KeyStoreReport

ROTATION_TIMEOUT_MS = 60_000
MIGRATION_TIMEOUT_MS = 600_000


def wanted_generation(state: NodeState) -> int:
    """What the applied mesh names for this region, 0 where it names none."""
    row = state.mesh_view.regions.get(state.config.region)
    return 0 if row is None else row.ivk_generation


def reconcile(state: NodeState, now: Instant, out: Out) -> None:
    """Ask for the rotation and the migration that are due."""
    _rotate(state, now, out)
    _migrate(state, now, out)


def _rotate(state: NodeState, now: Instant, out: Out) -> None:
    """One at a time, again after a minute without an outcome."""
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


# --- the key store's schema ------------------------------------------------------------------------------------------


def wanted_schema(state: NodeState) -> int:
    """What the applied mesh names for this region, 0 where it names none."""
    row = state.mesh_view.regions.get(state.config.region)
    return 0 if row is None else row.wanted_schema


def _migrate(state: NodeState, now: Instant, out: Out) -> None:
    """One at a time, and only to what this release knows: a schema that it does not waits for the next one.

    It needs no MasterKey: what is moved stays wrapped.
    """
    since, schema = state.store_migrating_since, wanted_schema(state)
    busy = since is not None and now < since + MIGRATION_TIMEOUT_MS
    if busy or not state.config.minter or not 0 < state.store_schema < schema <= state.store_newest:
        return
    state.store_migrating_since = now
    out.append(MigrateStore(schema))


def on_store_seen(state: NodeState, now: Instant, event: StoreSeen, out: Out) -> None:
    """The store's own word, at each look; the Registry hears of a change at once.  A migration that failed is tried
    again at the next look."""
    was = state.store_schema
    state.store_schema, state.store_newest, state.store_migrating_since = event.schema, event.newest, None
    if event.schema != was:
        note(out, "store-schema", schema=event.schema)
        report(state, out)
    _migrate(state, now, out)


def report(state: NodeState, out: Out) -> None:
    """Tell the Registry, once there is something to tell."""
    if state.store_schema:
        config = state.config
        out.append(
            Send(
                REGISTRY,
                KeyStoreReport(
                    region=config.region, node=config.node, schema=state.store_schema, newest=state.store_newest
                ),
            )
        )
