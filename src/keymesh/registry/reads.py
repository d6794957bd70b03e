"""The log as it comes in: one linearizable read at a time, entries taken in order, what follows from each.

A read serves those who were waiting when it *began*; whoever comes later waits for the next.  Entries come twice (by
our own append and by a read): each is taken once.  What other replicas append comes by reads alone: a heartbeat, a
conflict or a hint (``LogMoved``) begins one, and each entry then has the same effects as one of our own.  At boot the
whole log is read and every entry verified; one that does not verify halts the Registry: it then grants and appends
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from keymesh.control.entry import SignedEntry
from keymesh.model.errors import KeymeshError
from keymesh.model.ids import Namespace
from keymesh.model.machine import Note
from keymesh.model.time import Instant
from keymesh.registry import (
    commands,
    commits,
    heartbeats,
    killswitch,
    lifecycle,
    sessions,
    spaces,
    voter_reads,
    waits,
)
from keymesh.registry.events import (
    AppendConflict,
    Appended,
    AppendUnknown,
    LogBroken,
    LogMoved,
    LogRead,
    LogUnavailable,
    Project,
    ReadLog,
)
from keymesh.registry.state import Batch, Read, RegistryState, Space

READ_TIMEOUT_MS: Final = 5_000
READ_RETRY_MS: Final = 500
POLLS_AT_ONCE: Final = 2
GATHER_MS: Final = 100
"""While so many polls of the voters are under way, none of them for longer than this, heartbeats alone begin no read:
those that come meanwhile share the next one, so that what voters are asked does not grow with the mesh."""


def wants_read(state: RegistryState) -> bool:
    return bool(state.beats or _is_urgent(state))


def _is_urgent(state: RegistryState) -> bool:
    """Whether somebody waits for a read who need not wait for company."""
    waited_for = state.kill_reads or state.voter_reads or state.moved > state.index
    return bool(not state.booted or waited_for or (state.append is not None and _behind(state)))


def gathers_until(state: RegistryState) -> Instant | None:
    """Until when, at the latest, the next read waits for more heartbeats; None: for nothing."""
    if state.read is not None or not state.beats or _is_urgent(state) or len(state.polls) < POLLS_AT_ONCE:
        return None
    return Instant(sorted(poll.sent_at for poll in state.polls.values())[-POLLS_AT_ONCE] + GATHER_MS)


def _behind(state: RegistryState) -> bool:
    append = state.append
    return append is not None and (append.unknown or (append.index is not None and append.index > state.index))


def begin(state: RegistryState, now: Instant, out: list[Any]) -> None:
    """Start a read for all who wait, where none is out."""
    if state.read is not None or state.halted or not wants_read(state):
        return
    if state.read_retry_at is not None and now < state.read_retry_at:
        return
    gathering = gathers_until(state)
    if gathering is not None and now < gathering:
        return
    state.read_retry_at = None
    state.read = Read(state.token("read"), now, state.beats, state.kill_reads, state.voter_reads)
    state.beats, state.kill_reads, state.voter_reads, state.moved = {}, [], {}, 0
    out.append(ReadLog(state.read.token, state.index))
    if state.read.beats:
        heartbeats.poll_if_needed(state, now, min(b.arrived_at for b in state.read.beats.values()), out)


def on_read(state: RegistryState, now: Instant, event: LogRead, out: list[Any]) -> None:
    """Take what the log had, then let everyone go on who waited for this read (and nobody who came later)."""
    read = state.read
    if read is None or event.token != read.token or state.halted:
        return
    state.read = None
    take_all(state, now, event.entries, out)
    if state.halted:
        return
    state.index = max(state.index, event.index)
    if state.superseded_by > state.epoch:
        state.halted = f"superseded: epoch {state.superseded_by} has been opened"
        out.append(Note("superseded", "log", (("epoch", state.superseded_by),)))
        return
    if not state.booted:
        state.booted = True
        out.append(Note("registry-booted", "boot", (("index", state.index),)))
        killswitch.recover(state, now, out)
    if state.append is not None and _settled_by(state, read):
        commands.resolve(state, state.append, out)
    if read.beats:
        state.batches.append(Batch(read.beats, Instant(read.began_at + heartbeats.POLL_WAIT_MS)))
        heartbeats.answer_ready(state, now, out)
    for key in read.kills:
        killswitch.fix_holders(state, now, key, out)
    voter_reads.answer(state, read.voters, out)
    commits.ask_all(state, now, out)
    commands.pump(state, now, out)
    begin(state, now, out)


def _settled_by(state: RegistryState, read: Read) -> bool:
    """Whether the append's outcome is certain: its index is covered, or this read began after it was unknown."""
    append = state.append
    assert append is not None
    if append.unknown:
        return read.began_at >= append.sent_at
    return append.index is not None and append.index <= state.index


