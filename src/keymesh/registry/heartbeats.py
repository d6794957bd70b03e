"""Heartbeats and their answers: whose they are, what the answer rests on, when it may be given.

An answer rests on a read of the log begun after the heartbeat arrived, and on a poll that a majority of voters
answered; ``poll_age_ms`` says by how long that poll was sent before the heartbeat arrived, and the lease starts that
much earlier.  So leases of a Registry that lost its voters die with its last majority poll.  Source: DESIGN section 3.
"""

from __future__ import annotations

from typing import Any, Final

from keymesh.control import commit
from keymesh.control.messages import (
    Answer,
    AnswerMessage,
    Heartbeat,
    HeartbeatMessage,
    Poll,
    PollAnswer,
    ReprobeL1,
)
from keymesh.model.errors import Integrity, KeymeshError
from keymesh.model.machine import Address, Note, Send
from keymesh.model.time import Instant
from keymesh.registry import convergence, lifecycle, sessions, spaces
from keymesh.registry import state as states
from keymesh.registry.state import Beat, RegistryState, Session, ToldHeads

POLL_WAIT_MS: Final = 500
POLLS_KEPT: Final = 64
"""More than begin in ``POLL_WAIT_MS``: none is forgotten before its voters can have answered."""
BOOTS_KEPT: Final = 64
REACHABLE_INTERVALS: Final = 3


# --- rules -----------------------------------------------------------------------------------------------------------


def poll_age_ms(arrived_at: Instant, poll_sent_at: Instant) -> int:
    """By how long the majority's poll was sent before the heartbeat arrived; 0 where it was sent after."""
    return max(0, arrived_at - poll_sent_at)


def needs_poll(last_sent_at: Instant | None, arrived_at: Instant) -> bool:
    """Whether the newest poll was sent too early to vouch for a heartbeat that arrived then."""
    return last_sent_at is None or last_sent_at < arrived_at


def rises(session: Session, beat: Heartbeat) -> bool:
    """Whether (boot id, counter) is new: within each life the counter rises.

    A life that was followed by another is heard all the same: what it sent last may come late, after its successor's
    first word, and whichever of them is alive goes on rising.  Its answer is for a nonce that a dead life forgot.
    """
    seen = session.counter if beat.boot_id == session.boot_id else session.old_boots.get(beat.boot_id, 0)
    return beat.counter > seen


def is_reachable(session: Session, now: Instant, heartbeat_ms: int) -> bool:
    """Heard within three intervals."""
    return session.heard_at is not None and now - session.heard_at <= REACHABLE_INTERVALS * heartbeat_ms


# --- in ------------------------------------------------------------------------------------------------------------


def on_heartbeat(
    state: RegistryState, now: Instant, sender: Address, message: HeartbeatMessage, out: list[Any]
) -> None:
    """Check a heartbeat, learn from it, and queue it for a read that begins from now on.

    1. The node is enrolled.  2. Its key sealed the message.  3. Mesh, region and node are its own and ours.
    4. (boot id, counter) rises.  5. It is of this log's epoch.
    """
    session = state.sessions.get(sender)
    if session is None:
        out.append(Note("heartbeat-refused", "heartbeat", (("node", str(sender)), ("reason", "not-enrolled"))))
        return
    try:
        beat = state.config.suite.unseal(message.heartbeat, Heartbeat, session.keys)
        check_heartbeat(state, session, beat)
    except KeymeshError as bad:
        out.append(Note("heartbeat-refused", "heartbeat", (("node", str(sender)), ("reason", bad.code))))
        return
    if not is_of_epoch(state, now, session, beat, out):
        return
    learn(state, now, session, beat)
    state.beats[sender] = Beat(beat.nonce, now, beat.manifest_root)
    relay_denials(state, session, beat, out)
    convergence.compare(state, now, session, beat, out)
    lifecycle.review(state, now, session.region, out)


def check_heartbeat(state: RegistryState, session: Session, beat: Heartbeat) -> None:
    """Raises Integrity with the reason."""
    if beat.mesh != state.config.mesh:
        raise Integrity("other-mesh", "of another mesh")
    if (beat.region, beat.node) != (session.region, session.node):
        raise Integrity("other-node", "sealed for another node")
    if not rises(session, beat):
        raise Integrity("replayed", "its counter does not rise")


def is_of_epoch(state: RegistryState, now: Instant, session: Session, beat: Heartbeat, out: list[Any]) -> bool:
    """Whether the node is in this log's epoch.  One in an earlier is told of this; one in a later says that this
    Registry is superseded, unless its next read of the log shows that epoch."""
    if beat.epoch == state.epoch:
        return True
    fields = (("node", str(session.address)), ("epoch", beat.epoch))
    out.append(Note("heartbeat-of-another-epoch", "heartbeat", fields))
    if beat.epoch > state.epoch:
        state.superseded_by = max(state.superseded_by, beat.epoch)
        state.moved = max(state.moved, state.index + 1)
    elif state.booted:
        convergence.force_sync(state, now, session, spaces.mesh_space(state))
        sessions.push(state, now, session, out)
    return False


