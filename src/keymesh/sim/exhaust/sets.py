"""A set of voters and its heir: what the scenario ``voters`` asks of them, and how it is judged.

One seat goes from the first voter to a fourth.  Any of the old voters may be shown the officers' word, at any time or
never; the Registry may be asked for the change with whatever words there are by then; whoever has a seat in the new set
may take it once the change is in the log.  A suspension may come anywhere between.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from msgspec import structs

from keymesh.control import trust, voter
from keymesh.control.blind import blind
from keymesh.control.kinds import CHANGE_VOTERS
from keymesh.control.messages import StandbyRequest
from keymesh.control.voter_seal import args_of
from keymesh.control.voter_state import MeshApplied, SetOffered, stored_heads
from keymesh.model.ids import MESH_NAMESPACE
from keymesh.model.machine import node_address
from keymesh.model.time import Instant
from keymesh.registry.events import Command
from keymesh.sim.client import MESH
from keymesh.sim.exhaust.judge import RESTRICTS, Judge
from keymesh.sim.exhaust.start import HOME, TENANT, TICK_MS
from keymesh.sim.exhaust.worlds import Asked, Later, System, World
from keymesh.sim.mesh import SALT, Mesh
from keymesh.sim.options import NODE, VOTERS
from keymesh.sim.voters import JOINING, NEW_SET, signed_offer

HEIRS: Final = tuple(sorted((*VOTERS[1:], JOINING)))
_SETS: Final = {NEW_SET - 1: VOTERS, NEW_SET: HEIRS}
_BLIND: Final = blind(SALT, TENANT)
_LATE_MS: Final = 100 * TICK_MS
_REGISTRY, _FIRST_VOTER = 0, 2


def change_of_voters(mesh: Mesh) -> tuple[tuple[Asked, ...], ...]:
    """The scripts: three seals, the change, three seats."""
    offer = signed_offer(mesh, HEIRS)
    officers = trust.Quorum({key: public for suite in mesh.officers for key, public in suite.keys.items()}, 2)
    seals = tuple((Asked(_FIRST_VOTER + n, SetOffered("t", offer, officers)),) for n in range(len(VOTERS)))

    def change(system: System, world: World) -> Any:
        words = tuple(system.words[number] for _, number in world.truth.seals)
        args = args_of(offer)
        command = Command(
            offer.command_id, MESH_NAMESPACE, CHANGE_VOTERS, args, "admin", "seats", offer.authority, words
        )
        return command if words else None

    old = next(m.state.seat for m in mesh.world.voters.values() if m.proc.region in VOTERS)
    heir = structs.replace(old, set_id=NEW_SET, seated=True)

    def seat(system: System, world: World) -> Any:
        return MeshApplied(heir) if _is_changed(system, world.log) else None

    places = [*VOTERS, JOINING]
    seats = tuple((Asked(_FIRST_VOTER + places.index(region), Later(seat)),) for region in HEIRS)
    return (*seals, (Asked(_REGISTRY, Later(change)),), *seats)


def _is_changed(system: System, log: int) -> bool:
    return any(s.entry.kind == CHANGE_VOTERS for commit in system.cells.logs[log].commits for s in commit)


@dataclass(frozen=True, slots=True)
class _Would:
    """Under which set a voter would grant a Standby lease, and the newest restriction that it would show."""

    set_id: int
    shows: int


class SetsJudge(Judge):
    """Committed is what a majority of *one* set has stored; and whatever majority of any set grants, shows that."""

    def __init__(self, system: System, *, ttl_ms: int) -> None:
        super().__init__(system, ttl_ms=ttl_ms)
        self._would: dict[int, _Would | None] = {}

    def stored(self, world: Any, entry_hash: str) -> bool:
        """Whether a majority of the voters of one set, who stand by it, have the entry on their disks."""
        return any(
            sum(entry_hash in self.held(cell) for cell in self._seated(world, set_id)) >= self.majority
            for set_id in _SETS
        )

    def _seated(self, world: Any, set_id: int) -> list[int]:
        cells = [world.cells[i] for i in self.system.of_kind["voter"]]
        seats = [(cell, self.system.cells.cells[cell].disk.get(voter.SEAT_RECORD)) for cell in cells]
        return [cell for cell, seat in seats if seat is not None and seat.seated and seat.set_id == set_id]

    def world(self, world: Any) -> str:
        return super().world(world) or self._majorities(world)

    def _majorities(self, world: Any) -> str:
        would = [self._grants(i, world.cells[i]) for i in self.system.of_kind["voter"]]
        for word in world.truth.commits:
            if word.kind not in RESTRICTS:
                continue
            for set_id in _SETS:
                without = [w for w in would if w is not None and w.set_id == set_id and w.shows < word.seq]
                if len(without) >= self.majority:
                    return f"I1: a majority of set {set_id} may grant a lease without entry {word.seq}"
        return ""

    def _grants(self, i: int, cell: int) -> _Would | None:
        """What the voter would do once the Registry has been silent for long."""
        if cell not in self._would:
            self._would[cell] = self._grant(i, self.system.cells.cells[cell].state)
        return self._would[cell]

    def _grant(self, i: int, state: Any) -> _Would | None:
        now = Instant(self.system.began + self.system.kinds[i].base + _LATE_MS)
        for set_id in _SETS:
            asked = StandbyRequest(
                mesh=MESH, epoch=1, set_id=set_id, region=HOME, node=NODE, nonce="judge", ttl_ms=self.ttl_ms
            )
            if voter.standby_refusal(state, node_address(HOME, NODE), asked, now) is None:
                shown = [head.seq for head in stored_heads(state) if head.blind == _BLIND]
                return _Would(set_id, max(shown, default=0))
        return None
