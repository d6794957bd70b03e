"""The Registry is lost, and restored from a backup older than what was committed, while the old one lives on.

A run of its own, over the same machines, network and faults: until the restore everything goes on as ever, in the old
Registry's epoch; voters store the new epoch one after the other while it still commits; then a second Registry begins
with the base that ``plan_base`` makes, and the old one goes on appending suspensions and resumes to its own log.

Checked, on every step: no record falls back (I4); no voter signs, polls or grants in an epoch older than it stored;
what was committed when a majority had stored the epoch is in the base (I2) and nobody uses anything under it past its
bound (I1); after the faults everybody is in the new epoch, at the new log's heads, synced where not restricted (I10).
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any, Final

from keymesh.control import trust, voter
from keymesh.control.commit import majority
from keymesh.control.entry import SignedEntry
from keymesh.control.kinds import KINDS, OPEN_EPOCH
from keymesh.control.messages import (
    CountersignatureMessage,
    EpochOffer,
    PollAnswer,
    StandbyGrantMessage,
)
from keymesh.control.rows import RestrictionRow, get
from keymesh.control.signing import to_plain
from keymesh.control.voter_state import EpochOffered, EpochReply
from keymesh.model.errors import Unavailable
from keymesh.model.ids import MESH_NAMESPACE, MeshName
from keymesh.model.machine import REGISTRY, Address, Persist, node_address
from keymesh.model.scope import parse_scope
from keymesh.model.states import Mode
from keymesh.model.time import Instant
from keymesh.registry import machine as registry_machine
from keymesh.registry.events import AppendLog, Command, ReadLog
from keymesh.registry.regrow import Regrown
from keymesh.registry.restore import Base, Handed, plan_base
from keymesh.registry.state import RegistryConfig
from keymesh.sim.checkers import lens
from keymesh.sim.checkers.uses import Uses
from keymesh.sim.client import MESH
from keymesh.sim.clocks import WALL_EPOCH_MS, HostClock
from keymesh.sim.ledger import Restriction
from keymesh.sim.log import SimLog
from keymesh.sim.mesh import Mesh
from keymesh.sim.options import NODE, REGIONS, VOTERS, options_of
from keymesh.sim.plan import COMMANDS, Item, plan_of
from keymesh.sim.process import Machine
from keymesh.sim.purges import Purges
from keymesh.sim.world import Violation

FAULTS: Final = frozenset(("cut", "cut-one-way", "slow-link", "crash", "pause"))
NEW: Final = Address("registry-new")
EPOCH: Final = 2
RETRY_MS: Final = 10_000
SAMPLE_MS: Final = 60_000
OLD_ACTS_MS: Final = 45_000
_FAR: Final = 2**53 - 1


class EpochRun:
    """One seed: a mesh that loses its Registry."""

    def __init__(self, seed: int) -> None:
        self.options = options = replace(options_of(seed), registries=1)
        self.rng = random.Random(f"{seed}/epochs")
        plan = tuple(item for item in plan_of(options) if item.what in COMMANDS or item.what in FAULTS)
        self.mesh = mesh = Mesh(options, plan)
        self.world = world = mesh.world
        self.ledger = world.ledger
        self.uses = Uses(mesh)
        self.purges = Purges(mesh)
        self.base: Base | None = None
        self.words: dict[str, Any] = {}
        self.backup = 0
        self.old_log = world.log
        self.n_old = 0
        world.handlers |= {AppendLog: self._append, ReadLog: self._read, EpochReply: self._replied}
        world.on_persist.append(self._persist)
        world.on_send.setdefault(CountersignatureMessage, []).append(self._countersigned)
        world.on_send.setdefault(StandbyGrantMessage, []).append(self._granted)
        world.on_send.setdefault(PollAnswer, []).append(self._polled)

    def execute(self) -> None:
        """The whole hour.  Raises Violation."""
        o, world = self.options, self.world
        at = self.rng.randrange(900_000, o.heal_at_ms - 900_000)
        world.at(at - self.rng.randrange(1_000, 300_000), self._back_up)
        world.at(at, self._lose)
        world.at(o.heal_at_ms, lambda a, b: self._heal())
        world.schedule(SAMPLE_MS, self._sample)
        self.mesh.start()
        world.run_until(o.end_ms)
        self._judge_end()

    # --- the restore -------------------------------------------------------------------------------------------------

    def _back_up(self, a: Any, b: Any) -> None:
        self.backup = max(1, self.world.log.index)

    def _lose(self, a: Any, b: Any) -> None:
        """Officers sign; voters are asked one after the other, each until it has answered."""
        made = trust.make_authority(
            mesh=MESH,
            namespace=MESH_NAMESPACE,
            command_id="epoch",
            kind=OPEN_EPOCH,
            args={"epoch": EPOCH},
            not_after=_FAR,
            signers=self.mesh.officers[:2],
        )
        self.offer = EpochOffer(mesh=MESH, epoch=EPOCH, command_id="epoch", authority=(to_plain(made),))
        self.silent = {region for region in REGIONS if self.rng.randrange(5) < 2}
        for region in VOTERS:
            self.world.schedule(self.rng.randrange(40_000), self._offer, region)
        for _ in range(12):
            self.world.schedule(self.rng.randrange(45_000), self._stir)

    def _stir(self, a: Any, b: Any) -> None:
        """Somebody restricts, resumes or rotates at the old Registry while it is being replaced."""
        tenant = self.rng.choice(self.options.tenants)
        service = self.rng.choice(tenant.services)
        what = self.rng.choice(("suspend", "suspend", "suspend", "resume", "want-key"))
        scope = self.rng.choice((f"tenant:{tenant.name}", f"service:{tenant.name}/{service}"))
        args = (tenant.name, f"l3/{service}") if what == "want-key" else (scope,)
        self.mesh.clients.run(Item(self.world.t, what, args))

    def _offer(self, region: str, b: Any) -> None:
        seated = self.world.voters[node_address(region, NODE)]
        if self.base is not None or region in self.words:
            return
        if seated.proc.alive and not seated.proc.paused:
            mesh = self.world.machines[seated.address].state.mesh.applied
            officers = None
            if mesh is not None:
                kind = KINDS[OPEN_EPOCH]
                officers = trust.quorum_for(kind, {"epoch": EPOCH}, mesh_rows=mesh.rows, tenant_signers=None)
            self.world.run(seated, EpochOffered(region, self.offer, officers))
        self.world.schedule(RETRY_MS, self._offer, region)

    def _replied(self, m: Machine, reply: EpochReply) -> None:
        if reply.stored is not None and self._stored(m) < EPOCH:
            self.world.fail("I12", f"voter {m.address} says that it stored an epoch that is not on its disk")
        if reply.stored is None or self.base is not None:
            return
        self.words[reply.token] = reply.stored
        self.world.schedule(1, self._try_base)

    def _try_base(self, a: Any, b: Any) -> None:
        """With a majority the regions that are up hand in, and the new log begins."""
        if self.base is not None:
            return
        log = Regrown(self.mesh.pins, self.mesh.registry_suite)
        for group in self.old_log.commits[: self.backup]:
            log.take(group)
        handed = [Handed(m.proc.region, self._states(m)) for m in self._nodes() if self._is_up(m)]
        now = Instant(WALL_EPOCH_MS + self.world.t)
        try:
            self.base = plan_base(log, offer=self.offer, words=list(self.words.values()), handed=handed, now=now)
        except Unavailable:
            return
        storing = [m for m in self.world.voters.values() if self._stored(m) >= EPOCH]
        if len(storing) < majority(len(VOTERS)):
            self.world.fail("I2", f"a base of {len(storing)} voters' words: another may still commit what it lacks")
        self._judge_base(log)
        self.world.sometimes["restored"] += 1
        for one in self.base.refused:
            self.world.sometimes[f"refused-{one.reason}"] += 1
        self.world.say(f"RESTORED from {self.backup} of {self.old_log.index}: {self.base.from_regions}")
        self._begin(self.base)

    def _is_up(self, m: Machine) -> bool:
        return m.proc.alive and not m.proc.paused and m.proc.region not in self.silent

    def _states(self, m: Machine) -> tuple[Any, ...]:
        state = m.state
        held = [h.applied for h in (state.mesh, *state.tenants.values()) if h.applied is not None]
        return (*held, *state.tails.values())

    def _begin(self, base: Base) -> None:
        """The new log and its Registry; the old one keeps its own, of which the world hears no more."""
        world, mesh = self.world, self.mesh
        self.old_log._on_append = lambda index, entries: None
        world.log = made = SimLog(
            self.options.seed + 1, schedule=world.schedule, on_append=world._logged, counts=world.faults
        )
        made.commits = list(base.commits)
        for group in base.commits:
            for signed in group:
                made.heads[signed.entry.namespace] = signed
                made.commands.add((signed.entry.namespace, signed.entry.command_id))
        restore_ledger(self.ledger, base.commits, world.t)
        proc = world.add_process(str(NEW), "us-west", HostClock(str(NEW), 0, 13))
        config = RegistryConfig(
            MeshName(MESH), mesh.registry_suite, mesh.root_keys, 2, leaves_in_full=self.options.leaves_in_full
        )
        machine = world.add_machine(
            proc, "registry", NEW, lambda: registry_machine.new_registry(config), registry_machine.step
        )
        mesh.clients._replica = lambda: machine  # type: ignore[method-assign]
        world.boot(proc)
        if self.rng.randrange(2):  # the old one hears nobody any more, and is heard
            for region in REGIONS:
                world.network.link(region, str(REGISTRY)).cuts += 1
        world.schedule(OLD_ACTS_MS, self._old_acts)

    def _log_of(self, m: Machine) -> SimLog:
        return self.world.log if self.base is None or m.address == NEW else self.old_log

    def _append(self, m: Machine, e: AppendLog) -> None:
        self._log_of(m).append(e.entries, e.token, self.world.reply, (m, m.proc.life))

    def _read(self, m: Machine, e: ReadLog) -> None:
        self._log_of(m).read(e.after_index, e.token, self.world.reply, (m, m.proc.life))

    def _old_acts(self, a: Any, b: Any) -> None:
        """Somebody still commands the old Registry: it resumes, and suspends, what it can."""
        old = self.world.machines[REGISTRY]
        if old.proc.alive and old.state is not None and not old.state.halted:
            for namespace, space in sorted(old.state.spaces.items()):
                scopes = [
                    scope for scope in sorted(restricted_scopes(space.rows)) if not parse_scope(scope).needs_four_eyes
                ]
                for scope in scopes or ([] if namespace == MESH_NAMESPACE else [f"tenant:{namespace}"]):
                    self.n_old += 1
                    kind = "resume" if scopes and self.rng.randrange(2) else "suspend"
                    args = {"scope": scope, "reason": "", "abandon_children": True}
                    command = Command(f"old-{self.n_old}", namespace, kind, args, "admin", "old")
                    self.world.deliver(old, command)
                    self.world.sometimes["old-registry-acts"] += 1
        self.world.schedule(OLD_ACTS_MS, self._old_acts)

    def _heal(self) -> None:
        self.mesh.faults.heal()

    # --- checks ------------------------------------------------------------------------------------------------------

    def _nodes(self) -> list[Machine]:
        return [self.world.machines[node_address(region, NODE)] for region in REGIONS]

    def _sample(self, a: Any, b: Any) -> None:
        self.uses.sample()
        self.world.schedule(SAMPLE_MS, self._sample)

    def _judge_base(self, log: Regrown) -> None:
        """What a majority had countersigned when the epoch was stored is restricted by the base."""
        for text, stretch in list(self.ledger.open.items()):
            namespace = stretch.scope.namespace
            in_base = restricted_scopes(log.chain(namespace).rows)
            whole = MESH_NAMESPACE if namespace == MESH_NAMESPACE else f"tenant:{namespace}"
            if text in in_base:
                self.world.sometimes["base-restricts"] += 1
            elif whole in in_base:
                self._covered(stretch, whole)
            else:
                self.world.fail("I2", f"the base does not restrict {text}, committed at {stretch.committed_at}")

    def _covered(self, stretch: Restriction, whole: str) -> None:
        """Nobody has the entry, so the tenant is closed until somebody resumes it: that ends this one too."""
        del self.ledger.open[stretch.text]
        stretch.ended_at = self.world.t
        if whole not in self.ledger.open:
            made = Restriction(parse_scope(whole), whole, 0, False, self.world.t)
            self.ledger.open[whole] = made
            self.ledger.history.append(made)
            for hook in self.ledger.on_restricted:
                hook(made)
        self.world.sometimes["closed-unseen"] += 1

    def _persist(self, m: Machine, effect: Persist) -> None:
        if m.kind != "node":
            return
        for key, value in effect.puts:
            if key.startswith("ns/") and key in m.disk:
                old, new = m.disk[key].head.entry, value.head.entry
                if (new.epoch, new.seq) < (old.epoch, old.seq):
                    self.world.fail("I4", f"{m.address} goes back from {old.epoch}:{old.seq} to {new.epoch}:{new.seq}")
                if new.epoch > old.epoch:
                    self._judge_move(m, m.disk[key], value, effect)

    def _judge_move(self, m: Machine, old: Any, new: Any, effect: Persist) -> None:
        """Everything that the tail restricted is restricted by the base, or by a local suspension in this record."""
        puts = dict(effect.puts)
        after = restricted_scopes(new.rows)
        for scope in sorted(restricted_scopes(old.rows) - after):
            row = get(old.rows, f"restriction/{scope}", RestrictionRow)
            assert row is not None
            name = f"local/{old.head.entry.namespace}/{row.command_id}"
            now = get(new.rows, f"restriction/{scope}", RestrictionRow)
            resumed = now is not None and now.state == "none" and self._was_resumed(scope)
            if name not in puts and name not in m.disk and not resumed:
                self.world.fail("I3", f"{m.address} loses {scope} when it takes epoch {new.head.entry.epoch}")
            self.world.sometimes["tail-kept-up"] += 1
        self.world.sometimes["moved-on"] += 1

    def _was_resumed(self, scope: str) -> bool:
        fact = self.ledger.words.get(scope)
        return fact is not None and fact.kind == "resume" and fact.committed_at is not None

    def _stored(self, m: Machine) -> int:
        promise = self.world.voters[m.address].disk.get(voter.PROMISE_RECORD)
        return 0 if promise is None else int(promise.epoch)

    def _countersigned(self, m: Machine, to: Address, message: CountersignatureMessage) -> None:
        word = message.countersignature.message
        self._judge_epoch(m, "countersigns", word.epoch)
        self.ledger.voted(word.entry_hash, word.voter, self.world.t)

    def _granted(self, m: Machine, to: Address, message: StandbyGrantMessage) -> None:
        self._judge_epoch(m, "grants", message.grant.message.epoch)

    def _polled(self, m: Machine, to: Address, message: PollAnswer) -> None:
        self._judge_epoch(m, "answers a poll", message.epoch)

    def _judge_epoch(self, m: Machine, does: str, epoch: int) -> None:
        if epoch < self._stored(m):
            self.world.fail("I12", f"voter {m.address} {does} in epoch {epoch}, after it stored {self._stored(m)}")

    def _judge_end(self) -> None:
        """Everybody is in the new epoch, at its heads, synced where nothing restricts the tenant."""
        if self.base is None:
            return
        for m in self._nodes():
            for namespace, facts in self.ledger.facts.items():
                if not self.ledger.may_hold(m.proc.region, namespace):
                    continue
                held = m.disk.get(f"ns/{namespace}")
                settled = [f for f in facts if f.logged_at <= self.world.t - 3 * self.options.heartbeat_ms]
                if held is None or held.head.hash not in {f.hash for f in facts[len(settled) - 1 :]}:
                    self.world.fail("I10", f"{m.address} is not at the head of {namespace}")
                if namespace != MESH_NAMESPACE:
                    self._judge_mode(m, namespace, held)
        old = self.world.machines[REGISTRY]
        self.world.sometimes["old-halted"] += bool(old.state is not None and old.state.halted)

    def _judge_mode(self, m: Machine, namespace: str, held: Any) -> None:
        mode, why = lens.node_mode(m, self.world.t, namespace)
        mesh = m.disk[f"ns/{MESH_NAMESPACE}"]
        wide = (
            restricted_scopes(held.rows)
            | restricted_scopes(mesh.rows)
            | {x.record.scope for x in m.state.locals.values()}
        )
        whole = {"mesh", f"tenant:{namespace}", f"region:{m.proc.region}", f"destruction:{namespace}"}
        if mode is not Mode.SYNCED and not whole & wide:
            self.world.fail("I10", f"{m.address} is {mode.value} for {namespace}: {why}")


def restricted_scopes(rows: Any) -> set[str]:
    """Scopes that ``rows`` restrict."""
    found = set()
    for name in rows:
        if name.startswith("restriction/"):
            row = get(rows, name, RestrictionRow)
            if row is not None and row.state != "none":
                found.add(name.removeprefix("restriction/"))
    return found


def restore_ledger(ledger: Any, commits: tuple[tuple[SignedEntry, ...], ...], t: int) -> None:
    """What is so from now on: the new log's entries.  What was committed stays restricted until it is resumed anew."""
    known = dict(ledger.by_hash)
    ledger.facts, ledger.by_command, ledger.kids = {}, {}, {}
    ledger.restrictions, ledger.words = {}, {}
    majority, ledger.majority = ledger.majority, 0
    opened, ledger.open = ledger.open, {}
    history = list(ledger.history)
    hooks, ledger.on_restricted = ledger.on_restricted, []
    for index, group in enumerate(commits, start=1):
        for signed in group:
            fact = ledger.append(index, signed, t)
            before = known.get(signed.hash)
            if before is not None:
                fact.logged_at, fact.committed_at = before.logged_at, before.committed_at
    ledger.majority, ledger.on_restricted, ledger.open, ledger.history = majority, hooks, opened, history
    for digest, fact in known.items():
        if ledger.by_hash[digest] is fact:
            fact.seq = 0  # not in this log: whatever commits it yet was ordered before all of the new epoch
    for stretch in opened.values():
        stretch.seq = 0  # any resume of the new epoch is ordered after it


def run_epochs(seed: int) -> tuple[Violation | None, Counter[str]]:
    """One seed: what does not hold, and what happened how often."""
    run = EpochRun(seed)
    try:
        run.execute()
    except Violation as bad:
        return bad, run.world.sometimes
    return None, run.world.sometimes