def learn(state: RegistryState, now: Instant, session: Session, beat: Heartbeat) -> None:
    if beat.boot_id != session.boot_id:
        session.old_boots.pop(beat.boot_id, None)
        if session.boot_id:
            session.old_boots[session.boot_id] = session.counter
            if len(session.old_boots) > BOOTS_KEPT:
                del session.old_boots[next(iter(session.old_boots))]
        session.boot_id = beat.boot_id
    session.counter = beat.counter
    session.heard_at = now
    session.pending = frozenset((p.namespace, p.key, p.version) for p in beat.pending)
    session.ivk_generation = beat.ivk_generation
    if beat.modes is not None:
        session.modes = beat.modes


def relay_denials(state: RegistryState, session: Session, beat: Heartbeat, out: list[Any]) -> None:
    """One node's L1 is denied: the tenant's other nodes are told to prove theirs, as long as it says so."""
    for name in beat.l1_denied:
        space = state.spaces.get(name)
        if space is not None and space.policy is not None and spaces.may_hold(space, session.region):
            others = (s for s in spaces.sessions_of(state, space) if s is not session)
            out.extend(Send(other.address, ReprobeL1(namespace=name)) for other in others)


def polls_count(state: RegistryState) -> bool:
    """Whether the mesh has voters enough for the poll rule (void below three)."""
    return state.voters is None or len(state.voters.regions) >= commit.POLL_MIN_VOTERS


# --- polls -----------------------------------------------------------------------------------------------------------


def poll_if_needed(state: RegistryState, now: Instant, arrived_at: Instant, out: list[Any]) -> None:
    voters = state.voters
    if voters is None or not polls_count(state) or not needs_poll(state.polled_at, arrived_at):
        return
    state.serial += 1
    poll_id = state.poll_base + state.serial
    state.polls[poll_id] = states.Poll(now)
    while len(state.polls) > POLLS_KEPT:
        del state.polls[min(state.polls)]
    state.polled_at = now
    message = Poll(mesh=state.config.mesh, epoch=state.epoch, set_id=voters.set_id, poll_id=poll_id)
    out.extend(Send(address, message) for address in spaces.voter_nodes(state))


def on_poll_answer(state: RegistryState, now: Instant, sender: Address, answer: PollAnswer, out: list[Any]) -> None:
    """Count a voter once, for the poll that it names; a majority moves ``majority_at`` forward, never back."""
    session, voters, poll = state.sessions.get(sender), state.voters, state.polls.get(answer.poll_id)
    if session is None or voters is None or poll is None or session.region not in voters.regions:
        return
    config = state.config
    if (answer.mesh, answer.epoch, answer.set_id) != (config.mesh, state.epoch, voters.set_id):
        return
    if answer.voter != session.region:
        return
    poll.voices.add(session.region)
    if len(poll.voices) >= commit.majority(len(set(voters.regions))):
        if state.majority_at is None or poll.sent_at > state.majority_at:
            state.majority_at = poll.sent_at
        for old in [i for i, p in state.polls.items() if p.sent_at <= poll.sent_at]:
            del state.polls[old]
        answer_ready(state, now, out)


# --- out -------------------------------------------------------------------------------------------------------------


def answer_ready(state: RegistryState, now: Instant, out: list[Any]) -> None:
    """Answer every heartbeat whose read is done and whose poll is in, or was waited for long enough."""
    waiting = []
    for batch in state.batches:
        for address, beat in list(batch.beats.items()):
            age = age_for(state, beat, now, batch.deadline)
            if age is not None:
                out.append(Send(address, answer_for(state, now, state.sessions[address], beat, age)))
                del batch.beats[address]
        if batch.beats and now >= batch.deadline:
            out.append(Note("no-voter-majority", "voters", (("unanswered", len(batch.beats)),)))
        elif batch.beats:
            waiting.append(batch)
    state.batches = waiting


def age_for(state: RegistryState, beat: Beat, now: Instant, deadline: Instant) -> int | None:
    """The poll age to state in the answer, None where it can't be given (yet)."""
    if not polls_count(state):
        return 0
    if state.majority_at is None:
        return None
    age = poll_age_ms(beat.arrived_at, state.majority_at)
    return age if age == 0 or now >= deadline else None


def answer_for(state: RegistryState, now: Instant, session: Session, beat: Beat, age_ms: int) -> AnswerMessage:
    """The signed answer; with leaves only where the node's manifest differs from what is offered, and they are few:
    otherwise the node walks them."""
    assert state.settings is not None
    shown = state.regions[session.region]
    answer = Answer(
        mesh=state.config.mesh,
        epoch=state.epoch,
        region=session.region,
        node=session.node,
        nonce=beat.nonce,
        index=state.index,
        ttl_ms=state.settings.ttl_ms,
        poll_age_ms=age_ms,
        heads_root=shown.root,
        clock=f"{state.life}/{state.clock_jumps}",
        clock_ms=now,
    )
    leaves = session.told = None
    if beat.manifest_root != shown.root:
        if len(shown.tree) > state.config.leaves_in_full:
            session.told = ToldHeads(shown.tree.tree, shown.show(), beat.manifest_root)
        else:
            leaves = dict(shown.show())
    return AnswerMessage(answer=state.config.suite.seal(answer), leaves=leaves)
