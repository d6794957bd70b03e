"""What a node had beyond the base of a new epoch, and what becomes of it (DESIGN section 3, "Epochs and restore").

Restrictions that the base lacks become local suspensions, in force at once and recorded in the same step as the base;
they are forwarded like any other, and end only with their entry.  A state with key versions or revocations that the
base lacks is kept, beside those of other epochs, and handed in until the Registry says that it has it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from keymesh.control.entry import Entry
from keymesh.control.rows import KeyRow, RestrictionRow, shape_of
from keymesh.control.state import NamespaceState
from keymesh.control.view import Accepted
from keymesh.core import restrictions
from keymesh.core.records import LocalRecord, TailRecord, local_name, old_tail_name, tail_name
from keymesh.core.state import LocalKey, LocalSuspension, NodeState, Out, Puts, note
from keymesh.model.ids import MESH_NAMESPACE
from keymesh.model.machine import REGISTRY, Address, Send
from keymesh.model.scope import parse_scope
from keymesh.model.time import Instant
from keymesh.orbital.messages import Tail, TailTaken

TAILS_PER_NAMESPACE_MAX: Final = 8
"""Each is of an epoch that recovery officers opened; no Registry of a later one took it."""


@dataclass(frozen=True, slots=True)
class Left:
    """What is recorded together with a new epoch's base: local suspensions, and tails to hand in."""

    keys: tuple[LocalKey, ...] = ()
    tails: tuple[TailRecord, ...] = ()

    def __add__(self, other: Left) -> Left:
        return Left(self.keys + other.keys, self.tails + other.tails)


NOTHING = Left()


def leave(state: NodeState, now: Instant, held: NamespaceState | None, taken: Accepted, out: Out) -> Left:
    """Put in force here what ``taken``, of a later epoch than ``held``, lacks.

    ``held``: what is applied, with what restricts beyond it; a tail is the first alone, for nobody signed both.
    """
    if held is None or taken.state.head.entry.epoch <= held.head.entry.epoch:
        return NOTHING
    keys = tuple(_suspend(state, now, scope, row, out) for scope, row in taken.abandoned)
    final = any(row.state == "revoked" for _, row in taken.abandoned)
    of_mesh = bool(taken.abandoned) and held.head.entry.namespace == MESH_NAMESPACE
    if not (final or of_mesh or lost_keys(held, taken.state)):
        return Left(keys)
    return Left(keys) + _keep(state, now, held.head.entry, out)


def _keep(state: NodeState, now: Instant, head: Entry, out: Out) -> Left:
    """The applied state, of ``head``, as a tail.  One too many takes no other's place: the namespace is suspended
    whole instead, until somebody resumes it knowing that what it had is lost here."""
    namespace, holding = str(head.namespace), state.holding(head.namespace)
    assert holding is not None and holding.applied is not None
    if sum(name == namespace for name, _ in state.tails) < TAILS_PER_NAMESPACE_MAX:
        return Left(tails=(TailRecord(namespace, holding.applied),))
    whole = namespace if namespace == MESH_NAMESPACE else f"tenant:{namespace}"
    note(out, "tail-not-kept", head.correlation_id, namespace=namespace, epoch=head.epoch, seq=head.seq)
    lost = RestrictionRow(
        state="suspended", seq=head.seq, command_id=f"tail-{head.epoch}-{holding.leaf.entry_hash[:16]}"
    )
    return Left((_suspend(state, now, whole, lost, out),))


def lost_keys(held: NamespaceState, new: NamespaceState) -> tuple[str, ...]:
    """Names of key versions that ``held`` has and ``new`` lacks."""
    return tuple(sorted(n for n in held.rows if shape_of(n) is KeyRow and n not in new.rows))


def _suspend(state: NodeState, now: Instant, scope: str, row: RestrictionRow, out: Out) -> LocalKey:
    """Under the command id that it has in the tail: a log that has that command says where it is."""
    action = "revoke" if row.state == "revoked" else "suspend"
    record = LocalRecord(row.command_id, scope, action, str(state.config.address), row.command_id)
    made = LocalSuspension(record, parse_scope(scope))
    if made.key not in state.locals:
        state.locals[made.key] = made
        state.restrictions_changed()
        restrictions.enforce(state, now, made.scope, (0, 0), record.correlation_id, out)
        note(out, "tail-suspended", record.correlation_id, scope=scope)
    return made.key


def puts(state: NodeState, left: Left) -> Puts:
    """Records of ``left`` that are still wanted."""
    kept = [(local_name(*key), state.locals[key].record) for key in left.keys if key in state.locals]
    return (*kept, *[(tail_name(tail.namespace, tail.state.head.entry.epoch), tail) for tail in left.tails])


def recorded(state: NodeState, left: Left) -> None:
    """``left`` is durable."""
    for key in left.keys:
        if key in state.locals:
            state.locals[key].recorded = True
    for tail in left.tails:
        restore(state, tail)


def restore(state: NodeState, record: TailRecord) -> None:
    state.tails[record.namespace, record.state.head.entry.epoch] = record.state


def hand_in(state: NodeState, out: Out) -> None:
    """With each heartbeat, until it is taken."""
    out.extend(Send(REGISTRY, Tail(state=state.tails[name])) for name in sorted(state.tails))


def on_taken(state: NodeState, sender: Address, message: TailTaken, out: Out) -> None:
    """The Registry has of it what could be had."""
    mine = {key: tail.head.hash for key, tail in state.tails.items() if key[0] == message.namespace}
    taken = [key for key, digest in mine.items() if digest == message.entry_hash]
    if sender != REGISTRY or not taken:
        return
    names = [tail_name(*key) for key in taken]
    for key in taken:
        del state.tails[key]
    if len(taken) == len(mine):  # before that, the old name may be of one that is still to be handed in
        names.append(old_tail_name(message.namespace))
    state.persist("tail-taken", None, (), tuple(names), out)
