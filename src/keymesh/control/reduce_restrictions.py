"""What suspend, revoke and resume make of restriction rows (DESIGN sections 2 and 5).

Of a scope that nobody knows too: whoever pulls the switch is not asked to spell what exists.
"""

from __future__ import annotations

from keymesh.control import checks
from keymesh.control.draft import Draft, is_live
from keymesh.control.kinds import ScopeArgs
from keymesh.control.rows import KeyRow, RestrictionRow, key_row_name, l3_name
from keymesh.model.errors import Refused
from keymesh.model.scope import Scope, ScopeKind, parse_scope
from keymesh.model.states import KeyState, may_become


def _scope(draft: Draft, args: ScopeArgs) -> tuple[Scope, RestrictionRow | None]:
    scope = parse_scope(args.scope)
    if scope.namespace != draft.namespace:
        raise Refused("wrong-namespace", f"{args.scope} is not {draft.namespace}'s to restrict", field="scope")
    checks.reason(args.reason)
    return scope, draft.get(f"restriction/{args.scope}", RestrictionRow)


def _put_restriction(draft: Draft, args: ScopeArgs, state: str) -> None:
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
    if scope.kind is ScopeKind.KEY and scope.service is not None and scope.version is not None:
        _compromise(draft, key_row_name(l3_name(scope.service), scope.version), args.abandon_children)
    _put_restriction(draft, args, "revoked")


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
