"""What suspend, revoke, resume and a tenant's destruction make of restriction rows (DESIGN sections 1, 2 and 5).

Of a scope that nobody knows too: whoever pulls the switch is not asked to spell what exists.

A destruction is a restriction of its own scope: ``suspended`` while it waits, ``none`` when it was cancelled,
``revoked`` once the tenant is purged.  So it ends no suspension and no revocation, and none of these ends it.
"""

from __future__ import annotations

from typing import Final

from keymesh.control import checks
from keymesh.control.draft import Draft, is_live
from keymesh.control.kinds import Destroy, Purge, ScopeArgs
from keymesh.control.rows import KeyRow, RestrictionRow, SettingsRow, get, key_row_name, l3_name
from keymesh.model.errors import Refused
from keymesh.model.scope import Scope, ScopeKind, destruction_of, parse_kill_scope
from keymesh.model.states import KeyState, may_become

_DESTROYED: Final = frozenset({KeyState.DESTROYED.value, KeyState.DESTROYED_COMPROMISED.value})


def _scope(draft: Draft, args: ScopeArgs) -> tuple[Scope, RestrictionRow | None]:
    scope = parse_kill_scope(args.scope)
    if scope.namespace != draft.namespace:
        raise Refused("wrong-namespace", f"{args.scope} is not {draft.namespace}'s to restrict", field="scope")
    checks.reason(args.reason)
    return scope, draft.get(f"restriction/{args.scope}", RestrictionRow)


def _put_restriction(draft: Draft, args: ScopeArgs | Destroy | Purge, state: str) -> None:
    row = RestrictionRow(state=state, seq=draft.seq, command_id=draft.command_id)
    draft.put(f"restriction/{args.scope}", row)


def suspend(draft: Draft, args: ScopeArgs) -> None:
    """Of a suspended scope too: a repeated command is an entry of its own.  Of a scope that nobody knows too."""
    _, old = _scope(draft, args)
    if old is not None and old.state == "revoked":
        raise Refused("already", f"{args.scope} is revoked", field="scope")
    _put_restriction(draft, args, "suspended")


def revoke(draft: Draft, args: ScopeArgs) -> None:
    """For good; a version that is revoked by name is compromised."""
    scope, old = _scope(draft, args)
    if old is not None and old.state == "revoked":
        raise Refused("already", f"{args.scope} is revoked", field="scope")
    compromise_scope(draft, scope, abandon_children=args.abandon_children)
    _put_restriction(draft, args, "revoked")


def compromise_scope(draft: Draft, scope: Scope, *, abandon_children: bool) -> None:
    """The key version that ``scope`` names, if it names one."""
    if scope.kind is ScopeKind.KEY and scope.service is not None and scope.version is not None:
        _compromise(draft, key_row_name(l3_name(scope.service), scope.version), abandon_children)


def _compromise(draft: Draft, name: str, abandon_children: bool) -> None:
    row = draft.get(name, KeyRow)
    if row is None:
        return
    children = any(
        n.startswith("key/") and child is not None and child.parent == row.kid and is_live(child)
        for n in draft.rows
        for child in (draft.get(n, KeyRow) if n.startswith("key/") else None,)
    )
    if children and not abandon_children:
        raise Refused("has-children", "other keys are wrapped under this version", field="abandon_children")
    if may_become(KeyState(row.state), KeyState.COMPROMISED):
        draft.put(name, checks.changed(row, state=KeyState.COMPROMISED.value))


def resume(draft: Draft, args: ScopeArgs) -> None:
    """Ends a suspension: of a region or the mesh the very one that it names, of others the one in force unless it
    names another.  The row stays, so that who held the suspension can ask for the proof."""
    scope, old = _scope(draft, args)
    if old is not None and old.state == "revoked":
        raise Refused("revoked", f"{args.scope} is revoked: nothing ends that", field="scope")
    if old is None or old.state != "suspended":
        raise Refused("not-suspended", f"{args.scope} is not suspended", field="scope")
    if (scope.needs_four_eyes or args.upto_seq) and args.upto_seq != old.seq:
        raise Refused("stale-approval", f"{args.scope} is suspended by entry {old.seq} now", field="upto_seq")
    _put_restriction(draft, args, "none")


# --- destruction -----------------------------------------------------------------------------------------------------


def _destruction(draft: Draft, scope: str) -> RestrictionRow | None:
    """The tenant's destruction, where there ever was one.  Raises Refused for another scope, and once it is done."""
    if scope != str(destruction_of(draft.namespace)):
        raise Refused("wrong-namespace", f"{scope[:80]} is not {draft.namespace}'s destruction", field="scope")
    old = draft.get(f"restriction/{scope}", RestrictionRow)
    if old is not None and old.state == "revoked":
        raise Refused("destroyed", f"{draft.namespace} is destroyed, for good", field="tenant")
    return old


def destroy(draft: Draft, args: Destroy) -> None:
    """Begin to wait.  Of a tenant that is suspended or revoked too; a second one changes no first one's time."""
    old = _destruction(draft, args.scope)
    checks.reason(args.reason)
    if draft.mesh_rows is not None:
        settings = get(draft.mesh_rows, "settings", SettingsRow)
        checks.destroy_wait(args.wait_ms, development=settings is not None and settings.development)
    if old is not None and old.state == "suspended":
        raise Refused("already", f"{draft.namespace} is being destroyed since entry {old.seq}", field="tenant")
    _put_restriction(draft, args, "suspended")


def cancel_destroy(draft: Draft, args: ScopeArgs) -> None:
    """Ends the wait, of the very entry that it names if it names one.  That time is left is the Registry's to see."""
    old = _destruction(draft, args.scope)
    checks.reason(args.reason)
    if old is None or old.state != "suspended":
        raise Refused("not-destroying", f"{draft.namespace} is not being destroyed", field="tenant")
    if args.upto_seq and args.upto_seq != old.seq:
        raise Refused("stale-approval", f"{draft.namespace} is being destroyed since entry {old.seq}", field="upto_seq")
    _put_restriction(draft, args, "none")


def purge(draft: Draft, args: Purge) -> None:
    """For good; only of the destruction that still waits.  Every key version is destroyed."""
    old = _destruction(draft, args.scope)
    if old is None or old.state != "suspended" or old.seq != args.destroy_seq:
        raise Refused("not-destroying", f"no destruction of entry {args.destroy_seq} waits", field="destroy_seq")
    _put_restriction(draft, args, "revoked")
    destroy_keys(draft)


def destroy_keys(draft: Draft) -> None:
    """Every key version of the tenant is Destroyed, or Destroyed Compromised."""
    for name in [n for n in draft.rows if n.startswith("key/")]:
        row = draft.get(name, KeyRow)
        if row is not None and row.state not in _DESTROYED:
            compromised = row.state == KeyState.COMPROMISED.value
            state = KeyState.DESTROYED_COMPROMISED if compromised else KeyState.DESTROYED
            draft.put(name, checks.changed(row, state=state.value))
