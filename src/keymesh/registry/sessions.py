"""What each node is told: tasks offered, sent, acknowledged, repeated, parked.

Lane 0 goes out in the step that learns of the restriction.  ``orbital.dispatch`` says what may be sent when; this
module says what a node has to be told, and makes the tasks.  Source: DESIGN section 4.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

from keymesh.control.entry import SignedEntry
from keymesh.control.messages import Ack, AckMessage
from keymesh.control.rows import RestrictionRow, get
from keymesh.model.errors import KeymeshError
from keymesh.model.ids import MESH_NAMESPACE, Namespace
from keymesh.model.machine import Address, Note, Persist, Send
from keymesh.model.states import Lane
from keymesh.model.time import NEVER, Instant
from keymesh.orbital import dispatch, tasks
from keymesh.orbital.dispatch import Item, Parked
from keymesh.orbital.messages import Task
from keymesh.registry import killswitch, spaces
from keymesh.registry.records import ParkedRecord, parked_name
from keymesh.registry.state import RegistryState, Session, Space

UNPROVEN: Final = "unproven-lift"
WHOLE: Final = spaces.WHOLE


# --- offering --------------------------------------------------------------------------------------------------------


def offer_restriction(state: RegistryState, now: Instant, space: Space, signed: SignedEntry, out: list[Any]) -> None:
    """A restriction is in the log: Lane 0 to every node that may hold it, at once."""
    if not state.booted or not spaces.is_restriction(signed):
        return
    for session in spaces.sessions_of(state, space):
        dispatch.offer_urgent(session.queue, restriction_item(space, signed), now)
        push(state, now, session, out)


def restriction_item(space: Space, signed: SignedEntry) -> Item:
    return Item(space.name, signed.entry.seq, signed.entry.correlation_id, scope=spaces.scope_name(signed))


def offer_grants(state: RegistryState, now: Instant, space: Space, out: list[Any]) -> None:
    """Bring the offered head forward; the grants that it passes become tasks, each in its lane."""
    before, after = spaces.move_offered(state, space)
    if not state.booted or after <= before:
        return
    grants = [e for e in space.entries[before:after] if not spaces.is_restriction(e)]
    for session in spaces.sessions_of(state, space):
        for signed in grants:
            item = Item(space.name, signed.entry.seq, signed.entry.correlation_id)
            dispatch.offer_lower(session.queue, spaces.kind_lane(signed), item, merge_after=state.config.merge_after)
        if grants:
            push(state, now, session, out)


def proof_arrived(state: RegistryState, now: Instant, space: Space, out: list[Any]) -> None:
    """A resume was committed: restrictions of that namespace still unacknowledged go out again, now with its proof."""
    for session in spaces.sessions_of(state, space):
        for key, urgent in session.queue.urgent.items():
            if key[0] == space.name:
                urgent.sent_at = None
        push(state, now, session, out)


# --- sending ---------------------------------------------------------------------------------------------------------


def push(state: RegistryState, now: Instant, session: Session, out: list[Any]) -> None:
    """Send what is due to one node: Lane 0 first; then at most one lower task, if it may be.

    Whatever changes a queue calls this afterwards.
    """
    queue = session.queue
    if dispatch.is_idle(queue):
        _due(state, session, NEVER)
        return
    for urgent in dispatch.due_urgent(queue, now):
        out.append(Send(session.address, task_for(state, session, urgent.item, Lane.RESTRICTION)))
    if queue.flight is None:
        flight = dispatch.next_lower(queue, now)
    else:
        sent_at, heard_at = queue.flight.sent_at, session.heard_at
        heard = sent_at is not None and heard_at is not None and heard_at > sent_at
        flight, parked = dispatch.resend_lower(queue, now, heard_since=heard)
        if parked is not None:
            park(state, session, parked, out)
            flight = dispatch.next_lower(queue, now)
    if flight is not None:
        out.append(Send(session.address, task_for(state, session, flight.item, flight.lane)))
    _due(state, session, dispatch.next_due(queue))


def _due(state: RegistryState, session: Session, at: Instant) -> None:
    """Of thousands of nodes few have anything to be sent: only those are looked at as time goes by."""
    session.due_at = at
    if at < NEVER:
        state.due_sessions.add(session.address)
    else:
        state.due_sessions.discard(session.address)


def task_for(state: RegistryState, session: Session, item: Item, lane: Lane) -> Task:
    """The task that ``item`` stands for, with the proofs that there are by now, and the mesh state if it is needed."""
    space = state.spaces[item.namespace]
    mesh = spaces.mesh_space(state)
    content = spaces.state_at(space, item.seq)
    known = session.applied.get(MESH_NAMESPACE)
    return tasks.make_task(
        content,
        lane=carried_lane(session, item.namespace, content.head.entry.seq, lane),
        correlation_id=item.correlation_id,
        mesh=mesh_for(mesh, content.head.entry.mesh_seq),
        known_mesh_seq=0 if known is None else known.seq,
        force=item.force,
    )


def mesh_for(mesh: Space, needed_seq: int) -> Any:
    """The offered mesh state, or where that is too old for the entry, the newest."""
    return spaces.state_at(mesh, mesh.offered if mesh.offered >= needed_seq else mesh.seq)


def carried_lane(session: Session, namespace: Namespace, seq: int, lane: Lane) -> Lane:
    """The most urgent lane among what the node has not acknowledged up to ``seq``: a state carries all before it."""
    queue = session.queue
    for key, urgent in queue.urgent.items():
        if key[0] == namespace and urgent.item.seq <= seq:
            return Lane.RESTRICTION
    waits = queue.lower[Lane.ONBOARDING].get(namespace)
    return Lane.ONBOARDING if lane is Lane.ROUTINE and waits and waits[0].seq <= seq else lane


def park(state: RegistryState, session: Session, parked: Parked, out: list[Any]) -> None:
    """A task failed three times: keep why, alarm, and go on with the others."""
    session.parked.add(parked.namespace)
    record = ParkedRecord(
        node=session.address, namespace=parked.namespace, seq=parked.seq, reason=parked.reason, at=parked.at
    )
    fields = (("node", str(session.address)), ("seq", parked.seq), ("reason", parked.reason))
    out.append(Note("task-parked", "orbital", fields))
    out.append(Persist(state.token("parked"), ((parked_name(session.address, parked.namespace), record),)))


# --- acknowledgements ------------------------------------------------------------------------------------------------


def on_ack(state: RegistryState, now: Instant, sender: Address, message: AckMessage, out: list[Any]) -> None:
    """A node's word on a task: evidence for certificates, and the end of what it settles.

    1. The node is enrolled and its key sealed the word.  2. It is of this mesh and speaks for itself.
    3. It may hold that namespace.
    """
    session = state.sessions.get(sender)
    if session is None:
        return
    try:
        ack = state.config.suite.unseal(message.ack, Ack, session.keys)
    except KeymeshError:
        out.append(Note("ack-refused", "orbital", (("node", str(sender)), ("reason", "seal"))))
        return
    space = state.spaces.get(ack.namespace)
    if (ack.mesh, ack.region, ack.node) != (state.config.mesh, session.region, session.node) or space is None:
        out.append(Note("ack-refused", ack.correlation_id, (("node", str(sender)), ("reason", "content"))))
        return
    if not spaces.may_hold(space, session.region):
        out.append(Note("ack-refused", ack.correlation_id, (("node", str(sender)), ("reason", "residency"))))
        return
    killswitch.on_ack(state, now, session, ack, message.ack, out)
    if ack.outcome in ("applied", "stale"):
        applied(state, now, session, space, ack, out)
    else:
        failed(state, now, session, space, ack, out)
    push(state, now, session, out)


def applied(state: RegistryState, now: Instant, session: Session, space: Space, ack: Ack, out: list[Any]) -> None:
    """The node holds ``ack.leaf``: what stands at or below it is settled.  A leaf that the log lacks is a fork."""
    if ack.leaf.seq > space.seq:
        state.moved = max(state.moved, state.index + 1)  # it has heard of it from another replica, perhaps
    if ack.leaf.seq > space.seq or ack.leaf.seq < 1:
        out.append(Note("leaf-ahead", ack.correlation_id, (("node", str(session.address)), ("seq", ack.leaf.seq))))
        return
    if space.entries[ack.leaf.seq - 1].hash != ack.leaf.entry_hash:
        out.append(Note("fork", ack.correlation_id, (("node", str(session.address)), ("seq", ack.leaf.seq))))
        return
    held = session.applied.get(space.name)
    if held is None or held.order <= ack.leaf.order:
        session.applied[space.name] = ack.leaf
    session.acked_at[space.name] = now
    settled(state, session, space.name, ack.leaf.seq, settled_scopes(session, space, ack), out)


def settled_scopes(session: Session, space: Space, ack: Ack) -> set[str]:
    """Scopes whose Lane 0 task an acknowledgement ends: it lists them in force, or they are not restricted any more at
    the leaf that it names (a later resume)."""
    listed = {r.scope: r.seq for r in ack.restrictions}
    settled = {WHOLE}
    for key, urgent in session.queue.urgent.items():
        if key[0] != space.name or key[1] == WHOLE:
            continue
        if listed.get(key[1], 0) >= urgent.item.seq or lifted_by(space, key[1], urgent.item.seq, ack.leaf.seq):
            settled.add(key[1])
    return settled


def lifted_by(space: Space, scope: str, since_seq: int, by_seq: int) -> bool:
    """Whether the newest word on ``scope`` in the log is a committed resume after ``since_seq``, at most ``by_seq``."""
    row = get(space.rows, f"restriction/{scope}", RestrictionRow)
    return row is not None and row.state == "none" and since_seq < row.seq <= by_seq and row.seq not in space.resumes


def failed(state: RegistryState, now: Instant, session: Session, space: Space, ack: Ack, out: list[Any]) -> None:
    """The node would not take a task.  A lift that lacks only its proof is no failure: its proof is on the way.

    The leaf of a refusal names what was refused, or else what the node kept; only the former can be counted.
    """
    if ack.reason == UNPROVEN:
        if session.queue.flight is not None:
            session.queue.flight.tries = 0
        return
    out.append(
        Note(
            "task-refused", ack.correlation_id, (("node", str(session.address)), ("reason", ack.reason or ack.outcome))
        )
    )
    for seq in refused_seqs(session, space, ack):
        parked = dispatch.fail(session.queue, space.name, seq, ack.reason or ack.outcome, now)
        if parked is not None:
            park(state, session, parked, out)


def refused_seqs(session: Session, space: Space, ack: Ack) -> list[int]:
    """Which tasks a refusal is about: those out for the namespace that carry the same correlation id."""
    queue = session.queue
    out = [
        u.item.seq
        for key, u in queue.urgent.items()
        if key[0] == space.name and u.item.correlation_id == ack.correlation_id and u.sent_at is not None
    ]
    flight = queue.flight
    if flight is not None and flight.item.namespace == space.name:
        if flight.item.correlation_id == ack.correlation_id and flight.item.seq not in out:
            out.append(flight.item.seq)
    return out


def settled(
    state: RegistryState, session: Session, name: str, seq: int, scopes: Collection[str], out: list[Any]
) -> None:
    """Settle ``seq`` of a namespace, and forget why it was parked."""
    namespace = Namespace(name)
    dispatch.settle(session.queue, namespace, seq, scopes)
    if name in session.parked and namespace not in session.queue.parked:
        session.parked.discard(name)
        out.append(Persist(state.token("parked"), (), (parked_name(session.address, name),)))


# --- time ----------------------------------------------------------------------------------------------------------


def tick(state: RegistryState, now: Instant, out: list[Any]) -> None:
    for address in sorted(state.due_sessions):
        session = state.sessions[address]
        if session.due_at <= now:
            push(state, now, session, out)


def next_due(state: RegistryState) -> Instant:
    due = NEVER
    for address in state.due_sessions:
        if state.sessions[address].due_at < due:
            due = state.sessions[address].due_at
    return due
