"""What a node's own manifest says it lacks, and how that is put right: lag, drift, forks, reconnection.

Level, not edge: whatever was lost on the way, a heartbeat shows it.  The queues are ``sessions``'s and
``orbital.dispatch``'s; this module only says what belongs into them.  Source: DESIGN section 4.
"""

from __future__ import annotations

from typing import Any, Final

from keymesh.control.entry import Leaf
from keymesh.control.messages import Heartbeat
from keymesh.control.rows import RestrictionRow, get
from keymesh.model.machine import Address, Note
from keymesh.model.states import Lane
from keymesh.model.time import Instant
from keymesh.orbital import diff, dispatch, tasks
from keymesh.orbital.dispatch import Item
from keymesh.orbital.messages import Hello
from keymesh.registry import sessions, spaces
from keymesh.registry.state import RegionHeads, RegistryState, Session, Space

GREETING_GAP_MS: Final = 1_000


def compare(state: RegistryState, now: Instant, session: Session, beat: Heartbeat, out: list[Any]) -> None:
    """Learn from a heartbeat what the node holds, and put differences right."""
    shown = state.regions.get(session.region)
    if shown is None or not state.booted:
        return
    if beat.manifest_root == shown.root:
        in_step(state, session, shown, out)
    elif beat.leaves is not None:
        session.reported, session.known, session.in_step_with = beat.leaves, True, None
        for difference in diff.plan(shown.show(), beat.leaves):
            put_right(state, now, session, difference, out)
    elif not session.known:
        catch_up_restrictions(state, now, session)
    dispatch.heard(session.queue)
    sessions.push(state, now, session, out)


def in_step(state: RegistryState, session: Session, shown: RegionHeads, out: list[Any]) -> None:
    """The node holds exactly what it is offered.  Lane 0 tasks stay: only an acknowledgement, which is evidence, ends
    them."""
    if session.in_step_with == shown.root and not session.parked:
        return
    session.in_step_with, session.known = shown.root, True
    session.reported = shown.show()
    session.applied = dict(session.reported)
    for name in sorted(session.parked | dispatch.namespaces(session.queue)):  # not all that it holds: those are many
        leaf = session.reported.get(name)
        if leaf is not None:
            sessions.settled(state, session, name, leaf.seq, {sessions.WHOLE}, out)


def put_right(
    state: RegistryState, now: Instant, session: Session, difference: diff.Difference, out: list[Any]
) -> None:
    """Lag: offer what is missing.  Drift: Force Sync.  Fork: alarm, and the node keeps both as evidence."""
    name, held = difference.namespace, difference.held
    where = (("node", str(session.address)), ("namespace_seq", 0 if held is None else held.seq))
    if difference.gap is diff.Gap.FOREIGN:
        out.append(Note("residency-breach", "orbital", where))
        return
    space = state.spaces[name]
    heartbeat_ms = 0 if state.settings is None else state.settings.heartbeat_ms
    if now - session.acked_at.get(name, Instant(-(2**40))) < heartbeat_ms:
        return  # the heartbeat may be older than the acknowledgement; the next one tells
    session.in_step_with = None
    if held is not None:
        session.applied[name] = held
    else:
        session.applied.pop(name, None)
    match difference.gap:
        case diff.Gap.LAG if held is not None and is_astray(space, held):
            out.append(Note("astray", "orbital", where))
            force_sync(state, now, session, space)
        case diff.Gap.LAG:
            catch_up(state, now, session, space, 0 if held is None else held.seq)
        case diff.Gap.DRIFT:
            out.append(Note("drift", "orbital", where))
            force_sync(state, now, session, space)
        case diff.Gap.FORK:
            out.append(Note("fork", "orbital", where))
            force_sync(state, now, session, space)
        case diff.Gap.AHEAD:
            assert held is not None
            if held.seq > space.seq or space.entries[held.seq - 1].hash != held.entry_hash:
                out.append(Note("fork", "orbital", where))


