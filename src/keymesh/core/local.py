"""Local restrictions: in force at once in any mode, durable here, and an entry on contact (DESIGN section 2).

One is removed only when its own entry, found by command id, or a later one of that namespace, is durably recorded
here; so a resume that was ordered before its entry does not touch it, and nor does a crash.  The Registry says where
its entry is; the applied rows must show it, so that a false word removes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from keymesh.control import checks, trust
from keymesh.control.entry import Leaf
from keymesh.control.kinds import KINDS, ScopeArgs
from keymesh.control.messages import ForwardRestriction, Recorded
from keymesh.control.rows import RestrictionRow, Rows, SignersRow, get
from keymesh.core import restrictions
from keymesh.core.events import LocalRestrict, ReplyLocal
from keymesh.core.records import LocalRecord, local_name
from keymesh.core.state import LocalKey, LocalSuspension, NodeState, Out, note
from keymesh.model import strict_json
from keymesh.model.errors import KeymeshError, Refused
from keymesh.model.ids import KeyId, check_token
from keymesh.model.limits import SIGNATURES_MAX
from keymesh.model.machine import REGISTRY, Send
from keymesh.model.scope import Scope, ScopeKind, parse_kill_scope, parse_scope
from keymesh.model.time import Instant

ACTIONS = frozenset({"suspend", "revoke"})
LOCALS_PER_NAMESPACE_MAX = 1_024
TOO_MANY = "too-many"


@dataclass(frozen=True, slots=True)
class LocalPending:
    key: LocalKey


@dataclass(frozen=True, slots=True)
class ReleasePending:
    keys: tuple[LocalKey, ...]


def is_recorded_by(position: tuple[int, int] | None, applied: Leaf) -> bool:
    """Whether the entry at ``position`` is among what is applied durably."""
    return position is not None and applied.order >= position


def is_shown_by(row: RestrictionRow | None, record: LocalRecord, position: tuple[int, int], *, final: bool) -> bool:
    """Whether the scope's row, applied at or after ``position``, is what the entry there, or a later one, left.

    A revocation covers everything; nothing less covers a ``final`` one.
    """
    if row is None or row.state == "revoked" or final:
        return row is not None and row.state == "revoked"
    return row.seq > position[1] or (row.seq == position[1] and row.command_id == record.command_id)


def is_final(state: NodeState, now: Instant, held: LocalSuspension) -> bool:
    """Whether it is a revocation that those who may sign one have signed; any other becomes a suspension.

    The Registry judges alike: on a node's word alone it records nothing that cannot be undone.
    """
    record, config = held.record, state.config
    holding = state.holding(held.scope.namespace)
    if record.action != "revoke" or holding is None or holding.applied is None:
        return record.action == "revoke"
    rows = holding.applied.rows
    try:
        if held.scope.needs_four_eyes:
            quorum = trust.quorum_for(KINDS["revoke"], record.args, mesh_rows=rows, tenant_signers=None)
        else:
            signers = get(rows, "signers", SignersRow)
            quorum = (
                None
                if signers is None
                else trust.Quorum({KeyId(k): v for k, v in signers.keys.items()}, signers.threshold)
            )
        if quorum is None:
            return False
        trust.verify_authority(
            mesh=config.mesh,
            namespace=held.scope.namespace,
            command_id=record.command_id,
            kind=record.action,
            args=record.args,
            authority=record.authority,
            quorum=quorum,
            suite=config.suite,
            now=now,
        )
    except KeymeshError:
        return False
    return True


def has_room(state: NodeState, scope: Scope) -> bool:
    """Whether one more may be kept.  Each namespace has its own room, so that no tenant fills another's.

    A suspension of the whole namespace is taken past the limit, where there is none yet: the switch always works.
    """
    held = [text for (name, _), one in state.locals.items() if name == scope.namespace for text in (one.record.scope,)]
    whole = scope.kind in (ScopeKind.TENANT, ScopeKind.MESH) and str(scope) not in held
    return whole or len(held) < LOCALS_PER_NAMESPACE_MAX


def restore(state: NodeState, record: LocalRecord) -> None:
    """Take up a local suspension of an earlier life."""
    held = LocalSuspension(record, parse_scope(record.scope), recorded=True)
    state.locals[held.key] = held
    state.restrictions_changed()


def on_restrict(state: NodeState, now: Instant, event: LocalRestrict, out: Out) -> None:
    """Restrict here and now; the reply follows the record."""
    try:
        check_token("command_id", event.command_id)
        scope = parse_kill_scope(event.scope)
        if event.action not in ACTIONS:
            raise Refused.bad_field("action", "suspend or revoke")
        checks.reason(strict_json.convert({**event.options, "scope": event.scope}, ScopeArgs).reason)
        if len(event.authority) > SIGNATURES_MAX:
            raise Refused.bad_field("authority", f"at most {SIGNATURES_MAX} envelopes")
    except Refused as bad:
        out.append(ReplyLocal(event.command_id, event.scope, False, bad.code))
        return
    held = state.locals.get((scope.namespace, event.command_id))
    if held is not None:
        _repeated(state, held, event, out)
        return
    if not has_room(state, scope):
        out.append(ReplyLocal(event.command_id, event.scope, False, TOO_MANY))
        return
    record = LocalRecord(
        event.command_id,
        event.scope,
        event.action,
        event.actor,
        event.correlation_id,
        event.authority,
        event.options,
    )
    held = LocalSuspension(record, scope)
    state.locals[held.key] = held
    state.restrictions_changed()
    restrictions.enforce(state, now, scope, (0, 0), event.correlation_id, out)
    _persist(state, held, out)


def _repeated(state: NodeState, held: LocalSuspension, event: LocalRestrict, out: Out) -> None:
    """The namespace has that command id already."""
    record = held.record
    same = (record.scope, record.action, record.options) == (event.scope, event.action, event.options)
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
                options=record.options,
            ),
        )
    )


def on_recorded(state: NodeState, now: Instant, message: Recorded, out: Out) -> None:
    """The Registry placed it in the log, or refused it for good; refused, it stays a local suspension."""
    held = state.locals.get((message.namespace, message.command_id))
    if held is None:
        return
    if message.refused:
        held.refused = True
        note(out, "local-suspension-refused", held.record.correlation_id, scope=held.record.scope, code=message.refused)
    else:
        held.position = (message.epoch, message.seq)
        release(state, now, out)


def release(state: NodeState, now: Instant, out: Out) -> None:
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
        row = _row_of(holding.applied.rows, held.record.scope)
        if is_shown_by(row, held.record, position, final=is_final(state, now, held)):
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
