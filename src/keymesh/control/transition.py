"""Whether a namespace may go from the rows that a holder has to the rows that it is offered, in one jump.

The Registry's signature says what the state is; this says what no signature of the Registry alone may do: change who a
tenant is or where it may be, change its L1, change the mesh, lift a restriction that the voters did not see lifted,
undo a revocation, take a version back.  The proofs are the entries that travel with the state.
Sources: DESIGN section 2; ``model/README.md``, traces 3 and 4.
"""

from __future__ import annotations

from typing import Final, TypeVar

import msgspec
from msgspec import Struct

from keymesh.control import checks
from keymesh.control.kinds import (
    Args,
    ScopeArgs,
)
from keymesh.control.proofs import Proofs as Proofs
from keymesh.control.proofs import args_of, check_mesh, check_tenant
from keymesh.control.reduce_trust import OFFICERS_ROW
from keymesh.control.rows import (
    BindingRow,
    BudgetRow,
    ClientRow,
    KeyRow,
    PastVotersRow,
    PolicyRow,
    RegionRow,
    RestrictionRow,
    RootRow,
    Row,
    Rows,
    ServiceRow,
    StandbyRow,
    VotersRow,
    WantRow,
    WrappingRow,
    decode,
    decode_as,
    encode,
    get,
    parts_of,
    shape_of,
)
from keymesh.control.state import CANCEL_DESTROY, RESUME
from keymesh.model.caching import cached
from keymesh.model.errors import Integrity, KeymeshError, Refused
from keymesh.model.ids import MESH_NAMESPACE
from keymesh.model.scope import ScopeKind, parse_scope
from keymesh.model.states import TRANSITIONS, KeyState

_MESH_HEADS: Final = frozenset({"settings", "root", "voters", "epoch", "delegation", "region", "node", "restriction"})
_TENANT_HEADS: Final = frozenset(
    {
        "policy",
        "standby",
        "signers",
        "labels",
        "budget",
        "binding",
        "service",
        "client",
        "want",
        "rewrap",
        "wrapping",
        "key",
        "restriction",
    }
)
_BINDING_ORDER: Final = ("active", "retiring", "retired")
_RESTRICTED: Final = ("suspended", "revoked")
_NEVER: Final = RestrictionRow(state="none", seq=0, command_id="")

A = TypeVar("A", bound=Args)


def _closure() -> dict[str, frozenset[str]]:
    """Key states that each state may have become after any number of entries, itself included."""
    reach: dict[KeyState, set[KeyState]] = {s: {s, *TRANSITIONS[s]} for s in KeyState}
    for _ in KeyState:
        for state, found in reach.items():
            for via in tuple(found):
                reach[state] |= reach[via]
    return {s.value: frozenset(t.value for t in found) for s, found in reach.items()}


REACHABLE: Final = _closure()


class Change(Struct, frozen=True):
    """Scopes that the new rows restrict and the old did not (or by another entry), and those that they free; sorted.
    ``abandoned``: of a new epoch, restrictions that its base lacks without a proof that they were lifted."""

    restricts: tuple[str, ...]
    lifts: tuple[str, ...]
    abandoned: tuple[tuple[str, RestrictionRow], ...] = ()


def check_transition(
    old: Rows, new: Rows, proofs: Proofs, *, namespace: str, seq: int, new_epoch: bool = False
) -> Change:
    """What changes; or a refusal that names the first row at fault.

    1. Every row is of this release, of this namespace, in its one form.
    2. No row is gone, but for those that bind nobody.
    3. Numbers that only rise have not fallen; names that never change have not; key states move forwards.
    4. Rows that reach beyond the Registry's word are given, exactly, by an entry with that word.
    5. Nothing lifts a revocation.
    6. Each suspension that is gone has its later resume, committed, also one that the holder never saw.  (Last: see
    ``view``.)

    ``seq`` is of the entry that the new rows are after.  The holder may know restrictions beyond it: of them these
    rows can't speak, so they lift nothing.

    The trust set goes back for nobody, in a new epoch neither.

    ``new_epoch``: recovery officers have opened another history, and the holder may have gone further in a tail that
    is lost.  Steps 2, 3, 5 and 6 then refuse nothing; what they would not let be lifted is named.  Raises as they do.
    """
    changed = [name for name in new if name not in old or old[name] != new[name]]
    for name in changed:
        check_row(namespace, name, new[name])
    if not new_epoch:
        _check_vanished(old, new)
    changed.sort()
    for name in changed:
        if name in old and not new_epoch:
            _check_moved(name, decode(name, old[name]), decode(name, new[name]), seq)
    if namespace == MESH_NAMESPACE:
        _check_trust_set(old, new)
        check_mesh(old, new, changed, proofs)
    else:
        check_tenant(old, new, changed, proofs)
    before, after = restrictions_in(old), restrictions_in(new)
    change = _change(before, after)
    if new_epoch:
        return msgspec.structs.replace(change, abandoned=_abandoned(before, after, new, proofs))
    _check_lifts(before, after, new, proofs, seq)
    _check_passed_over(old, new, proofs)
    return change


