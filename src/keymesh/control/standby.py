"""Standby: what a voter's grant says, when a majority of them is a lease, and when one is proof of a lie.

A standby lease is an ordinary governance lease with the same ttl and the same nonce rule, granted by a majority of the
voters in force.  Any two majorities share a voter, so what was committed before the first answer is in one of them.
Pure; the voter (``voter``) grants, the node (``core/standby``) asks.  Source: DESIGN section 3, "Standby".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from msgspec import Struct

from keymesh.control.commit import POLL_MIN_VOTERS, majority
from keymesh.control.entry import Leaf
from keymesh.control.messages import Countersignature, Sealed, StandbyGrant, StandbyRequest, StoredHead
from keymesh.control.rows import VotersRow
from keymesh.model.ids import ZERO_DIGEST
from keymesh.model.time import Instant

MISSED_HEARTBEATS: Final = 3


class StandbyLie(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Evidence against ``voter``: ``grant`` leaves out what it signed before, in ``earlier``.  A record."""

    voter: str
    blind: str
    grant: Sealed
    earlier: Sealed


def lie_name(voter: str) -> str:
    """Of the record; one proof against a voter is enough."""
    return f"standby-lie/{voter}"


def has_missed(last_sent_at: Instant | None, since: Instant, interval_ms: int, now: Instant) -> bool:
    """Whether the Registry has missed three heartbeats in a row of the node that asks itself this.

    ``last_sent_at``: when the heartbeat of its last accepted answer was sent; ``since``: when this life began.
    """
    if interval_ms < 1:
        return False
    return now - (since if last_sent_at is None else last_sent_at) > MISSED_HEARTBEATS * interval_ms


def may_stand_by(voters: VotersRow | None) -> bool:
    """Whether the mesh has voters enough for Standby at all."""
    return voters is not None and len(set(voters.regions)) >= POLL_MIN_VOTERS


def grant_for(asked: StandbyRequest, voter: str, *, serial: int, heads: Iterable[StoredHead]) -> StandbyGrant:
    """The grant of ``voter`` that answers ``asked``, unsealed."""
    return StandbyGrant(
        mesh=asked.mesh,
        epoch=asked.epoch,
        set_id=asked.set_id,
        voter=voter,
        region=asked.region,
        node=asked.node,
        nonce=asked.nonce,
        ttl_ms=asked.ttl_ms,
        serial=serial,
        heads=tuple(sorted(heads, key=lambda head: head.blind)),
    )


def answers(grant: StandbyGrant, asked: StandbyRequest) -> bool:
    """Whether ``grant`` is an answer to exactly ``asked``: mesh, epoch, voter set, node, nonce and ttl."""
    return grant == grant_for(asked, grant.voter, serial=grant.serial, heads=grant.heads)


def is_enough(granted: Iterable[str], voters: VotersRow) -> bool:
    """Whether those regions are a majority of the set, each counted once."""
    seats = set(voters.regions)
    return may_stand_by(voters) and len(seats & set(granted)) >= majority(len(seats))


def highest(grants: Iterable[StandbyGrant]) -> dict[str, Leaf]:
    """blind -> the highest (epoch, seq) of a restriction among the answers."""
    found: dict[str, Leaf] = {}
    for grant in grants:
        for head in grant.heads:
            held = found.get(head.blind)
            if held is None or (head.epoch, head.seq) > held.order:
                found[head.blind] = Leaf(epoch=head.epoch, seq=head.seq, entry_hash=head.entry_hash, state=ZERO_DIGEST)
    return found


# --- lies ------------------------------------------------------------------------------------------------------------


def omits(grant: StandbyGrant, word: Countersignature) -> bool:
    """Whether ``grant`` leaves out what its signer says, in ``word``, that it had stored by then.

    Both are the same voter's, of one mesh and epoch; the grant's serial says that ``word`` came first.
    """
    if (word.voter, word.mesh, word.epoch) != (grant.voter, grant.mesh, grant.epoch) or not word.restriction:
        return False
    return 0 < word.serial <= grant.serial and _falls_short(grant, word.blind, (word.epoch, word.seq))


def contradicts(grant: StandbyGrant, earlier: StandbyGrant) -> str | None:
    """The blind of a head that ``earlier`` shows and ``grant``, of the same voter and no lower serial, does not."""
    if (grant.voter, grant.mesh) != (earlier.voter, earlier.mesh) or grant.serial < earlier.serial:
        return None
    held = {head.blind: (head.epoch, head.seq) for head in grant.heads}
    return next((h.blind for h in earlier.heads if held.get(h.blind, (0, 0)) < (h.epoch, h.seq)), None)


def _falls_short(grant: StandbyGrant, blind: str, order: tuple[int, int]) -> bool:
    shown: Mapping[str, tuple[int, int]] = {head.blind: (head.epoch, head.seq) for head in grant.heads}
    return shown.get(blind, (0, 0)) < order
