"""Whether a namespace may go from the rows that a holder has to the rows that it is offered, in one jump.

The Registry's signature says what the state is; this says what no signature of the Registry alone may do: change who a
tenant is or where it may be, change its L1, change the mesh, lift a restriction that the voters did not see lifted,
undo a revocation, take a version back.  The proofs are the entries that travel with the state.
Sources: DESIGN section 2; ``model/README.md``, traces 3 and 4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Final, TypeVar

from msgspec import Struct

from keymesh.control import checks
from keymesh.control.kinds import Args, Genesis, RegionJoin, ScopeArgs, SwitchL1, TenantCreate
from keymesh.control.rows import (
    BindingRow,
    KeyRow,
    PolicyRow,
    RegionRow,
    RestrictionRow,
    Row,
    Rows,
    ServiceRow,
    WantRow,
    WrappingRow,
    decode,
    decode_as,
    encode,
    get,
    parts_of,
    shape_of,
)
from keymesh.control.state import RESUME, Supported
from keymesh.model import strict_json
from keymesh.model.errors import Integrity, KeymeshError, Refused
from keymesh.model.ids import MESH_NAMESPACE, Digest
from keymesh.model.scope import parse_scope
from keymesh.model.states import TRANSITIONS, KeyState

_MESH_HEADS: Final = frozenset({"settings", "root", "voters", "delegation", "region", "node", "restriction"})
_TENANT_HEADS: Final = frozenset(
    {"policy", "signers", "labels", "binding", "service", "want", "rewrap", "wrapping", "key", "restriction"}
)
_BINDING_ORDER: Final = ("active", "retiring", "retired")
_RESTRICTED: Final = ("suspended", "revoked")

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
    """Scopes that the new rows restrict and the old did not (or by another entry), and those that they free; sorted."""

    restricts: tuple[str, ...]
    lifts: tuple[str, ...]


class Proofs(Struct, frozen=True):
    """The entries that came with the state.  ``verify`` raises where one is not what its signers made; ``committed``
    tells whether the voters' majority signed it.  Both are asked only for entries that are needed."""

    support: tuple[Supported, ...]
    verify: Callable[[Supported], None]
    committed: Callable[[Supported], bool]
    _judged: dict[Digest, bool] = {}

    def of(self, kind: str) -> Iterator[Supported]:
        """Verified entries of ``kind``; others count for nothing."""
        return (item for item in self.support if item.signed.entry.kind == kind and self._holds(item))

    def _holds(self, item: Supported) -> bool:
        judged = self._judged.get(item.signed.hash)
        if judged is None:
            try:
                self.verify(item)
                judged = True
            except KeymeshError:
                judged = False
            self._judged[item.signed.hash] = judged
        return judged


def check_transition(old: Rows, new: Rows, proofs: Proofs, *, namespace: str, seq: int) -> Change:
    """What changes; or a refusal that names the first row at fault.

    1. Every row is of this release, of this namespace, in its one form.
    2. No row is gone, but for those that bind nobody.
    3. Numbers that only rise have not fallen; names that never change have not; key states move forwards.
    4. Rows that reach beyond the Registry's word are given, exactly, by an entry with that word.
    5. Nothing lifts a revocation.
    6. Each suspension that is gone has its later resume, committed.  (Last: see ``view``.)

    ``seq`` is of the entry that the new rows are after.  The holder may know restrictions beyond it: of them these
    rows can't speak, so they lift nothing.  Raises Refused or Integrity.
    """
    changed = [name for name in new if name not in old or old[name] != new[name]]
    for name in changed:
        check_row(namespace, name, new[name])
    _check_vanished(old, new)
    changed.sort()
    for name in changed:
        if name in old:
            _check_moved(name, decode(name, old[name]), decode(name, new[name]), seq)
    if namespace == MESH_NAMESPACE:
        _check_mesh(old, new, changed, proofs)
    else:
        _check_tenant(old, new, changed, proofs)
    before, after = restrictions_in(old), restrictions_in(new)
    change = _change(before, after)
    _check_lifts(before, after, new, proofs, seq)
    return change


# --- 1. rows ---------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=32_768)
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
        case ServiceRow(), ServiceRow():
            _not_fallen(name, old.version, new.version)
            if old.version == new.version:
                raise Integrity("version-reused", f"{name} changed under one version", field=name)
        case WantRow(), WantRow():
            _not_fallen(name, old.version, new.version)
        case WrappingRow(), WrappingRow():
            _not_fallen(name, old.version, new.version)
        case RegionRow(), RegionRow():
            _not_fallen(name, old.ivk_generation, new.ivk_generation)
        case BindingRow(), BindingRow():
            if checks.changed(old, state=new.state) != new:
                raise Integrity("unproven-change", f"{name} is another binding under the same name", field=name)
            if _BINDING_ORDER.index(new.state) < _BINDING_ORDER.index(old.state):
                raise Integrity("row-regressed", f"{name} went back to {new.state}", field=name)
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


