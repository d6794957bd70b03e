"""The kill switch's records: from a restriction in the log to its certificate.

``pending`` until it is committed; then its holders are read, and it is ``revoking`` until every one of them is
certainly done; then ``certified``.  Nobody is shown more than that.  A later restriction of the same scope makes it
``superseded`` (nodes then acknowledge the later one, so this one ends by its bound); a committed resume ``lifted``.
Source: DESIGN section 5.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from keymesh.control import evidence
from keymesh.control.entry import SignedEntry
from keymesh.control.messages import Ack, Sealed
from keymesh.model.errors import Refused
from keymesh.model.machine import Note, Persist
from keymesh.model.scope import parse_scope
from keymesh.model.time import Instant
from keymesh.registry import certificate, commands, spaces
from keymesh.registry.events import CertificateReady
from keymesh.registry.records import CommitRecord, EvidenceRecord, KillRecord, evidence_name, kill_name
from keymesh.registry.state import Kill, RegistryState, Session, Space

PENDING: Final = "pending"
REVOKING: Final = "revoking"
CERTIFIED: Final = "certified"
SUPERSEDED: Final = "superseded"
LIFTED: Final = "lifted"
RETRY_MS: Final = 1_000

Key = tuple[str, str]


def record_of(state: RegistryState, namespace: str, command_id: str) -> KillRecord | None:
    """What people are shown of a kill-switch command."""
    kill = state.kills.get((namespace, command_id))
    return None if kill is None else kill.record


def find(
    state: RegistryState, command_id: str, *, namespace: str | None, may_see: Callable[[str], bool]
) -> tuple[str, str]:
    """Which kill switch somebody means by a command id, of ``namespace`` where they name one.

    What they may not see is as absent as what does not exist.  Raises Refused ``not-found``, or ``ambiguous`` where
    several that they may see have that id.
    """
    named = state.spaces if namespace is None else (namespace,)
    ids = (command_id, commands.internal_id("purge", command_id))  # of a destruction: what came of it
    keys = [key for key in ((name, i) for i in ids for name in named) if key in state.kills and may_see(key[0])]
    if len(keys) > 1:
        raise Refused(
            "ambiguous", "several tenants have a restriction of that id: name the namespace", field="namespace"
        )
    if not keys:
        raise Refused("not-found", "no such restriction", field="command_id")
    return keys[0]


def follow(state: RegistryState, now: Instant, space: Space, signed: SignedEntry, out: list[Any]) -> None:
    """A restriction in the log opens a record, or finds the one of an earlier life; of words, those about this entry.

    After a restore the same command can stand in another entry, of which nobody has acknowledged anything yet.
    """
    action = evidence.action_of(signed.entry.kind)
    if action is None:
        return
    entry, scope = signed.entry, spaces.scope_name(signed)
    key = (space.name, entry.command_id)
    held = state.evidence.pop(key, {})
    words = {node: word for node, word in held.items() if word.entry_hash == signed.hash}
    kill = state.kills.get(key)
    if kill is None or kill.record.entry_hash != signed.hash:
        record = KillRecord(
            command_id=entry.command_id,
            correlation_id=entry.correlation_id,
            namespace=space.name,
            seq=entry.seq,
            entry_hash=signed.hash,
            scope=scope,
            action=action,
        )
        kill = state.kills[key] = Kill(record, words)
    else:
        kill.evidence = words
    for (other_scope, seq), other in list(state.open_kills.items()):
        if other_scope == scope and seq < entry.seq:
            _set(state.kills[other], status=SUPERSEDED)
    if kill.record.status not in (CERTIFIED, LIFTED):
        state.open_kills[(scope, entry.seq)] = key


def on_committed(state: RegistryState, now: Instant, space: Space, proof: CommitRecord, out: list[Any]) -> None:
    """A committed restriction waits for a read begun from now on; a committed resume ends its scope's open records."""
    signed = space.entries[proof.seq - 1]
    scope = spaces.scope_name(signed)
    if signed.entry.kind in spaces.LIFTS:
        for (other_scope, seq), key in list(state.open_kills.items()):
            if other_scope == scope and seq < proof.seq:
                _set(state.kills[key], status=LIFTED)
                del state.open_kills[(other_scope, seq)]
                if state.booted:
                    _save(state, state.kills[key], out)
        return
    kill = state.kills.get((space.name, signed.entry.command_id))
    if kill is None or (scope, proof.seq) not in state.open_kills or kill.record.holders:
        return
    _set(kill, committed_at=proof.committed_at)
    if state.booted:
        state.kill_reads.append((space.name, signed.entry.command_id))


