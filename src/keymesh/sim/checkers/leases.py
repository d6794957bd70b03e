"""I12, I7 and I14: leases rest on what their holder applied, last no longer than they may, and serve while they last.

The longest lease that a node may hold is recomputed from true events: when the heartbeat whose answer reached it was
truly sent, and when the newest poll that a voter majority had answered was truly sent.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from keymesh.control.messages import (
    AnswerMessage,
    HeartbeatMessage,
    Poll,
    PollAnswer,
    StandbyGrantMessage,
    StandbyRequest,
)
from keymesh.core import context
from keymesh.core.may import Grantor
from keymesh.model.ids import MESH_NAMESPACE
from keymesh.model.machine import Address, Booted, ClockWentBack, Received
from keymesh.model.states import KeyState
from keymesh.orbital.edge_messages import LeaseGrant
from keymesh.orbital.messages import ManifestTell, Task
from keymesh.sim.checkers import lens
from keymesh.sim.ledger import LIFTING
from keymesh.sim.mesh import Mesh, genuine
from keymesh.sim.process import Machine

_NEVER = -(2**40)
_GRACE_MS = 5
_MISSED = 3
_ACTIVE = KeyState.ACTIVE.value


@dataclass(slots=True)
class Shadow:
    """What is truly so of one node's leases in this life."""

    best_start: int = _NEVER  # its Instant: latest start that any answer it was given allows
    walking: int | None = None  # start of what the answer offers whose heads are being walked
    until: dict[str, int] = field(default_factory=dict)  # lease ends last seen in the machine
    sure_until: dict[str, int] = field(default_factory=dict)  # Instants until which it must serve
    l1_until: dict[str, int] = field(default_factory=dict)  # Instants
    denied: set[str] = field(default_factory=set)


