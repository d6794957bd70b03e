"""What a lost disk took with it: acknowledged writes of which no copy is left anywhere.

Two kinds of write rest on the regions' disks before, or without, resting in the control log: restrictions that a region
promised while the Registry was away, and the wrapped bytes of key versions that the log names.  Everything else that
was acknowledged is in the log, which loses nothing here (``sim/epochs.py`` is about a log that does).
"""

from __future__ import annotations

from keymesh.core.records import local_name
from keymesh.model.machine import Persist, node_address
from keymesh.sim.ask.seen import Loss, Seen
from keymesh.sim.checkers import lens
from keymesh.sim.mesh import Mesh
from keymesh.sim.options import NODE
from keymesh.sim.process import Machine, Process


class Writes:
    """Looks right after a disk is lost: what was acknowledged before and is nowhere now went with it."""

    def __init__(self, mesh: Mesh, seen: Seen) -> None:
        self.mesh = mesh
        self.world = mesh.world
        self.seen = seen
        self._lost: set[tuple[str, ...]] = set()
        self._settled: set[tuple[str, str]] = set()  # (region, record) of promises that were kept
        self.world.on_persist.append(self._persisted)
        self.world.on_wipe.append(self._wiped)

    def _persisted(self, m: Machine, effect: Persist) -> None:
        if m.kind == "node":
            self._settled.update((m.proc.region, name) for name in effect.deletes)

    def _wiped(self, proc: Process) -> None:
        gone = {**self._keys(), **self._restrictions()}
        new = {write: at for write, at in gone.items() if write not in self._lost}
        self._lost |= new.keys()
        age_ms = self.world.t - min(new.values(), default=self.world.t)
        self.seen.losses.append(Loss(self.world.t, proc.region, len(new), age_ms))

    def _keys(self) -> dict[tuple[str, ...], int]:
        """Key versions that no store has the bytes of: when the log took them."""
        stored = {blob.kid for store in self.mesh.keys.blobs.values() for blob in store.values()}
        return {
            (fact.namespace, fact.args["kid"]): fact.logged_at
            for facts in self.world.ledger.facts.values()
            for fact in facts
            if fact.kind == "key.create" and fact.args["kid"] not in stored
        }

    def _restrictions(self) -> dict[tuple[str, ...], int]:
        """Restrictions that a region promised, and neither it nor the log has."""
        found: dict[tuple[str, ...], int] = {}
        for (namespace, command_id), local in self.mesh.clients.locals.items():
            node = self.world.machines[node_address(local.region, NODE)]
            settled = (local.region, local_name(namespace, command_id)) in self._settled
            settled = settled or (namespace, command_id) in self.world.ledger.by_command
            if local.recorded_at is not None and not settled and not lens.holds_local(node, local.event):
                found[namespace, command_id, local.region] = local.recorded_at
        return found
