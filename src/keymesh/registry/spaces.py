"""Namespaces as the log has them: entries applied, what each region is offered, what a task carries.

**The offered head, and a resume that is not yet committed.**  A resume may be applied by a node, and shown by a lease,
only once a majority of voters has countersigned it; otherwise a superseded Registry, cut off from its voters, could
lift a restriction that the mesh's real authority holds up.  The rules here, which only work together:

1. *Offered* is the newest entry with no uncommitted resume at or before it.  Heads trees, and so leases, show offered
   leaves only: no lease ever rests on an uncommitted resume.
2. Voters are asked for one entry of a namespace at a time, oldest first.  So a restriction that stands behind an
   uncommitted resume is itself uncommitted, and offering less than it breaks no promise: every lease still shows all
   that was committed before its read (I12).  When the resume commits the restriction is asked for at once.
3. A restriction goes out in Lane 0 the moment it is in the log, with the state after it, wherever the offered head is.
   If that state also lifts something unproven, the holder takes its restrictions (and all the old ones), keeps the
   leaf that it had, and answers ``refused``/``unproven-lift``.  That answer settles nothing here: the task is repeated
   every second, is never parked for it, and carries the proof as soon as there is one.  So Lane 0 waits for no resume.
4. Grants behind an uncommitted resume, and the resume itself, become tasks when the offered head passes them.
5. Proofs are put into a state when it is *sent*, not when it was made: a state queued before a commit goes out with it.
6. A Registry without a majority of its voters (superseded, or cut off) commits nothing: its resumes stay unproven and
   lift nothing anywhere; its restrictions still act, which is safe; its leases start at its last majority poll.

A mesh-wide or regional resume that is uncommitted can also hold up *tenants'* tasks, since later tenant entries rest on
the mesh head that contains it.  Their restrictions are sent at once all the same, with the newest mesh state; a holder
verifies them by its delegations.  Leases can't renew without a voter majority, so nothing is given away by waiting.
"""

from __future__ import annotations

from keymesh.control import reduce, trust
from keymesh.control.entry import Leaf, SignedEntry, leaf_of
from keymesh.control.kinds import KINDS, Effect
from keymesh.control.rows import (
    NodeRow,
    PolicyRow,
    RestrictionRow,
    Rows,
    SettingsRow,
    SignersRow,
    VotersRow,
    get,
)
from keymesh.control.state import RESUME as RESUME
from keymesh.control.state import NamespaceState, Supported, support_after
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
    """The scope of a suspend, revoke or resume; empty for other kinds."""
    return str(signed.entry.body.args.get("scope", ""))


def needs_commit(signed: SignedEntry) -> bool:
    return KINDS[signed.entry.kind].needs_commit


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
    verify_signatures(state, signed)
    rows = reduce.apply(space.rows, signed.entry)
    if rows_root(rows) != signed.entry.state:
        raise Integrity("state-mismatch", f"{space.name}: entry {signed.entry.seq} attests another state")
    return rows


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
    if needs_commit(signed):
        space.uncommitted.append(entry.seq)
        if entry.kind == RESUME:
            space.resumes.append(entry.seq)
    if entry.namespace == MESH_NAMESPACE:
        _take_mesh_rows(state, rows)
    else:
        space.policy = get(rows, "policy", PolicyRow)
        space.signers = get(rows, "signers", SignersRow)
    return space


def _take_mesh_rows(state: RegistryState, rows: dict[str, bytes]) -> None:
    state.settings = get(rows, "settings", SettingsRow)
    state.voters = get(rows, "voters", VotersRow)
    for name in rows:
        if name.startswith("region/"):
            _add_region(state, name.removeprefix("region/"))
    for name in rows:
        if name.startswith("node/"):
            _add_node(state, name.removeprefix("node/"), rows)


def _add_region(state: RegistryState, region: str) -> None:
    if region in state.regions:
        return
    shown = state.regions[region] = RegionHeads()
    for name, space in sorted(state.spaces.items()):
        if space.offered and may_hold(space, region):
            shown.put(name, offered_leaf(space))


def _add_node(state: RegistryState, name: str, rows: dict[str, bytes]) -> None:
    region, _, node = name.partition("/")
    address = node_address(region, node)
    row = get(rows, f"node/{name}", NodeRow)
    assert row is not None
    keys = {key_id(bytes.fromhex(row.signing_key)): row.signing_key}
    session = state.sessions.get(address)
    if session is None:
        session = state.sessions[address] = Session(address=address, region=region, node=node, keys=keys)
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
    return [s for _, s in sorted(state.sessions.items()) if may_hold(space, s.region)]


def offered_seq(space: Space) -> int:
    """The newest entry with no uncommitted resume at or before it."""
    return space.resumes[0] - 1 if space.resumes else space.seq


def offered_leaf(space: Space) -> Leaf:
    return leaf_of(space.entries[space.offered - 1])


def move_offered(state: RegistryState, space: Space) -> tuple[int, int]:
    """Bring the offered head forward; (from, to) as seqs, equal where it stays."""
    before, after = space.offered, offered_seq(space)
    space.offered = after
    if after > before:
        leaf = offered_leaf(space)
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
    return [a for a, s in sorted(state.sessions.items()) if s.region in state.voters.regions]
