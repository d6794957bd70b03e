"""I2, I3, I4, I5, I8 at the holders: what is recorded only moves forward, what is said was recorded, restrictions act.

Judged on the records a node writes and the messages it sends, against the true log.
"""

from __future__ import annotations

from typing import Any

from keymesh.control.messages import AckMessage, CountersignatureMessage
from keymesh.control.voter import VOTE_PREFIX
from keymesh.model.ids import MESH_NAMESPACE
from keymesh.model.machine import REGISTRY, Address, Persist, Received
from keymesh.orbital.messages import Task
from keymesh.sim.checkers import lens
from keymesh.sim.checkers.uses import Uses
from keymesh.sim.ledger import LIFTING, Fact
from keymesh.sim.mesh import Mesh
from keymesh.sim.process import Machine


class Records:
    """Watches persists, acknowledgements and countersignatures."""

    def __init__(self, mesh: Mesh, uses: Uses) -> None:
        self.mesh = mesh
        self.world = world = mesh.world
        self.ledger = world.ledger
        self.uses = uses
        self.said: dict[tuple[Address, str, int], str] = {}
        world.on_persist.append(self._persist)
        world.on_logged.append(self._logged)
        world.on_send.setdefault(AckMessage, []).append(self._ack)
        world.on_send.setdefault(CountersignatureMessage, []).append(self._countersign)
        world.on_send.setdefault(Task, []).append(self._tasking)
        world.after.setdefault(Task, []).append(self._arrived)

    def _logged(self, fact: Fact) -> None:
        """One version, one kid, for good (I3, I11)."""
        if fact.kind == "key.create":
            key, version = fact.args["key"], fact.args["version"]
            if self.ledger.kids[fact.namespace, key, version] != fact.args["kid"]:
                self.world.fail("I3", f"{fact.namespace}/{key}@{version} was made twice")

    # --- records ----------------------------------------------------------------------------------------

    def _persist(self, m: Machine, effect: Persist) -> None:
        if m.kind != "node":
            return
        for key, value in effect.puts:
            if key.startswith("ns/"):
                self._judge_applied(m, key[3:], value)
        for key in effect.deletes:
            if key.startswith("ns/"):
                self.world.fail("I4", f"{m.address} forgets {key}")
            elif key.startswith("local/"):
                namespace, _, command_id = key[6:].partition("/")
                self._judge_local_gone(m, namespace, command_id, effect)

    def _judge_applied(self, m: Machine, namespace: str, value: Any) -> None:
        world, ledger = self.world, self.ledger
        head = value.head
        if not ledger.may_hold(m.proc.region, namespace):
            world.fail("I5", f"{m.address} stores {namespace}")
        fact = ledger.by_hash.get(head.hash)
        if fact is None or (fact.namespace, fact.seq) != (namespace, head.entry.seq):
            world.fail("I4", f"{m.address} applies an entry of {namespace} that is not in the log")
            return
        old_seq = lens.durable_seq(m, namespace)
        if fact.seq < old_seq:
            world.fail("I4", f"{m.address} goes back from {namespace}:{old_seq} to {fact.seq}")
        before = lens.durable_restrictions(m, namespace, ledger)
        after = ledger.restricted(namespace, fact.seq)
        for scope, seq in before.items():
            if scope not in after and seq <= fact.seq:
                self._judge_lift(m, namespace, scope, seq, fact.seq)

    def _judge_lift(self, m: Machine, namespace: str, scope: str, since: int, upto: int) -> None:
        words = [f for f in self.ledger.facts[namespace][since:upto] if f.args.get("scope") == scope]
        if not words or words[-1].kind not in LIFTING:
            self.world.fail("I3", f"{m.address} lifts {scope} (set by {since}) at {namespace}:{upto} without a resume")
        elif words[-1].committed_at is None:
            self.world.fail("I3", f"{m.address} lifts {scope} by {namespace}:{words[-1].seq}, which is not committed")
        self.world.sometimes["lifted"] += 1

    def _judge_local_gone(self, m: Machine, namespace: str, command_id: str, effect: Persist) -> None:
        """A local suspension goes only once its entry, or a later one, is durable here (in this very write at the
        latest), or once a revocation of its scope is."""
        local = self.mesh.clients.locals.get((namespace, command_id))
        if local is None or local.recorded_at is None:
            return
        fact = self.ledger.by_command.get((namespace, command_id))
        held = lens.durable_seq(m, namespace)
        held = max([held, *(v.head.entry.seq for k, v in effect.puts if k == f"ns/{namespace}")])
        if fact is None:
            revocations = (
                f.seq
                for f in self.ledger.facts[namespace]
                if f.kind == "revoke" and f.args["scope"] == local.event.scope
            )
            if not any(seq <= held for seq in revocations):
                self.world.fail("I3", f"{m.address} drops local suspension {command_id}, which is not in the log")
        elif held < fact.seq:
            self.world.fail("I3", f"{m.address} drops local suspension {command_id} before {namespace}:{fact.seq}")
        self.world.sometimes["local-became-entry"] += 1

    # --- what is said ----------------------------------------------------------------------------------------

    def _ack(self, m: Machine, to: Address, message: AckMessage) -> None:
        ack = message.ack.message
        if ack.outcome in ("applied", "stale"):
            held = lens.durable_seq(m, ack.namespace)
            if ack.leaf.seq > held:
                self.world.fail("I2", f"{m.address} acknowledges {ack.namespace}:{ack.leaf.seq}, its disk has {held}")
        durable = lens.durable_restrictions(m, ack.namespace, self.ledger)
        for r in ack.restrictions:
            seq = durable.get(r.scope, 0)
            if seq < r.seq:
                self.world.fail("I2", f"{m.address} swears to {r.scope} by {ack.namespace}:{r.seq}, its disk has {seq}")
            fact = self.ledger.fact(ack.namespace, r.seq)
            if fact is None or fact.args.get("scope") != r.scope or r.entry_hash not in (None, fact.hash):
                self.world.fail("I13", f"{m.address} acknowledges {r.scope} by an entry that did not set it")
        self.uses.acked(m, ack)

    def _countersign(self, m: Machine, to: Address, message: CountersignatureMessage) -> None:
        word = message.countersignature.message
        if f"{VOTE_PREFIX}{word.blind}/{word.seq}" not in m.disk:
            self.world.fail("I2", f"voter {m.address} countersigns {word.seq} before it is durable there")
        key = (m.address, word.blind, word.seq)
        if self.said.setdefault(key, word.entry_hash) != word.entry_hash:
            self.world.fail("I4", f"voter {m.address} countersigns two entries at one seq")
        fact = self.ledger.voted(word.entry_hash, word.voter, self.world.t, word.set_id)
        if fact is not None:
            self.world.say(f"COMMITTED {fact.namespace}:{fact.seq} {fact.kind} {fact.args.get('scope', '')}")

    # --- delivery ----------------------------------------------------------------------------------------

    def _tasking(self, m: Machine, to: Address, task: Task) -> None:
        region = self.world.machines[to].proc.region
        if not self.ledger.may_hold(region, task.namespace):
            self.world.fail("I5", f"{to} is sent a task of {task.namespace}")

    def _arrived(self, m: Machine, event: Received) -> None:
        """A task that verifies restricts at once, whatever came or did not come before it."""
        task: Task = event.message
        namespace, seq = task.namespace, task.state.head.entry.seq
        if m.kind != "node" or event.sender != REGISTRY or seq < lens.durable_seq(m, namespace):
            return
        if namespace != MESH_NAMESPACE and lens.durable_seq(m, MESH_NAMESPACE) < task.state.head.entry.mesh_seq:
            return
        for text in self.ledger.restricted(namespace, seq):
            if not lens.node_restricts(m, lens.scope_of(text), namespace):
                self.world.fail("I8", f"{m.address} was told of {text} by {namespace}:{seq} and does not restrict it")
