"""What the log has for voters to countersign, told to one that has no memory (DESIGN section 2, "Voters").

A voter that lost its disk neither countersigns nor grants before it has this.  Each page is answered from a
linearizable read of the log that began when the request was there; what is appended later nobody had countersigned in
the voter's earlier life.  A voter learns blinds, never names.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from keymesh.control import commit
from keymesh.control.messages import ReadVote, VoterLog, VoterRead
from keymesh.control.voter import VOTES_PER_BLIND
from keymesh.model.machine import Address, Note, Send
from keymesh.model.time import Instant
from keymesh.registry import spaces
from keymesh.registry.state import RegistryState

PAGE: Final = 1_000


def on_read(state: RegistryState, now: Instant, sender: Address, asked: VoterRead, out: list[Any]) -> None:
    """Have a voter wait for a read that begins from now on; its newest request counts."""
    session = state.sessions.get(sender)
    if session is None or state.voters is None or session.region not in state.voters.regions:
        out.append(Note("voter-read-refused", "voters", (("node", str(sender)),)))
        return
    if (asked.mesh, asked.region) == (state.config.mesh, session.region):
        state.voter_reads[sender] = asked


def answer(state: RegistryState, reads: dict[Address, VoterRead], out: list[Any]) -> None:
    """The read is done: each gets its page."""
    if not reads:
        return
    every = [(f"{vote.blind}/{vote.seq:020d}", vote) for vote in sorted_votes(state)]
    for sender, asked in sorted(reads.items()):
        left = [(place, vote) for place, vote in every if place > asked.after]
        page = left[:PAGE]
        log = VoterLog(
            mesh=asked.mesh,
            nonce=asked.nonce,
            after=asked.after,
            index=state.index,
            votes=tuple([vote for _, vote in page]),
            next_after=page[-1][0] if len(left) > PAGE else "",
        )
        out.append(Send(sender, log))


def sorted_votes(state: RegistryState) -> list[ReadVote]:
    """As much of each namespace as a voter remembers of it, by blind and seq."""
    return sorted(_votes(state), key=lambda vote: (vote.blind, vote.seq))


def _votes(state: RegistryState) -> Iterator[ReadVote]:
    rows = spaces.mesh_space(state).rows
    for space in state.spaces.values():
        for signed in [s for s in space.entries if spaces.needs_commit(s)][-VOTES_PER_BLIND:]:
            asked = commit.countersign_request(signed, rows)
            yield ReadVote(
                blind=asked.blind,
                epoch=asked.epoch,
                seq=asked.seq,
                entry_hash=asked.entry_hash,
                restriction=asked.restriction,
            )
