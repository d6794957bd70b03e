"""Commitment: an entry is committed when a majority of voters has countersigned it and that is durable here.

Voters are asked for one entry of a namespace at a time, oldest first, once a second until a majority answered
(``spaces`` says why in that order).  With fewer than three voters the log alone commits.  Source: DESIGN section 2.
"""

from __future__ import annotations

from typing import Any, Final

from keymesh.control import commit
from keymesh.control.entry import SignedEntry
from keymesh.control.messages import Countersignature, CountersignatureMessage, CountersignRequest
from keymesh.model.errors import KeymeshError
from keymesh.model.machine import Address, Note, Persist, Send
from keymesh.model.time import Instant
from keymesh.registry import killswitch, sessions, spaces
from keymesh.registry.records import CommitRecord, commit_name
from keymesh.registry.state import Countersigning, RegistryState, Space

RETRY_MS: Final = 1_000


def follow(state: RegistryState, now: Instant, space: Space, signed: SignedEntry, out: list[Any]) -> None:
    """A new entry: if it needs a commit, take the proof of an earlier life, or queue it for the voters."""
    if not spaces.needs_commit(signed):
        return
    known = state.commit_records.pop(commit_name(space.name, signed.entry.seq), None)
    if known is not None and known.entry_hash == signed.hash:
        committed(state, now, space, known, out)
    elif state.booted:
        ask(state, now, space, out)


def ask_all(state: RegistryState, now: Instant, out: list[Any]) -> None:
    for name in sorted([name for name, space in state.spaces.items() if space.uncommitted]):
        ask(state, now, state.spaces[name], out)


def ask(state: RegistryState, now: Instant, space: Space, out: list[Any]) -> None:
    """Ask the voters about the oldest uncommitted entry, unless they were asked within the last second."""
    if not space.uncommitted or state.halted or not state.booted:
        return
    seq = space.uncommitted[0]
    asking = state.countersigning.get(space.name)
    if asking is None or asking.seq != seq:
        asking = state.countersigning[space.name] = Countersigning(seq)
    if asking.persisting:
        return
    if enough(state, asking):
        record(state, now, space, asking, out)
    elif asking.asked_at is None or now >= asking.asked_at + RETRY_MS:
        asking.asked_at = now
        request = request_for(state, space, seq)
        asking.blind = request.blind
        silent = [a for a in spaces.voter_nodes(state) if state.sessions[a].region not in asking.voices]
        out.extend(Send(address, request) for address in silent)


def request_for(state: RegistryState, space: Space, seq: int) -> CountersignRequest:
    return commit.countersign_request(space.entries[seq - 1], spaces.mesh_space(state).rows)


def enough(state: RegistryState, asking: Countersigning) -> bool:
    """Whether a majority of the voter set has spoken (or no set is needed)."""
    mesh_rows = spaces.mesh_space(state).rows
    if not commit.needs_proof(mesh_rows):
        return True
    assert state.voters is not None
    voters = set(state.voters.regions)
    return len(voters & asking.voices.keys()) >= commit.majority(len(voters))


def on_countersignature(
    state: RegistryState, now: Instant, sender: Address, message: CountersignatureMessage, out: list[Any]
) -> None:
    """Count a voter's word: sealed by that voter's node, of its own region, about exactly what was asked; once."""
    session = state.sessions.get(sender)
    if session is None or state.voters is None:
        return
    try:
        word = state.config.suite.unseal(message.countersignature, Countersignature, session.keys)
    except KeymeshError:
        out.append(Note("countersignature-refused", "voters", (("node", str(sender)), ("reason", "seal"))))
        return
    for name, asking in state.countersigning.items():
        if (word.blind, word.seq) == (asking.blind, asking.seq):
            space = state.spaces[name]
            asked = request_for(state, space, asking.seq)
            if session.region in state.voters.regions and word == commit.vote_for(
                asked, session.region, serial=word.serial
            ):
                asking.voices.setdefault(session.region, message.countersignature)
                ask(state, now, space, out)
            else:
                out.append(Note("countersignature-refused", "voters", (("node", str(sender)), ("reason", "content"))))
            return


def record(state: RegistryState, now: Instant, space: Space, asking: Countersigning, out: list[Any]) -> None:
    """A majority is in: make the proof durable.  It counts once that is done."""
    signed = space.entries[asking.seq - 1]
    proof = CommitRecord(
        namespace=space.name,
        seq=asking.seq,
        entry_hash=signed.hash,
        countersignatures=tuple(word for _, word in sorted(asking.voices.items())),
        committed_at=now,
    )
    asking.persisting = True
    token = state.token("commit")
    state.persisting[token] = proof
    out.append(Persist(token, ((commit_name(space.name, asking.seq), proof),)))


def on_persisted(state: RegistryState, now: Instant, proof: CommitRecord, out: list[Any]) -> None:
    space = state.spaces[proof.namespace]
    state.countersigning.pop(space.name, None)
    committed(state, now, space, proof, out)
    ask(state, now, space, out)


def on_persist_failed(state: RegistryState, now: Instant, proof: CommitRecord, out: list[Any]) -> None:
    """Not durable, so not committed; tried again in a second."""
    asking = state.countersigning.get(proof.namespace)
    if asking is not None:
        asking.persisting = False
        asking.asked_at = now
    out.append(Note("commit-not-recorded", "voters", (("seq", proof.seq),)))


def committed(state: RegistryState, now: Instant, space: Space, proof: CommitRecord, out: list[Any]) -> None:
    """The entry is committed: the offered head may move, tasks get their proof, certificates can begin."""
    space.commits[proof.seq] = proof
    space.uncommitted.remove(proof.seq)
    signed = space.entries[proof.seq - 1]
    lifted = proof.seq in space.resumes
    if lifted:
        space.resumes.remove(proof.seq)
    out.append(Note("committed", signed.entry.correlation_id, (("seq", proof.seq), ("kind", signed.entry.kind))))
    if lifted:
        sessions.proof_arrived(state, now, space, out)
        sessions.offer_grants(state, now, space, out)
    killswitch.on_committed(state, now, space, proof, out)


def tick(state: RegistryState, now: Instant, out: list[Any]) -> None:
    for name in sorted(state.countersigning):
        ask(state, now, state.spaces[name], out)


def next_due(state: RegistryState) -> Instant | None:
    times = [
        a.asked_at + RETRY_MS for a in state.countersigning.values() if a.asked_at is not None and not a.persisting
    ]
    return Instant(min(times)) if times else None
