"""From commands to entries: planning, idempotency, groups, and what an append's outcome means.

A command is planned on what its namespace holds *and* what the group before it will have made of it; it is
acknowledged only when its entry is known to be in the log.  One append is out at a time, at most 32 entries.
Restrictions go first; a resume of the same namespace that was still queued is then refused (``overtaken``), whichever
replica the restriction came by, so that it is never undone by the order of a queue.  Source: DESIGN section 2.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from keymesh.control import reduce, trust
from keymesh.control.build import sign_entry
from keymesh.control.entry import Body, Entry, SignedEntry
from keymesh.control.kinds import ADOPT_TAIL, KINDS, OPEN_EPOCH, Effect, Kind, ScopeArgs
from keymesh.control.messages import Recorded
from keymesh.control.rows import Rows, SignersRow
from keymesh.control.signing import Suite, from_plain
from keymesh.control.view import rows_root
from keymesh.model import strict_json
from keymesh.model.errors import Integrity, KeymeshError, Refused, Unavailable
from keymesh.model.ids import MESH_NAMESPACE, ZERO_DIGEST, check_tenant, check_token
from keymesh.model.limits import COMMIT_MAX_BYTES, COMMIT_MAX_ENTRIES, ENTRY_MAX_BYTES
from keymesh.model.machine import Note, Send
from keymesh.model.scope import parse_scope
from keymesh.model.time import Instant
from keymesh.registry import rotation, schemas, spaces, voter_change, waits
from keymesh.registry.events import AppendLog, Command, CommandDone
from keymesh.registry.state import Append, Pending, RegistryState

QUEUE_MAX: Final = 20_000
APPEND_TIMEOUT_MS: Final = 5_000
OFFLINE: Final = frozenset({OPEN_EPOCH, ADOPT_TAIL})


# --- planning (pure) -------------------------------------------------------------------------------------------------


def check_command(command: Command) -> Kind:
    """The kind that ``command`` names, its names and arguments well formed.  Raises Refused."""
    check_token("command_id", command.command_id)
    check_token("correlation_id", command.correlation_id)
    kind = KINDS.get(command.kind)
    if kind is None:
        raise Refused("unknown-kind", f"kind {command.kind[:64]!r} is not known", field="kind")
    of_mesh = command.namespace == MESH_NAMESPACE
    if not of_mesh:
        check_tenant(command.namespace)
    if (kind.namespace == "mesh" and not of_mesh) or (kind.namespace == "tenant" and of_mesh):
        raise Refused.bad_field("namespace", f"{command.kind} belongs to a {kind.namespace} namespace")
    strict_json.convert(command.args, kind.args)
    return kind


def check_not_expired(authority: tuple[dict[str, Any], ...], now: Instant) -> None:
    """Approvals expire at ``not_after`` (Unix ms), that instant included.  Raises Refused."""
    for plain in authority:
        if trust.parse_authority(from_plain(plain)).not_after <= now:
            raise Refused("approval-expired", "an approval of this command has expired", field="authority")


def check_region_exists(command: Command, mesh_rows: Rows) -> None:
    """A region's scope names a region of this mesh: none is restricted before it has joined.  Raises Refused."""
    if KINDS[command.kind].args is not ScopeArgs or command.namespace != MESH_NAMESPACE:
        return
    region = parse_scope(command.args["scope"]).region
    if region is not None and f"region/{region}" not in mesh_rows:
        known = sorted(name.removeprefix("region/") for name in mesh_rows if name.startswith("region/"))
        raise Refused.bad_field("scope", f"no region {region}; the regions are {', '.join(known)}")


def same_command(entry: Entry, command: Command, *, forwarded: bool = False) -> bool:
    """Whether a command asks for what the entry under its id did.

    Of a forwarded restriction the entry must restrict its scope, and for good where the command does.
    """
    if forwarded and command.kind == ADOPT_TAIL:
        return entry.kind == ADOPT_TAIL or entry.body.args.get("scope") in command.args["restrictions"]
    if forwarded and entry.kind in (command.kind, "revoke"):
        return entry.body.args.get("scope") == command.args.get("scope")
    return entry.kind == command.kind and strict_json.dumps(entry.body.args) == strict_json.dumps(command.args)