def recover(state: RegistryState, now: Instant, out: list[Any]) -> None:
    """After the log was read at boot: go on with every open record."""
    for key in state.open_kills.values():
        record = state.kills[key].record
        space = state.spaces[record.namespace]
        proof = space.commits.get(record.seq)
        if proof is not None and not record.holders:
            _set(state.kills[key], committed_at=proof.committed_at)
            state.kill_reads.append(key)


def fix_holders(state: RegistryState, now: Instant, key: Key, out: list[Any]) -> None:
    """A read begun after the commit is in: these are all the nodes that may hold keys under the scope.

    A node enrolled later gets its first lease by a read that shows the restriction, so it needs no place here.
    """
    kill = state.kills[key]
    record = kill.record
    if record.holders or record.status == LIFTED or state.settings is None:
        return
    policy = state.spaces[record.namespace].policy
    mesh = spaces.mesh_space(state)
    status = REVOKING if record.status == PENDING else record.status
    _set(
        kill,
        status=status,
        holders=evidence.holders_of(parse_scope(record.scope), mesh.rows, policy),
        mesh_seq=mesh.seq,
        ttl_ms=evidence.longest_ttl_ms(state.settings, policy),
    )
    _save(state, kill, out)
    certify(state, now, key, out)


def on_ack(state: RegistryState, now: Instant, session: Session, ack: Ack, sealed: Sealed, out: list[Any]) -> None:
    """Keep a holder's word where it is about an open record and ends sooner than what is held."""
    for said in ack.restrictions:
        key = state.open_kills.get((said.scope, said.seq))
        if key is None:
            continue
        kill = state.kills[key]
        record = kill.record
        if record.action == evidence.DESTROY:
            continue  # a word is no receipt
        signed = state.spaces[record.namespace].entries[record.seq - 1]
        word = evidence.ack_word(ack, record.scope, record.seq, signed.entry.epoch, record.entry_hash)
        if word is None or ack.namespace != record.namespace:
            continue
        found = EvidenceRecord(
            command_id=record.command_id,
            namespace=record.namespace,
            node=session.address,
            ack=sealed,
            received_at=now,
            edge_leases_end_in_ms=word.edge_leases_end_in_ms,
            open_edge_leases=word.open_edge_leases,
            entry_hash=record.entry_hash,
        )
        if is_better(kill, found):
            token = state.token("evidence")
            state.persisting[token] = found
            name = evidence_name(record.command_id, record.namespace, session.address)
            out.append(Persist(token, ((name, found),)))


def is_better(kill: Kill, found: EvidenceRecord) -> bool:
    """Whether ``found`` ends sooner than what is held of that node."""
    return certificate.is_better(found, kill.evidence.get(found.node))


def on_evidence_persisted(state: RegistryState, now: Instant, found: EvidenceRecord, out: list[Any]) -> None:
    kill = state.kills[(found.namespace, found.command_id)]
    if is_better(kill, found):
        kill.evidence = {**kill.evidence, found.node: found}
    certify(state, now, (found.namespace, found.command_id), out)