def on_unavailable(state: RegistryState, now: Instant, event: LogUnavailable, out: list[Any]) -> None:
    """The log can't be reached: readers wait for the next try; an append's outcome is unknown."""
    if state.read is not None and event.token == state.read.token:
        give_up(state, now)
    elif state.append is not None and event.token == state.append.token:
        state.append.unknown = True
        state.append.sent_at = now
        begin(state, now, out)


def on_moved(state: RegistryState, now: Instant, event: LogMoved, out: list[Any]) -> None:
    """Another replica has appended, it is said: read, unless that is known already."""
    state.moved = max(state.moved, event.index)
    begin(state, now, out)


def on_broken(state: RegistryState, now: Instant, event: LogBroken, out: list[Any]) -> None:
    """Nothing is granted or appended on such a log."""
    state.halted = state.halted or event.reason
    state.read = state.append = None
    out.append(Note("log-integrity", "log", (("reason", event.reason),)))


def tick(state: RegistryState, now: Instant, out: list[Any]) -> None:
    """What was never answered is asked anew; a late answer to the old token is then nobody's."""
    if state.read_retry_at is not None and now >= state.read_retry_at:
        state.read_retry_at = None
    if state.read is not None and now >= state.read.began_at + READ_TIMEOUT_MS:
        give_up(state, now)
    append = state.append
    if append is not None and not append.unknown and now >= append.sent_at + commands.APPEND_TIMEOUT_MS:
        append.unknown = True
        append.sent_at = now
    begin(state, now, out)


def give_up(state: RegistryState, now: Instant) -> None:
    """Put a failed read's waiters back; newer heartbeats of the same node take precedence."""
    assert state.read is not None
    state.beats = {**state.read.beats, **state.beats}
    state.kill_reads = [*state.read.kills, *state.kill_reads]
    state.voter_reads = {**state.read.voters, **state.voter_reads}
    state.moved = max(state.moved, state.index + 1)
    state.read = None
    state.read_retry_at = Instant(now + READ_RETRY_MS)


def on_appended(state: RegistryState, now: Instant, event: Appended, out: list[Any]) -> None:
    append = state.append
    if append is None or event.token != append.token:
        return
    append.index = event.index
    if event.index == state.index + 1:
        take_all(state, now, [(event.index, signed) for _, signed in append.group], out)
    if event.index <= state.index and not state.halted:
        commands.resolve(state, append, out)
        commits.ask_all(state, now, out)
        commands.pump(state, now, out)
    begin(state, now, out)


def on_append_lost(state: RegistryState, now: Instant, event: AppendConflict | AppendUnknown, out: list[Any]) -> None:
    """A conflict or a lost answer: only a read begun from now on can tell what the log holds."""
    append = state.append
    if append is None or event.token != append.token:
        return
    append.unknown = True
    append.sent_at = now
    if state.read is not None:  # it may have begun too early
        give_up(state, now)
        state.read_retry_at = None
    begin(state, now, out)


def take_all(state: RegistryState, now: Instant, entries: Sequence[tuple[int, SignedEntry]], out: list[Any]) -> None:
    """Take entries in order, and tell the projection; let what they mean take effect, grants after all restrictions."""
    fresh: dict[int, list[SignedEntry]] = {}
    changed: dict[Namespace, Space] = {}
    for index, signed in entries:
        if index <= state.index:
            continue
        try:
            rows = rows_after(state, signed)
        except KeymeshError as bad:
            state.halted = f"{bad.code}: {bad.message}"
            out.append(Note("log-integrity", signed.entry.correlation_id, (("index", index), ("reason", bad.code))))
            return
        space = spaces.apply_entry(state, signed, rows)
        state.done[(space.name, signed.entry.command_id)] = (signed.entry.seq, index)
        fresh.setdefault(index, []).append(signed)
        changed[space.name] = space
        took(state, now, signed, out)
    for space in changed.values():
        sessions.offer_grants(state, now, space, out)
    for index, group in sorted(fresh.items()):
        out.append(Project(index, tuple(group)))
        state.index = max(state.index, index)


def rows_after(state: RegistryState, signed: SignedEntry) -> dict[str, bytes]:
    """The rows after ``signed``: as planned, where it is our own (its hash says so), else worked out and checked."""
    if state.append is not None and signed.hash in state.append.rows:
        spaces.check_next(spaces.space_of(state, signed.entry.namespace), signed)
        return state.append.rows[signed.hash]
    return spaces.check_entry(state, signed)


def took(state: RegistryState, now: Instant, signed: SignedEntry, out: list[Any]) -> None:
    """What one entry sets off at once: Lane 0 first, then voters, then everything that may wait but grants."""
    space = state.spaces[signed.entry.namespace]
    sessions.offer_restriction(state, now, space, signed, out)
    commits.follow(state, now, space, signed, out)
    killswitch.follow(state, now, space, signed, out)
    lifecycle.follow(state, now, space, signed)
    waits.follow(state, now, space, signed, out)
