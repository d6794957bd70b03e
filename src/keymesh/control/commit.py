"""When an entry is committed: durable in the log, and countersigned by a majority of the voters in force.

Decides what counts as a proof.  Collecting it is the Registry's; signing the voter's.  Source: DESIGN section 2.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from keymesh.control.blind import blind
from keymesh.control.entry import Entry, SignedEntry
from keymesh.control.kinds import KINDS, Effect
from keymesh.control.messages import Countersignature, CountersignRequest, Sealed
from keymesh.control.rows import NodeRow, PastVotersRow, Rows, SettingsRow, VotersRow, decode_as, get, shape_of
from keymesh.control.signing import Suite
from keymesh.crypto.dsse import key_id
from keymesh.model.errors import KeymeshError
from keymesh.model.ids import KeyId

POLL_MIN_VOTERS: Final = 3
"""With fewer voters, committed means durable in the log, and the poll rule is void."""


def majority(n_voters: int) -> int:
    """How many of ``n_voters`` any two such groups of which share one."""
    return n_voters // 2 + 1


def voters_of(mesh_rows: Rows) -> VotersRow | None:
    return get(mesh_rows, "voters", VotersRow)


def needs_proof(mesh_rows: Rows) -> bool:
    """Whether the mesh has enough voters for a commit to mean more than the log."""
    voters = voters_of(mesh_rows)
    return voters is not None and len(voters.regions) >= POLL_MIN_VOTERS


def node_keys(mesh_rows: Rows, region: str) -> dict[KeyId, str]:
    """The signing keys of every node of ``region``: each may sign as its region's voter."""
    prefix = f"node/{region}/"
    nodes = [n for n in mesh_rows if shape_of(n) is NodeRow and n.startswith(prefix)]
    found = [decode_as(n, mesh_rows[n], NodeRow) for n in nodes]
    return {key_id(bytes.fromhex(row.signing_key)): row.signing_key for row in found}


def is_restriction(entry: Entry) -> bool:
    kind = KINDS.get(entry.kind)
    return kind is not None and kind.effect is Effect.RESTRICTION


def sets_for(entry: Entry, mesh_rows: Rows) -> Iterator[VotersRow]:
    """The sets whose majority commits ``entry``: the one in force, then earlier ones that it rests on, newest first.

    A set was sealed by its majority before the entry that replaced it was appended, so it can speak for no entry that
    rests on that one.
    """
    voters = voters_of(mesh_rows)
    if voters is None:
        return
    yield voters
    for set_id in range(voters.set_id - 1, 0, -1):
        past = get(mesh_rows, f"voters/{set_id}", PastVotersRow)
        if past is None or entry.mesh_seq >= past.until:
            return
        yield VotersRow(set_id=set_id, regions=past.regions)


def speaking_regions(found: Iterable[str], mesh_rows: Rows) -> list[str]:
    """Voter regions in force whose every enrolled node (``region/node``) is in ``found``: which of them stored what,
    nobody else can tell."""
    voters, have = voters_of(mesh_rows), set(found)
    nodes = [name.removeprefix("node/") for name in mesh_rows if name.startswith("node/")]
    regions = () if voters is None else set(voters.regions)
    mine = {r: [n for n in nodes if n.split("/")[0] == r] for r in regions}
    return sorted(r for r, names in mine.items() if names and have.issuperset(names))


def countersign_request(signed: SignedEntry, mesh_rows: Rows, voters: VotersRow | None = None) -> CountersignRequest:
    """What voters are asked for ``signed``, those in force where no set is named.  Needs settings in ``mesh_rows``."""
    voters, settings = voters or voters_of(mesh_rows), get(mesh_rows, "settings", SettingsRow)
    assert voters is not None
    assert settings is not None
    entry = signed.entry
    return CountersignRequest(
        mesh=entry.mesh,
        epoch=entry.epoch,
        set_id=voters.set_id,
        blind=blind(settings.salt, entry.namespace),
        seq=entry.seq,
        entry_hash=signed.hash,
        restriction=is_restriction(entry),
    )


def countersigned_by(
    signed: SignedEntry, countersignatures: Iterable[Sealed], mesh_rows: Rows, suite: Suite
) -> frozenset[str]:
    """Voter regions whose nodes signed exactly this entry under one set, that which suffices where one does; each
    counts once, what fails counts for nothing."""
    return _counted(signed, countersignatures, mesh_rows, suite)[0]


def _counted(
    signed: SignedEntry, countersignatures: Iterable[Sealed], mesh_rows: Rows, suite: Suite
) -> tuple[frozenset[str], bool]:
    """Who signed, and whether that suffices."""
    found: frozenset[str] = frozenset()
    if get(mesh_rows, "settings", SettingsRow) is None:
        return found, False
    for voters in sets_for(signed.entry, mesh_rows):
        signing = _signing(signed, countersignatures, mesh_rows, suite, voters)
        if is_majority(signing, voters):
            return signing, True
        found = found or signing
    return found, False


def is_majority(regions: Iterable[str], voters: VotersRow) -> bool:
    """Whether ``regions`` suffice of this set: any, where it has fewer than three."""
    seats = set(voters.regions)
    return len(seats) < POLL_MIN_VOTERS or len(seats & set(regions)) >= majority(len(seats))


def _signing(
    signed: SignedEntry, countersignatures: Iterable[Sealed], mesh_rows: Rows, suite: Suite, voters: VotersRow
) -> frozenset[str]:
    asked = countersign_request(signed, mesh_rows, voters)
    found = set()
    for region in sorted(set(voters.regions)):
        keys = node_keys(mesh_rows, region)
        if any(_is_vote(sealed, asked, region, keys, suite) for sealed in countersignatures):
            found.add(region)
    return frozenset(found)


def _is_vote(sealed: Sealed, asked: CountersignRequest, region: str, keys: dict[KeyId, str], suite: Suite) -> bool:
    try:
        vote = suite.unseal(sealed, Countersignature, keys)
    except KeymeshError:
        return False
    return vote == vote_for(asked, region, serial=vote.serial)


def vote_for(asked: CountersignRequest, region: str, *, serial: int = 0) -> Countersignature:
    """The countersignature of ``region`` that answers ``asked``, unsealed; the ``serial``-th thing that it stored."""
    return Countersignature(
        mesh=asked.mesh,
        epoch=asked.epoch,
        set_id=asked.set_id,
        voter=region,
        blind=asked.blind,
        seq=asked.seq,
        entry_hash=asked.entry_hash,
        restriction=asked.restriction,
        serial=serial,
    )


def is_committed(signed: SignedEntry, countersignatures: tuple[Sealed, ...], mesh_rows: Rows, suite: Suite) -> bool:
    """Whether the proof suffices: true without one in a mesh of fewer than three voters."""
    return not needs_proof(mesh_rows) or _counted(signed, countersignatures, mesh_rows, suite)[1]
