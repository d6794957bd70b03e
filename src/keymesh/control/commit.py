"""When an entry is committed: durable in the log, and countersigned by a majority of the voters in force.

Decides what counts as a proof.  Collecting it is the Registry's; signing the voter's.  Source: DESIGN section 2.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from keymesh.control.blind import blind
from keymesh.control.entry import Entry, SignedEntry
from keymesh.control.kinds import KINDS, Effect
from keymesh.control.messages import Countersignature, CountersignRequest, Sealed
from keymesh.control.rows import NodeRow, Rows, SettingsRow, VotersRow, decode_as, get, shape_of
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


def countersign_request(signed: SignedEntry, mesh_rows: Rows) -> CountersignRequest:
    """What voters are asked for ``signed``.  Needs voters and settings in ``mesh_rows``."""
    voters, settings = voters_of(mesh_rows), get(mesh_rows, "settings", SettingsRow)
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
    """Voter regions in force whose nodes signed exactly this entry; each counts once, what fails counts for nothing."""
    voters = voters_of(mesh_rows)
    if voters is None or get(mesh_rows, "settings", SettingsRow) is None:
        return frozenset()
    asked = countersign_request(signed, mesh_rows)
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
    return vote == vote_for(asked, region)


def vote_for(asked: CountersignRequest, region: str) -> Countersignature:
    """The countersignature of ``region`` that answers ``asked``, unsealed."""
    return Countersignature(
        mesh=asked.mesh,
        epoch=asked.epoch,
        set_id=asked.set_id,
        voter=region,
        blind=asked.blind,
        seq=asked.seq,
        entry_hash=asked.entry_hash,
        restriction=asked.restriction,
    )


def is_committed(signed: SignedEntry, countersignatures: tuple[Sealed, ...], mesh_rows: Rows, suite: Suite) -> bool:
    """Whether the proof suffices: true without one in a mesh of fewer than three voters."""
    if not needs_proof(mesh_rows):
        return True
    voters = voters_of(mesh_rows)
    assert voters is not None
    need = majority(len(set(voters.regions)))
    return len(countersigned_by(signed, countersignatures, mesh_rows, suite)) >= need