def as_parsed(args: dict[str, Any]) -> dict[str, Any]:
    """``args`` as whoever parses the signed bytes will see them: lists for tuples, and nothing that is not JSON."""
    parsed: dict[str, Any] = strict_json.loads(strict_json.dumps(args), max_bytes=ENTRY_MAX_BYTES)
    return parsed


def plan_entry(
    command: Command,
    *,
    head: SignedEntry | None,
    rows: Rows,
    mesh_head: SignedEntry | None,
    mesh_rows: Rows,
    signers: SignersRow | None,
    pins: trust.Pins,
    epoch: int,
    suite: Suite,
    now: Instant,
) -> tuple[SignedEntry, dict[str, bytes]]:
    """The entry for ``command``, right after ``head``, and the rows after it.

    1. The command is well formed.  2. Its approvals have not expired.  3. Its namespace exists (or it creates it).
    4. The region that it restricts, if it does, is there; its preconditions hold on ``rows``.  5. The signed entry
    passes the check that every holder will make.  Raises Refused.
    """
    check_command(command)
    check_not_expired(command.authority, now)
    creates = command.kind in ("mesh.genesis", "tenant.create")
    if mesh_head is None and command.kind != "mesh.genesis":
        raise Unavailable("no-genesis", "the mesh has no genesis yet")
    if head is None and not creates:
        raise Refused("unknown", "no such tenant", field="namespace")
    if head is not None and creates:
        raise Refused("conflict", "this namespace exists already", field="namespace")
    check_region_exists(command, mesh_rows)
    seq = 1 if head is None else head.entry.seq + 1
    draft = Entry(
        mesh=pins.mesh,
        epoch=epoch,
        namespace=command.namespace,
        seq=seq,
        prev=ZERO_DIGEST if head is None else head.hash,
        mesh_seq=0 if mesh_head is None else mesh_head.entry.seq,
        kind=command.kind,
        body=Body(args=as_parsed(command.args), authority=command.authority),
        state=ZERO_DIGEST,
        actor=command.actor,
        correlation_id=command.correlation_id,
        command_id=command.command_id,
        issued_at=now,
    )
    after = reduce.apply(rows, draft, mesh_rows)
    signed = sign_entry(msgspec.structs.replace(draft, state=rows_root(after)), suite)
    trust.verify_entry(signed, mesh_rows, signers, suite, pins=pins)
    return signed, after


# --- the queue -------------------------------------------------------------------------------------------------------


def submit(
    state: RegistryState,
    now: Instant,
    command: Command,
    out: list[Any],
    *,
    reply_to: Any = None,
    internal: bool = False,
) -> None:
    """Take a command into the queue, or answer it at once: a repeated one with its first outcome."""
    pending = Pending(command, reply_to, internal)
    if command.kind in spaces.LIFTS:
        pending.after_seq, pending.after_ids = _seen_by(state, command.namespace)
    if answer_repeated(state, pending, out):
        return
    if state.halted:
        finish(state, pending, Integrity("halted", state.halted), out)
    elif not state.booted:
        finish(state, pending, Unavailable("booting", "the log has not been read yet"), out)
    elif command.kind in OFFLINE and not internal:
        finish(state, pending, Refused("offline", f"{command.kind} is a restore's alone", field="kind"), out)
    elif (refused := _refusal(state, now, command)) is not None:
        finish(state, pending, refused, out)
    elif len(state.urgent) + len(state.routine) >= QUEUE_MAX:
        finish(state, pending, Unavailable("overloaded", "too many commands are waiting"), out)
    else:
        enqueue(state, pending, out)
        pump(state, now, out)


def _refusal(state: RegistryState, now: Instant, command: Command) -> KeymeshError | None:
    """By rules of single kinds that need more than the rows."""
    rules = (
        schemas.refusal(state, command),
        waits.refusal(state, now, command),
        voter_change.refusal(state, command),
        rotation.refusal(state, command),
    )
    return next((refused for refused in rules if refused is not None), None)


