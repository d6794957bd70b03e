"""What the Registry asks of itself and takes from nodes: key versions submitted, activated, re-wrapped; bindings
retired; local restrictions brought into the log.

A node's word is taken for what it may say only: versions and re-wraps come from the tenant's home region, forwarded
restrictions from a region that may hold the tenant.  Everything becomes an ordinary command; ``desired`` has the rules.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from keymesh.control import trust
from keymesh.control.entry import SignedEntry
from keymesh.control.kinds import ADOPT_TAIL, AdoptedRestriction, AdoptTail
from keymesh.control.messages import ForwardRestriction, Recorded, SubmitRewrap, SubmitVersion
from keymesh.control.rows import L2_NAME, KeyRow, get, key_row_name
from keymesh.model.errors import KeymeshError, Refused
from keymesh.model.ids import KeyId
from keymesh.model.machine import Address, Note, Persist, Send
from keymesh.model.scope import ScopeKind, parse_scope
from keymesh.model.states import KeyState
from keymesh.model.time import Instant
from keymesh.registry import commands, desired, heartbeats, spaces
from keymesh.registry.desired import RegionReport
from keymesh.registry.events import Command
from keymesh.registry.records import HoldersRecord, holders_name
from keymesh.registry.state import RegistryState, Session, Space

ACTOR: Final = "registry"
FORWARDED: Final = ("suspend", "revoke")


def follow(state: RegistryState, now: Instant, space: Space, signed: SignedEntry) -> None:
    """Keep the lists of what waits for activation or retirement."""
    entry = signed.entry
    args = entry.body.args
    if entry.kind == "key.create":
        state.pre_active[(space.name, str(args["key"]), int(args["version"]))] = (now, entry.seq)
    elif entry.kind in ("l1.switch", "l1.retire"):
        if desired.has_retiring(space.rows):
            state.retiring.add(space.name)
        else:
            state.retiring.discard(space.name)


def review(state: RegistryState, now: Instant, region: str | None, out: list[Any]) -> None:
    """Look at what waits, of the namespaces that ``region`` holds (all, for None)."""
    for name, key, version in list(state.pre_active):
        space = state.spaces[name]
        if region is None or spaces.may_hold(space, region):
            _review_version(state, now, space, key, version, out)
    for name in sorted(state.retiring):
        space = state.spaces[name]
        if region is None or spaces.may_hold(space, region):
            _review_bindings(state, now, space, out)


def _review_version(state: RegistryState, now: Instant, space: Space, key: str, version: int, out: list[Any]) -> None:
    since, seq = state.pre_active[(space.name, key, version)]
    row = get(space.rows, key_row_name(key, version), KeyRow)
    if row is None or row.state != KeyState.PRE_ACTIVE.value:
        del state.pre_active[(space.name, key, version)]
        if state.holders.pop((space.name, key, version), None) is not None:
            out.append(Persist(state.token("holders"), (), (holders_name(space.name, key, version),)))
        return
    assert space.policy is not None
    allowed = space.policy.regions
    reports = {r: report_of(state, now, r, space, seq, {(space.name, key, version)}) for r in allowed}
    holders = state.holders.get((space.name, key, version), frozenset())
    if not desired.may_activate(allowed, holders, reports, age_ms=now - since):
        return
    args = {"key": key, "version": version, "wrapping": desired.is_newest(space.rows, key, version)}
    correlation_id = space.entries[seq - 1].entry.correlation_id
    ask(state, now, space, "key.activate", args, commands.internal_id("activate", key, version), correlation_id, out)


def _review_bindings(state: RegistryState, now: Instant, space: Space, out: list[Any]) -> None:
    """A binding goes once no live L2 rests on it and *every* allowed region has opened them under the new one."""
    for binding in desired.retirable(space.rows):
        seq = last_l2_seq(space)
        assert space.policy is not None
        l2 = {p for s in state.sessions.values() for p in s.pending if p[0] == space.name and p[1] == L2_NAME}
        reports = [report_of(state, now, r, space, seq, l2) for r in space.policy.regions]
        if all(r.reachable and r.has for r in reports):
            correlation_id = space.entries[seq - 1].entry.correlation_id
            args = {"binding_id": binding}
            ask(state, now, space, "l1.retire", args, commands.internal_id("retire", binding), correlation_id, out)


def last_l2_seq(space: Space) -> int:
    """The newest entry that changed what L2 rests on."""
    for signed in reversed(space.entries):
        kind, key = signed.entry.kind, signed.entry.body.args.get("key")
        if kind in ("l1.switch", "tenant.create") or (kind in ("key.rewrapped", "key.create") and key == L2_NAME):
            return signed.entry.seq
    return 1


def report_of(
    state: RegistryState, now: Instant, region: str, space: Space, seq: int, items: set[tuple[str, str, int]]
) -> RegionReport:
    """Whether a region is reachable, and whether its reachable nodes' own heartbeats show that they took entry ``seq``
    and have none of ``items`` pending."""
    assert state.settings is not None
    up = [s for s in state.nodes_of.get(region, ()) if heartbeats.is_reachable(s, now, state.settings.heartbeat_ms)]
    return RegionReport(reachable=bool(up), has=bool(up) and all(_has(s, space, seq, items) for s in up))


def _has(session: Session, space: Space, seq: int, items: set[tuple[str, str, int]]) -> bool:
    leaf = session.reported.get(space.name)
    epoch = space.entries[seq - 1].entry.epoch
    return leaf is not None and leaf.order >= (epoch, seq) and not (session.pending & items)


def ask(
    state: RegistryState,
    now: Instant,
    space: Space,
    kind: str,
    args: dict[str, Any],
    command_id: str,
    correlation_id: str,
    out: list[Any],
    *,
    actor: str = ACTOR,
) -> None:
    """Submit a command of our own, once while it is under way."""
    if not state.booted or (space.name, command_id) in state.asked:
        return
    state.asked.add((space.name, command_id))
    command = Command(command_id, space.name, kind, args, actor, correlation_id)
    commands.submit(state, now, command, out, internal=True)


# --- what nodes hand in ----------------------------------------------------------------------------------------------


def at_home(state: RegistryState, sender: Address, namespace: str) -> Space | None:
    """The tenant, if ``sender`` is a node of its home region."""
    session, space = state.sessions.get(sender), state.spaces.get(namespace)
    if session is None or space is None or space.policy is None or space.policy.home != session.region:
        return None
    return space


def on_version(state: RegistryState, now: Instant, sender: Address, word: SubmitVersion, out: list[Any]) -> None:
    """A minted version: the log's compare on (tenant, key, version) creates it, whoever is second loses."""
    space = at_home(state, sender, word.namespace)
    if space is None:
        out.append(Note("submit-refused", word.correlation_id, (("node", str(sender)),)))
        return
    if get(space.rows, key_row_name(word.key, word.version), KeyRow) is None:
        _keep_holders(state, space, word, out)
    args = {
        "key": word.key,
        "version": word.version,
        "kid": word.kid,
        "digest": word.digest,
        "parent": word.parent,
    }
    command_id = commands.internal_id("create", word.key, word.version, word.kid)
    ask(state, now, space, "key.create", args, command_id, word.correlation_id, out, actor=str(sender))


