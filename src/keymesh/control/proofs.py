"""The entries that travel with a state, and the rows that nothing but such an entry may give.

Who a tenant is, its L1 and what its signers changed of its policy; everything of the mesh but its restrictions.  A part
of ``transition``.  Source: DESIGN section 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from msgspec import Struct

from keymesh.control import checks, reduce_trust, reduce_voters
from keymesh.control.kinds import (
    CHANGE_VOTERS,
    OPEN_EPOCH,
    ROTATE_TRUST,
    Args,
    ChangeVoters,
    Genesis,
    OpenEpoch,
    RegionJoin,
    RotateTrust,
    SetTenant,
    SwitchL1,
    TenantCreate,
)
from keymesh.control.rows import BindingRow, EpochRow, RegionRow, Row, Rows, StandbyRow, decode, get, parts_of, shape_of
from keymesh.control.state import SET_TENANT, Supported
from keymesh.model import strict_json
from keymesh.model.errors import Integrity, KeymeshError
from keymesh.model.ids import Digest

A = TypeVar("A", bound=Args)


class Proofs(Struct, frozen=True):
    """The entries that came with the state.  ``verify`` raises where one is not what its signers made; ``committed``
    tells whether the voters' majority signed it.  Both are asked only for entries that are needed.

    ``after``: seq of what is held in the same epoch, 0 for nothing: a row of the mesh that changed since was given
    since, so that nobody gives one by an entry that is dated back to when lost keys still counted."""

    support: tuple[Supported, ...]
    verify: Callable[[Supported], None]
    committed: Callable[[Supported], bool]
    after: int = 0
    _judged: dict[Digest, bool] = {}

    def of(self, kind: str) -> Iterator[Supported]:
        """Verified entries of ``kind``; others count for nothing."""
        return (item for item in self.support if item.signed.entry.kind == kind and self._holds(item))

    def newer(self, kind: str) -> Iterator[Supported]:
        """As ``of``, later than what is held."""
        return (item for item in self.of(kind) if item.signed.entry.seq > self.after)

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


def _unproven(name: str) -> Integrity:
    return Integrity("unproven-change", f"no entry with the needed signatures gives {name}", field=name)


def args_of(item: Supported, shape: type[A]) -> A:
    return strict_json.convert(item.signed.entry.body.args, shape)


def check_mesh(old: Rows, new: Rows, changed: list[str], proofs: Proofs) -> None:
    """Every row of the mesh but its restrictions is given by an entry with the needed signatures; an IVK generation
    and a key store's schema may rise."""
    heads = ("settings", "root", "voters", "epoch", "delegation", "region", "node")
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
    """Equal, but that the IVK and the key store's schema may have moved on since."""
    moved = checks.changed(given, ivk_generation=row.ivk_generation, keystore_schema=row.keystore_schema)
    return row.ivk_generation >= given.ivk_generation and row.wanted_schema >= given.wanted_schema and moved == row


def _same_row(given: Row | None, row: Row) -> bool:
    if isinstance(given, RegionRow) and isinstance(row, RegionRow):
        return _same_region(given, row)
    return given is not None and given == row


def _given_mesh_rows(proofs: Proofs) -> Iterator[dict[str, Row]]:
    for item in proofs.newer("mesh.genesis"):
        args = args_of(item, Genesis)
        yield {
            "root": args.root,
            "settings": args.settings,
            "voters": args.voters,
            **{f"delegation/{n}": r for n, r in args.delegations.items()},
            **{f"region/{n}": r for n, r in args.regions.items()},
            **{f"node/{n}": r for n, r in args.nodes.items()},
        }
    for item in proofs.newer(OPEN_EPOCH):
        yield {"epoch": EpochRow(number=args_of(item, OpenEpoch).epoch)}
    for item in proofs.newer(CHANGE_VOTERS):
        yield dict(reduce_voters.given_by(args_of(item, ChangeVoters), item.signed.entry.seq))
    for item in proofs.newer(ROTATE_TRUST):
        yield reduce_trust.given_by(args_of(item, RotateTrust))
    for item in proofs.newer("region.join"):
        join = args_of(item, RegionJoin)
        yield {f"region/{join.region}": join.row, **{f"node/{join.region}/{n}": r for n, r in join.nodes.items()}}


def check_tenant(old: Rows, new: Rows, changed: list[str], proofs: Proofs) -> None:
    """Who the tenant is comes with its creation and never changes without its signers; a new binding is a switch's.

    A second ``tenant.create`` proves nothing to who holds the tenant: it would be signed by its own signers alone.
    """
    for name in ("policy", "signers"):
        if name not in new:
            raise _unproven(name)
        if name in changed and (name in old or not _created(name, decode(name, new[name]), proofs)):
            raise _unproven(name)
    if "standby" in changed and not _set(decode("standby", new["standby"]), proofs):
        raise _unproven("standby")
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


def _set(row: Row, proofs: Proofs) -> bool:
    return any(
        row == StandbyRow(standby=args_of(item, SetTenant).standby, seq=item.signed.entry.seq)
        for item in proofs.of(SET_TENANT)
    )


def _created(name: str, row: Row, proofs: Proofs) -> bool:
    return any(
        row == (args.policy if name == "policy" else args.signers)
        for item in proofs.of("tenant.create")
        for args in (args_of(item, TenantCreate),)
    )


def _bound(name: str, row: Row, is_new_tenant: bool, proofs: Proofs) -> bool:
    given: list[SwitchL1 | TenantCreate] = [args_of(item, SwitchL1) for item in proofs.of("l1.switch")]
    if is_new_tenant:
        given += [args_of(item, TenantCreate) for item in proofs.of("tenant.create")]
    return isinstance(row, BindingRow) and any(
        name == f"binding/{args.binding_id}" and (row.provider, row.descriptor) == (args.provider, args.descriptor)
        for args in given
    )
