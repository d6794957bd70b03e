"""The trusted view of one namespace: takes an offered state whole, or says why not, and touches nothing.

After TUF's trusted set and its refusals (stale, rollback, fast-forward, fork, mix-and-match), with keymesh's own: a
state applies whatever came before it, so nothing queues behind a gap.  Source: DESIGN section 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Final, Protocol

from msgspec import Struct

from keymesh.control import commit, succession, transition, trust
from keymesh.control.entry import Entry, SignedEntry, parse_entry
from keymesh.control.kinds import CHANGE_VOTERS, KINDS, OPEN_EPOCH, ROTATE_TRUST, ChangeVoters, OpenEpoch
from keymesh.control.proofs import args_of
from keymesh.control.rows import RestrictionRow, RootRow, Rows, SignersRow, get, rows_bytes
from keymesh.control.signing import Suite
from keymesh.control.state import NamespaceState, Supported
from keymesh.control.succession import TrustSet, order_of
from keymesh.control.transition import Change, Proofs
from keymesh.control.trust import Pins
from keymesh.crypto.dsse import Envelope
from keymesh.ledger.maptree import root_of
from keymesh.model import strict_json
from keymesh.model.caching import cached
from keymesh.model.errors import Integrity, KeymeshError, Refused
from keymesh.model.ids import MESH_NAMESPACE, ZERO_DIGEST, Digest
from keymesh.model.limits import TASK_MAX_BYTES

UNPROVEN_LIFT: Final = "unproven-lift"
SEQ_JUMP_MAX: Final = 2**24
"""No namespace moves on by more while a holder is away; a further jump would only shut out what truly follows."""


class Offer(Protocol):
    """What a task brings; ``orbital.messages.Task`` is one."""

    @property
    def namespace(self) -> str: ...

    @property
    def state(self) -> NamespaceState: ...

    @property
    def force(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Offered:
    """An offer that is no task: the mesh state that came along with one."""

    namespace: str
    state: NamespaceState
    force: bool = False


class Accepted(Struct, frozen=True):
    """``restricts``: scopes newly restricted, to be applied before anything is recorded; ``lifts``: scopes freed.

    ``abandoned``: of a new epoch, what was restricted here and is not in its base: to be kept up by the holder itself.
    """

    state: NamespaceState
    restricts: tuple[str, ...]
    lifts: tuple[str, ...]
    is_restriction: bool
    abandoned: tuple[tuple[str, RestrictionRow], ...] = ()


class Stale(Struct, frozen=True):
    """Nothing newer than what is held: acknowledge, change nothing."""


@dataclass(frozen=True, slots=True)
class Fork:
    """Two histories, both signed: keep both, close the namespace."""

    held: NamespaceState
    other: NamespaceState


@dataclass(frozen=True, slots=True)
class RefusedTask:
    """Changes nothing that is held.

    ``closes``: this release does not understand it, and the namespace stays closed until it does (or something newer
    is understood).  ``restrictions``: of ``unproven-lift`` alone, everything that the new rows restrict: the holder
    adds these to what it has, keeps its leaf, and so Lane 0 waits for no resume.
    """

    code: str
    detail: str
    closes: bool = False
    restrictions: tuple[tuple[str, RestrictionRow], ...] = ()


@dataclass(frozen=True, slots=True)
class NeedsMesh:
    """The entry rests on a mesh head that is not held yet: take that first."""

    mesh_seq: int


Outcome = Accepted | Stale | Fork | RefusedTask | NeedsMesh


class _Trust(Struct, frozen=True):
    """What signatures are judged by.  Of a mesh: ``sets`` where its keys were rotated, ``held``: newest entry held;
    ``after``: see ``Proofs``."""

    mesh_rows: Rows
    signers: SignersRow | None
    suite: Suite
    pins: Pins
    sets: tuple[TrustSet, ...] = ()
    held: Entry | None = None
    after: int = 0

    def rows_at(self, entry: Entry) -> Rows:
        root = get(self.mesh_rows, "root", RootRow)
        is_later = root is not None and self.held is not None and order_of(entry) > order_of(self.held)
        least = root.version if root is not None and is_later else 0
        return succession.rows_at(self.sets, self.mesh_rows, entry, least=least)


def accept(
    held: NamespaceState | None,
    task: Offer,
    mesh: NamespaceState | None,
    suite: Suite,
    *,
    pins: Pins,
    epoch: int,
) -> Outcome:
    """What to do with ``task`` where ``held`` is held, under the mesh head ``mesh``, in ``epoch``.

    1. The size.  2. The mesh's name, and bytes that say what the entry says.  3. The epoch: none that is not open
    here; a mesh state may bring the entry by which its recovery officers opened one.  4. The namespace.
    5. The Registry's signature, by the delegations of ``mesh`` (which must be new enough).
    6. Newer than what is held: else stale, or a fork.  7. The rows have the root that the entry attests.
    8. Kind and rows are of this release.  9. Who else had to sign the entry did.  10. ``check_transition``.
    """
    state = task.state
    entry = state.head.entry
    try:
        _check_frame(task, pins=pins)
        if entry.namespace != MESH_NAMESPACE and (mesh is None or entry.mesh_seq > mesh.head.entry.seq):
            return NeedsMesh(entry.mesh_seq)
        if entry.namespace != MESH_NAMESPACE and entry.epoch > epoch:
            raise _not_open(entry)
        trusted = _trust_for(held, state, mesh, suite, pins)
        trust.verify_online(state.head, trusted.mesh_rows, suite)
        if entry.epoch > epoch:
            _check_opened(state, trusted)
        order = _order(held, state, force=task.force)
        if order is not None:
            return order
        if entry.seq - (0 if held is None else held.head.entry.seq) > SEQ_JUMP_MAX:
            raise Integrity("fast-forward", f"seq {entry.seq} is further ahead than any log is", field="seq")
        return _accept_newer(held, state, trusted)
    except KeymeshError as refusal:
        return _refusal(refusal, state)


def _accept_newer(held: NamespaceState | None, state: NamespaceState, trusted: _Trust) -> Accepted:
    entry = state.head.entry
    if rows_root(state.rows) != entry.state:
        raise Integrity("state-mismatch", "the rows are not those that the entry attests", field="rows")
    _check_known(entry)
    _verify_head(state.head, trusted)
    succession.check_rows(trusted.sets, state.rows)
    old: Rows = {} if held is None else held.rows
    if held is not None and held.head.hash == state.head.hash:
        change = transition.change_of(old, state.rows)  # a forced repeat: the rows were judged when first taken
    else:
        proofs = _proofs(state, trusted)
        change = transition.check_transition(
            old,
            state.rows,
            proofs,
            namespace=entry.namespace,
            seq=entry.seq,
            new_epoch=held is not None and entry.epoch > held.head.entry.epoch,
        )
        if held is not None and trusted.sets:
            _check_rotations(held, state, proofs, trusted)
    return _accepted(state, change)


def _check_known(entry: Entry) -> None:
    """Kind and arguments are of this release.  The Registry has signed them: what cannot be understood of them is
    taken for a later release's, a restriction's above all, and never passed over.  Raises Integrity."""
    if entry.kind not in KINDS:
        raise Integrity("unknown-kind", f"kind {entry.kind[:64]!r} is not known to this release", field="kind")
    try:
        strict_json.convert(entry.body.args, KINDS[entry.kind].args)
    except Refused as bad:
        raise Integrity("unknown-kind", f"{entry.kind}: {bad.message[:200]}", field=bad.field) from bad


def _accepted(state: NamespaceState, change: Change) -> Accepted:
    is_restriction = bool(change.restricts) or commit.is_restriction(state.head.entry)
    return Accepted(state, change.restricts, change.lifts, is_restriction, change.abandoned)


def check_first_mesh(state: NamespaceState, *, suite: Suite, pins: Pins) -> Accepted:
    """The mesh state, as one who holds nothing but ``pins`` takes it; whatever its epoch.

    Raises Refused or Integrity.
    """
    offer = Offered(MESH_NAMESPACE, state)
    outcome = accept(None, offer, None, suite, pins=pins, epoch=state.head.entry.epoch)
    if isinstance(outcome, Accepted):
        return outcome
    code, detail = (outcome.code, outcome.detail) if isinstance(outcome, RefusedTask) else ("refused", "not accepted")
    raise Integrity(code, detail, field="trust")


# --- 1 to 4 ----------------------------------------------------------------------------------------------------------


def _check_frame(task: Offer, *, pins: Pins) -> None:
    state, entry = task.state, task.state.head.entry
    if state_bytes(state) > TASK_MAX_BYTES:
        raise Refused("too-large", f"a task is at most {TASK_MAX_BYTES} bytes")
    if entry.mesh != pins.mesh:
        raise Integrity("foreign-mesh", f"an entry of mesh {entry.mesh[:64]!r}", field="mesh")
    check_signed(state.head)
    if entry.epoch < 1 or entry.seq < 1:
        raise Integrity("bad-position", "epochs and seqs count from 1", field="seq")
    if entry.namespace != task.namespace:
        raise Integrity("namespace-mismatch", "the entry is of another namespace than the task", field="namespace")


def _not_open(entry: Entry) -> Integrity:
    return Integrity("future-epoch", f"epoch {entry.epoch} is not open here", field="epoch")


def _check_opened(state: NamespaceState, trusted: _Trust) -> None:
    """The mesh state of a later epoch brings the entry that opened it, signed by the recovery officers.  Raises."""
    entry = state.head.entry
    for item in _proofs(state, trusted).of(OPEN_EPOCH):
        opened = strict_json.convert(item.signed.entry.body.args, OpenEpoch)
        if opened.epoch == item.signed.entry.epoch == entry.epoch:
            return
    raise _not_open(entry)


def state_bytes(state: NamespaceState) -> int:
    """The size of what travels: rows, entry and support."""
    payloads = [state.head.envelope.payload, *[s.signed.envelope.payload for s in state.support]]
    return sum(map(len, payloads)) + rows_bytes(state.rows)


def check_signed(signed: SignedEntry) -> None:
    """The typed entry is what the signed bytes say.  Raises."""
    parsed = _parsed(signed.envelope)
    if parsed.hash != signed.hash or (parsed.entry is not signed.entry and parsed.entry != signed.entry):
        raise Integrity("entry-mismatch", "the entry is not what its signed bytes say", field="entry")


@cached(4_096, lambda envelope: len(envelope.payload))
def _parsed(envelope: Envelope) -> SignedEntry:
    return parse_entry(envelope)


@lru_cache(maxsize=256)
def _root(rows: tuple[tuple[str, bytes], ...]) -> Digest:
    return root_of(dict(rows))


def rows_root(rows: Rows) -> Digest:
    """The map-tree root over ``rows``; rows seen of late are not hashed again."""
    return _root(tuple(rows.items()))


# --- 5, 9. signatures ------------------------------------------------------------------------------------------------


def _trust_for(
    held: NamespaceState | None, state: NamespaceState, mesh: NamespaceState | None, suite: Suite, pins: Pins
) -> _Trust:
    """A tenant is judged by the mesh and its own signers; the mesh by what is held of it, at first by its genesis."""
    if state.head.entry.namespace == MESH_NAMESPACE:
        return _mesh_trust(held, state, suite, pins)
    assert mesh is not None
    signers = get(state.rows if held is None else held.rows, "signers", SignersRow)
    return _Trust(mesh.rows, signers, suite, pins)


def _mesh_trust(held: NamespaceState | None, state: NamespaceState, suite: Suite, pins: Pins) -> _Trust:
    for item in state.support:
        if item.signed.entry.kind in ("mesh.genesis", ROTATE_TRUST):
            check_signed(item.signed)
    sets = succession.sets_of(state, suite, pins)
    if held is None:
        return _Trust(succession.founding_rows(succession.genesis_of(state, suite, pins)), None, suite, pins, sets)
    succession.check_follows(sets, held.rows)
    mine = held.head.entry
    after = mine.seq if mine.epoch == state.head.entry.epoch else 0
    return _Trust(held.rows, None, suite, pins, sets, mine, after)


def _check_rotations(held: NamespaceState, state: NamespaceState, proofs: Proofs, trusted: _Trust) -> None:
    """A majority of the voters, as they sat before it, saw every rotation since ``held``; or the officers whom the
    holder knows have opened a later epoch on it.  Last, as a lift is.  Raises."""
    root = get(held.rows, "root", RootRow)
    is_new_epoch = state.head.entry.epoch > held.head.entry.epoch
    changes = sorted(proofs.newer(CHANGE_VOTERS), key=lambda item: order_of(item.signed.entry))
    for one in trusted.sets:
        if one.entry is None or root is None or one.root.version <= root.version:
            continue
        seats = [args_of(item, ChangeVoters) for item in changes if order_of(item.signed.entry) < one.since]
        rows = succession.commit_rows(held.rows, state.rows, seats)
        proof = next((s.countersignatures for s in state.support if s.signed.hash == one.entry.hash), ())
        if commit.is_committed(one.entry, proof, rows, trusted.suite):
            continue
        if not is_new_epoch:
            raise Refused(UNPROVEN_LIFT, f"no committed rotation to trust set {one.root.version}", field="root")
        if not any(_is_opened_by(held.rows, item, trusted) for item in proofs.of(OPEN_EPOCH)):
            raise _not_open(state.head.entry)


def _is_opened_by(rows: Rows, item: Supported, trusted: _Trust) -> bool:
    try:
        trust.verify_entry(item.signed, rows, None, trusted.suite, pins=trusted.pins)
    except KeymeshError:
        return False
    opened = strict_json.convert(item.signed.entry.body.args, OpenEpoch).epoch
    return trusted.held is not None and opened == item.signed.entry.epoch > trusted.held.epoch


def _verify_head(head: SignedEntry, trusted: _Trust) -> None:
    trust.verify_entry(head, trusted.rows_at(head.entry), trusted.signers, trusted.suite, pins=trusted.pins)


def _proofs(state: NamespaceState, trusted: _Trust) -> Proofs:
    """The head may be its own proof; every other comes from the support."""
    items = succession.of_one_founder(state.support)
    if state.head.hash not in [s.signed.hash for s in items]:
        items = (*items, Supported(state.head))
    return Proofs(
        items,
        verify=partial(_verify_support, head=state.head.entry, trusted=trusted),
        committed=lambda item: commit.is_committed(
            item.signed, item.countersignatures, trusted.mesh_rows, trusted.suite
        ),
        after=trusted.after,
    )


def _verify_support(item: Supported, *, head: Entry, trusted: _Trust) -> None:
    """An entry of the same chain, at or before the head, signed by all who had to.  Raises."""
    check_signed(item.signed)
    entry = item.signed.entry
    if (entry.mesh, entry.namespace) != (head.mesh, head.namespace) or entry.epoch > head.epoch or entry.seq > head.seq:
        raise Integrity("foreign-support", "a proof of another chain", field="support")
    if entry.kind in ("mesh.genesis", "tenant.create") and (entry.seq != 1 or entry.prev != ZERO_DIGEST):
        raise Integrity("foreign-support", "a namespace is founded by its first entry", field="support")
    _verify_head(item.signed, trusted)


# --- 6. order --------------------------------------------------------------------------------------------------------


def _order(held: NamespaceState | None, state: NamespaceState, *, force: bool) -> Stale | Fork | None:
    """None where ``state`` is newer (or asked for again, by force)."""
    if held is None:
        return None
    mine, other = held.head, state.head
    if other.hash == mine.hash:
        return None if force else Stale()
    if is_fork(mine, other):
        return Fork(held, state)
    return Stale() if (other.entry.epoch, other.entry.seq) < (mine.entry.epoch, mine.entry.seq) else None


def is_fork(mine: SignedEntry, other: SignedEntry) -> bool:
    """Whether two different entries can't both be of one history: the same place, or neighbours that do not chain."""
    a, b = mine.entry, other.entry
    if a.epoch != b.epoch:
        return False
    if a.seq == b.seq:
        return True
    return (b.seq == a.seq + 1 and b.prev != mine.hash) or (a.seq == b.seq + 1 and a.prev != other.hash)


# --- refusals --------------------------------------------------------------------------------------------------------


def _refusal(refusal: KeymeshError, state: NamespaceState) -> RefusedTask:
    in_force: tuple[tuple[str, RestrictionRow], ...] = ()
    if refusal.code == UNPROVEN_LIFT:
        in_force = tuple(transition.restrictions_in(state.rows).items())
    return RefusedTask(refusal.code, refusal.message, refusal.code == "unknown-kind", in_force)
