"""The waiting period of a tenant's destruction: time that some Registry has seen pass.

It counts on the machine's clock, less every jump ahead of it, from when the entry was read here; how much has passed
is recorded now and then, and a later life goes on from there.  So time during which no Registry ran does not count,
nor does a wall clock that somebody set: doubt postpones.  Source: DESIGN section 1.
"""

from __future__ import annotations

from typing import Any, Final

from keymesh.control.destruction import DESTROY_KIND
from keymesh.control.entry import SignedEntry
from keymesh.control.state import CANCEL_DESTROY
from keymesh.model.errors import Refused
from keymesh.model.machine import Persist
from keymesh.model.scope import destruction_of
from keymesh.model.time import Instant
from keymesh.registry.events import Command
from keymesh.registry.records import wait_name
from keymesh.registry.state import RegistryState, Space, Wait

SAVE_MAX_MS: Final = 3_600_000
SAVES_IN_A_WAIT: Final = 16


def follow(state: RegistryState, now: Instant, space: Space, signed: SignedEntry, out: list[Any]) -> None:
    """Begin to count at a ``tenant.destroy``; stop at what ends it."""
    entry = signed.entry
    if str(entry.body.args.get("scope")) != str(destruction_of(space.name)):
        return
    state.waits.pop(space.name, None)
    if entry.kind == DESTROY_KIND:
        record = state.wait_records.get(space.name)
        before = record.waited_ms if record is not None and record.entry_hash == signed.hash else 0
        args = entry.body.args
        state.waits[space.name] = Wait(
            seq=entry.seq,
            entry_hash=signed.hash,
            command_id=entry.command_id,
            correlation_id=entry.correlation_id,
            wait_ms=int(args["wait_ms"]),
            before_ms=before,
            since=now,
            save_at=Instant(now + save_every_ms(int(args["wait_ms"]))),
        )
    elif state.booted:
        state.wait_records.pop(space.name, None)
        out.append(Persist(state.token("wait"), (), (wait_name(space.name),)))


def save_every_ms(wait_ms: int) -> int:
    return max(1, min(SAVE_MAX_MS, wait_ms // SAVES_IN_A_WAIT))


def waited_ms(wait: Wait, now: Instant) -> int:
    return wait.before_ms + max(0, now - wait.since - wait.hold_ms)


def due_at(wait: Wait) -> Instant:
    """When the wait is over by our clock, if that runs on as it does."""
    return Instant(wait.since + wait.hold_ms + max(0, wait.wait_ms - wait.before_ms))


def clock_ahead(state: RegistryState, by_ms: int) -> None:
    """Our clock jumped: nobody has waited so long."""
    for wait in state.waits.values():
        wait.hold_ms += by_ms


def next_due(state: RegistryState) -> Instant | None:
    marks = []
    for wait in state.waits.values():
        due = due_at(wait)
        marks.append(max(due, wait.ask_at) if due <= wait.save_at else wait.save_at)
    return min(marks) if marks else None


def refusal(state: RegistryState, now: Instant, command: Command) -> Refused | None:
    """Why a destruction can't be cancelled any more."""
    wait = state.waits.get(command.namespace)
    if command.kind != CANCEL_DESTROY or wait is None or now < due_at(wait):
        return None
    return Refused("too-late", f"{command.namespace}'s waiting period is over", field="tenant")