def _keep_holders(state: RegistryState, space: Space, word: SubmitVersion, out: list[Any]) -> None:
    assert space.policy is not None
    name = (space.name, word.key, word.version)
    regions = frozenset(word.holders) & frozenset(space.policy.regions)
    if state.holders.get(name) != regions:
        state.holders[name] = regions
        record = HoldersRecord(namespace=space.name, key=word.key, version=word.version, regions=tuple(sorted(regions)))
        out.append(Persist(state.token("holders"), ((holders_name(*name), record),)))


def on_rewrap(state: RegistryState, now: Instant, sender: Address, word: SubmitRewrap, out: list[Any]) -> None:
    space = at_home(state, sender, word.namespace)
    if space is None:
        out.append(Note("submit-refused", word.correlation_id, (("node", str(sender)),)))
        return
    args = {
        "key": word.key,
        "version": word.version,
        "revision": word.revision,
        "digest": word.digest,
        "parent": word.parent,
    }
    command_id = commands.internal_id("rewrap", word.key, word.version, word.revision, word.digest[:32])
    ask(state, now, space, "key.rewrapped", args, command_id, word.correlation_id, out, actor=str(sender))


def on_forward(state: RegistryState, now: Instant, sender: Address, word: ForwardRestriction, out: list[Any]) -> None:
    """A restriction that is in force at a node already wants to become an entry; the node hears ``Recorded``.

    A tenant that the node's region may not hold looks like one that does not exist.
    """
    session = state.sessions.get(sender)
    if session is None or not state.booted:
        return
    namespace = ""
    try:
        namespace = parse_scope(word.scope).namespace
        if word.action not in FORWARDED:
            raise Refused.bad_field("action", "suspend or revoke")
        if not spaces.may_hold(spaces.space_of(state, namespace), session.region):
            raise Refused("unknown", "no such tenant", field="scope")
    except Refused as error:
        refused = Recorded(command_id=word.command_id, namespace=namespace, epoch=0, seq=0, refused=error.code)
        out.append(Send(sender, refused))
        return
    if (namespace, word.command_id) in state.asked:
        return
    command = forwarded_command(state, now, namespace, word)
    if command.kind not in (word.action, ADOPT_TAIL) and (namespace, word.command_id) not in state.done:
        fields = (("node", str(sender)), ("scope", word.scope))
        out.append(Note("forwarded-revoke-suspends", word.correlation_id, fields))
    state.asked.add((namespace, word.command_id))
    commands.submit(state, now, command, out, reply_to=sender, internal=command.kind == ADOPT_TAIL)


