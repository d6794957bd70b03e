"""Governance leases: heartbeats, answers, and when an offer may be credited (DESIGN section 3).

A lease counts from the earlier of the heartbeat's sending and the sending of the poll that a majority of voters
answered.  It renews only once this node has applied, durably, at least the answered leaf of the namespace *and* of
``mesh``.  An answer is accepted once, for the one outstanding nonce; only the newest offer may be credited later.
A lease of the voters' (``standby``) is credited by the same rule where the Registry does not renew.
"""

from __future__ import annotations

from collections.abc import Mapping

from keymesh.control import standby
from keymesh.control.blind import blind
from keymesh.control.entry import Leaf
from keymesh.control.heads import heads_root
from keymesh.control.messages import Answer, AnswerMessage, Heartbeat, HeartbeatMessage
from keymesh.control.rows import PolicyRow, SettingsRow
from keymesh.core import edges, heads_walk, l1_lease, loading, local, minter, regional, tails, upkeep
from keymesh.core.clock_watch import Reading
from keymesh.core.context import tenant_mode
from keymesh.core.may import Grantor
from keymesh.core.records import CLOCK_NAME, ClockRecord
from keymesh.core.state import Holding, Lease, NodeState, Offer, Out, Outstanding, StandbyOffer, note, spread
from keymesh.model.errors import KeymeshError
from keymesh.model.ids import MESH_NAMESPACE, ZERO_DIGEST
from keymesh.model.limits import GOVERNANCE_TTL_MAX_MS
from keymesh.model.machine import REGISTRY, Address, Send
from keymesh.model.time import Instant, is_live
from keymesh.orbital.messages import Hello, ManifestTell

PENDING_MAX = 1_000
GREETINGS = 4
GREET_MS = 500
ALLOW = "allow"


# --- rules -----------------------------------------------------------------------------------------------------------


def lease_start(sent_at: Instant, poll_age_ms: int) -> Instant:
    """From when an answered lease counts: the earlier of the heartbeat's and the poll's sending."""
    return Instant(min(sent_at, sent_at - poll_age_ms))


def lease_end(start: Instant, answer_ttl_ms: int, policy_ttl_ms: int | None) -> Instant:
    """A tenant may shorten the ttl, never lengthen it."""
    ttl_ms = answer_ttl_ms if policy_ttl_ms is None else min(answer_ttl_ms, policy_ttl_ms)
    return Instant(start + min(ttl_ms, GOVERNANCE_TTL_MAX_MS))


def granted_ttl(answer_ttl_ms: int, settings: SettingsRow | None) -> int:
    """What an answer may grant: no more than the mesh's own settings, by which certificates reckon; none without."""
    return 0 if settings is None else min(answer_ttl_ms, settings.ttl_ms)


def has_applied(applied: Leaf, offered: Leaf) -> bool:
    """Whether what is applied is at least what is offered; of the same order, it must be the same entry."""
    if applied.epoch == offered.epoch and applied.seq == offered.seq:
        return applied.entry_hash == offered.entry_hash
    return (applied.epoch, applied.seq) > (offered.epoch, offered.seq)


def answers(outstanding: Outstanding | None, nonce: str) -> bool:
    """Whether ``nonce`` is that of the newest heartbeat, unanswered so far."""
    return outstanding is not None and outstanding.nonce == nonce


def offered_leaves(outstanding: Outstanding, answer: Answer, leaves: Mapping[str, Leaf] | None) -> Mapping[str, Leaf]:
    """The leaves that the signed root vouches for: those that came along, or what was applied when the heartbeat was
    sent, where the roots agree; none otherwise."""
    if leaves is not None:
        return leaves if heads_root(leaves) == answer.heads_root else {}
    return outstanding.leaves if outstanding.manifest_root == answer.heads_root else {}


def renewed(old: Lease | None, until: Instant, grantor: Grantor) -> Lease:
    """A renewal never shortens; of two that end together the Registry's counts."""
    kept = old is not None and (old.until > until or (old.until == until and grantor is not Grantor.REGISTRY))
    return old if old is not None and kept else Lease(until, grantor)


# --- heartbeat -------------------------------------------------------------------------------------------------------


