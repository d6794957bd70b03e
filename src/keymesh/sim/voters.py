"""The voter set is changed under faults: one seat goes to another region while an old voter is an island.

A run of its own, over the same machines, network, faults and checkers as every seed.  Officers sign; the old voters are
asked one after the other to seal; with a majority of their words the Registry is asked for the entry, at once or long
after (the change stops half-way), while people restrict and resume, processes die and the new voter loses its disk.

Checked beside all else: no voter countersigns, polls or grants under a set that it sealed (I12); when the change is in
the log, a majority of the old set has sealed it (I12); whoever takes a seat of the new set has stored every restriction
that was committed under the old one (I2); no Registry records a commit that no majority of one set has made (I2); after
the faults the new set is in force everywhere (I10).
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from functools import partial
from typing import Any, Final

from msgspec import structs

from keymesh.control import commit, trust, voter
from keymesh.control.blind import blind
from keymesh.control.kinds import CHANGE_VOTERS, KINDS
from keymesh.control.messages import CountersignatureMessage, PollAnswer, SetOffer, StandbyGrantMessage
from keymesh.control.voter_seal import args_of
from keymesh.control.voter_state import EpochReply, SetOffered
from keymesh.model.ids import MESH_NAMESPACE
from keymesh.model.machine import Address, Persist, node_address
from keymesh.registry.events import Command
from keymesh.registry.records import CommitRecord
from keymesh.sim.client import MESH, Asked
from keymesh.sim.ledger import Fact
from keymesh.sim.mesh import MESH_RECORD, SALT, Mesh
from keymesh.sim.options import NODE, REGIONS, VOTERS, options_of
from keymesh.sim.plan import Item, plan_of
from keymesh.sim.process import Machine
from keymesh.sim.run import Run
from keymesh.sim.world import Violation

JOINING: Final = next(region for region in REGIONS if region not in VOTERS)
RETRY_MS: Final = 5_000
NEW_SET: Final = 2
_FAR: Final = 2**53 - 1


def signed_offer(mesh: Mesh, regions: tuple[str, ...]) -> SetOffer:
    """The officers' word for the set after the first."""
    offer = SetOffer(
        mesh=MESH, set_id=NEW_SET, regions=regions, replaces=tuple(sorted(VOTERS)), command_id="seats", authority=()
    )
    word = mesh.clients.authority(mesh.officers[:2], MESH_NAMESPACE, "seats", CHANGE_VOTERS, args_of(offer))
    return structs.replace(offer, authority=(word,))