def forwarded_command(state: RegistryState, now: Instant, namespace: str, word: ForwardRestriction) -> Command:
    """What a forwarded restriction may become: on a node's word alone nothing that cannot be undone.

    A revocation within a tenant is one where the tenant's signers signed that very command and it has not expired;
    else it suspends, and somebody has to complete it.  Wide scopes need the officers' word in any case.  A destruction
    is forwarded where a restore lost its entry: it is adopted as one that waits, for somebody to cancel or ask anew.
    """
    if parse_scope(word.scope).kind is ScopeKind.DESTRUCTION:
        adopted = AdoptedRestriction(state="suspended", command_id=word.command_id)
        adopt = msgspec.to_builtins(AdoptTail(restrictions={word.scope: adopted}))
        return Command(word.command_id, namespace, ADOPT_TAIL, adopt, word.actor, word.correlation_id)
    args = {**word.options, "scope": word.scope}
    kind, authority = word.action, word.authority
    if not parse_scope(word.scope).needs_four_eyes and not _is_signed(state, now, namespace, word, args):
        kind, authority = "suspend", ()  # an approval that counts for nothing must not hinder it either
    return Command(
        command_id=word.command_id,
        namespace=namespace,
        kind=kind,
        args=args,
        actor=word.actor,
        correlation_id=word.correlation_id,
        authority=authority,
    )


def _is_signed(
    state: RegistryState, now: Instant, namespace: str, word: ForwardRestriction, args: dict[str, Any]
) -> bool:
    signers = spaces.space_of(state, namespace).signers
    if signers is None or not word.authority:
        return False
    try:
        trust.verify_authority(
            mesh=state.config.mesh,
            namespace=namespace,
            command_id=word.command_id,
            kind=word.action,
            args=args,
            authority=word.authority,
            quorum=trust.Quorum({KeyId(k): v for k, v in signers.keys.items()}, signers.threshold),
            suite=state.config.suite,
            now=now,
        )
    except KeymeshError:
        return False
    return True


def tick(state: RegistryState, now: Instant, out: list[Any]) -> None:
    """Review what has waited long enough.  Once: what is not activated then waits for the next heartbeat's review."""
    due = next_due(state)
    if due is not None and due <= now:
        state.reviewed_at = now
        review(state, now, None, out)


def next_due(state: RegistryState) -> Instant | None:
    """When the next Pre-Active version stops waiting for regions that do not load it."""
    marks = [since + desired.ACTIVATE_AFTER_MS for since, _ in state.pre_active.values()]
    ahead = [mark for mark in marks if mark > state.reviewed_at]
    return Instant(min(ahead)) if ahead else None