def on_heartbeat_timer(state: NodeState, now: Instant, _: str, out: Out) -> None:
    if now < state.heartbeat_at:
        return
    interval = state.interval_ms
    state.heartbeat_at = Instant(now + spread(f"{state.config.address}/{state.counter}", interval * 9 // 10, interval))
    state.at(state.heartbeat_at, "heartbeat")
    beat(state, now, out)


def on_reconnected(state: NodeState, now: Instant, out: Out) -> None:
    """Greet whoever is there now, a few times over: what it has for this node would wait for the next heartbeat."""
    state.greetings = GREETINGS
    greet_again(state, now, "", out)


def greet_again(state: NodeState, now: Instant, _: str, out: Out) -> None:
    """The next greeting, until the Registry is heard; the pauses double."""
    if state.greetings == 0:
        return
    greet(state, out)
    state.greetings -= 1
    state.at(Instant(now + (GREET_MS << GREETINGS - state.greetings)), "greet")


def greet(state: NodeState, out: Out) -> None:
    """Ask for what was sent to nobody.  Unlike a heartbeat it voids none that is out."""
    config = state.config
    out.append(Send(REGISTRY, Hello(region=config.region, node=config.node, boot_id=state.life)))
    regional.report(state, out)


def beat(state: NodeState, now: Instant, out: Out) -> None:
    """Send a heartbeat, and again whatever the Registry has not yet recorded; older nonces are void from here on."""
    config = state.config
    if not state.greeted:
        greet(state, out)
    nonce = state.draw("nonce")
    root = state.manifest.root
    state.outstanding = Outstanding(nonce, now, state.manifest.tree, state.leaves)
    heartbeat = Heartbeat(
        mesh=config.mesh,
        epoch=state.epoch,
        region=config.region,
        node=config.node,
        boot_id=state.life,
        counter=state.next_counter(),
        nonce=nonce,
        manifest_root=root,
        index_seen=state.index_seen,
        leaves=None if root == state.answered_root or is_large(state) else state.manifest.leaves,
        pending=tuple(loading.pending_items(state)[:PENDING_MAX]),
        ivk_generation=state.ivk_generation,
        modes={name: tenant_mode(state, now, name)[0].value for name in sorted(state.tenants)},
        l1_denied=l1_lease.denied(state),
    )
    out.append(Send(REGISTRY, HeartbeatMessage(heartbeat=config.suite.seal(heartbeat))))
    local.forward(state, out)
    tails.hand_in(state, out)
    minter.resubmit(state, out)
    regional.reconcile(state, now, out)
    local.release(state, now, out)
    edges.flush_gone(state, out)


def is_large(state: NodeState) -> bool:
    """Whether the manifest is too large to be sent whole: it is walked."""
    return len(state.manifest) > state.config.leaves_in_full


# --- answer ----------------------------------------------------------------------------------------------------------


def on_answer(state: NodeState, now: Instant, sender: Address, message: AnswerMessage, out: Out) -> None:
    """Accept an answer.

    1. It comes from the Registry and is sealed by a key that the applied mesh delegates to it.
    2. It names this mesh, epoch and node.
    3. It answers the newest heartbeat, which it consumes.
    4. Its leaves are those that its signed root vouches for; where they differ and none came along, they are walked.
    5. Our clock keeps the rate of the Registry's, or it grants nothing, and what was granted before is void.
    6. Every lease that it renews is renewed; the rest stays an open offer until the apply comes.
    """
    config = state.config
    if sender != REGISTRY:
        note(out, "answer-refused", reason="sender")
        return
    try:
        answer = config.suite.unseal(message.answer, Answer, state.mesh_view.registry_keys)
    except KeymeshError as bad:
        note(out, "answer-refused", reason=bad.code)
        return
    outstanding = state.outstanding
    named = (answer.mesh, answer.epoch, answer.region, answer.node)
    if named != (config.mesh, state.epoch, config.region, config.node) or outstanding is None:
        note(out, "answer-refused", reason="foreign" if outstanding is not None else "nonce")
        return
    if not answers(outstanding, answer.nonce):
        note(out, "answer-refused", reason="nonce")
        return
    state.outstanding = None
    state.greeted = True
    state.greetings = 0
    state.answered_sent_at = outstanding.sent_at
    state.answered_root = answer.heads_root
    state.index_seen = max(state.index_seen, answer.index)
    if not keeps_time(state, answer, Reading(outstanding.sent_at, now, answer.clock_ms), out):
        state.offer = state.walk = None
        return
    leaves = offered_leaves(outstanding, answer, message.leaves)
    ttl_ms = granted_ttl(answer.ttl_ms, state.mesh_view.settings)
    start = lease_start(outstanding.sent_at, answer.poll_age_ms)
    state.offer = Offer(start, ttl_ms, leaves)
    if message.leaves is None and outstanding.manifest_root != answer.heads_root:
        heads_walk.begin(state, answer.heads_root, outstanding, start=start, ttl_ms=ttl_ms)
        walked(state, now, out)
        return
    state.walk = None
    credit_all(state, now, out)


def keeps_time(state: NodeState, answer: Answer, reading: Reading, out: Out) -> bool:
    """Whether our clock keeps the rate of the Registry's.  Once it differs from all that we know, what was granted to
    it before counts no more either."""
    if not state.config.watch_clock:
        return True
    drifted = state.clock.drifts
    kept = state.clock.keeps(answer.clock, reading)
    if not kept:
        note(out, "clock-drifts", clock=answer.clock, ppm=state.clock.ppm)
    if state.clock.drifts and not drifted:
        void_leases(state, out)
        state.persist("clock", None, ((CLOCK_NAME, ClockRecord(state.clock.ppm)),), (), out)
    elif drifted and not state.clock.drifts:
        state.persist("clock", None, (), (CLOCK_NAME,), out)
    return kept


def on_told(state: NodeState, now: Instant, sender: Address, message: ManifestTell, out: Out) -> None:
    """More of the heads tree that the newest accepted answer named."""
    if sender == REGISTRY and heads_walk.take(state, message, out):
        walked(state, now, out)


def walked(state: NodeState, now: Instant, out: Out) -> None:
    """Go on with the walk; at its end, credit what it found."""
    found = heads_walk.go_on(state, now, out)
    if found is not None:
        state.offer = found
        credit_all(state, now, out)


def credit_all(state: NodeState, now: Instant, out: Out) -> None:
    """Renew what the newest offer allows: ``mesh`` first, then every tenant, whose keys are then seen to."""
    credit(state, now, state.mesh)
    for name in sorted(state.tenants):
        holding = state.tenants[name]
        was_live = holding.lease is not None and is_live(holding.lease.until, now)
        if credit(state, now, holding) and not (was_live and holding.steady):
            upkeep.settle(state, now, holding, out)


def credit(state: NodeState, now: Instant, holding: Holding) -> bool:
    """Renew one lease where the newest offer allows; whether it is live afterwards."""
    offer = state.offer
    if offer is not None and may_credit(state, holding, offer):
        _renew(holding, now, offer, Grantor.REGISTRY)
    stood = state.standby_offer
    if stood is not None and wants_standby(state, now, holding) and may_stand_by(state, holding, stood):
        _renew(holding, now, stood, Grantor.VOTERS)
    return holding.lease is not None and is_live(holding.lease.until, now)


def _renew(holding: Holding, now: Instant, offer: Offer | StandbyOffer, grantor: Grantor) -> None:
    policy = holding.view.policy
    until = lease_end(offer.start, offer.ttl_ms, None if policy is None else policy.ttl_ms)
    if is_live(until, now):
        holding.lease = renewed(holding.lease, until, grantor)


def may_credit(state: NodeState, holding: Holding, offer: Offer) -> bool:
    """Whether this node has applied at least what is offered, of the namespace and of ``mesh``."""
    leaves = offer.leaves
    if MESH_NAMESPACE not in leaves or holding.namespace not in leaves:
        return False
    return has_applied(state.mesh.leaf, leaves[MESH_NAMESPACE]) and has_applied(holding.leaf, leaves[holding.namespace])


# --- standby ---------------------------------------------------------------------------------------------------------


def is_silent(state: NodeState, now: Instant) -> bool:
    """Whether the Registry missed three heartbeats of this node."""
    return standby.has_missed(state.answered_sent_at, state.booted_at, state.interval_ms, now)


def allows_standby(policy: PolicyRow | None) -> bool:
    """By the tenant's own policy; doubt denies."""
    return policy is not None and policy.standby == ALLOW


def wants_standby(state: NodeState, now: Instant, holding: Holding) -> bool:
    """Whether a lease of the voters' is to take over: the tenant allows Standby, the Registry is silent and its lease
    nearly over; or it answers (to this node, and to no majority of the voters), and does not renew."""
    if holding is not state.mesh and not allows_standby(holding.view.policy):
        return False
    lease = holding.lease
    lead_ms = standby.MISSED_HEARTBEATS * state.interval_ms
    if lease is None or lease.until - now <= state.interval_ms:
        return True
    return (lease.grantor is Grantor.VOTERS or lease.until - now <= lead_ms) and is_silent(state, now)


def is_wanting(state: NodeState, now: Instant) -> bool:
    """Whether any namespace here waits for, or rests on, a lease of the voters'."""
    return standby.may_stand_by(state.mesh_view.voters) and any(
        holding.applied is not None and wants_standby(state, now, holding)
        for holding in (state.mesh, *state.tenants.values())
    )


def stored_head(state: NodeState, holding: Holding, offer: StandbyOffer) -> Leaf | None:
    """The highest restriction of the namespace among the voters' answers; None where they stored none."""
    settings = state.mesh_view.settings
    return None if settings is None else offer.heads.get(blind(settings.salt, holding.namespace))


def may_stand_by(state: NodeState, holding: Holding, offer: StandbyOffer) -> bool:
    """Whether this node has applied every restriction that the answers show, of the namespace and of ``mesh``."""
    if holding.applied is None or state.mesh_view.settings is None or offer.epoch != state.epoch or state.clock.drifts:
        return False
    heads = [(of, stored_head(state, of, offer)) for of in (state.mesh, holding)]
    return all(head is None or has_applied(of.leaf, head) for of, head in heads)


def void_all(state: NodeState, now: Instant, out: Out) -> None:
    """The clock went back: no lease, no L1 lease, no offer, no answer on its way counts, and no key stays."""
    state.outstanding = state.answered_sent_at = None
    state.answered_root = ZERO_DIGEST
    state.clock.forget()
    void_leases(state, out)
    note(out, "clock-went-back")
    beat(state, now, out)


def void_leases(state: NodeState, out: Out) -> None:
    """What was to end at an instant of a clock that is not to be relied on has ended."""
    state.offer = state.walk = state.standby_offer = state.standby_ask = None
    state.mesh.lease = None
    for holding in state.tenants.values():
        holding.lease = None
        holding.l1.until = None
    loading.drop_all(state, out)
