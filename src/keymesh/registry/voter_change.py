"""When the voter set may be changed: a majority of the old one has sealed it, and the log has all that they stored.

Until then no entry is appended, so the old set stays the one that counts; from then on no majority of it acts.  The new
voters take the union from the log: each reads it anew, after it has applied the entry, before it takes its seat.
Pure.  Source: DESIGN section 2, "Voters".
"""

from __future__ import annotations

from collections.abc import Iterable

from keymesh.control import commit
from keymesh.control.blind import blind
from keymesh.control.kinds import CHANGE_VOTERS, ChangeVoters
from keymesh.control.messages import Sealed, SetSealed, StoredHead
from keymesh.control.rows import Rows
from keymesh.control.signing import Suite
from keymesh.model import strict_json
from keymesh.model.errors import Integrity, KeymeshError, Refused, Unavailable
from keymesh.registry import spaces
from keymesh.registry.events import Command
from keymesh.registry.state import RegistryState, Space


def refusal(state: RegistryState, command: Command) -> KeymeshError | None:
    """Why ``command`` may not be given now; None for every other kind, and where its own rule refuses it."""
    if command.kind != CHANGE_VOTERS or state.voters is None:
        return None
    try:
        args = strict_json.convert(command.args, ChangeVoters)
    except Refused as bad:
        return bad
    rows = spaces.mesh_space(state).rows
    if args.set_id != state.voters.set_id + 1 or not commit.needs_proof(rows):
        return None
    words = sealed_by(
        command.words, mesh=state.config.mesh, set_id=args.set_id - 1, mesh_rows=rows, suite=state.config.suite
    )
    sealing = commit.speaking_regions(words, rows)
    if not is_enough(sealing, rows):
        who = ", ".join(sealing) or "none"
        return Unavailable("not-sealed", f"of set {state.voters.set_id} these have sealed it: {who}")
    return missing(state, (head for word in words.values() for head in word.heads))


def is_enough(sealing: Iterable[str], mesh_rows: Rows) -> bool:
    """Whether those regions are a majority of the set in force."""
    voters = commit.voters_of(mesh_rows)
    return voters is not None and commit.is_majority(sealing, voters)


def sealed_by(
    words: Iterable[Sealed], *, mesh: str, set_id: int, mesh_rows: Rows, suite: Suite
) -> dict[str, SetSealed]:
    """``region/node`` -> its word that it sealed set ``set_id``; what fails counts for nothing.

    A seal is for good, so it does not matter for which change it was asked.
    """
    voters = commit.voters_of(mesh_rows)
    found: dict[str, SetSealed] = {}
    for sealed in words:
        for region in () if voters is None else sorted(set(voters.regions)):
            try:
                word = suite.unseal(sealed, SetSealed, commit.node_keys(mesh_rows, region))
            except KeymeshError:
                continue
            name = f"{word.voter}/{word.node}"
            if (word.mesh, word.set_id, word.voter) == (mesh, set_id, region) and f"node/{name}" in mesh_rows:
                found[name] = word
    return found


def missing(state: RegistryState, heads: Iterable[StoredHead]) -> KeymeshError | None:
    """What a sealing voter has stored of this epoch and the log, as read here, lacks."""
    if state.settings is None:
        return Integrity("no-settings", "a mesh without settings")
    names = {blind(state.settings.salt, name): space for name, space in state.spaces.items()}
    for head in heads:
        space = names.get(head.blind)
        if head.epoch == state.epoch and (space is None or not _has(space, head)):
            return Unavailable("union-not-in-log", f"a voter has stored {head.epoch}:{head.seq} of {head.blind[:12]}")
    return None


def _has(space: Space, head: StoredHead) -> bool:
    return head.seq <= space.seq and space.entries[head.seq - 1].hash == head.entry_hash