def certify(state: RegistryState, now: Instant, key: Key, out: list[Any]) -> None:
    """Issue the certificate once T has passed: durable first, then shown."""
    kill = state.kills[key]
    record = kill.record
    if not is_due(state, kill, now):
        return
    space = state.spaces[record.namespace]
    proof = space.commits[record.seq]
    mesh = spaces.mesh_space(state)
    made = certificate.make_certificate(
        record,
        kill.evidence,
        entry=space.entries[record.seq - 1],
        countersignatures=proof.countersignatures,
        mesh=spaces.state_at(mesh, record.mesh_seq),
        tenant=None if space.policy is None else space.entries[0],
        rows=spaces.rows_at(space, record.seq),
        suite=state.config.suite,
        now=now,
    )
    done = msgspec.structs.replace(
        record,
        status=CERTIFIED,
        t=certificate.end_of(record, kill.evidence),
        certified_at=now,
        certificate=made,
    )
    kill.persisting = True
    token = state.token("certificate")
    state.persisting[token] = done
    out.append(Persist(token, ((kill_name(record.command_id, record.namespace), done),)))


def due_at(state: RegistryState, kill: Kill) -> int:
    """Asked at every step, so reckoned once for each record, its words and our clock's jumps (all immutable)."""
    record, words, hold_ms = kill.record, kill.evidence, kill.hold_ms
    due = kill.due
    if due is None or due[0] is not record or due[1] is not words or due[2] != hold_ms:
        at = certificate.due_at(record, words, booted_at=state.booted_at, hold_ms=hold_ms)
        due = kill.due = (record, words, hold_ms, at)
    return due[3]


def open_holders(state: RegistryState, kill: Kill, now: Instant) -> tuple[tuple[evidence.Holder, int], ...]:
    """Of a running record: the holders that may still use keys under the scope, and when each is certainly done.

    None before the holders are known, which is after the commit: until then no bound is claimed.
    """
    ends = certificate.ends_here(kill.record, kill.evidence, booted_at=state.booted_at, hold_ms=kill.hold_ms)
    return tuple([(holder, at) for holder, at in ends if at > now])


def is_running(state: RegistryState, kill: Kill) -> bool:
    """Committed, its holders known, and no certificate yet."""
    record = kill.record
    return bool(record.holders) and record.certificate is None and (record.scope, record.seq) in state.open_kills


def is_due(state: RegistryState, kill: Kill, now: Instant) -> bool:
    """Committed, its holders known, T passed, not certified yet."""
    record = kill.record
    if kill.persisting or not record.holders or now < kill.retry_at or not state.booted:
        return False
    return (record.scope, record.seq) in state.open_kills and now >= due_at(state, kill)


def on_record_persisted(state: RegistryState, now: Instant, done: KillRecord, out: list[Any]) -> None:
    kill = state.kills[(done.namespace, done.command_id)]
    kill.record = done
    kill.persisting = False
    state.open_kills.pop((done.scope, done.seq), None)
    out.append(Note("certified", done.correlation_id, (("t", done.t), ("holders", len(done.holders)))))
    out.append(CertificateReady(done.command_id, done.certificate))


def on_record_persist_failed(state: RegistryState, now: Instant, done: KillRecord) -> None:
    kill = state.kills[(done.namespace, done.command_id)]
    kill.persisting = False
    kill.retry_at = Instant(now + RETRY_MS)


def tick(state: RegistryState, now: Instant, out: list[Any]) -> None:
    for key in list(state.open_kills.values()):
        certify(state, now, key, out)


def next_due(state: RegistryState) -> Instant | None:
    found: int | None = None
    for key in state.open_kills.values():
        kill = state.kills[key]
        if kill.record.holders and not kill.persisting:
            at = max(due_at(state, kill), kill.retry_at)
            found = at if found is None or at < found else found
    return None if found is None else Instant(found)


def _set(kill: Kill, **fields: Any) -> None:
    kill.record = msgspec.structs.replace(kill.record, **fields)


def _save(state: RegistryState, kill: Kill, out: list[Any]) -> None:
    """Progress is made again from the log if this is lost, so nothing waits for it."""
    record = kill.record
    out.append(Persist(state.token("kill"), ((kill_name(record.command_id, record.namespace), record),)))
