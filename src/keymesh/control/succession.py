"""The trust sets of a mesh, from its genesis on: which root and officers an entry of ``mesh`` is judged by.

A rotation is signed by a threshold of the set that it ends and of the set that it begins.  What was signed before it is
judged by the old keys for ever, what comes after it by the new ones alone: by (epoch, seq), which only grow along a
log.  Decides nothing about commitment (``view``).  Pure.  Source: DESIGN section 2; TUF, "root rotation".
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from keymesh.control import trust
from keymesh.control.entry import Entry, SignedEntry
from keymesh.control.kinds import ROTATE_TRUST, ChangeVoters, Genesis, RotateTrust
from keymesh.control.reduce_trust import OFFICERS_ROW, set_digest
from keymesh.control.rows import DelegationRow, RootRow, Rows, VotersRow, encode, get
from keymesh.control.signing import Suite
from keymesh.control.state import NamespaceState, Supported
from keymesh.control.trust import Pins
from keymesh.model import strict_json
from keymesh.model.errors import Integrity, KeymeshError

NO_ENTRY = (0, 0)


class TrustSet(Struct, frozen=True):
    """Root and officers in force for entries after ``since`` (epoch, seq); ``entry`` gave them, None: the genesis."""

    since: tuple[int, int]
    root: RootRow
    officers: DelegationRow | None
    entry: SignedEntry | None = None

    @property
    def rows(self) -> dict[str, bytes]:
        rows = {"root": encode(self.root)}
        return rows if self.officers is None else {**rows, OFFICERS_ROW: encode(self.officers)}


def order_of(entry: Entry) -> tuple[int, int]:
    return (entry.epoch, entry.seq)


def genesis_of(state: NamespaceState, suite: Suite, pins: Pins) -> SignedEntry:
    """The founding entry that came along, once the pinned root has signed it.  Raises Integrity."""
    genesis = _founder(state.support)
    if genesis is None:
        raise Integrity("no-genesis", "a mesh state without the entry that founds it", field="support")
    if genesis.entry.mesh != pins.mesh:
        raise Integrity("foreign-mesh", "the genesis of another mesh", field="support")
    trust.verify_entry(genesis, {}, None, suite, pins=pins)
    return genesis


def _founder(support: Iterable[Supported]) -> SignedEntry | None:
    return next((s.signed for s in support if s.signed.entry.kind == "mesh.genesis"), None)


def of_one_founder(support: tuple[Supported, ...]) -> tuple[Supported, ...]:
    """``support`` without any genesis but the one that the trust sets are followed from: under pins of a later set
    another would have nobody's word but its own root's."""
    founder = _founder(support)
    return tuple(s for s in support if s.signed is founder or s.signed.entry.kind != "mesh.genesis")


def founding_rows(genesis: SignedEntry) -> dict[str, bytes]:
    """Delegations and root of a genesis."""
    args = strict_json.convert(genesis.entry.body.args, Genesis)
    return {**trust.genesis_rows(args), "root": strict_json.dumps(args.root)}


def sets_of(state: NamespaceState, suite: Suite, pins: Pins) -> tuple[TrustSet, ...]:
    """Every trust set of the mesh state, oldest first; none where its keys were never rotated.

    1. The genesis, signed by the pinned root.  2. Of the rotations that came along, in the order of the log, each that
    is the next version, ends exactly the set before it in exactly this mesh, and is signed by all who must sign it:
    the Registry, and thresholds of the old root, the new root and the new officers.  Others count for nothing.
    3. Pins of a later set than the first are among them.  Raises Integrity where the genesis, or that, does not hold.
    """
    found = [s.signed for s in state.support if s.signed.entry.kind == ROTATE_TRUST]
    if state.head.entry.kind == ROTATE_TRUST:
        found.append(state.head)
    if not found and pins.version == 1:
        return ()
    genesis = genesis_of(state, suite, pins)
    end = order_of(state.head.entry)
    until = [s for s in found if order_of(s.entry) <= end and s.entry.mesh == pins.mesh]
    sets = _follow(genesis, sorted(until, key=lambda s: (order_of(s.entry), s.hash)), suite, pins)
    pinned = (pins.version, dict(pins.root_keys), pins.threshold)
    if sets[0].root.version < pins.version and pinned not in [
        (one.root.version, one.root.keys, one.root.threshold) for one in sets
    ]:
        raise Integrity("foreign-root", "no rotation leads to the pinned root", field="root")
    return sets


def _follow(genesis: SignedEntry, found: Iterable[SignedEntry], suite: Suite, pins: Pins) -> tuple[TrustSet, ...]:
    rows: Rows = founding_rows(genesis)
    root, officers = get(rows, "root", RootRow), get(rows, OFFICERS_ROW, DelegationRow)
    assert root is not None
    sets = [TrustSet(NO_ENTRY, root, officers)]
    for signed in found:
        now = sets[-1]
        try:
            trust.verify_entry(signed, {**rows, **now.rows}, None, suite, pins=pins)
            args = strict_json.convert(signed.entry.body.args, RotateTrust)
        except KeymeshError:
            continue
        said = (args.root.version, args.replaces, args.genesis)
        if said == (now.root.version + 1, set_digest(now.root, now.officers), genesis.hash):
            sets.append(TrustSet(order_of(signed.entry), args.root, args.officers, signed))
    return tuple(sets)


def rows_at(sets: tuple[TrustSet, ...], rows: Rows, entry: Entry, *, least: int = 0) -> Rows:
    """``rows`` with the root and officers that ``entry``, of the mesh's namespace, is judged by; as they are where that
    set would be of a version below ``least``: a holder goes back for no entry that is dated before a rotation."""
    before = [one for one in sets if one.since < order_of(entry)]
    return {**rows, **before[-1].rows} if before and before[-1].root.version >= least else rows


def check_rows(sets: tuple[TrustSet, ...], rows: Rows) -> None:
    """``rows`` name the newest set.  Raises Integrity."""
    if sets and any(rows.get(name) != raw for name, raw in sets[-1].rows.items()):
        raise Integrity("unproven-change", "not the root and officers of the last rotation", field="root")


def check_follows(sets: tuple[TrustSet, ...], held: Rows) -> None:
    """The set that is held is one of ``sets``: no rival history, forked off before it.  Raises Integrity."""
    root, officers = get(held, "root", RootRow), get(held, OFFICERS_ROW, DelegationRow)
    if root is None or not sets or root.version > sets[-1].root.version:
        return  # rows that fell back are refused as such
    if not any((one.root, one.officers) == (root, officers) for one in sets):
        raise Integrity(
            "trust-fork", f"another history of trust sets than that of version {root.version}", field="root"
        )


def commit_rows(held: Rows, new: Rows, changes: Iterable[ChangeVoters]) -> Rows:
    """The rows by which the voters' word on a rotation is judged: whoever sat before it, as ``held`` knows them.

    ``changes`` of the voters between ``held`` and the rotation, in order; what is later rests on its own officers.
    Nodes of a region that was held are those held, so that the root to be judged gives no voter another key.
    """
    voters = get(held, "voters", VotersRow) or VotersRow(set_id=1, regions=())
    for change in changes:
        if (change.set_id, change.replaces) == (voters.set_id + 1, voters.regions):
            voters = VotersRow(set_id=change.set_id, regions=change.regions)
    nodes = {n: raw for n, raw in new.items() if n.startswith("node/") and f"region/{n.split('/')[1]}" not in held}
    kept = {n: raw for n, raw in held.items() if n == "settings" or n.startswith("node/")}
    return {**nodes, **kept, "voters": encode(voters)}
