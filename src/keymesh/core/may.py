"""``may``: whether an operation is allowed for a tenant here and now, and what the mode is called (DESIGN section 3).

Pure.  Every input may be None, which means doubt (missing, unknown, expired, unreadable), and doubt never turns a no
into a yes (I7).  Key material and who asks are not judged here; admission by role and residency is ``access``'s.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from msgspec import Struct

from keymesh.model.states import KeyState, Mode, Operation, state_allows
from keymesh.model.time import NEVER, Instant

FRESH_INTERVALS: Final = 3


class Grantor(Enum):
    """Who granted a namespace lease."""

    REGISTRY = "registry"
    VOTERS = "voters"


class NoKey(Enum):
    """Stands for the key state where an operation concerns no one key version."""

    NO_KEY = "no-key"


NO_KEY: Final = NoKey.NO_KEY


class MayContext(Struct, frozen=True, kw_only=True):
    """All that ``may`` depends on.  None is doubt, for every field.

    ``restricted_*``: a restriction of that scope covers what is asked.  ``closed``: evidence, an unknown kind, an L1
    denial, a restriction that could not be recorded, or a withdrawn residency keeps the tenant closed.
    ``answered_sent_at``: when the heartbeat of the last accepted answer was sent.
    """

    sealed: bool | None
    closed: bool | None
    restricted_mesh: bool | None
    restricted_region: bool | None
    restricted_tenant: bool | None
    restricted_service: bool | None
    restricted_key: bool | None
    restricted_local: bool | None
    lease_until: Instant | None
    grantor: Grantor | None
    mesh_lease_until: Instant | None
    l1_until: Instant | None
    answered_sent_at: Instant | None
    interval_ms: int | None
    key_state: KeyState | NoKey | None


class Verdict(Struct, frozen=True):
    """``reason`` is a stable word, empty where allowed.  An allowed verdict holds strictly before ``until``."""

    allowed: bool
    mode: Mode
    reason: str
    until: Instant


_USE: Final = frozenset({Operation.WRAP, Operation.UNWRAP, Operation.LEASE, Operation.EXPORT, Operation.RESTRICT})

MODE_ALLOWS: Final[dict[Mode, frozenset[Operation]]] = {
    Mode.SYNCED: _USE | {Operation.GRANT},
    Mode.AUTONOMOUS: _USE,
    Mode.STANDBY: _USE,
    Mode.CLOSED: frozenset({Operation.RESTRICT}),
    Mode.SEALED: frozenset({Operation.RESTRICT}),
}


def is_fresh(sent_at: Instant | None, interval_ms: int | None, now: Instant) -> bool:
    """Whether the last accepted answer's heartbeat was sent at most three intervals ago, and not in the future."""
    return sent_at is not None and interval_ms is not None and 0 <= now - sent_at <= FRESH_INTERVALS * interval_ms


def mode_of(ctx: MayContext, now: Instant) -> tuple[Mode, str]:
    """(mode, why it is not better); restrictions have no part in it."""
    if ctx.sealed is not False:
        return Mode.SEALED, "sealed"
    if ctx.closed is not False:
        return Mode.CLOSED, "closed"
    if ctx.lease_until is None or now >= ctx.lease_until:
        return Mode.CLOSED, "lease"
    if ctx.mesh_lease_until is None or now >= ctx.mesh_lease_until:
        return Mode.CLOSED, "mesh-lease"
    if ctx.l1_until is None or now >= ctx.l1_until:
        return Mode.CLOSED, "l1-lease"
    if ctx.grantor is Grantor.VOTERS:
        return Mode.STANDBY, "standby"
    if ctx.grantor is not Grantor.REGISTRY:
        return Mode.CLOSED, "grantor"
    if not is_fresh(ctx.answered_sent_at, ctx.interval_ms, now):
        return Mode.AUTONOMOUS, "not-fresh"
    return Mode.SYNCED, ""


def may(ctx: MayContext, operation: Operation, now: Instant) -> Verdict:
    """Whether ``operation`` is allowed.

    1. A restriction is allowed in every mode.
    2. The mode must allow the operation (``MODE_ALLOWS``).
    3. No restriction may cover it.
    4. The key version's state must allow it.
    """
    mode, why = mode_of(ctx, now)
    if operation is Operation.RESTRICT:
        return Verdict(True, mode, "", NEVER)
    if operation not in MODE_ALLOWS[mode]:
        return Verdict(False, mode, why, now)
    word = _restricted(ctx)
    if word:
        return Verdict(False, mode, word, now)
    if ctx.key_state is not NO_KEY and (ctx.key_state is None or not state_allows(ctx.key_state, operation)):
        return Verdict(False, mode, "key-state", now)
    return Verdict(True, mode, "", _until(ctx, operation))


def _restricted(ctx: MayContext) -> str:
    """The widest restriction that covers what is asked; empty for none."""
    if ctx.restricted_mesh is not False:
        return "restricted-mesh"
    if ctx.restricted_region is not False:
        return "restricted-region"
    if ctx.restricted_tenant is not False:
        return "restricted-tenant"
    if ctx.restricted_service is not False:
        return "restricted-service"
    if ctx.restricted_key is not False:
        return "restricted-key"
    if ctx.restricted_local is not False:
        return "restricted-local"
    return ""


def _until(ctx: MayContext, operation: Operation) -> Instant:
    until = NEVER
    for end in (ctx.lease_until, ctx.mesh_lease_until, ctx.l1_until):
        if end is not None and end < until:
            until = end
    if operation is Operation.GRANT and ctx.answered_sent_at is not None and ctx.interval_ms is not None:
        return min(until, Instant(ctx.answered_sent_at + FRESH_INTERVALS * ctx.interval_ms + 1))
    return until