class VotersRun:
    """One seed: a mesh that changes a seat."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(f"{seed}/voters")
        self.options = options = replace(options_of(seed), registries=1 + rng.randrange(2))
        self.at = rng.randrange(600_000, options.heal_at_ms - 900_000)
        self.stops_ms = rng.choice((0, 0, 20_000, options.ttl_ms))
        self.run = run = Run(options, self._plan())
        self.mesh, self.world, self.ledger = run.mesh, run.world, run.world.ledger
        self.words: dict[str, Any] = {}
        self.asked: Asked | None = None
        self.blinds: dict[str, str] = {}
        world = self.world
        self.mesh.add_voter(JOINING)
        world.handlers[EpochReply] = self._replied
        world.on_logged.append(self._logged)
        world.on_persist.append(self._persist)
        for kind, set_id_of in (
            (CountersignatureMessage, lambda message: message.countersignature.message.set_id),
            (PollAnswer, lambda message: message.set_id),
            (StandbyGrantMessage, lambda message: message.grant.message.set_id),
        ):
            world.on_send.setdefault(kind, []).append(partial(self._acts, set_id_of))
        gone = rng.choice(VOTERS)
        self.offer = signed_offer(self.mesh, tuple(sorted({*VOTERS, JOINING} - {gone})))

    def _plan(self) -> tuple[Item, ...]:
        """The seed's own plan and, around the change, an island, deaths and a lost disk.

        No old voter loses its disk between its seal and the change: its seal would be lost with it (docs/standby.md).
        No tenant is destroyed: that has its own plan.
        """
        o, rng, at = self.options, self.rng, self.at
        until = at + self.stops_ms + 2 * o.ttl_ms
        items = [i for i in plan_of(o) if i.what not in ("destroy", "cancel-destroy")]
        items = [i for i in items if i.what != "wipe" or not at - 60_000 < i.at_ms < until]
        island = rng.choice(VOTERS)
        for other in ("registry", *REGIONS):
            if other != island:
                items.append(Item(at - 3_000, "cut", (island, other, o.ttl_ms + self.stops_ms)))
        for who in (rng.choice(VOTERS), JOINING, "registry"):
            when = at + rng.randrange(self.stops_ms + 20_000)
            items.append(Item(when, "crash", (who, rng.randrange(7), rng.choice((300, 5_000)))))
        items.append(Item(at + rng.randrange(-50_000, 90_000), "wipe", (JOINING,)))
        if rng.randrange(2):  # Standby under the old set, while the new one comes to be
            dead = o.ttl_ms * 3 // 2
            items += [Item(at + self.stops_ms + 9_000, "crash", (f"registry-{n + 1}", 0, dead)) for n in range(2)][
                : o.registries
            ]
        for _ in range(14):
            scope = f"tenant:{rng.choice(o.tenants).name}"
            when = at + rng.randrange(-20_000, self.stops_ms + 60_000)
            items.append(Item(when, rng.choice(("suspend", "suspend", "resume")), (scope,)))
        return tuple(sorted(items, key=lambda item: item.at_ms))

    def execute(self) -> None:
        """The whole hour.  Raises Violation."""
        for region in VOTERS:
            self.world.at(self.at + self.rng.randrange(4_000), self._ask, region)
        self.run.execute()
        self._judge_end()

    # --- the change --------------------------------------------------------------------------------------------------

    def _ask(self, region: str, b: Any) -> None:
        """Until the region's voter has sealed, or the change is under way."""
        seated = self.world.voters[node_address(region, NODE)]
        if region in self.words or self.asked is not None:
            return
        proc = seated.proc
        is_reached = any(self.world.network.connected(m.proc.name, proc.name) for m in self.world.registries)
        if proc.alive and not proc.paused and is_reached and seated.state is not None:
            mesh = self.world.machines[seated.address].state.mesh.applied
            officers = None
            if mesh is not None:
                kind, args = KINDS[CHANGE_VOTERS], args_of(self.offer)
                officers = trust.quorum_for(kind, args, mesh_rows=mesh.rows, tenant_signers=None)
            self.world.run(seated, SetOffered(region, self.offer, officers))
        self.world.schedule(RETRY_MS, self._ask, region)

    def _replied(self, m: Machine, reply: EpochReply) -> None:
        if reply.stored is None:
            self.world.sometimes[f"not-sealed-{reply.refused}"] += 1
            return
        if self._sealed(m.address) < NEW_SET - 1:
            self.world.fail("I12", f"voter {m.address} says that it sealed a set, and its disk does not")
        self.words[reply.token] = reply.stored
        if len(self.words) >= self.needed():
            self.world.sometimes["half-way"] += self.stops_ms > 0
            self.world.schedule(1 + self.stops_ms, self._submit)

    def needed(self) -> int:
        return commit.majority(len(VOTERS))

    def _submit(self, a: Any, b: Any) -> None:
        if self.asked is None:
            offer, words = self.offer, tuple(self.words.values())
            command = Command(
                offer.command_id,
                MESH_NAMESPACE,
                CHANGE_VOTERS,
                args_of(offer),
                "admin",
                "seats",
                offer.authority,
                words,
            )
            self.asked = Asked(command)
            self.mesh.clients.take(self.asked)

    # --- checks ------------------------------------------------------------------------------------------------------

    def _sealed(self, address: Address) -> int:
        seal = self.world.voters[address].disk.get(voter.SEAL_RECORD)
        return 0 if seal is None else int(seal.set_id)

    def _acts(self, set_id_of: Any, m: Machine, to: Address, message: Any) -> None:
        set_id = set_id_of(message)
        if set_id <= self._sealed(m.address):
            self.world.fail("I12", f"voter {m.address} acts under set {set_id}, which it sealed")
        self.world.sometimes[f"{type(message).__name__}-of-set-{set_id}"] += 1

    def _logged(self, fact: Fact) -> None:
        self.blinds.setdefault(fact.namespace, blind(SALT, fact.namespace))
        if fact.kind == CHANGE_VOTERS:
            sealed = [r for r in VOTERS if self._sealed(node_address(r, NODE)) >= NEW_SET - 1]
            if len(sealed) < commit.majority(len(VOTERS)):
                self.world.fail("I12", f"the set is changed, and only {sealed} have sealed the old one")
            self.world.sometimes["changed"] += 1

    def _persist(self, m: Machine, effect: Persist) -> None:
        for name, record in effect.puts:
            if m.kind == "voter" and name == voter.SEAT_RECORD and record.seated and record.set_id == NEW_SET:
                self._judge_seat(m, dict(effect.puts))
            elif isinstance(record, CommitRecord):
                fact = self.ledger.fact(record.namespace, record.seq)
                if fact is not None and fact.committed_at is None:
                    self.world.fail("I2", f"{m.address} takes {fact.namespace}:{fact.seq} for committed")

    def _judge_seat(self, m: Machine, puts: dict[str, Any]) -> None:
        for namespace, facts in self.ledger.restrictions.items():
            for fact in facts:
                name = f"{voter.VOTE_PREFIX}{self.blinds[namespace]}/{fact.seq}"
                by_old = sum(of < NEW_SET for of, _ in fact.votes) >= commit.majority(len(VOTERS))
                if by_old and name not in puts and name not in m.disk:
                    self.world.fail("I2", f"voter {m.address} takes its seat without {namespace}:{fact.seq}")
        self.world.sometimes["seated"] += 1

    def _judge_end(self) -> None:
        if self.asked is None:
            return
        for region in REGIONS:
            mesh = self.world.machines[node_address(region, NODE)].disk[MESH_RECORD]
            voters = commit.voters_of(mesh.rows)
            if voters is None or voters.set_id != NEW_SET or voters.regions != self.offer.regions:
                self.world.fail("I10", f"{region} does not know the new voters")
            seat = self.world.voters[node_address(region, NODE)].disk.get(voter.SEAT_RECORD)
            if seat is None or (seat.set_id, seat.seated) != (NEW_SET, region in self.offer.regions):
                self.world.fail("I10", f"the voter of {region} has the seat {seat}")
        self.world.sometimes["in-force"] += 1


def run_voters(seed: int) -> tuple[Violation | None, Counter[str]]:
    """One seed: what does not hold, and what happened how often."""
    run = VotersRun(seed)
    try:
        run.execute()
    except Violation as bad:
        return bad, run.world.sometimes
    return None, run.world.sometimes
