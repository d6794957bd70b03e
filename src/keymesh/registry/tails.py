"""Tails of earlier epochs that nodes hand in (DESIGN section 3, "Epochs and restore").

A tail is a state that the Registry of an earlier epoch signed.  What it restricts is restricted again, its key
versions come in deactivated, all else in it is dropped.  A node's own word counts for nothing here.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any, Final

import msgspec

from keymesh.control import trust, view
from keymesh.control.destruction import PURGE_KIND
from keymesh.control.entry import Entry
from keymesh.control.kinds import ADOPT_TAIL, AdoptedRestriction, AdoptTail
from keymesh.control.rows import KeyRow, RestrictionRow, Rows, decode_as, get, shape_of
from keymesh.control.signing import Suite
from keymesh.control.state import NamespaceState
from keymesh.control.transition import check_row, restrictions_in
from keymesh.model import strict_json
from keymesh.model.errors import Integrity, KeymeshError
from keymesh.model.machine import Address, Note, Send
from keymesh.model.time import Instant
from keymesh.orbital.messages import Tail, TailTaken
from keymesh.registry import commands, lifecycle, spaces
from keymesh.registry.state import RegistryState

ADOPT_MAX_BYTES: Final = 24 * 1024
"""Of one entry's arguments; the rest of a tail comes in with the next."""


def verify(tail: NamespaceState, mesh_rows: Rows, *, mesh: str, epoch: int, suite: Suite) -> None:
    """A state of this mesh, of an epoch before ``epoch``, as its Registry signed it.  Raises Integrity or Refused."""
    view.check_signed(tail.head)
    entry = tail.head.entry
    if entry.mesh != mesh or not 1 <= entry.epoch < epoch:
        raise Integrity("foreign-tail", "of another mesh, or of no earlier epoch", field="epoch")
    trust.verify_online(tail.head, mesh_rows, suite)
    if view.rows_root(tail.rows) != entry.state:
        raise Integrity("state-mismatch", "the rows are not those that the entry attests", field="rows")
    for name, raw in tail.rows.items():
        check_row(entry.namespace, name, raw)


def of_state(rows: Rows) -> AdoptTail:
    """All that a verified state restricts, and its key versions."""
    return AdoptTail(
        restrictions={
            scope: AdoptedRestriction(state=row.state, command_id=row.command_id)
            for scope, row in restrictions_in(rows).items()
        },
        keys={name: decode_as(name, raw, KeyRow) for name, raw in rows.items() if shape_of(name) is KeyRow},
    )


def of_entry(entry: Entry) -> AdoptTail:
    """What a verified entry of a restriction says by itself, without the state after it."""
    if entry.kind == ADOPT_TAIL:
        return strict_json.convert(entry.body.args, AdoptTail)
    state = "revoked" if entry.kind in ("revoke", PURGE_KIND) else "suspended"
    made = AdoptedRestriction(state=state, command_id=entry.command_id)
    return AdoptTail(restrictions={str(entry.body.args["scope"]): made})


def missing_restrictions(tail: AdoptTail, held: Rows, known: Container[str]) -> dict[str, AdoptedRestriction]:
    """What ``tail`` restricts and ``held`` does not, but for commands that the log ``known``: what became of those is
    in it.  A revocation is never undone, whatever came after it."""
    found = {}
    for scope, given in tail.restrictions.items():
        now = get(held, f"restriction/{scope}", RestrictionRow)
        if now is not None and now.state == "revoked":
            continue
        if given.state == "revoked" or (given.command_id not in known and (now is None or now.state != "suspended")):
            found[scope] = given
    return found


def missing_keys(tail: AdoptTail, held: Rows) -> tuple[dict[str, KeyRow], list[str]]:
    """Key versions that ``held`` lacks; names of those whose number it gave to other material."""
    keys = tail.keys
    lacking = {name: row for name, row in keys.items() if name not in held}
    other = [name for name, row in keys.items() if (now := get(held, name, KeyRow)) is not None and now.kid != row.kid]
    return dict(sorted(lacking.items())), sorted(other)


def in_force(rows: Rows) -> dict[str, AdoptedRestriction]:
    """One restriction of ``rows``, for an adoption that has no other to say; empty where none is in force.

    To say it again changes no row.  But what restricts nothing voters do not remember: a holder whose lost tail had
    lifted that restriction could stand by without having taken the new epoch's state.
    """
    return dict(list(of_state(rows).restrictions.items())[:1])


def adoptions(restrictions: Mapping[str, AdoptedRestriction], keys: Mapping[str, KeyRow]) -> list[AdoptTail]:
    """Arguments of as many entries as it takes, restrictions first."""
    made, size = [AdoptTail()], 0
    for scope, restriction in sorted(restrictions.items()):
        made, size = _room(made, size, 160 + len(scope) + len(restriction.command_id))
        made[-1] = msgspec.structs.replace(made[-1], restrictions={**made[-1].restrictions, scope: restriction})
    for name, row in sorted(keys.items()):
        made, size = _room(made, size, 320 + len(name) + len(row.parent))
        made[-1] = msgspec.structs.replace(made[-1], keys={**made[-1].keys, name: row})
    return made


def _room(made: list[AdoptTail], size: int, more: int) -> tuple[list[AdoptTail], int]:
    return (made, size + more) if size + more <= ADOPT_MAX_BYTES else ([*made, AdoptTail()], more)


def on_tail(state: RegistryState, now: Instant, sender: Address, message: Tail, out: list[Any]) -> None:
    """Take what can be taken; say so once all of it is in the log."""
    session, tail = state.sessions.get(sender), message.state
    entry = tail.head.entry
    space = state.spaces.get(entry.namespace)
    if session is None or space is None or not state.booted or not spaces.may_hold(space, session.region):
        return
    try:
        mesh_rows = spaces.mesh_space(state).rows
        verify(tail, mesh_rows, mesh=state.config.mesh, epoch=state.epoch, suite=state.config.suite)
    except KeymeshError as bad:
        out.append(Note("tail-refused", entry.correlation_id, (("node", str(sender)), ("reason", bad.code))))
        return
    held = of_state(tail.rows)
    known = {r.command_id for r in held.restrictions.values() if (space.name, r.command_id) in state.done}
    restrictions = missing_restrictions(held, space.rows, known)
    keys, taken = missing_keys(held, space.rows)
    if not restrictions and not keys:
        fields = (("node", str(sender)), ("seq", entry.seq), ("versions_lost", len(taken)))
        out.append(Note("tail-taken", entry.correlation_id, fields))
        out.append(Send(sender, TailTaken(namespace=space.name, entry_hash=tail.head.hash)))
        return
    args = msgspec.to_builtins(adoptions(restrictions, keys)[0])
    command_id = commands.internal_id("adopt", state.epoch, space.seq, tail.head.hash[:32])
    lifecycle.ask(state, now, space, ADOPT_TAIL, args, command_id, entry.correlation_id, out)
