"""Grants that nodes stood by on, held against what their signers countersigned (DESIGN section 3, "Standby").

A node hands them in once the Registry answers it again.  A grant that leaves out what its signer had countersigned by
then is kept beside the countersignature, under both signatures, and people are told.  It changes nothing by itself: who
keeps a seat is for officers to say.
"""

from __future__ import annotations

from typing import Any

from keymesh.control import commit, standby
from keymesh.control.blind import blind
from keymesh.control.messages import Countersignature, Sealed, StandbyGrant, StandbyUsed
from keymesh.control.standby import StandbyLie, lie_name
from keymesh.model.errors import KeymeshError
from keymesh.model.machine import Address, Note, Persist
from keymesh.model.time import Instant
from keymesh.registry import spaces
from keymesh.registry.state import RegistryState, Space

GRANTS_MAX = 16


def on_used(state: RegistryState, now: Instant, sender: Address, used: StandbyUsed, out: list[Any]) -> None:
    """Judge each grant that an enrolled node hands in; one proof against a voter is enough."""
    if sender not in state.sessions or state.settings is None:
        return
    for sealed in used.grants[:GRANTS_MAX]:
        grant = _grant_of(state, sealed)
        if grant is None or grant.voter in state.lies:
            continue
        earlier = _left_out(state, grant)
        if earlier is not None:
            blind_, word = earlier
            lie = StandbyLie(voter=grant.voter, blind=blind_, grant=sealed, earlier=word)
            state.lies[grant.voter] = lie
            out.append(Note("standby-lie", "voters", (("voter", grant.voter), ("blind", blind_))))
            out.append(Persist(state.token("lie"), ((lie_name(grant.voter), lie),)))


def _grant_of(state: RegistryState, sealed: Sealed) -> StandbyGrant | None:
    """The grant, if a node of the region that it names sealed it; None for all else."""
    for address in spaces.voter_nodes(state):
        session = state.sessions[address]
        try:
            grant = state.config.suite.unseal(sealed, StandbyGrant, session.keys)
        except KeymeshError:
            continue
        return grant if grant.voter == session.region and grant.mesh == state.config.mesh else None
    return None


def _left_out(state: RegistryState, grant: StandbyGrant) -> tuple[str, Sealed] | None:
    """A namespace, and its signer's own word for a restriction of it, that ``grant`` should have shown."""
    assert state.settings is not None
    shown = {head.blind: (head.epoch, head.seq) for head in grant.heads}
    keys = commit.node_keys(spaces.mesh_space(state).rows, grant.voter)
    for name, space in sorted(state.spaces.items()):
        hidden = blind(state.settings.salt, name)
        for sealed in _proofs_above(space, shown.get(hidden, (0, 0))):
            try:
                word = state.config.suite.unseal(sealed, Countersignature, keys)
            except KeymeshError:
                continue
            if standby.omits(grant, word):
                return hidden, sealed
    return None


def _proofs_above(space: Space, order: tuple[int, int]) -> list[Sealed]:
    """Countersignatures of committed entries that come after ``order``."""
    return [
        sealed
        for seq, proof in sorted(space.commits.items())
        if (space.entries[seq - 1].entry.epoch, seq) > order
        for sealed in proof.countersignatures
    ]
