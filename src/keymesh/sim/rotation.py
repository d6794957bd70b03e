"""Root and officer keys are rotated twice under faults, while a thief holds every key that was rotated away.

A run of its own, over the same machines, network, faults and checkers as every seed.  The old root, the new one and the
new officers sign; the Registry takes the entry, and the voters commit it while regions are cut off, processes die and
the Registry may lose its majority in between.  People go on suspending and resuming regions and the mesh, by the
officers that are in force.  The thief asks the Registry for the same, and for rotations of his own; and now and then he
has the Registry's key as well, even the root's that is in force, and offers a region what follows upon what it holds.

Checked beside all else: every entry in the log that root or officers must sign is signed by a threshold of those in
force at its place (I4); no region's trust set goes back, is another than the log's, or is applied before a majority of
the voters committed it (I4, I2); after the faults the last set is in force everywhere (I10).
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any, Final

import msgspec

from keymesh.control import build
from keymesh.control.entry import Authority
from keymesh.control.kinds import OFFICER_KINDS, OPEN_EPOCH, ROTATE_TRUST
from keymesh.control.reduce_trust import OFFICERS_ROW, set_digest
from keymesh.control.rows import DelegationRow, RegionRow, RootRow, encode, get
from keymesh.control.signing import from_plain
from keymesh.control.state import NamespaceState
from keymesh.control.view import rows_root
from keymesh.model import strict_json
from keymesh.model.ids import MESH_NAMESPACE
from keymesh.model.limits import ENTRY_MAX_BYTES
from keymesh.model.machine import REGISTRY, Persist, Received, node_address
from keymesh.model.scope import parse_scope
from keymesh.model.states import Lane
from keymesh.orbital.messages import Task
from keymesh.registry.events import Command
from keymesh.sim.client import MESH, Asked
from keymesh.sim.ledger import Fact
from keymesh.sim.mesh import MESH_RECORD
from keymesh.sim.options import NODE, REGIONS, VOTERS, options_of
from keymesh.sim.plan import Item, plan_of
from keymesh.sim.process import Machine
from keymesh.sim.run import Run
from keymesh.sim.suite import FakeSuite
from keymesh.sim.world import Violation

THRESHOLD: Final = 2
SETS: Final = 3
FORGERIES: Final = 10
Suites = tuple[FakeSuite, ...]


class RotationRun:
    """One seed: a mesh whose trust set is rotated twice.  ``sets``: (root, officers) by version, from 1."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(f"{seed}/rotation")
        self.options = options = replace(options_of(seed), registries=1 + rng.randrange(2))
        first = rng.randrange(500_000, options.heal_at_ms - 1_200_000)
        self.at = (first, first + rng.randrange(30_000, 600_000))
        self.run = run = Run(options, self._plan())
        self.mesh, self.world, self.ledger = run.mesh, run.world, run.world.ledger
        self.sets: dict[int, tuple[Suites, Suites]] = {1: (self.mesh.roots, self.mesh.officers)}
        for version in range(2, SETS + 1):
            self.sets[version] = (self._suites("root", version), self._suites("officer", version))
        self.since: dict[int, int] = {1: 0}  # version -> seq of the entry that began it
        self.world.on_logged.append(self._logged)
        self.world.on_persist.append(self._persist)

    def _suites(self, role: str, version: int) -> Suites:
        return tuple(self.mesh.suite(f"{role}-{i}-of-{version}") for i in range(3))

    def _plan(self) -> tuple[Item, ...]:
        """The seed's own plan; around each rotation cuts, deaths, and kill switches of regions and of the mesh.

        No tenant is destroyed: that has its own plan.
        """
        o, rng = self.options, self.rng
        items = [i for i in plan_of(o) if i.what not in ("destroy", "cancel-destroy")]
        for at in self.at:
            away = rng.choice(REGIONS)
            items.append(Item(at - rng.randrange(3_000), "cut", ("registry", away, rng.choice((20_000, o.ttl_ms)))))
            for region in rng.sample(VOTERS, rng.randrange(len(VOTERS))):
                length = rng.choice((5_000, 30_000, o.ttl_ms))
                items.append(Item(at - rng.randrange(2_000), "cut", ("registry", region, length)))
            for who in (rng.choice(REGIONS), "registry"):
                when = at + rng.randrange(20_000)
                items.append(Item(when, "crash", (who, rng.randrange(7), rng.choice((300, 5_000)))))
            for _ in range(4):
                scope = rng.choice(("mesh", *(f"region:{r}" for r in REGIONS)))
                when = at + rng.randrange(-30_000, 60_000)
                items += [
                    Item(when, "suspend", (scope,)),
                    Item(when + rng.randrange(2_000, 40_000), "resume", (scope,)),
                ]
        return tuple(sorted(items, key=lambda item: item.at_ms))

    def execute(self) -> None:
        """The whole hour.  Raises Violation."""
        for version, at in enumerate(self.at, start=2):
            self.world.at(at, self._rotate, version)
            for _ in range(6):
                self.world.at(at + self.rng.randrange(200, 240_000), self._steal, self.rng.randrange(FORGERIES))
        self.run.execute()
        self._judge_end()

    # --- rotations ---------------------------------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """In force at the end of the log."""
        return max(self.since)

    def _args(self, version: int) -> dict[str, Any]:
        """Of the rotation to ``version``, whatever is in force."""
        roots, officers = self.sets[version]
        old_roots, old_officers = self.sets[version - 1]
        old = RootRow(version=version - 1, keys=_keys(old_roots), threshold=THRESHOLD)
        ending = RootRow(version=1, keys=_keys(old_officers), threshold=THRESHOLD)
        made: dict[str, Any] = msgspec.to_builtins(
            {
                "root": RootRow(version=version, keys=_keys(roots), threshold=THRESHOLD),
                "officers": DelegationRow(keys=_keys(officers), threshold=THRESHOLD, kinds=OFFICER_KINDS, scope="mesh"),
                "replaces": set_digest(old, ending),
                "genesis": self.ledger.facts[MESH_NAMESPACE][0].hash,
            }
        )
        return made

    def _rotate(self, version: int, _: Any) -> None:
        """Signed as its ceremony signs it: by what it ends, and by what it brings.  Asked until it is answered."""
        if self.version != version - 1:  # the one before is still under way
            self.world.schedule(5_000, self._rotate, version)
            return
        by = (*self.sets[version - 1][0][:2], *self.sets[version][0], *self.sets[version][1])
        self._ask(f"rotate-{version}", ROTATE_TRUST, self._args(version), by)

    def _ask(self, command_id: str, kind: str, args: dict[str, Any], by: Suites) -> None:
        word = self.mesh.clients.authority(by, MESH_NAMESPACE, command_id, kind, args)
        self.mesh.clients.take(Asked(Command(command_id, MESH_NAMESPACE, kind, args, "admin", command_id, (word,))))

    # --- the thief ---------------------------------------------------------------------------------------------------

    def _steal(self, how: int, _: Any) -> None:
        """By keys that were rotated away, all of them: at the Registry, or at a region with the Registry's own key."""
        if self.version == 1:
            return
        roots, officers = self.sets[self.rng.randrange(1, self.version)]
        self.world.sometimes["thief"] += 1
        name = f"thief-{self.world.sometimes['thief']}"
        suspend = {"scope": "mesh", "reason": "", "abandon_children": True}
        if how == 0:
            self._ask(name, "suspend", suspend, officers)
        elif how == 1:
            self._ask(name, ROTATE_TRUST, self._rival(), (*roots, *officers, *self._suites("thief", 0)))
        else:
            self._forge(name, how, roots, officers)

    def _rival(self) -> dict[str, Any]:
        """The next version, as it should be, but with the thief's own keys."""
        version = self.version + 1
        mine = _keys(self._suites("thief", 0))
        self.sets.setdefault(version, (self._suites("root", version), self._suites("officer", version)))
        args = self._args(version)
        return {
            **args,
            "root": {**args["root"], "keys": mine},
            "officers": {**args["officers"], "keys": mine},
        }

    def _forge(self, name: str, how: int, roots: Suites, officers: Suites) -> None:
        """What follows upon the state that a region holds, signed by the Registry's key, which he has for once."""
        m = self.world.machines[node_address(self.rng.choice(REGIONS), NODE)]
        held = m.disk.get(MESH_RECORD)
        head = self.ledger.head(MESH_NAMESPACE)
        if held is None or head is None or held.head.hash != head.hash or not m.proc.alive or m.proc.paused:
            return  # only what is newest can be followed by what nobody else has written
        thieves = self._suites("thief", 0)
        if how in (2, 3):
            region = RegionRow(domain="earth", failure_domain="moon", ca_fingerprint="ab" * 32)
            made = self._extended(held, name, "region.join", {"region": "moon", "row": region, "nodes": {}}, roots)
        elif how in (4, 5):
            made = self._extended(held, name, "suspend", {"scope": "mesh"}, officers)
        elif how == 6:
            made = self._extended(held, name, ROTATE_TRUST, self._rival(), (*roots, *officers, *thieves))
        elif how == 7:
            made = self._taken_back(held, name)
        else:  # by the root that is in force, stolen too: the voters stand in the way
            made = self._extended(held, name, ROTATE_TRUST, self._rival(), (*self.sets[self.version][0], *thieves))
            if how == FORGERIES - 1:
                made = self._extended(made, f"{name}-epoch", OPEN_EPOCH, {"epoch": 2}, thieves, epoch=2)
        entry = made.head.entry
        task = Task(
            task_id=f"{MESH_NAMESPACE}:{entry.epoch}:{entry.seq}:{made.head.hash[:16]}",
            lane=Lane.ONBOARDING,
            namespace=MESH_NAMESPACE,
            state=made,
            correlation_id=name,
        )
        self.world.sometimes["forged"] += 1
        self.world.deliver(m, Received(REGISTRY, task))

    def _extended(
        self, held: NamespaceState, name: str, kind: str, args: dict[str, Any], by: Suites, *, epoch: int = 1
    ) -> NamespaceState:
        plain = msgspec.to_builtins(args)
        words = [self.mesh.clients.authority(by, MESH_NAMESPACE, name, kind, plain)] if by else []
        return build.extend(
            held,
            mesh=MESH,
            namespace=MESH_NAMESPACE,
            kind=kind,
            args=plain,
            mesh_seq=held.head.entry.seq,
            suite=self.mesh.registry_suite,
            command_id=name,
            authority=tuple(from_plain(word) for word in words),
            epoch=epoch,
        )

    def _taken_back(self, held: NamespaceState, name: str) -> NamespaceState:
        """Rows with the founding set, and no word of what came after."""
        args = {"region": REGIONS[0], "generation": 1}
        row = get(held.rows, f"region/{REGIONS[0]}", RegionRow)
        args["generation"] = 2 if row is None else row.ivk_generation + 1
        made = self._extended(held, name, "region.rotate-ivk", args, ())
        genesis = self.ledger.facts[MESH_NAMESPACE][0].args
        officers = msgspec.convert(genesis["delegations"]["officers"], DelegationRow)
        rows = {
            **made.rows,
            "root": encode(msgspec.convert(genesis["root"], RootRow)),
            OFFICERS_ROW: encode(officers),
        }
        entry = msgspec.structs.replace(made.head.entry, state=rows_root(rows))
        support = tuple(s for s in made.support if s.signed.entry.kind != ROTATE_TRUST)
        return NamespaceState(build.sign_entry(entry, self.mesh.registry_suite), rows, support)

    # --- checks ------------------------------------------------------------------------------------------------------

    def _logged(self, fact: Fact) -> None:
        if fact.namespace != MESH_NAMESPACE:
            return
        roots, officers = self.sets[self.version]
        if fact.kind == ROTATE_TRUST:
            version = int(fact.args["root"]["version"])
            self._judge_signed(fact, roots, "root")
            if version != self.version + 1 or fact.args["root"]["keys"] != _keys(self.sets[version][0]):
                self.world.fail("I4", f"trust set {version} comes after {self.version}, or is not whose it should be")
            for role in (0, 1):
                self._judge_signed(fact, self.sets[version][role], "the new set")
            self.since[version] = fact.seq
            self.mesh.clients.officers = self.sets[version][1][:2]
            self.world.sometimes["trust-rotated"] += 1
            self.world.say(f"TRUST ROTATED to {version} by {fact.namespace}:{fact.seq}")
        elif fact.kind == "region.join":
            self._judge_signed(fact, roots, "root")
        elif fact.kind in ("suspend", "revoke", "resume") and parse_scope(fact.args["scope"]).needs_four_eyes:
            self._judge_signed(fact, officers, "officers")
            self.world.sometimes[f"wide-{fact.kind}-under-{self.version}"] += 1

    def _judge_signed(self, fact: Fact, by: Suites, role: str) -> None:
        """Worked out here, from the envelopes alone: who of ``by`` signed this very command."""
        keys = {suite.key_id: suite.public_hex for suite in by}
        found: set[Any] = set()
        for plain in fact.signed.entry.body.authority:
            envelope = from_plain(plain)
            word = strict_json.decode(envelope.payload, Authority, max_bytes=ENTRY_MAX_BYTES)
            if (word.command_id, word.kind) == (fact.command_id, fact.kind):
                found |= by[0].signers(envelope, keys)
        if len(found) < THRESHOLD:
            where = f"{fact.namespace}:{fact.seq} {fact.kind}"
            self.world.fail("I4", f"{where} stands by {len(found)} of {role}, version {self.version}")

    def _persist(self, m: Machine, effect: Persist) -> None:
        if m.kind != "node":
            return
        for name, value in effect.puts:
            if name == MESH_RECORD:
                self._judge_held(m, value)

    def _judge_held(self, m: Machine, state: NamespaceState) -> None:
        seq = state.head.entry.seq
        true = max(version for version, since in self.since.items() if since <= seq)
        row = get(state.rows, "root", RootRow)
        officers = get(state.rows, OFFICERS_ROW, DelegationRow)
        if row is None or officers is None:
            self.world.fail("I4", f"{m.address} holds no trust set")
            return
        if (row.version, row.keys, officers.keys) != (true, *map(_keys, self.sets[true])):
            self.world.fail("I4", f"{m.address} holds trust set {row.version} at {seq}, where the log has {true}")
        fact = self.ledger.fact(MESH_NAMESPACE, self.since[true])
        if true > 1 and (fact is None or fact.committed_at is None):
            self.world.fail("I2", f"{m.address} goes by trust set {true}, which is not committed")
        if true > 1:
            self.world.sometimes[f"applied-{true}"] += 1

    def _judge_end(self) -> None:
        if self.version != SETS:
            self.world.fail("I10", f"the rotations ended at version {self.version}")
        for region in REGIONS:
            held = self.world.machines[node_address(region, NODE)].disk[MESH_RECORD]
            row = get(held.rows, "root", RootRow)
            if row is None or row.version != SETS:
                self.world.fail("I10", f"{region} does not know the new trust set")
        self.world.sometimes["in-force"] += 1


def _keys(suites: Suites) -> dict[str, str]:
    return {str(suite.key_id): suite.public_hex for suite in suites}


def run_rotation(seed: int) -> tuple[Violation | None, Counter[str]]:
    """One seed: what does not hold, and what happened how often."""
    run = RotationRun(seed)
    try:
        run.execute()
    except Violation as bad:
        return bad, run.world.sometimes
    return None, run.world.sometimes