def enqueue(state: RegistryState, pending: Pending, out: list[Any]) -> None:
    kind = KINDS.get(pending.command.kind)
    namespace = pending.command.namespace
    if kind is not None and kind.effect is Effect.RESTRICTION:
        if state.queued_resumes[namespace]:
            overtake(state, namespace, out)
        state.urgent.append(pending)
        return
    if pending.command.kind in spaces.LIFTS:
        state.queued_resumes[namespace] += 1
    state.routine.append(pending)


def _seen_by(state: RegistryState, namespace: str) -> tuple[int, frozenset[str]]:
    """What a resume that is asked for now may lift: what the log has here, and what is on its way there."""
    group = () if state.append is None else state.append.group
    ids = (s.entry.command_id for _, s in group if s.entry.namespace == namespace and spaces.is_restriction(s))
    return spaces.space_of(state, namespace).seq, frozenset(ids)


def is_overtaken(state: RegistryState, pending: Pending) -> bool:
    """Whether a restriction that nobody knew of when this resume was asked for has come into its namespace."""
    if pending.command.kind not in spaces.LIFTS:
        return False
    later = spaces.space_of(state, pending.command.namespace).entries[pending.after_seq :]
    return any(spaces.is_restriction(s) and s.entry.command_id not in pending.after_ids for s in later)


def overtake(state: RegistryState, namespace: str, out: list[Any]) -> None:
    """A restriction goes first: resumes of its namespace that are still queued would now come after it and undo it."""
    kept = []
    for pending in state.routine:
        if pending.command.namespace == namespace and pending.command.kind in spaces.LIFTS:
            finish(state, pending, Refused("overtaken", "a restriction arrived before this resume was recorded"), out)
        else:
            kept.append(pending)
    state.routine.clear()
    state.routine.extend(kept)
    state.queued_resumes[namespace] = 0


def answer_repeated(state: RegistryState, pending: Pending, out: list[Any]) -> bool:
    """Whether the command's id is in the log already; it is then answered."""
    command = pending.command
    found = state.done.get((command.namespace, command.command_id))
    if found is None:
        return False
    seq, index = found
    signed = state.spaces[command.namespace].entries[seq - 1]
    if not same_command(signed.entry, command, forwarded=pending.reply_to is not None):
        finish(state, pending, Refused("conflict", "this command id was used for something else"), out)
    else:
        acknowledge(state, pending, signed, index, out, duplicate=True)
    return True


def acknowledge(
    state: RegistryState, pending: Pending, signed: SignedEntry, index: int, out: list[Any], *, duplicate: bool = False
) -> None:
    """The command's entry is in the log: say so to whoever waits."""
    command, entry = pending.command, signed.entry
    state.asked.discard((command.namespace, command.command_id))
    if pending.reply_to is not None:
        out.append(
            Send(
                pending.reply_to,
                Recorded(command_id=command.command_id, namespace=entry.namespace, epoch=entry.epoch, seq=entry.seq),
            )
        )
    elif not pending.internal:
        out.append(CommandDone(command.command_id, entry.namespace, entry.epoch, entry.seq, index, duplicate=duplicate))


def finish(state: RegistryState, pending: Pending, error: KeymeshError, out: list[Any]) -> None:
    """The command failed.  A node's forwarded restriction is refused for good only by what is final."""
    command = pending.command
    state.asked.discard((command.namespace, command.command_id))
    if pending.reply_to is not None:
        answer = forwarded_outcome(state, command, error)
        if answer is not None:
            out.append(Send(pending.reply_to, answer))
    elif pending.internal:
        out.append(Note("internal-refused", command.correlation_id, (("kind", command.kind), ("reason", error.code))))
    else:
        out.append(CommandDone(command.command_id, command.namespace, state.epoch, 0, state.index, error))


def forwarded_outcome(state: RegistryState, command: Command, error: KeymeshError) -> Recorded | None:
    """What a node is told of a local restriction that failed: nothing where it should try again.

    ``already`` (the scope is revoked) means that the log holds what was asked for: it names the head.
    """
    if not isinstance(error, Refused):
        return None
    space = spaces.space_of(state, command.namespace)
    if error.code == "already" and space.head is not None:
        at = space.head.entry
        return Recorded(command_id=command.command_id, namespace=space.name, epoch=at.epoch, seq=at.seq)
    return Recorded(command_id=command.command_id, namespace=command.namespace, epoch=0, seq=0, refused=error.code)


