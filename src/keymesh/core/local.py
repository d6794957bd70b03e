"""Local restrictions: in force at once in any mode, durable here, and an entry on contact (DESIGN section 2).

One is removed only when its own entry, found by command id, or a later one of that namespace, is durably recorded
here; so a resume that was ordered before its entry does not touch it, and nor does a crash.  The Registry says where
its entry is; the applied rows must show it, so that a false word removes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from keymesh.control.entry import Leaf
from keymesh.control.messages import ForwardRestriction, Recorded
from keymesh.control.rows import RestrictionRow, Rows, get
from keymesh.core import restrictions
from keymesh.core.events import LocalRestrict, ReplyLocal
from keymesh.core.records import LocalRecord, local_name
from keymesh.core.state import LocalKey, LocalSuspension, NodeState, Out, note
from keymesh.model.errors import KeymeshError, Refused
from keymesh.model.ids import check_token
from keymesh.model.machine import REGISTRY, Send
from keymesh.model.scope import parse_scope
from keymesh.model.time import Instant

ACTIONS = frozenset({"suspend", "revoke"})


@dataclass(frozen=True, slots=True)
class LocalPending:
    key: LocalKey


@dataclass(frozen=True, slots=True)
class ReleasePending:
    keys: tuple[LocalKey, ...]


def is_recorded_by(position: tuple[int, int] | None, applied: Leaf) -> bool:
    """Whether the entry at ``position`` is among what is applied durably."""
    return position is not None and applied.order >= position


def is_shown_by(row: RestrictionRow | None, record: LocalRecord, position: tuple[int, int]) -> bool:
    """Whether the scope's row, applied at or after ``position``, is what the entry there, or a later one, left.

    A revocation covers everything; nothing less covers a revocation.
    """
    if row is None or row.state == "revoked" or record.action == "revoke":
        return row is not None and row.state == "revoked"
    return row.seq > position[1] or (row.seq == position[1] and row.command_id == record.command_id)


def restore(state: NodeState, record: LocalRecord) -> None:
    """Take up a local suspension of an earlier life."""
    held = LocalSuspension(record, parse_scope(record.scope), recorded=True)
    state.locals[held.key] = held
    state.restrictions_changed()


def on_restrict(state: NodeState, now: Instant, event: LocalRestrict, out: Out) -> None:
    """Restrict here and now; the reply follows the record."""
    try:
        check_token("command_id", event.command_id)
        scope = parse_scope(event.scope)
        if event.action not in ACTIONS:
            raise Refused.bad_field("action", "suspend or revoke")
    except Refused as bad:
        out.append(ReplyLocal(event.command_id, event.scope, False, bad.code))
        return
    held = state.locals.get((scope.namespace, event.command_id))
    if held is not None:
        _repeated(state, held, event, out)
        return
    record = LocalRecord(
        event.command_id, event.scope, event.action, event.actor, event.correlation_id, event.authority
    )
    held = LocalSuspension(record, scope)
    state.locals[held.key] = held
    state.restrictions_changed()
    restrictions.enforce(state, now, scope, (0, 0), event.correlation_id, out)
    _persist(state, held, out)


def _repeated(state: NodeState, held: LocalSuspension, event: LocalRestrict, out: Out) -> None:
    """The namespace has that command id already."""
    same = (held.record.scope, held.record.action) == (event.scope, event.action)
    if held.recorded or not same:
        out.append(ReplyLocal(event.command_id, event.scope, same, "" if same else "conflict"))
    else:
        _persist(state, held, out)


def _persist(state: NodeState, held: LocalSuspension, out: Out) -> None:
    state.persist("local", LocalPending(held.key), ((local_name(*held.key), held.record),), (), out)


def on_persisted(state: NodeState, pending: LocalPending, out: Out) -> None:
    held = state.locals.get(pending.key)
    if held is None:
        return
    held.recorded = True
    out.append(ReplyLocal(held.record.command_id, held.record.scope, True))
    note(out, "local-suspension", held.record.correlation_id, scope=held.record.scope)
    _forward(held, out)


def on_failed(state: NodeState, pending: LocalPending, out: Out) -> None:
    """It stays in force in memory; the caller hears that it is not durable, and it is tried again."""
    held = state.locals.get(pending.key)
    if held is not None:
        out.append(ReplyLocal(held.record.command_id, held.record.scope, False, "storage"))
        _forward(held, out)


def forward(state: NodeState, out: Out) -> None:
    """Tell the Registry again of what it has not yet placed in the log."""
    for key in sorted(state.locals):
        held = state.locals[key]
        if held.position is None and not held.refused:
            _forward(held, out)


def _forward(held: LocalSuspension, out: Out) -> None:
    record = held.record
    out.append(
        Send(
            REGISTRY,
            ForwardRestriction(
                command_id=record.command_id,
                scope=record.scope,
                action=record.action,
                actor=record.actor,
                correlation_id=record.correlation_id,
                authority=record.authority,
            ),
        )
    )


def on_recorded(state: NodeState, message: Recorded, out: Out) -> None:
    """The Registry placed it in the log, or refused it for good; refused, it stays a local suspension."""
    held = state.locals.get((message.namespace, message.command_id))
    if held is None:
        return
    if message.refused:
        held.refused = True
        note(out, "local-suspension-refused", held.record.correlation_id, scope=held.record.scope, code=message.refused)
    else:
        held.position = (message.epoch, message.seq)
        release(state, out)


def release(state: NodeState, out: Out) -> None:
    """Remove local suspensions whose entry, or a later one of its namespace, is applied durably.

    Where the applied rows do not show the entry it is not there: the suspension stays, and is forwarded again.
    """
    done = []
    for key in sorted(state.locals):
        held = state.locals[key]
        holding = state.holding(held.scope.namespace)
        position = held.position
        if position is None or holding is None or holding.applied is None:
            continue
        if not is_recorded_by(position, holding.leaf):
            continue
        if is_shown_by(_row_of(holding.applied.rows, held.record.scope), held.record, position):
            done.append(key)
        else:
            held.position = None
            note(out, "local-suspension-not-shown", held.record.correlation_id, scope=held.record.scope)
    if done:
        names = tuple(local_name(*key) for key in done)
        state.persist("local-release", ReleasePending(tuple(done)), (), names, out)


def _row_of(rows: Rows, scope: str) -> RestrictionRow | None:
    """The scope's row; None where there is none, or the disk has spoilt it."""
    try:
        return get(rows, f"restriction/{scope}", RestrictionRow)
    except KeymeshError:
        return None


def on_released(state: NodeState, pending: ReleasePending, out: Out) -> list[str]:
    """Their records are gone, so they end.  The namespaces that may have opened by it."""
    found = [held for key in pending.keys if (held := state.locals.pop(key, None)) is not None]
    state.restrictions_changed()
    for held in found:
        note(out, "local-suspension-recorded", held.record.correlation_id, scope=held.record.scope)
    return sorted({str(held.scope.namespace) for held in found})
