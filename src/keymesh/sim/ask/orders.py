"""How long an order takes: from its acceptance to the last Edge that obeyed it.

Observes what Edges publish for their hot path, in true time; an Edge obeys when its lease is gone, over by its own
clock, or its process dead.  What a machine says of itself is not asked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from keymesh.control.messages import CountersignatureMessage
from keymesh.core.events import ReplyLocal
from keymesh.edge.snapshot import LeaseSnapshot
from keymesh.model.ids import RegionId, ServiceName, TenantId
from keymesh.model.machine import Address, ClockWentAhead, Persisted
from keymesh.model.scope import Scope, parse_scope
from keymesh.model.time import Instant
from keymesh.registry.events import CertificateReady
from keymesh.sim.ask.question import Question, edges_of
from keymesh.sim.ask.seen import Sample, Seen
from keymesh.sim.checkers import lens
from keymesh.sim.ledger import LIFTING, RESTRICTING, Fact
from keymesh.sim.mesh import Mesh
from keymesh.sim.process import Machine, Process


@dataclass(slots=True)
class Order:
    """A kill switch, or (no ``command``) a root key that the customer disabled, which ends at ``stops_at``.

    ``fact`` None: not in the log yet.  ``last``: Edge -> until when it could use something under the order.
    ``applied``: region -> when its Core had recorded it.
    """

    scope: Scope
    text: str
    accepted_at: int
    command: tuple[str, str] | None = None
    fact: Fact | None = None
    resume: Fact | None = None
    stops_at: int | None = None
    proved_at: int | None = None
    last: dict[Address, int] = field(default_factory=dict)
    applied: dict[str, int] = field(default_factory=dict)

    @property
    def ended_at(self) -> int | None:
        return self.stops_at if self.resume is None else self.resume.committed_at

    def used(self, edge: Address, since: int, until: int) -> None:
        """``edge`` could use something under it from ``since`` up to ``until``."""
        ended = self.ended_at
        if ended is not None:
            until = min(until, ended)
        if until > max(since, self.accepted_at):
            self.last[edge] = max(until, self.last.get(edge, 0))


@dataclass(frozen=True, slots=True)
class _Held:
    lease: LeaseSnapshot
    since: int
    until: int  # true time at which its Edge's clock reaches the deadline, if nobody sets that


class Orders:
    """Follows every order and every Edge's lease."""

    def __init__(self, mesh: Mesh, question: Question, seen: Seen) -> None:
        self.mesh = mesh
        self.world = world = mesh.world
        self.question = question
        self.seen = seen
        self.all: list[Order] = []
        self.on_certificate: list[Callable[[str, int], None]] = []  # scope, true time from which it speaks
        self._held: dict[Address, _Held] = {}
        self._edges = edges_of(mesh.options)
        self._local_done = world.handlers[ReplyLocal]
        world.handlers[ReplyLocal] = self._local
        world.on_send.setdefault(CountersignatureMessage, []).append(self._countersigned)
        world.on_logged.append(self._logged)
        world.on_publish.append(self._turn)
        world.on_crash.append(self._died)
        world.on_l1_disabled.append(self._disabled)
        world.after.setdefault(ClockWentAhead, []).append(self._clock_set)
        world.after.setdefault(Persisted, []).append(self._recorded)
        mesh.on_certificate.append(self._certificate)

    def restricted(self, tenant: str, service: str) -> bool:
        """Whether an order, or the customer's own disabled key, forbids the use of it now."""
        return any(
            order.ended_at is None and order.scope.tenant == tenant and order.scope.service in (None, service)
            for order in self.all
        )

    # --- orders ------------------------------------------------------------------------------------------------------

    def _logged(self, fact: Fact) -> None:
        if fact.kind in LIFTING:
            for order in self.all:
                if order.text == fact.args["scope"] and order.fact is not None and order.resume is None:
                    order.resume = fact
        elif fact.kind in RESTRICTING:
            order = self._of((fact.namespace, fact.command_id), fact.args["scope"])
            order.fact = fact

    def _countersigned(self, m: Machine, to: Address, message: CountersignatureMessage) -> None:
        """A voter has stored it: with a majority of them it is truly committed."""
        word = message.countersignature.message
        self.world.ledger.voted(word.entry_hash, word.voter, self.world.t, word.set_id)

    def _local(self, m: Machine, event: Any) -> None:
        self._local_done(m, event)
        if event.recorded:
            namespace = parse_scope(event.scope).namespace
            self._of((namespace, event.command_id), event.scope).applied.setdefault(m.proc.region, self.world.t)

    def _of(self, command: tuple[str, str], scope: str) -> Order:
        """The order of that command, accepted now if it is new."""
        for order in self.all:
            if order.command == command:
                return order
        order = Order(parse_scope(scope), scope, self.world.t, command)
        self.all.append(order)
        self.seen.orders += 1
        return order

    def _disabled(self, tenant: str) -> None:
        text = f"tenant:{tenant}"
        order = Order(parse_scope(text), text, self.world.t)
        self.all.append(order)
        customer = self.mesh.keys.customer(tenant)

        def look(item: Any) -> None:
            if order.stops_at is None and customer.disabled_at != order.accepted_at:
                order.stops_at = self.world.t

        self.mesh.faults.watches.append(look)

    def _recorded(self, m: Machine, event: Any) -> None:
        if m.kind != "node":
            return
        region = m.proc.region
        for order in self.all:
            if order.fact is None or order.resume is not None or region in order.applied:
                continue
            held = lens.durable_restrictions(m, order.fact.namespace, self.world.ledger)
            if held.get(order.text, 0) >= order.fact.seq:
                order.applied[region] = self.world.t

    def _certificate(self, m: Machine, event: CertificateReady) -> None:
        statement = self.mesh.statement_of(event)
        speaks_from = max(self.world.t, m.proc.clock.true_time(Instant(statement.t)))
        for order in self.all:
            if order.command == (parse_scope(statement.scope).namespace, statement.command_id):
                order.proved_at = speaks_from if order.proved_at is None else min(speaks_from, order.proved_at)
        for hook in self.on_certificate:
            hook(statement.scope, speaks_from)

    # --- what Edges could use ----------------------------------------------------------------------------------------

    def _turn(self, m: Machine) -> None:
        """What ``m`` had published ends, and what it has published now begins."""
        t = self.world.t
        old = self._held.pop(m.address, None)
        if old is not None:
            self._charge(m.address, old, t)
        lease = m.published
        if lease is not None and lease.deadline > m.proc.clock.now(t):
            self._held[m.address] = _Held(lease, t, m.proc.clock.true_time(lease.deadline))

    def _charge(self, edge: Address, held: _Held, t: int) -> None:
        spec = self._edges[edge]
        region, tenant, service = RegionId(spec.region), TenantId(spec.tenant), ServiceName(spec.service)
        for order in self.all:
            if any(
                order.scope.covers(region=region, tenant=tenant, service=service, version=version.version)
                for version in held.lease.versions
            ):
                order.used(edge, held.since, min(t, held.until))

    def _clock_set(self, m: Machine, event: Any) -> None:
        if m.kind == "edge":
            self._turn(m)

    def _died(self, proc: Process) -> None:
        for machine in proc.machines:
            if machine.kind == "edge":
                self._turn(machine)

    # --- the end -----------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Everything that is still held is charged up to now, and every order becomes its samples."""
        for edge, held in list(self._held.items()):
            self._charge(edge, held, self.world.t)
        for order in self.all:
            if order.command is None:
                self._root(order)
            else:
                self._kill_switch(order)

    def _root(self, order: Order) -> None:
        unseen = self.seen.unseen["root_lag"]
        if not order.last:
            unseen["nobody-could-use-it"] += 1
            return
        lag = max(order.last.values()) - order.accepted_at
        bound = self.question.root_bound_ms
        if order.stops_at is not None and order.accepted_at + lag >= order.stops_at and lag <= bound:
            unseen["enabled-again-first"] += 1
            return
        self._add("root_lag", Sample(lag, order.accepted_at, order.text, lag, bound))

    def _kill_switch(self, order: Order) -> None:
        unseen, at = self.seen.unseen, order.accepted_at
        committed = None if order.fact is None else order.fact.committed_at
        if committed is None:
            unseen["commit_lag"]["never-committed"] += 1
        else:
            self._add("commit_lag", Sample(committed - at, at, order.text))
        if not order.last:
            unseen["revocation_lag"]["nobody-could-use-it"] += 1
            return
        last = max(order.last.values())
        bound = None if committed is None else self.question.governance_bound_ms(str(order.scope.tenant))
        counted = 0 if committed is None else max(0, last - committed)
        if last >= self.world.t and (bound is None or counted <= bound):
            unseen["revocation_lag"]["not-over-at-the-end"] += 1
        else:
            self._add("revocation_lag", Sample(last - at, at, order.text, counted, bound))
        if order.proved_at is None:
            unseen["proof"]["no-certificate"] += 1
        else:
            proof = order.proved_at - at
            self._add("proof", Sample(proof, at, order.text, last - at, proof))
        for region, applied_at in sorted(order.applied.items()):
            ends = [end for edge, end in order.last.items() if self._edges[edge].region == region]
            if ends:
                lag = max(0, max(ends) - applied_at)
                what = f"{order.text} in {region}"
                self._add("edge_lag", Sample(lag, applied_at, what, lag, self.question.lease_bound_ms))

    def _add(self, figure: str, sample: Sample) -> None:
        self.seen.samples[figure].append(sample)