def is_astray(space: Space, held: Leaf) -> bool:
    """Whether a node holds what is not in this log: the tail of an earlier epoch."""
    return held.seq > space.seq or (held.seq > 0 and space.entries[held.seq - 1].hash != held.entry_hash)


def force_sync(state: RegistryState, now: Instant, session: Session, space: Space) -> None:
    """The shown state again, whole, to be taken though it is not newer."""
    head = space.entries[space.shown - 1]
    restricts = bool(spaces.restricted_scopes(space.rows))
    item = Item(
        space.name, space.shown, head.entry.correlation_id, scope=sessions.WHOLE if restricts else "", force=True
    )
    if diff.force_sync_lane(restricts=restricts) is Lane.RESTRICTION:
        dispatch.offer_urgent(session.queue, item, now)
    elif not any(i.force for i in dispatch.waiting(session.queue, space.name)):
        dispatch.offer_lower(session.queue, Lane.ONBOARDING, item, merge_after=state.config.merge_after)


def catch_up(state: RegistryState, now: Instant, session: Session, space: Space, held_seq: int) -> None:
    """What a node that holds ``held_seq`` misses: each scope's newest restriction in Lane 0, the rest as one state."""
    missing = space.entries[held_seq:]
    for signed in missing:
        if spaces.is_restriction(signed) and not sessions.lifted_by(
            space, spaces.scope_name(signed), signed.entry.seq, space.offered
        ):
            dispatch.offer_urgent(session.queue, sessions.restriction_item(space, signed), now)
    if not dispatch.unpark(session.queue, space.name, now, after_ms=retry_parked_ms(state)):
        return
    grants = [e for e in space.entries[held_seq : space.offered] if not spaces.is_restriction(e)]
    if not grants:
        return
    newest = grants[-1].entry
    if any(not i.scope and i.seq >= newest.seq for i in dispatch.waiting(session.queue, space.name)):
        return
    item = Item(space.name, newest.seq, newest.correlation_id, merged=len(grants))
    lane = tasks.lane_of(spaces.kind_lane(e) for e in grants)
    dispatch.offer_lower(session.queue, lane, item, merge_after=state.config.merge_after)


def retry_parked_ms(state: RegistryState) -> int:
    """How long a parked task rests before it is tried again: a snapshot's interval."""
    return 0 if state.settings is None else state.settings.snapshot_ms


def catch_up_restrictions(state: RegistryState, now: Instant, session: Session) -> None:
    """A node that differs in a way not known yet (after a restart here): every restriction in force, in Lane 0."""
    for _, space in sorted(state.spaces.items()):
        if spaces.may_hold(space, session.region):
            for scope in sorted(spaces.restricted_scopes(space.rows)):
                row = get(space.rows, f"restriction/{scope}", RestrictionRow)
                assert row is not None
                signed = space.entries[row.seq - 1]
                dispatch.offer_urgent(session.queue, sessions.restriction_item(space, signed), now)


def is_repeated(session: Session, message: Hello, now: Instant) -> bool:
    """Whether the same life greeted a moment ago: all was sent then, and Lane 0 goes out again by itself."""
    last = session.greeted_at
    return last is not None and message.boot_id == session.greeted_as and now < last + GREETING_GAP_MS


def on_hello(state: RegistryState, now: Instant, sender: Address, message: Hello, out: list[Any]) -> None:
    """A node (re)connected: what is out may be lost, so it goes out again."""
    session = state.sessions.get(sender)
    if session is None or (message.region, message.node) != (session.region, session.node) or not state.booted:
        return
    if is_repeated(session, message, now):
        return
    session.greeted_at, session.greeted_as = now, message.boot_id
    dispatch.resend_all(session.queue, now)
    if not session.known:
        catch_up_restrictions(state, now, session)
    for name, held in session.applied.items():
        space = state.spaces.get(name)
        if space is not None and held.seq < space.seq:
            catch_up(state, now, session, space, held.seq)
    sessions.push(state, now, session, out)