# --- 1. rows ---------------------------------------------------------------------------------------------------------


@cached(32_768, lambda namespace, name, raw: len(raw))
def check_row(namespace: str, name: str, raw: bytes) -> None:
    """Raises Integrity ``unknown-kind`` for what this release does not know, ``foreign-row`` for another namespace's,
    ``not-canonical`` for another form."""
    head = name.partition("/")[0]
    of_mesh = namespace == MESH_NAMESPACE
    if head not in (_MESH_HEADS | _TENANT_HEADS):
        raise Integrity("unknown-kind", f"row {name[:80]!r} is not known to this release", field=name)
    if head not in (_MESH_HEADS if of_mesh else _TENANT_HEADS):
        raise Integrity("foreign-row", f"row {name[:80]!r} does not belong into {namespace}", field=name)
    _check_form(name, raw)
    if head == "restriction" and parse_scope(name.partition("/")[2]).namespace != namespace:
        raise Integrity("foreign-row", f"{name[:80]!r} is not {namespace}'s to restrict", field=name)


def _check_form(name: str, raw: bytes) -> None:
    try:
        row = decode(name, raw)
    except KeymeshError as bad:
        raise Integrity("unknown-kind", f"row {name[:80]!r}: {bad.message[:200]}", field=name) from bad
    if encode(row) != raw:
        raise Integrity("not-canonical", f"row {name[:80]!r} is not in its one form", field=name)
    if isinstance(row, RestrictionRow) and row.state not in (*_RESTRICTED, "none"):
        raise Integrity("unknown-kind", f"restriction state {row.state[:40]!r}", field=name)
    if isinstance(row, KeyRow) and row.state not in REACHABLE:
        raise Integrity("unknown-kind", f"key state {row.state[:40]!r}", field=name)
    if isinstance(row, BindingRow) and row.state not in _BINDING_ORDER:
        raise Integrity("unknown-kind", f"binding state {row.state[:40]!r}", field=name)


# --- 2, 3. what may only go one way ----------------------------------------------------------------------------------


def _check_vanished(old: Rows, new: Rows) -> None:
    for name in sorted(old.keys() - new.keys()):
        head = name.partition("/")[0]
        if head == "key":
            raise Integrity("version-vanished", f"{name} is gone", field=name)
        if head not in ("labels", "restriction"):  # lifted restrictions are judged apart
            raise Integrity("row-vanished", f"{name} is gone", field=name)


def _check_moved(name: str, old: Row, new: Row, seq: int) -> None:
    match old, new:
        case KeyRow(), KeyRow():
            _check_key(name, old, new)
        case PolicyRow(), PolicyRow():
            _not_fallen(name, old.version, new.version)
        case (ServiceRow() as old, ServiceRow() as new) | (ClientRow() as old, ClientRow() as new):
            _risen(name, old.version, new.version)
        case BudgetRow(), BudgetRow():
            _risen(name, old.version, new.version)
        case WantRow(), WantRow():
            _not_fallen(name, old.version, new.version)
        case WrappingRow(), WrappingRow():
            _not_fallen(name, old.version, new.version)
        case StandbyRow(), StandbyRow():
            _not_fallen(name, old.seq, new.seq)
        case RegionRow(), RegionRow():
            _not_fallen(name, old.ivk_generation, new.ivk_generation)
            _not_fallen(name, old.wanted_schema, new.wanted_schema)
        case BindingRow(), BindingRow():
            if checks.changed(old, state=new.state) != new:
                raise Integrity("unproven-change", f"{name} is another binding under the same name", field=name)
            if _BINDING_ORDER.index(new.state) < _BINDING_ORDER.index(old.state):
                raise Integrity("row-regressed", f"{name} went back to {new.state}", field=name)
        case VotersRow(), VotersRow():
            _not_fallen(name, old.set_id, new.set_id)
            if old.set_id == new.set_id:
                raise Integrity("version-reused", f"{name} changed under one number", field=name)
        case PastVotersRow(), PastVotersRow():
            raise Integrity("version-reused", f"{name} is another set under the same number", field=name)
        case RestrictionRow(), RestrictionRow() if old.seq <= seq:
            _not_fallen(name, old.seq, new.seq)
        case _:  # others move freely, or not without proof (below)
            pass


def _check_key(name: str, old: KeyRow, new: KeyRow) -> None:
    if old.kid != new.kid:
        raise Integrity("kid-changed", f"{name} names other material now", field=name)
    if new.state not in REACHABLE[old.state]:
        raise Integrity("key-state-regressed", f"{name} went from {old.state} to {new.state}", field=name)
    _not_fallen(name, old.revision, new.revision)
    if old.revision == new.revision and (old.digest, old.parent) != (new.digest, new.parent):
        raise Integrity("version-reused", f"{name} changed under one revision", field=name)


