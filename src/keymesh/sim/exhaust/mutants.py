"""Mutants: the product with one rule broken, each to be found in the scenario that it names.

The first twenty are those that the rules were checked with before there was a product; the rest belong to single
traces.  A patch that the simulator plants too (``sim/bugs.py``, ``sim/bugs_voters.py``) stands there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import msgspec

from keymesh.control import evidence, voter
from keymesh.control.messages import HeartbeatMessage, PollAnswer
from keymesh.core import local
from keymesh.registry import heartbeats, killswitch
from keymesh.registry import machine as registry_machine
from keymesh.registry.state import Batch
from keymesh.sim.bugs import BUGS, Bug
from keymesh.sim.bugs_voters import VOTER_BUGS
from keymesh.sim.exhaust.start import TICK_MS

_on_heartbeat = heartbeats.on_heartbeat
_on_poll_answer = heartbeats.on_poll_answer
_on_ack = killswitch.on_ack
_voter_refusal = voter.refusal_of


@dataclass(frozen=True, slots=True)
class Mutant:
    """``scenario``: where it is found.  ``listed``: it is one of the twenty."""

    bug: Bug
    scenario: str
    listed: bool = True

    @property
    def name(self) -> str:
        return self.bug.name


def _unread(state: Any, now: Any, sender: Any, message: Any, out: Any) -> None:
    """Answers from what it knows already, without a read of the log."""
    _on_heartbeat(state, now, sender, message, out)
    if state.beats:
        heartbeats.poll_if_needed(state, now, now, out)
        state.batches.append(Batch(state.beats, now))
        state.beats = {}


def _from_receipt(state: Any, now: Any, sender: Any, answer: Any, out: Any) -> None:
    """A poll counts from when its answers came."""
    poll = state.polls.get(answer.poll_id)
    if poll is not None:
        poll.sent_at = now
    _on_poll_answer(state, now, sender, answer, out)


def _whichever_entry(state: Any, now: Any, session: Any, ack: Any, sealed: Any, out: Any) -> None:
    """A word about a scope counts for whatever restricts that scope now."""
    scopes = {said.scope: said for said in ack.restrictions}
    for (scope, seq), key in state.open_kills.items():
        if scope in scopes:
            record = state.kills[key].record
            said = msgspec.structs.replace(scopes[scope], seq=seq, entry_hash=record.entry_hash)
            leaf = msgspec.structs.replace(ack.leaf, seq=seq, entry_hash=record.entry_hash)
            mine = msgspec.structs.replace(ack, restrictions=(said,), leaf=leaf)
            _on_ack(state, now, session, mine, sealed, out)


def _signs_older(state: Any, asked: Any) -> Any:
    refused = _voter_refusal(state, asked)
    return None if refused == "old-epoch" else refused


def _tick_less(committed_at: int, ttl_ms: int) -> int:
    return committed_at + ttl_ms - TICK_MS


def _yes(*args: Any, **kwargs: Any) -> bool:
    return True


def _no(*args: Any) -> bool:
    return False


def _planted(name: str) -> Bug:
    return next(bug for bug in BUGS if bug.name == name)


def _of_voters(name: str) -> Bug:
    return next(bug for bug in VOTER_BUGS if bug.name == name)


MUTANTS: Final[tuple[Mutant, ...]] = (
    Mutant(_planted("lease-from-receipt"), "lease"),
    Mutant(
        Bug("answer-from-a-stale-projection", ((registry_machine._MESSAGES, HeartbeatMessage, _unread),)), "replicas",
    ),
    Mutant(_planted("standby-from-one-voter"), "standby"),
    Mutant(_planted("commit-without-voters"), "standby"),
    Mutant(_planted("certificate-of-the-connected"), "lease"),
    Mutant(_planted("older-entry-applied"), "order"),
    Mutant(_planted("edge-lease-uncapped"), "edge"),
    Mutant(_planted("renewed-without-apply"), "lease"),
    Mutant(_planted("standby-heads-not-applied"), "standby"),
    Mutant(_planted("replayed-answer"), "lease"),
    Mutant(_planted("ack-before-record"), "crash"),
    Mutant(Bug("ack-of-whichever-entry", ((killswitch, "on_ack", _whichever_entry),)), "order"),
    Mutant(_planted("edge-leases-forgotten"), "edge-crash"),
    Mutant(Bug("bound-short-by-a-tick", ((evidence, "bound_end", _tick_less),)), "lease"),
    Mutant(_planted("local-overtaken"), "local"),
    Mutant(_planted("voter-with-amnesia"), "standby"),
    Mutant(Bug("old-window-dropped", ((heartbeats, "polls_count", _no),)), "superseded"),
    Mutant(Bug("window-from-receipt", ((registry_machine._MESSAGES, PollAnswer, _from_receipt),)), "superseded"),
    Mutant(_of_voters("change-without-sealing"), "voters"),
    Mutant(_of_voters("change-by-the-new-majority-only"), "voters"),
    Mutant(_of_voters("seal-recorded-and-ignored"), "voters", listed=False),
    Mutant(
        Bug("local-dropped-before-record", ((local, "is_recorded_by", _yes), (local, "is_shown_by", _yes))),
        "local-crash", listed=False,
    ),
    Mutant(_planted("commit-by-one-voter"), "standby", listed=False),
    Mutant(Bug("old-epoch-countersigned", ((voter, "refusal_of", _signs_older),)), "epoch", listed=False),
)  # fmt: skip


def mutant(name: str) -> Mutant | None:
    return next((m for m in MUTANTS if m.name == name), None)
