"""Namespaces as the log has them: entries applied, what each region is offered, what a task carries.

**The offered head, and a resume that is not yet committed.**  A resume may be applied by a node, and shown by a lease,
only once a majority of voters has countersigned it; otherwise a superseded Registry, cut off from its voters, could
lift a restriction that the mesh's real authority holds up.  The rules here, which only work together:

1. *Offered* is the newest entry with no uncommitted resume at or before it.  Heads trees, and so leases, *show* the
   offered leaf; or, where a restriction stands behind an uncommitted resume, that of the newest one: another replica
   may know the resume's commit and the restriction's, and every lease shows all that was committed before its read
   (I12).  No node can apply such a leaf before it has the resume's proof: it gets no lease rather than a stale one.
2. Voters are asked for one entry of a namespace at a time, oldest first.  When a resume commits, a restriction behind
   it is asked for at once.
3. A restriction goes out in Lane 0 the moment it is in the log, with the state after it, wherever the offered head is.
   If that state also lifts something unproven, the holder takes its restrictions (and all the old ones), keeps the
   leaf that it had, and answers ``refused``/``unproven-lift``.  That answer settles nothing here: the task is repeated
   every second, is never parked for it, and carries the proof as soon as there is one.  So Lane 0 waits for no resume.
4. Grants behind an uncommitted resume, and the resume itself, become tasks when the offered head passes them.
5. Proofs are put into a state when it is *sent*, not when it was made: a state queued before a commit goes out with it.
6. A Registry without a majority of its voters (superseded, or cut off) commits nothing: its resumes stay unproven and
   lift nothing anywhere; its restrictions still act, which is safe; its leases start at its last majority poll.

A resume of a region or the mesh, or a rotation of keys, that is uncommitted can also hold up *tenants'* tasks, since
later tenant entries rest on the mesh head that contains it.  Their restrictions are sent at once all the same, with
the newest mesh state; a holder verifies them by its delegations.  Leases can't renew without a voter majority, so
nothing is given away by waiting.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from keymesh.control import reduce, trust
from keymesh.control.entry import Leaf, SignedEntry, leaf_of
from keymesh.control.kinds import ADOPT_TAIL, KINDS, OPEN_EPOCH, Effect
from keymesh.control.rows import (
    NodeRow,
    RestrictionRow,
    Rows,
    SettingsRow,
    SignersRow,
    VotersRow,
    get,
    policy_in,
)
from keymesh.control.state import AWAITED, NamespaceState, Supported, support_after
from keymesh.control.state import LIFTS as LIFTS
from keymesh.control.view import rows_root
from keymesh.crypto.dsse import key_id
from keymesh.model.errors import Integrity
from keymesh.model.ids import MESH_NAMESPACE, ZERO_DIGEST, Namespace
from keymesh.model.machine import Address, node_address
from keymesh.model.states import Lane
from keymesh.model.time import Instant
from keymesh.orbital.dispatch import Parked
from keymesh.registry.state import RegionHeads, RegistryConfig, RegistryState, Session, Space, Version

VERSIONS_KEPT = 512
WHOLE: Final = "*"
"""In place of a scope: a Lane 0 task that is about the namespace as a whole."""


def space_of(state: RegistryState, namespace: str) -> Space:
    """The namespace, empty where the log has nothing of it."""
    return state.spaces[namespace] if namespace in state.spaces else Space(Namespace(namespace))


def pins_of(config: RegistryConfig) -> trust.Pins:
    return trust.Pins(mesh=config.mesh, root_keys=config.root_keys, threshold=config.root_threshold)


def mesh_space(state: RegistryState) -> Space:
    return space_of(state, MESH_NAMESPACE)


def kind_lane(signed: SignedEntry) -> Lane:
    return KINDS[signed.entry.kind].lane


def is_restriction(signed: SignedEntry) -> bool:
    return KINDS[signed.entry.kind].effect is Effect.RESTRICTION


def scope_name(signed: SignedEntry) -> str:
    """The scope of a suspend, revoke or resume; of an adopted tail all of them; empty for other kinds."""
    if signed.entry.kind == ADOPT_TAIL:
        return WHOLE
    return str(signed.entry.body.args.get("scope", ""))


def needs_commit(signed: SignedEntry) -> bool:
    """An adoption that restricts nothing is none for voters to remember: a restore gives one to every namespace."""
    entry = signed.entry
    restricts_nothing = entry.kind == ADOPT_TAIL and not entry.body.args.get("restrictions")
    return KINDS[entry.kind].needs_commit and not restricts_nothing


def check_next(space: Space, signed: SignedEntry) -> None:
    """``signed`` continues the chain.  Raises Integrity."""
    head = space.head
    prev = head.hash if head is not None else ZERO_DIGEST
    if signed.entry.seq != space.seq + 1 or signed.entry.prev != prev:
        raise Integrity("chain", f"{space.name}: entry {signed.entry.seq} does not follow {space.seq}")


def check_entry(state: RegistryState, signed: SignedEntry) -> dict[str, bytes]:
    """The rows after an entry read from the log.  Raises Integrity where it is not what its signers made.

    1. It is of this mesh and continues its namespace's chain.  2. Its signatures verify.  3. Its rows have the root
    that it attests.
    """
    space = space_of(state, signed.entry.namespace)
    if signed.entry.mesh != state.config.mesh:
        raise Integrity("foreign-mesh", f"an entry of mesh {signed.entry.mesh!r}")
    check_next(space, signed)
    check_epoch(state.epoch, signed)
    verify_signatures(state, signed)
    rows = reduce.apply(space.rows, signed.entry)
    if rows_root(rows) != signed.entry.state:
        raise Integrity("state-mismatch", f"{space.name}: entry {signed.entry.seq} attests another state")
    return rows


def check_epoch(current: int, signed: SignedEntry) -> None:
    """``signed`` is of the epoch that is open, or opens a later one.  Raises Integrity."""
    entry = signed.entry
    opens = entry.kind == OPEN_EPOCH and entry.body.args.get("epoch") == entry.epoch > current
    if not opens and (entry.epoch != current or entry.kind == OPEN_EPOCH):
        raise Integrity("other-epoch", f"{entry.namespace}:{entry.seq} is of an epoch that is not open", field="epoch")


def verify_signatures(state: RegistryState, signed: SignedEntry) -> None:
    """By the delegations at the mesh head, or by the pinned root for the first entry.  Raises."""
    config = state.config
    signers = space_of(state, signed.entry.namespace).signers
    trust.verify_entry(signed, mesh_space(state).rows, signers, config.suite, pins=pins_of(config))


def apply_entry(state: RegistryState, signed: SignedEntry, rows: dict[str, bytes]) -> Space:
    """Take an entry that is in the log, with the rows after it."""
    entry = signed.entry
    space = state.spaces.setdefault(entry.namespace, space_of(state, entry.namespace))
    space.support = support_after(space.support, signed)
    space.entries.append(signed)
    space.rows = rows
    space.versions[entry.seq] = Version(rows, space.support)
    space.versions.pop(entry.seq - VERSIONS_KEPT, None)
    if is_restriction(signed):
        space.restricted = entry.seq
    if entry.kind == ADOPT_TAIL:
        _forget_uncommitted(state, space, entry.epoch)
    if needs_commit(signed):
        space.uncommitted.append(entry.seq)
        if entry.kind in AWAITED:
            space.resumes.append(entry.seq)
    if entry.namespace == MESH_NAMESPACE:
        _take_mesh_rows(state, rows)
    else:
        space.policy = policy_in(rows)
        space.signers = get(rows, "signers", SignersRow)
    return space


def _forget_uncommitted(state: RegistryState, space: Space, epoch: int) -> None:
    """No voter countersigns what is older than its epoch.  The state of an epoch's first entry stands for all of it:
    what was restricted is in it, and no resume that nobody saw committed is."""
    older = [seq for seq in space.uncommitted if space.entries[seq - 1].entry.epoch < epoch]
    if older:
        space.uncommitted = deque(seq for seq in space.uncommitted if seq not in older)
        space.resumes = deque(seq for seq in space.resumes if seq not in older)
        state.countersigning.pop(space.name, None)


def _take_mesh_rows(state: RegistryState, rows: dict[str, bytes]) -> None:
    state.settings = get(rows, "settings", SettingsRow)
    voters = get(rows, "voters", VotersRow)
    if state.voters is not None and voters != state.voters:
        _forget_voices(state)
    state.voters = voters
    for name in rows:
        if name.startswith("region/"):
            _add_region(state, name.removeprefix("region/"))
    for name in rows:
        if name.startswith("node/"):
            _add_node(state, name.removeprefix("node/"), rows)


def _forget_voices(state: RegistryState) -> None:
    """Another set: what voters of the old one said adds up to nothing, but for proofs that are being recorded."""
    state.polls.clear()
    for asking in state.countersigning.values():
        if not asking.persisting:
            asking.voices.clear()
            asking.asked_at = None


def _add_region(state: RegistryState, region: str) -> None:
    if region in state.regions:
        return
    shown = state.regions[region] = RegionHeads()
    for name, space in sorted(state.spaces.items()):
        if space.shown and may_hold(space, region):
            shown.put(name, shown_leaf(space))


def add_session(state: RegistryState, session: Session) -> Session:
    """A node from now on."""
    state.sessions[session.address] = session
    state.nodes_of.setdefault(session.region, []).append(session)
    return session


def _add_node(state: RegistryState, name: str, rows: dict[str, bytes]) -> None:
    region, _, node = name.partition("/")
    address = node_address(region, node)
    row = get(rows, f"node/{name}", NodeRow)
    assert row is not None
    keys = {key_id(bytes.fromhex(row.signing_key)): row.signing_key}
    session = state.sessions.get(address)
    if session is None:
        session = add_session(state, Session(address=address, region=region, node=node, keys=keys))
        for record in state.parked_records:
            if record.node == address:
                parked = Parked(Namespace(record.namespace), record.seq, record.reason, Instant(record.at))
                session.queue.parked[parked.namespace] = parked
                session.parked.add(parked.namespace)
    else:
        session.keys = keys


# --- what regions may hold and are offered ---------------------------------------------------------------------------


def may_hold(space: Space, region: str) -> bool:
    """Residency: ``mesh`` goes everywhere, a tenant to its own regions alone."""
    return space.name == MESH_NAMESPACE or (space.policy is not None and region in space.policy.regions)


def sessions_of(state: RegistryState, space: Space) -> list[Session]:
    """Nodes that may hold ``space``, in order of their addresses."""
    found = [s for s in state.sessions.values() if may_hold(space, s.region)]
    return sorted(found, key=lambda session: session.address)


def offered_seq(space: Space) -> int:
    """The newest entry with no uncommitted resume at or before it."""
    return space.resumes[0] - 1 if space.resumes else space.seq


def shown_seq(space: Space) -> int:
    """The offered head, or the newest restriction where that stands behind an uncommitted resume."""
    return max(offered_seq(space), space.restricted)


def shown_leaf(space: Space) -> Leaf:
    return leaf_of(space.entries[space.shown - 1])


def move_offered(state: RegistryState, space: Space) -> tuple[int, int]:
    """Bring the offered head, and what heads trees show, forward; (from, to) as seqs, equal where it stays."""
    before, after = space.offered, offered_seq(space)
    space.offered = after
    shown_before, space.shown = space.shown, shown_seq(space)
    if space.shown > shown_before:
        leaf = shown_leaf(space)
        for region, shown in state.regions.items():
            if may_hold(space, region):
                shown.put(space.name, leaf)
    return before, after


# --- what a task carries ---------------------------------------------------------------------------------------------


def state_at(space: Space, seq: int) -> NamespaceState:
    """The namespace after entry ``seq``, with every commit proof that there is by now.

    An entry whose rows are no longer kept gives the newest offered state instead (or the newest of all where nothing
    kept is offered): it contains it.
    """
    if seq not in space.versions:
        seq = space.offered if space.offered in space.versions else space.seq
    version = space.versions[seq]
    if version.shown is None or version.proofs != len(space.commits):  # proofs only come, none goes or changes
        support = tuple([Supported(s.signed, proof(space, s.signed.entry.seq)) for s in version.support])
        version.shown = NamespaceState(head=space.entries[seq - 1], rows=version.rows, support=support)
        version.proofs = len(space.commits)
    return version.shown


def rows_at(space: Space, seq: int) -> Rows:
    """The rows after entry ``seq``, made again from the entries where they are no longer kept."""
    version = space.versions.get(seq)
    if version is not None:
        return version.rows
    rows: dict[str, bytes] = {}
    for signed in space.entries[:seq]:
        rows = reduce.apply(rows, signed.entry)
    return rows


def proof(space: Space, seq: int) -> tuple[object, ...]:
    commit = space.commits.get(seq)
    return () if commit is None else commit.countersignatures


def restricted_scopes(rows: dict[str, bytes]) -> frozenset[str]:
    """Scopes that ``rows`` restrict."""
    out = []
    for name in rows:
        if name.startswith("restriction/"):
            row = get(rows, name, RestrictionRow)
            if row is not None and row.state != "none":
                out.append(name.removeprefix("restriction/"))
    return frozenset(out)


def voter_nodes(state: RegistryState) -> list[Address]:
    """Nodes of the voter regions, in order."""
    if state.voters is None:
        return []
    return sorted(a for a, s in state.sessions.items() if s.region in state.voters.regions)
