"""The Registry's machine: ``step(state, now, event) -> effects`` (DESIGN sections 2 to 5, 12).

It decides nothing itself: each event goes to the module that knows it.  ``new_registry`` makes a state without a past;
the first event is ``Booted`` with the records, after which the log is read and verified from its first entry.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from keymesh.control.messages import (
    AckMessage,
    CountersignatureMessage,
    ForwardRestriction,
    HeartbeatMessage,
    PollAnswer,
    StandbyUsed,
    SubmitRewrap,
    SubmitVersion,
    VoterRead,
)
from keymesh.control.purge_messages import PurgeReceiptMessage
from keymesh.control.standby import StandbyLie
from keymesh.model.machine import (
    Booted,
    ClockWentAhead,
    ClockWentBack,
    Note,
    Persist,
    Persisted,
    PersistFailed,
    Received,
    Tick,
    ask_tick,
)
from keymesh.model.time import NEVER, Instant
from keymesh.orbital.messages import Hello, KeyStoreReport, ManifestAsk, ManifestDiffers, Tail
from keymesh.registry import (
    commands,
    commits,
    convergence,
    destruction,
    heartbeats,
    killswitch,
    lies,
    lifecycle,
    manifests,
    reads,
    schemas,
    sessions,
    tails,
    voter_reads,
    waits,
)
from keymesh.registry.events import (
    AppendConflict,
    Appended,
    AppendUnknown,
    Command,
    LogBroken,
    LogMoved,
    LogRead,
    LogUnavailable,
)
from keymesh.registry.records import CommitRecord, EvidenceRecord, HoldersRecord, KillRecord, ParkedRecord, WaitRecord
from keymesh.registry.state import Kill, RegistryConfig, RegistryState

__all__ = ["RegistryConfig", "RegistryState", "new_registry", "step"]

Effects = list[Any]


def new_registry(config: RegistryConfig) -> RegistryState:
    return RegistryState(config=config)


def step(state: RegistryState, now: Instant, event: Any) -> Effects:
    """Take one event; the effects are to be carried out in order.  An event type that is not ours is our bug."""
    out: Effects = []
    _EVENTS[type(event)](state, now, event, out)
    if state.read is None and reads.wants_read(state):
        reads.begin(state, now, out)
    state.wake_at = ask_tick(state.wake_at, next_due(state), now, out)
    if out:
        persist_last(state, out)
    return out


def persist_last(state: RegistryState, out: Effects) -> None:
    """Make one transaction of all that a step records, after its other effects.

    Nothing that a step does rests on its own records (what does waits for ``Persisted``), so a disk that fails takes
    no send, append or projection with it; and no record of the step is left without an answer.
    """
    for effect in out:
        if type(effect) is Persist:
            break
    else:
        return
    persists = [e for e in out if type(e) is Persist]
    last: dict[str, Any] = {}
    for persist in persists:
        last.update(persist.puts)
        last.update(dict.fromkeys(persist.deletes, None))
    token = state.token("persist")
    state.transactions[token] = tuple(p.token for p in persists)
    puts = tuple((name, record) for name, record in last.items() if record is not None)
    out[:] = [e for e in out if type(e) is not Persist]
    out.append(Persist(token, puts, tuple(name for name, record in last.items() if record is None)))


def next_due(state: RegistryState) -> Instant:
    """The next deadline; a tick that comes then leaves none behind that is due."""
    if state.halted:
        return NEVER
    due = sessions.next_due(state)
    if state.countersigning:
        due = min(due, commits.next_due(state) or NEVER)
    if state.open_kills:
        due = min(due, killswitch.next_due(state) or NEVER)
    if state.waits and state.booted:
        due = min(due, waits.next_due(state) or NEVER)
    if state.pre_active:
        due = min(due, lifecycle.next_due(state) or NEVER)
    for batch in state.batches:
        if batch.deadline < due:
            due = batch.deadline
    if state.read is not None and state.read.began_at + reads.READ_TIMEOUT_MS < due:
        due = Instant(state.read.began_at + reads.READ_TIMEOUT_MS)
    if state.read_retry_at is not None:
        due = min(due, state.read_retry_at)
    elif (gathering := reads.gathers_until(state)) is not None:
        due = min(due, gathering)
    if state.append is not None and not state.append.unknown:
        due = min(due, Instant(state.append.sent_at + commands.APPEND_TIMEOUT_MS))
    return due


# --- events ----------------------------------------------------------------------------------------------------------


def _booted(state: RegistryState, now: Instant, event: Booted, out: Effects) -> None:
    state.life = event.entropy[:6].hex()
    state.booted_at = now
    state.poll_base = int.from_bytes(event.entropy[6:12], "big") << 12
    for name, record in event.records.items():
        match record:
            case CommitRecord():
                state.commit_records[name] = record
            case KillRecord():
                state.kills[(record.namespace, record.command_id)] = Kill(record, {})
            case EvidenceRecord():
                state.evidence.setdefault((record.namespace, record.command_id), {})[record.node] = record
            case HoldersRecord():
                state.holders[(record.namespace, record.key, record.version)] = frozenset(record.regions)
            case StandbyLie():
                state.lies[record.voter] = record
            case WaitRecord():
                state.wait_records[record.namespace] = record
            case ParkedRecord():
                state.parked_records.append(record)
    reads.begin(state, now, out)


def _tick(state: RegistryState, now: Instant, event: Tick, out: Effects) -> None:
    state.wake_at = NEVER
    reads.tick(state, now, out)
    commits.tick(state, now, out)
    heartbeats.answer_ready(state, now, out)
    sessions.tick(state, now, out)
    killswitch.tick(state, now, out)
    destruction.tick(state, now, out)
    lifecycle.tick(state, now, out)
    commands.pump(state, now, out)


def _command(state: RegistryState, now: Instant, event: Command, out: Effects) -> None:
    commands.submit(state, now, event, out)


def _received(state: RegistryState, now: Instant, event: Received, out: Effects) -> None:
    kind = type(event.message)
    if kind in _MESSAGES:
        _MESSAGES[kind](state, now, event.sender, event.message, out)
    else:
        out.append(Note("unknown-message", "wire", (("sender", str(event.sender)),)))


def _persisted(state: RegistryState, now: Instant, event: Persisted, out: Effects) -> None:
    for token in state.transactions.pop(event.token, ()):
        match state.persisting.pop(token, None):
            case CommitRecord() as proof:
                commits.on_persisted(state, now, proof, out)
            case EvidenceRecord() as found:
                killswitch.on_evidence_persisted(state, now, found, out)
                destruction.on_kept(state, found, out)
            case KillRecord() as done:
                killswitch.on_record_persisted(state, now, done, out)


def _persist_failed(state: RegistryState, now: Instant, event: PersistFailed, out: Effects) -> None:
    for token in state.transactions.pop(event.token, ()):
        match state.persisting.pop(token, None):
            case CommitRecord() as proof:
                commits.on_persist_failed(state, now, proof, out)
            case KillRecord() as done:
                killswitch.on_record_persist_failed(state, now, done)
    out.append(Note("persist-failed", "records", (("token", event.token),)))


def _clock_ahead(state: RegistryState, now: Instant, event: ClockWentAhead, out: Effects) -> None:
    """Holders' clocks may not have jumped with ours: certificates wait so much longer.

    The tick that was asked for would come so much later by our clock: it is asked for anew.
    """
    state.wake_at = NEVER
    state.clock_jumps += 1
    for key in state.open_kills.values():
        state.kills[key].hold_ms += event.by_ms
    waits.clock_ahead(state, event.by_ms)


def _clock_back(state: RegistryState, now: Instant, event: ClockWentBack, out: Effects) -> None:
    """The Registry holds no lease and no key; instants never go back.  People should know."""
    out.append(Note("clock-went-back", "clock"))


_EVENTS: Final[dict[type, Callable[[RegistryState, Instant, Any, Effects], None]]] = {
    Booted: _booted,
    Tick: _tick,
    Command: _command,
    Received: _received,
    Persisted: _persisted,
    PersistFailed: _persist_failed,
    ClockWentAhead: _clock_ahead,
    ClockWentBack: _clock_back,
    Appended: reads.on_appended,
    AppendConflict: reads.on_append_lost,
    AppendUnknown: reads.on_append_lost,
    LogRead: reads.on_read,
    LogUnavailable: reads.on_unavailable,
    LogMoved: reads.on_moved,
    LogBroken: reads.on_broken,
}

_MESSAGES: Final[dict[type, Callable[[RegistryState, Instant, Any, Any, Effects], None]]] = {
    HeartbeatMessage: heartbeats.on_heartbeat,
    PollAnswer: heartbeats.on_poll_answer,
    StandbyUsed: lies.on_used,
    VoterRead: voter_reads.on_read,
    CountersignatureMessage: commits.on_countersignature,
    AckMessage: sessions.on_ack,
    PurgeReceiptMessage: destruction.on_receipt,
    Hello: convergence.on_hello,
    KeyStoreReport: schemas.on_report,
    ManifestAsk: manifests.on_ask,
    ManifestDiffers: manifests.on_differs,
    SubmitVersion: lifecycle.on_version,
    SubmitRewrap: lifecycle.on_rewrap,
    ForwardRestriction: lifecycle.on_forward,
    Tail: tails.on_tail,
}