# --- groups ----------------------------------------------------------------------------------------------------------


def pump(state: RegistryState, now: Instant, out: list[Any]) -> None:
    """Plan the next group and send it, where none is out."""
    if state.append is not None or not state.booted or state.halted:
        return
    group: list[tuple[Pending, SignedEntry]] = []
    made: dict[str, tuple[SignedEntry, dict[str, bytes]]] = {}
    plans: list[tuple[SignedEntry, dict[str, bytes]]] = []
    taken: set[tuple[str, str]] = set()
    size = 0
    while len(group) < COMMIT_MAX_ENTRIES:
        queue = state.urgent or state.routine
        if not queue:
            break
        pending = queue[0]
        command = pending.command
        key = (command.namespace, command.command_id)
        if key in taken or (group and command.namespace == MESH_NAMESPACE):
            break  # a repeat is answered after its first; a mesh entry goes alone: tenants' entries compare its head
        queue.popleft()
        if command.kind in spaces.LIFTS:
            state.queued_resumes[command.namespace] -= 1
        if answer_repeated(state, pending, out):
            continue
        if is_overtaken(state, pending):
            finish(state, pending, Refused("overtaken", "a restriction arrived before this resume was recorded"), out)
            continue
        try:
            signed, rows = _plan(state, command, made, now)
        except KeymeshError as error:
            finish(state, pending, error, out)
            continue
        size += len(signed.envelope.payload)
        if group and size > COMMIT_MAX_BYTES:
            queue.appendleft(pending)
            state.queued_resumes[command.namespace] += int(command.kind in spaces.LIFTS)
            break
        group.append((pending, signed))
        made[command.namespace] = (signed, rows)
        plans.append((signed, rows))
        taken.add(key)
        if command.namespace == MESH_NAMESPACE:
            break
    if group:
        planned = {signed.hash: rows for signed, rows in plans}
        state.append = Append(state.token("append"), group, planned, now)
        out.append(AppendLog(state.append.token, tuple(signed for _, signed in group)))


def _plan(
    state: RegistryState,
    command: Command,
    made: Mapping[str, tuple[SignedEntry, dict[str, bytes]]],
    now: Instant,
) -> tuple[SignedEntry, dict[str, bytes]]:
    space, mesh = spaces.space_of(state, command.namespace), spaces.mesh_space(state)
    head, rows = made.get(command.namespace, (space.head, space.rows))
    return plan_entry(
        command,
        head=head,
        rows=rows,
        mesh_head=mesh.head,
        mesh_rows=mesh.rows,
        signers=space.signers,
        pins=spaces.pins_of(state.config),
        epoch=state.epoch,
        suite=state.config.suite,
        now=now,
    )


def resolve(state: RegistryState, append: Append, out: list[Any]) -> None:
    """The log has been read past the append: what is in it is acknowledged, the rest goes back, in order."""
    state.append = None
    absent = [pending for pending, signed in append.group if not _landed(state, pending, signed, out)]
    restricted = {p.command.namespace for p in state.urgent}
    for pending in reversed(absent):
        command = pending.command
        if KINDS[command.kind].effect is Effect.RESTRICTION:
            state.urgent.appendleft(pending)
        elif command.kind in spaces.LIFTS and command.namespace in restricted:
            finish(state, pending, Refused("overtaken", "a restriction arrived before this resume was recorded"), out)
        else:
            state.queued_resumes[command.namespace] += int(command.kind in spaces.LIFTS)
            state.routine.appendleft(pending)


def _landed(state: RegistryState, pending: Pending, signed: SignedEntry, out: list[Any]) -> bool:
    found = state.done.get((pending.command.namespace, pending.command.command_id))
    if found is None:
        return False
    if state.spaces[pending.command.namespace].entries[found[0] - 1].hash == signed.hash:
        acknowledge(state, pending, signed, found[1], out)
    else:
        answer_repeated(state, pending, out)
    return True


def internal_id(*parts: object) -> str:
    """A command id that is the same whenever the same thing is asked for, of the accepted form."""
    text = ":".join(str(p) for p in parts).replace("/", ".")
    return text if len(text) <= 128 else f"{text[:63]}:{hashlib.sha256(text.encode()).hexdigest()}"
