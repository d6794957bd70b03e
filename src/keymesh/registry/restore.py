"""The base of a new epoch: a log grown again, with everything that must not be lost beside it (DESIGN section 3).

1. A majority of the voters has stored the epoch, and said then what they had countersigned (``stored_by``).
2. The log is grown from backup and regions (``regrow``).
3. The entry that opens the epoch, with the recovery officers' word; then, for every namespace, one that adopts what
validly signed tails beside its chain restrict, and their key versions, deactivated.
4. A resume of which nobody has the voters' proof ends nothing; a restriction that a voter has countersigned and whose
entry nobody has, or nobody all that came before it (``unseen``), closes its tenant.

The union is over what voters said when they stored the epoch, never over what was read before.  Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from keymesh.control import commit, trust
from keymesh.control.blind import blind
from keymesh.control.destruction import DESTROY_KIND
from keymesh.control.entry import SignedEntry
from keymesh.control.kinds import ADOPT_TAIL, OPEN_EPOCH, AdoptedRestriction, AdoptTail
from keymesh.control.messages import EpochOffer, EpochStored, Sealed, StoredHead
from keymesh.control.rows import (
    KeyRow,
    RestrictionRow,
    RootRow,
    Rows,
    SettingsRow,
    SignersRow,
    VotersRow,
    get,
    parts_of,
    shape_of,
)
from keymesh.control.signing import Suite
from keymesh.control.state import AWAITED, NamespaceState
from keymesh.model.errors import KeymeshError, Refused, Unavailable
from keymesh.model.ids import MESH_NAMESPACE, Digest
from keymesh.model.limits import COMMIT_MAX_ENTRIES
from keymesh.model.time import Instant
from keymesh.registry import commands, regrow, tails, unseen
from keymesh.registry.events import Command
from keymesh.registry.records import CommitRecord
from keymesh.registry.regrow import Chain, Refusal, Regrown

ACTOR: Final = "restore"


@dataclass(frozen=True, slots=True)
class Handed:
    """What one region holds: states as applied, and entries that it recorded."""

    region: str
    states: tuple[NamespaceState, ...] = ()
    entries: tuple[SignedEntry, ...] = ()


@dataclass(slots=True)
class Adoption:
    """What one namespace takes from beside its chain.  ``entries``: the verified ones whose restrictions are in it, or
    in the chain."""

    restrictions: dict[str, AdoptedRestriction] = field(default_factory=dict)
    keys: dict[str, KeyRow] = field(default_factory=dict)
    entries: set[Digest] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Base:
    """What the new log holds, commit by commit, the proofs of its resumes, and where it all came from."""

    epoch: int
    commits: tuple[tuple[SignedEntry, ...], ...]
    proofs: tuple[CommitRecord, ...]
    from_backup: dict[str, int]
    from_regions: dict[str, dict[str, int]]
    refused: tuple[Refusal, ...]


# --- 1. the voters' word ---------------------------------------------------------------------------------------------


def stored_by(offer: EpochOffer, words: Iterable[Sealed], mesh_rows: Rows, suite: Suite) -> dict[str, EpochStored]:
    """``region/node`` -> its word on exactly this epoch; what fails counts for nothing."""
    voters = commit.voters_of(mesh_rows)
    found: dict[str, EpochStored] = {}
    for sealed in words:
        for region in () if voters is None else sorted(set(voters.regions)):
            try:
                word = suite.unseal(sealed, EpochStored, commit.node_keys(mesh_rows, region))
            except KeymeshError:
                continue
            said = (word.mesh, word.epoch, word.command_id, word.voter)
            name = f"{word.voter}/{word.node}"
            if said == (offer.mesh, offer.epoch, offer.command_id, region) and f"node/{name}" in mesh_rows:
                found[name] = word
    return found


def check_majority(found: Iterable[str], mesh_rows: Rows) -> None:
    """Raises Unavailable where fewer than a majority of the voters have stored the epoch."""
    voters = commit.voters_of(mesh_rows)
    n_voters = 0 if voters is None else len(set(voters.regions))
    storing = commit.speaking_regions(found, mesh_rows)
    if n_voters and len(storing) < commit.majority(n_voters):
        names = ", ".join(storing) or "none"
        raise Unavailable("no-voter-majority", f"of {n_voters} voter regions these have stored the epoch: {names}")


# --- 2 to 4 ----------------------------------------------------------------------------------------------------------


def plan_base(
    log: Regrown,
    *,
    offer: EpochOffer,
    words: Sequence[Sealed],
    handed: Sequence[Handed],
    now: Instant,
) -> Base:
    """The log of epoch ``offer.epoch``.  ``log`` holds the backup, and grows.

    ``words``: what voters answered to ``offer``.  ``handed`` must have been read after that.  Raises Unavailable where
    they are no majority; Refused where the epoch is not above every other, the officers' word does not suffice, or a
    region's root and officers, or its voters, are later than those that can be shown.
    """
    before = {"index": len(log.commits), "entries": sum(map(len, log.commits)), "namespaces": len(log.chains)}
    pool = [(h.region, signed) for h in handed for signed in _entries_of(h)]
    regrow.grow(log, pool)
    if offer.epoch <= log.epoch:
        raise Refused("old-epoch", f"epoch {log.epoch} has been opened already", field="epoch")
    stored = stored_by(offer, words, log.mesh.rows, log.suite)
    check_majority(stored, log.mesh.rows)
    gains = {h.region: {"entries": log.taken.get(h.region, 0), "restrictions": 0, "keys": 0} for h in handed}
    adopted = {name: Adoption() for name in log.chains}
    states = _tails(log, handed, offer.epoch)
    _check_sets(log, states)
    for region, state in states:
        _adopt_state(log, region, state, adopted, gains)
    _adopt_entries(log, adopted, gains)
    proofs = _proofs(log, handed)
    _keep_unproven(log, proofs, adopted)
    heads = [(word.voter, head) for word in stored.values() for head in word.heads]
    _close_unseen(log, heads, [state for _, state in states], adopted, offer.epoch)
    _append(log, offer, adopted, now)
    return Base(
        offer.epoch, tuple(log.commits), _records(log, proofs, now), before, gains, tuple(dict.fromkeys(log.refused))
    )


def _entries_of(handed: Handed) -> Iterable[SignedEntry]:
    yield from handed.entries
    for state in handed.states:
        yield state.head
        yield from (item.signed for item in state.support)


def _tails(log: Regrown, handed: Sequence[Handed], epoch: int) -> list[tuple[str, NamespaceState]]:
    """States whose head no chain has, validly signed, each once."""
    found: dict[Digest, tuple[str, NamespaceState]] = {}
    for one in handed:
        for state in one.states:
            entry = state.head.entry
            if state.head.hash in log.chain(entry.namespace).hashes or state.head.hash in found:
                continue
            try:
                tails.verify(state, log.mesh.rows, mesh=log.pins.mesh, epoch=epoch, suite=log.suite)
            except KeymeshError as bad:
                log.refused.append(Refusal(one.region, entry.namespace, f"state {entry.epoch}:{entry.seq}", bad.code))
                continue
            found[state.head.hash] = (one.region, state)
    return list(found.values())


def _check_sets(log: Regrown, states: Iterable[tuple[str, NamespaceState]]) -> None:
    """No region judges by a later trust set or voter set than the log will: keys that were rotated away would be back
    in force, and voters who were replaced may have missed what was committed.  Raises Refused ``<kind>-behind``."""
    mine = _sets(log.mesh.rows)
    for region, state in states:
        theirs = _sets(state.rows) if state.head.entry.namespace == MESH_NAMESPACE else {}
        for kind, number in theirs.items():
            if number > mine[kind]:
                raise Refused(
                    f"{kind}-behind",
                    f"{region} has {kind} set {number}, and nobody has all entries up to it: the log ends at set "
                    f"{mine[kind]}; take a newer backup",
                    field="from",
                )


def _sets(mesh_rows: Rows) -> dict[str, int]:
    root, voters = get(mesh_rows, "root", RootRow), get(mesh_rows, "voters", VotersRow)
    return {"trust": 0 if root is None else root.version, "voters": 0 if voters is None else voters.set_id}


def _adopt_state(
    log: Regrown, region: str, state: NamespaceState, adopted: dict[str, Adoption], gains: dict[str, dict[str, int]]
) -> None:
    """Its restrictions and key versions; all else in it is dropped, and said."""
    entry = state.head.entry
    taking, what = adopted.get(entry.namespace), f"state {entry.epoch}:{entry.seq}"
    if taking is None:
        log.refused.append(Refusal(region, entry.namespace, what, "no-founding-entry"))
        return
    _adopt(log, region, entry.namespace, tails.of_state(state.rows), taking, gains[region])
    log.refused.append(Refusal(region, entry.namespace, what, "grants-of-a-tail"))


def _adopt(
    log: Regrown, region: str, namespace: str, tail: AdoptTail, taking: Adoption, gained: dict[str, int]
) -> None:
    """What the chain lacks of ``tail``."""
    chain = log.chain(namespace)
    for scope, restriction in tails.missing_restrictions(tail, chain.rows, chain.commands).items():
        gained["restrictions"] += _add(taking, scope, restriction)
    keys, other = tails.missing_keys(tail, chain.rows)
    for name, row in keys.items():
        if name not in taking.keys:
            taking.keys[name] = row
            gained["keys"] += 1
        elif taking.keys[name].kid != row.kid:
            other.append(name)
    log.refused += [Refusal(region, namespace, name, "version-taken") for name in other]


def _add(taking: Adoption, scope: str, restriction: AdoptedRestriction) -> bool:
    held = taking.restrictions.get(scope)
    if held is not None and (held.state == "revoked" or restriction.state != "revoked"):
        return False
    taking.restrictions[scope] = restriction
    return True


def _adopt_entries(log: Regrown, adopted: dict[str, Adoption], gains: dict[str, dict[str, int]]) -> None:
    """Restrictions of which only the entry is there, beside every chain; of an adoption its key versions too."""
    for region, signed in log.beside.values():
        entry, taking = signed.entry, adopted.get(signed.entry.namespace)
        if taking is None or not commit.is_restriction(entry):
            continue
        chain = log.chain(entry.namespace)
        try:
            trust.verify_entry(signed, log.mesh.rows, get(chain.rows, "signers", SignersRow), log.suite, pins=log.pins)
        except KeymeshError as bad:
            log.refused.append(Refusal(region, entry.namespace, f"entry {entry.epoch}:{entry.seq}", bad.code))
            continue
        _adopt(log, region, entry.namespace, tails.of_entry(entry), taking, gains[region])
        taking.entries.add(signed.hash)


# --- resumes that nobody can prove -----------------------------------------------------------------------------------


def _proofs(log: Regrown, handed: Sequence[Handed]) -> dict[Digest, tuple[Sealed, ...]]:
    """Resumes and rotations of the log, with the countersignatures by which a region holds them for committed."""
    found: dict[Digest, tuple[Sealed, ...]] = {}
    for one in handed:
        for state in one.states:
            for item in state.support:
                signed = item.signed
                in_log = signed.hash in log.chain(signed.entry.namespace).hashes
                if in_log and signed.entry.kind in AWAITED and signed.hash not in found and item.countersignatures:
                    if commit.is_committed(signed, item.countersignatures, log.mesh.rows, log.suite):
                        found[signed.hash] = item.countersignatures
    return found


def _keep_unproven(log: Regrown, proofs: Mapping[Digest, tuple[Sealed, ...]], adopted: Mapping[str, Adoption]) -> None:
    """A superseded Registry can append a resume that no voter ever saw: without its proof it ends nothing."""
    if not commit.needs_proof(log.mesh.rows):
        return
    for namespace, chain in log.chains.items():
        for name in sorted(n for n in chain.rows if shape_of(n) is RestrictionRow):
            row, scope = get(chain.rows, name, RestrictionRow), parts_of(name)[1]
            assert row is not None
            signed = chain.entries[row.seq - 1]
            if row.state == "none" and signed.hash not in proofs:
                made = AdoptedRestriction(state="suspended", command_id=_suspended_by(chain, scope))
                _add(adopted[namespace], scope, made)
                what = f"entry {signed.entry.epoch}:{row.seq} resume of {scope}"
                log.refused.append(Refusal(regrow.NOBODY, namespace, what, "unproven-resume"))


def _suspended_by(chain: Chain, scope: str) -> str:
    """The command that suspended ``scope`` last."""
    for signed in reversed(chain.entries):
        if signed.entry.kind in ("suspend", DESTROY_KIND) and signed.entry.body.args.get("scope") == scope:
            return signed.entry.command_id
    return chain.entries[-1].entry.command_id


def _records(log: Regrown, proofs: Mapping[Digest, tuple[Sealed, ...]], now: Instant) -> tuple[CommitRecord, ...]:
    return tuple(
        CommitRecord(
            namespace=namespace,
            seq=signed.entry.seq,
            entry_hash=signed.hash,
            countersignatures=proofs[signed.hash],
            committed_at=now,
        )
        for namespace, chain in sorted(log.chains.items())
        for signed in chain.entries
        if signed.hash in proofs
    )


# --- restrictions that nobody has ------------------------------------------------------------------------------------


def _close_unseen(
    log: Regrown,
    heads: Iterable[tuple[str, StoredHead]],
    states: Sequence[NamespaceState],
    adopted: Mapping[str, Adoption],
    epoch: int,
) -> None:
    """Every restriction that a voter has stored is in the log, or its tenant is suspended as a whole."""
    settings = get(log.mesh.rows, "settings", SettingsRow)
    names = {} if settings is None else {blind(settings.salt, name): name for name in log.chains}
    for voter, head in heads:
        namespace = names.get(head.blind)
        where = f"head {head.epoch}:{head.seq}"
        if namespace is None:
            log.refused.append(Refusal(voter, head.blind, where, "unknown-namespace"))
        elif (why := unseen.why(log, namespace, head, tails=states, adopted=adopted[namespace].entries)) is not None:
            scope = MESH_NAMESPACE if namespace == MESH_NAMESPACE else f"tenant:{namespace}"
            made = AdoptedRestriction(state="suspended", command_id=f"epoch-{epoch}-unseen-{head.entry_hash[:16]}")
            _add(adopted[namespace], scope, made)
            log.refused.append(Refusal(voter, namespace, where, why))


# --- 3. the entries of the new epoch ---------------------------------------------------------------------------------


def _append(log: Regrown, offer: EpochOffer, adopted: Mapping[str, Adoption], now: Instant) -> None:
    """The opening, then the mesh's adoptions, then every tenant's, in groups that a log takes."""
    args = {"epoch": offer.epoch}
    log.take(_planned(log, MESH_NAMESPACE, OPEN_EPOCH, args, offer.command_id, offer.epoch, now, offer.authority))
    group: list[SignedEntry] = []
    for namespace in sorted(adopted, key=lambda name: (name != MESH_NAMESPACE, name)):
        taking = adopted[namespace]
        restrictions = taking.restrictions or tails.in_force(log.chain(namespace).rows)
        for n, tail in enumerate(tails.adoptions(restrictions, taking.keys)):
            command_id = commands.internal_id("adopt", offer.command_id, n)
            plain = msgspec.to_builtins(tail)
            if namespace == MESH_NAMESPACE or n or len(group) == COMMIT_MAX_ENTRIES:
                _flush(log, group)
            group += _planned(log, namespace, ADOPT_TAIL, plain, command_id, offer.epoch, now)
            if namespace == MESH_NAMESPACE or n:
                _flush(log, group)
    _flush(log, group)


def _flush(log: Regrown, group: list[SignedEntry]) -> None:
    if group:
        log.take(group)
        group.clear()


def _planned(
    log: Regrown,
    namespace: str,
    kind: str,
    args: dict[str, Any],
    command_id: str,
    epoch: int,
    now: Instant,
    authority: tuple[dict[str, Any], ...] = (),
) -> list[SignedEntry]:
    chain = log.chain(namespace)
    command = Command(command_id, namespace, kind, args, ACTOR, command_id, authority)
    signed, _ = commands.plan_entry(
        command,
        head=chain.head,
        rows=chain.rows,
        mesh_head=log.mesh.head,
        mesh_rows=log.mesh.rows,
        signers=get(chain.rows, "signers", SignersRow),
        pins=log.pins,
        epoch=epoch,
        suite=log.suite,
        now=now,
    )
    return [signed]