def _check_trust_set(old: Rows, new: Rows) -> None:
    before, after = get(old, "root", RootRow), get(new, "root", RootRow)
    if before is None:
        return
    if after is None:
        raise Integrity("row-vanished", "root is gone", field="root")
    _not_fallen("root", before.version, after.version)
    if before.version == after.version and any(old.get(n) != new.get(n) for n in ("root", OFFICERS_ROW)):
        raise Integrity("unproven-change", "root and officers changed under one version", field="root")


def _risen(name: str, old: int, new: int) -> None:
    """Of a row that has changed."""
    _not_fallen(name, old, new)
    if old == new:
        raise Integrity("version-reused", f"{name} changed under one version", field=name)


def _not_fallen(name: str, old: int, new: int) -> None:
    if new < old:
        raise Integrity("row-regressed", f"{name} fell from {old} to {new}", field=name)


# --- 5, 6. restrictions ----------------------------------------------------------------------------------------------


def restrictions_in(rows: Rows) -> dict[str, RestrictionRow]:
    """Restrictions in force by ``rows``, by scope, sorted."""
    found = {}
    for name in sorted([n for n in rows if shape_of(n) is RestrictionRow]):
        row = decode_as(name, rows[name], RestrictionRow)
        if row.state in _RESTRICTED:
            found[parts_of(name)[1]] = row
    return found


def change_of(old: Rows, new: Rows) -> Change:
    """What a holder of ``old`` has to do for ``new``, whether it may or not."""
    return _change(restrictions_in(old), restrictions_in(new))


def _change(before: dict[str, RestrictionRow], after: dict[str, RestrictionRow]) -> Change:
    return Change(
        restricts=tuple(s for s, row in after.items() if before.get(s) != row),
        lifts=tuple(s for s in before if s not in after),
    )


def _check_lifts(
    before: dict[str, RestrictionRow], after: dict[str, RestrictionRow], new: Rows, proofs: Proofs, seq: int
) -> None:
    for scope, row in before.items():
        now = after.get(scope)
        if row.seq <= seq and row.state == "revoked" and (now is None or now.state != "revoked"):
            raise Integrity("revoked-lifted", f"{scope} was revoked, for good", field=f"restriction/{scope}")
    for scope in (s for s, row in before.items() if s not in after or row.seq > seq):
        if after.get(scope) != before[scope] and not _lifted(
            scope, before[scope], get(new, f"restriction/{scope}", RestrictionRow), proofs
        ):
            raise Refused("unproven-lift", f"no committed resume of {scope}", field=f"restriction/{scope}")


def _check_passed_over(old: Rows, new: Rows, proofs: Proofs) -> None:
    """A suspension that the holder never saw may have been committed; that it is over is for voters to say as well."""
    for name in sorted([n for n in new if shape_of(n) is RestrictionRow and old.get(n) != new[n]]):
        row = decode_as(name, new[name], RestrictionRow)
        was = get(old, name, RestrictionRow)
        if row.state == "none" and (was is None or was.state == "none"):
            scope = parts_of(name)[1]
            if not _lifted(scope, was or _NEVER, row, proofs):
                raise Refused("unproven-lift", f"no committed resume of {scope}", field=name)


def _abandoned(
    before: dict[str, RestrictionRow], after: dict[str, RestrictionRow], new: Rows, proofs: Proofs
) -> tuple[tuple[str, RestrictionRow], ...]:
    """In force by the old rows, and neither in force as strictly by the new nor provably lifted."""

    def is_kept(scope: str, row: RestrictionRow) -> bool:
        now = get(new, f"restriction/{scope}", RestrictionRow)
        if scope in after:
            return after[scope].state == "revoked" or row.state != "revoked"
        return row.state != "revoked" and _lifted(scope, row, now, proofs)

    return tuple((scope, row) for scope, row in before.items() if not is_kept(scope, row))


def _lifted(scope: str, before: RestrictionRow, after: RestrictionRow | None, proofs: Proofs) -> bool:
    """There is the very resume that the row names, later than the suspension, meant for it, and a majority of voters
    saw it."""
    return after is not None and any(
        item.signed.entry.seq == after.seq > before.seq
        and item.signed.entry.command_id == after.command_id
        and is_meant_for(args_of(item, ScopeArgs), before.seq, item.signed.entry.seq)
        and proofs.committed(item)
        for item in proofs.of(CANCEL_DESTROY if parse_scope(scope).kind is ScopeKind.DESTRUCTION else RESUME)
        if item.signed.entry.body.args.get("scope") == scope
    )


def is_meant_for(args: ScopeArgs, suspended_at: int, seq: int) -> bool:
    """Whether the resume in entry ``seq`` ends the suspension by entry ``suspended_at``.

    Of a wide scope its officers signed up to which entry: their word, used again, ends no suspension after that one.
    """
    return not parse_scope(args.scope).needs_four_eyes or suspended_at <= args.upto_seq < seq