def _not_fallen(name: str, old: int, new: int) -> None:
    if new < old:
        raise Integrity("row-regressed", f"{name} fell from {old} to {new}", field=name)


# --- 4. what needs more than the Registry's word ---------------------------------------------------------------------


def _unproven(name: str) -> Integrity:
    return Integrity("unproven-change", f"no entry with the needed signatures gives {name}", field=name)


def _args(item: Supported, shape: type[A]) -> A:
    return strict_json.convert(item.signed.entry.body.args, shape)


def _check_mesh(old: Rows, new: Rows, changed: list[str], proofs: Proofs) -> None:
    """Every row of the mesh but its restrictions is genesis' or a ``region.join``'s; an IVK generation may rise."""
    heads = ("settings", "root", "voters", "delegation", "region", "node")
    given: list[dict[str, Row]] | None = None
    for name in [n for head in heads for n in changed if parts_of(n)[0] == head]:
        row = decode(name, new[name])
        before = get(old, name, RegionRow) if isinstance(row, RegionRow) else None
        if isinstance(row, RegionRow) and before is not None and _same_region(before, row):
            continue
        if given is None:
            given = list(_given_mesh_rows(proofs))
        if not any(_same_row(rows.get(name), row) for rows in given):
            raise _unproven(name)


def _same_region(given: RegionRow, row: RegionRow) -> bool:
    """Equal, but that the IVK may have moved on since."""
    return (
        row.ivk_generation >= given.ivk_generation and checks.changed(given, ivk_generation=row.ivk_generation) == row
    )


def _same_row(given: Row | None, row: Row) -> bool:
    if isinstance(given, RegionRow) and isinstance(row, RegionRow):
        return _same_region(given, row)
    return given is not None and given == row


def _given_mesh_rows(proofs: Proofs) -> Iterator[dict[str, Row]]:
    for item in proofs.of("mesh.genesis"):
        args = _args(item, Genesis)
        yield {
            "root": args.root,
            "settings": args.settings,
            "voters": args.voters,
            **{f"delegation/{n}": r for n, r in args.delegations.items()},
            **{f"region/{n}": r for n, r in args.regions.items()},
            **{f"node/{n}": r for n, r in args.nodes.items()},
        }
    for item in proofs.of("region.join"):
        join = _args(item, RegionJoin)
        yield {f"region/{join.region}": join.row, **{f"node/{join.region}/{n}": r for n, r in join.nodes.items()}}


def _check_tenant(old: Rows, new: Rows, changed: list[str], proofs: Proofs) -> None:
    """Who the tenant is comes with its creation and never changes without its signers; a new binding is a switch's.

    A second ``tenant.create`` proves nothing to who holds the tenant: it would be signed by its own signers alone.
    """
    for name in ("policy", "signers"):
        if name not in new:
            raise _unproven(name)
        if name in changed and (name in old or not _created(name, decode(name, new[name]), proofs)):
            raise _unproven(name)
    for name in changed:
        if (
            parts_of(name)[0] == "binding"
            and name not in old
            and not _bound(name, decode(name, new[name]), "policy" not in old, proofs)
        ):
            raise _unproven(name)
    active = [n for n in new if shape_of(n) is BindingRow and (b := get(new, n, BindingRow)) and b.state == "active"]
    if len(active) != 1:
        raise Integrity("unproven-change", "a tenant has exactly one active binding", field="binding")


def _created(name: str, row: Row, proofs: Proofs) -> bool:
    return any(
        row == (args.policy if name == "policy" else args.signers)
        for item in proofs.of("tenant.create")
        for args in (_args(item, TenantCreate),)
    )


def _bound(name: str, row: Row, is_new_tenant: bool, proofs: Proofs) -> bool:
    given: list[SwitchL1 | TenantCreate] = [_args(item, SwitchL1) for item in proofs.of("l1.switch")]
    if is_new_tenant:
        given += [_args(item, TenantCreate) for item in proofs.of("tenant.create")]
    return isinstance(row, BindingRow) and any(
        name == f"binding/{args.binding_id}" and (row.provider, row.descriptor) == (args.provider, args.descriptor)
        for args in given
    )


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


def _lifted(scope: str, before: RestrictionRow, after: RestrictionRow | None, proofs: Proofs) -> bool:
    """There is the very resume that the row names, later than the suspension, meant for it, and a majority of voters
    saw it."""
    return after is not None and any(
        item.signed.entry.seq == after.seq > before.seq
        and item.signed.entry.command_id == after.command_id
        and is_meant_for(_args(item, ScopeArgs), before.seq, item.signed.entry.seq)
        and proofs.committed(item)
        for item in proofs.of(RESUME)
        if item.signed.entry.body.args.get("scope") == scope
    )


def is_meant_for(args: ScopeArgs, suspended_at: int, seq: int) -> bool:
    """Whether the resume in entry ``seq`` ends the suspension by entry ``suspended_at``.

    Of a wide scope its officers signed up to which entry: their word, used again, ends no suspension after that one.
    """
    return not parse_scope(args.scope).needs_four_eyes or suspended_at <= args.upto_seq < seq