class Leases:
    """Follows heartbeats, polls and answers."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.world = world = mesh.world
        self.ledger = world.ledger
        self.sent: dict[str, tuple[int, Address, int]] = {}  # nonce -> true time, node, its Instant
        self.newest: dict[Address, str] = {}
        self.polls: dict[int, tuple[int, set[Address], Address]] = {}  # true time, who answered, which replica's
        self.poll_at: dict[Address, int] = {}  # by replica
        self.answer_polls: dict[tuple[str, str], int] = {}  # by nonce and the replica's key
        self.shadows: dict[Address, Shadow] = {}
        self.majority = len(mesh.options.voters) // 2 + 1
        self.stood: dict[str, tuple[int, Address, int]] = {}  # nonce of a standby request -> as ``sent``
        self.granted: dict[str, set[Address]] = {}  # nonce -> voters whose grant came back whole
        world.on_send.setdefault(HeartbeatMessage, []).append(self._heartbeat)
        world.on_send.setdefault(Poll, []).append(self._poll)
        world.on_send.setdefault(AnswerMessage, []).append(self._answering)
        world.on_send.setdefault(ManifestTell, []).append(self._telling)
        world.on_send.setdefault(LeaseGrant, []).append(self._granting)
        world.on_send.setdefault(StandbyRequest, []).append(self._asking_voters)
        world.on_send.setdefault(StandbyGrantMessage, []).append(self._voter_grants)
        world.before.setdefault(StandbyGrantMessage, []).append(self._voter_granted)
        world.before.setdefault(PollAnswer, []).append(self._polled)
        for kind, hook in (
            (AnswerMessage, self._answered),
            (StandbyGrantMessage, self._stands_by),
            (ManifestTell, self._told),
            (Task, self._task),
            (ClockWentBack, self._went_back),
            (Booted, self._booted),
        ):
            world.after.setdefault(kind, []).append(hook)
        mesh.keys.probed.append(self._probed)

    def shadow(self, address: Address) -> Shadow:
        if address not in self.shadows:
            self.shadows[address] = Shadow()
        return self.shadows[address]

    # --- what truly happened ----------------------------------------------------------------------------------------

    def _heartbeat(self, m: Machine, to: Address, message: HeartbeatMessage) -> None:
        if len(self.sent) > 512:
            self.sent = dict(list(self.sent.items())[-128:])
            self.answer_polls = dict(list(self.answer_polls.items())[-128:])
        nonce = message.heartbeat.message.nonce
        self.sent[nonce] = (self.world.t, m.address, m.proc.clock.now(self.world.t))
        self.newest[m.address] = nonce

    def _poll(self, m: Machine, to: Address, message: Poll) -> None:
        if message.poll_id not in self.polls:
            if len(self.polls) > 64:
                self.polls = dict(list(self.polls.items())[-16:])
            self.polls[message.poll_id] = (self.world.t, set(), m.address)

    def _polled(self, m: Machine, event: Received) -> None:
        poll = self.polls.get(event.message.poll_id)
        if poll is not None and poll[2] == m.address:
            poll[1].add(event.sender)
            if len(poll[1]) >= self.majority:
                self.poll_at[m.address] = max(self.poll_at.get(m.address, _NEVER), poll[0])

    def _answering(self, m: Machine, to: Address, message: AnswerMessage) -> None:
        sealed = message.answer
        self.answer_polls[sealed.message.nonce, sealed.key_id] = self.poll_at.get(m.address, _NEVER)
        self._only_its_own(to, message.leaves or ())

    def _telling(self, m: Machine, to: Address, message: ManifestTell) -> None:
        self._only_its_own(to, (namespace for namespace, _ in message.rows.values()))

    def _only_its_own(self, to: Address, namespaces: Iterable[str]) -> None:
        for namespace in namespaces:
            if not self.ledger.may_hold(self.world.machines[to].proc.region, namespace):
                self.world.fail("I5", f"{to} is told of {namespace}")

    def _booted(self, m: Machine, event: Any) -> None:
        if m.kind == "node":
            self.shadows[m.address] = Shadow()
            self.newest.pop(m.address, None)
        elif m.kind == "registry":
            self.poll_at.pop(m.address, None)

    def _went_back(self, m: Machine, event: Any) -> None:
        if m.kind == "node":
            self.world.sometimes["clock-went-back"] += 1
            self.shadows[m.address] = Shadow(denied=self.shadow(m.address).denied)
            # the heartbeat that it sends in the same step is the first whose answer counts
            self._judge(m)

    # --- standby ---------------------------------------------------------------------------------------------------

    def _asking_voters(self, m: Machine, to: Address, message: StandbyRequest) -> None:
        if len(self.stood) > 512:
            self.stood = dict(list(self.stood.items())[-128:])
            self.granted = {nonce: who for nonce, who in self.granted.items() if nonce in self.stood}
        self.stood.setdefault(message.nonce, (self.world.t, m.address, m.proc.clock.now(self.world.t)))

    def _voter_grants(self, m: Machine, to: Address, message: StandbyGrantMessage) -> None:
        """No voter grants while the Registry answers its own node."""
        node = self.world.machines[m.address]
        sent_at, interval = node.state.answered_sent_at, self.mesh.options.heartbeat_ms
        if sent_at is not None and m.proc.clock.now(self.world.t) - sent_at <= _MISSED * interval:
            self.world.fail("I12", f"voter {m.address} grants a standby lease while the Registry answers it")
        self.world.sometimes["standby-granted"] += 1

    def _voter_granted(self, m: Machine, event: Received) -> None:
        sealed = event.message.grant
        if genuine(sealed) and sealed.message.nonce in self.stood:
            self.granted.setdefault(sealed.message.nonce, set()).add(event.sender)

    def _stands_by(self, m: Machine, event: Received) -> None:
        nonce = event.message.grant.message.nonce
        known = self.stood.get(nonce)
        if known is not None and known[1] == m.address and len(self.granted.get(nonce, ())) >= self.majority:
            shadow = self.shadow(m.address)
            shadow.best_start = max(shadow.best_start, known[2])
            self.world.sometimes["standby-lease"] += 1
            asked = m.state.standby_ask
            if asked is not None and asked.done and asked.request.nonce == nonce:
                self._judge_standing(m, known[2])
        self._judge(m)

    def _judge_standing(self, m: Machine, start: int) -> None:
        """A majority has granted: who has all there is has a lease (I14), who denies Standby none of the voters'."""
        now = m.proc.clock.now(self.world.t)
        for namespace, holding in m.state.tenants.items():
            lease = holding.lease
            if namespace in self.mesh.clients.denies_standby:
                if lease is not None and lease.grantor is Grantor.VOTERS:
                    self.world.fail("I12", f"{m.address} stands by for {namespace}, which denies it")
                self.world.sometimes["standby-denied"] += 1
            elif self._current(m, MESH_NAMESPACE) and self._current(m, namespace):
                if start + self._ttl(namespace) > now and (lease is None or lease.until <= now):
                    self.world.fail("I14", f"{m.address} has no lease of {namespace}, though a majority granted one")
                self.world.sometimes["standby-current"] += 1

    # --- judging ----------------------------------------------------------------------------------------

    def _answered(self, m: Machine, event: Received) -> None:
        sealed = event.message.answer
        nonce = sealed.message.nonce
        known = self.sent.get(nonce)
        if known is None or known[1] != m.address or not genuine(sealed):
            return
        if self.newest.get(m.address) == nonce:
            del self.newest[m.address]
            shadow = self.shadow(m.address)
            poll_at = self.answer_polls.get((nonce, sealed.key_id), _NEVER)
            start = known[2] - max(0, known[0] - poll_at)
            shadow.best_start = max(start, shadow.best_start)
            self._judge(m)
            start = min(start, known[2] - sealed.message.poll_age_ms)
            shadow.walking = None if m.state.walk is None else start
            if shadow.walking is None:
                self._sure(m, shadow, start)
        else:
            self.world.sometimes["old-answer"] += 1
            self._judge(m)

    def _told(self, m: Machine, event: Received) -> None:
        """A node that had to walk has what its answer offers once the walk is at its end."""
        shadow = self.shadow(m.address)
        if shadow.walking is None or m.state.walk is not None:
            return
        start, shadow.walking = shadow.walking, None
        if m.state.offer is not None and m.state.offer.leaves:
            self.world.sometimes["heads-walked"] += 1
            self._judge(m)
            self._sure(m, shadow, start)

    def _task(self, m: Machine, event: Received) -> None:
        self._judge(m)

    def _ttl(self, namespace: str) -> int:
        own = self.ledger.ttl_ms.get(namespace)
        ttl = self.mesh.options.ttl_ms
        return ttl if own is None or own > ttl else own

    def _judge(self, m: Machine) -> None:
        """No lease of this node is longer than true events allow, nor rests on less than was committed."""
        shadow = self.shadow(m.address)
        clock = m.proc.clock
        for holding in (m.state.mesh, *m.state.tenants.values()):
            lease = holding.lease
            namespace = holding.namespace
            if lease is None or (namespace in shadow.until and lease.until == shadow.until[namespace]):
                continue
            shadow.until[namespace] = lease.until
            ttl = self._ttl(namespace)
            drift = _GRACE_MS + ttl // 500  # a poll's age is measured on the Registry's clock
            if lease.until > shadow.best_start + ttl + drift:
                over = lease.until - shadow.best_start - ttl
                self.world.fail("I12", f"{m.address} has a lease of {namespace} {over} ms longer than any answer gave")
            if lease.until > clock.now(self.world.t):
                self._judge_applied(m, namespace, clock.true_time(lease.until - ttl))

    def _judge_applied(self, m: Machine, namespace: str, start: int) -> None:
        for name in (namespace, MESH_NAMESPACE):
            for fact in reversed(self.ledger.restrictions.get(name, ())):
                if fact.committed_at is not None and fact.committed_at <= start:
                    if lens.durable_seq(m, name) < fact.seq:
                        self.world.fail(
                            "I12",
                            f"{m.address} renewed {namespace} from {start} without {name}:{fact.seq}, committed at "
                            f"{fact.committed_at}",
                        )
                    break

    def _granting(self, m: Machine, to: Address, grant: LeaseGrant) -> None:
        """An Edge lease ends no later than the node's own leases can."""
        shadow = self.shadow(m.address)
        now = m.proc.clock.now(self.world.t)
        for namespace in (grant.tenant, MESH_NAMESPACE):
            ttl = self._ttl(namespace)
            if now + grant.ttl_ms > shadow.best_start + ttl + _GRACE_MS + ttl // 500:
                self.world.fail("I12", f"{m.address} grants an Edge lease beyond its own lease of {namespace}")
        l1 = shadow.l1_until.get(grant.tenant)
        if l1 is None or now + grant.ttl_ms > l1 + _GRACE_MS:
            self.world.fail("I1-root", f"{m.address} grants an Edge lease of {grant.tenant} beyond its L1 lease")
        if grant.tenant in shadow.denied:
            self.world.fail(
                "I1-root", f"{m.address} grants an Edge lease of {grant.tenant} although L1 was denied to it"
            )

    def _probed(self, m: Machine, namespace: str, outcome: str, started: int) -> None:
        shadow = self.shadow(m.address)
        if outcome == "denied":
            shadow.denied.add(namespace)
            shadow.l1_until.pop(namespace, None)
            self.world.sometimes["l1-denied"] += 1
            if m.proc.alive and not m.proc.paused and m.state is not None:
                self._judge_denied(m, namespace)
        elif outcome == "ok":
            shadow.denied.discard(namespace)
            end = started + self.mesh.options.l1_ttl_ms
            shadow.l1_until[namespace] = max(end, shadow.l1_until.get(namespace, 0))

    def _judge_denied(self, m: Machine, namespace: str) -> None:
        for tenant, service, version in lens.uses_of(lens.scope_of(f"tenant:{namespace}"), self.ledger):
            if lens.node_allows(m, self.world.t, tenant, service, version).allowed:
                self.world.fail("I1-root", f"{m.address} goes on with {tenant} after L1 was denied to it")

    # --- I14 ----------------------------------------------------------------------------------------

    def _sure(self, m: Machine, shadow: Shadow, start: int) -> None:
        """After this answer the node, if it has all there is, certainly has a lease."""
        mesh_current = self._current(m, MESH_NAMESPACE)
        mesh_until = start + self._ttl(MESH_NAMESPACE)
        for namespace in self.ledger.allowed:
            if self.ledger.may_hold(m.proc.region, namespace) and mesh_current and self._current(m, namespace):
                until = min(mesh_until, start + self._ttl(namespace))
                shadow.sure_until[namespace] = max(until, shadow.sure_until.get(namespace, 0))

    def _current(self, m: Machine, namespace: str) -> bool:
        head = self.ledger.head(namespace)
        return head is not None and lens.durable_seq(m, namespace) == head.seq

    def sample(self) -> None:
        """Nodes whose leases and L1 leases last serve existing keys, whatever else is down."""
        for m in self.world.machines.values():
            if m.kind == "node" and m.proc.alive and not m.proc.paused and not m.proc.disk_full:
                self._judge_serving(m)

    def _judge_serving(self, m: Machine) -> None:
        shadow = self.shadow(m.address)
        now = m.proc.clock.now(self.world.t)
        restricted = self._restricted_scopes(m)
        for tenant, until in shadow.sure_until.items():
            if now >= until - _GRACE_MS or now >= shadow.l1_until.get(tenant, 0) - _GRACE_MS or tenant in shadow.denied:
                continue
            holding = m.state.tenants.get(tenant)
            if holding is None or holding.closed or m.state.unrecorded:
                continue
            scopes = [s for s in restricted if s.tenant is None or s.tenant == tenant]
            for (key, version), row in holding.view.keys.items():
                service = context.service_of(key)
                if service is None or row.state != _ACTIVE or (tenant, key, version) not in self.ledger.kids:
                    continue
                if any(_covers(s, m.proc.region, tenant, service, version) for s in scopes):
                    continue
                verdict = lens.node_allows(m, self.world.t, tenant, service, version)
                if not verdict.allowed:
                    self.world.fail("I14", f"{m.address} refuses {tenant}/{service}@{version}: {verdict.reason}")
                self.world.sometimes[f"served-{verdict.mode.value}"] += 1

    def _restricted_scopes(self, m: Machine) -> list[Any]:
        """Everything that anyone, anywhere, may have restricted: the node may know of it before it is durable."""
        out = []
        for text, word in self.ledger.words.items():
            lifted = word.kind in LIFTING and word.committed_at is not None
            if not lifted or word.seq > lens.durable_seq(m, word.namespace):
                out.append(lens.scope_of(text))
        out += [lens.scope_of(x.event.scope) for x in self.mesh.clients.locals.values() if x.region == m.proc.region
                and lens.holds_local(m, x.event)]  # fmt: skip
        return out


def _covers(scope: Any, region: Any, tenant: Any, service: Any, version: int) -> bool:
    return bool(scope.covers(region=region, tenant=tenant, service=service, version=version))
