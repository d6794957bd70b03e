"""Key states, operations, modes and lanes, and the table of which state allows which operation.

Key states are NIST SP 800-57 part 1's, under KMIP's names.  A missing row is a refusal.
"""

from __future__ import annotations

from enum import Enum, IntEnum
from typing import Final


class Word(Enum):
    """A closed set of words.  Members are singletons, so identity is all that their hash needs (``Enum``'s own is a
    Python function, and these are looked up in tables at every question)."""

    __hash__ = object.__hash__


class KeyState(Word):
    PRE_ACTIVE = "pre-active"
    ACTIVE = "active"
    SUSPENDED = "suspended"
    DEACTIVATED = "deactivated"
    COMPROMISED = "compromised"
    DESTROYED = "destroyed"
    DESTROYED_COMPROMISED = "destroyed-compromised"


KEY_STATES: Final = {state.value: state for state in KeyState}
"""By their words in rows."""


class Operation(Word):
    """What may be asked of a key, or of a tenant in a region."""

    WRAP = "wrap"  # protect new data or child keys: mint an L4, wrap an L3
    UNWRAP = "unwrap"  # open what was protected
    LEASE = "lease"  # release an L3 to an Edge
    EXPORT = "export"
    GRANT = "grant"  # rotate, onboard, resume: anything that widens
    RESTRICT = "restrict"


class Mode(Word):
    """Names for the results of ``may`` (DESIGN section 3), per tenant and node."""

    SYNCED = "synced"
    AUTONOMOUS = "autonomous"
    STANDBY = "standby"
    CLOSED = "closed"
    SEALED = "sealed"


class Lane(IntEnum):
    """Orbital's strictly prioritised lanes; 0 is served first."""

    RESTRICTION = 0
    ONBOARDING = 1
    ROUTINE = 2


class IvkState(Word):
    ACTIVE = "active"
    GRACE = "grace"
    DEPRECATED = "deprecated"
    REVOKED = "revoked"


class Custody(Word):
    LEASED = "leased"
    CORE_HELD = "core-held"


_USE: Final = frozenset({Operation.WRAP, Operation.UNWRAP, Operation.LEASE, Operation.EXPORT})

ALLOWED: Final[dict[KeyState, frozenset[Operation]]] = {
    KeyState.PRE_ACTIVE: frozenset({Operation.RESTRICT, Operation.GRANT}),
    KeyState.ACTIVE: _USE | {Operation.RESTRICT, Operation.GRANT},
    KeyState.SUSPENDED: frozenset({Operation.RESTRICT, Operation.GRANT}),
    KeyState.DEACTIVATED: frozenset({Operation.UNWRAP, Operation.LEASE, Operation.RESTRICT, Operation.GRANT}),
    KeyState.COMPROMISED: frozenset({Operation.RESTRICT}),
    KeyState.DESTROYED: frozenset(),
    KeyState.DESTROYED_COMPROMISED: frozenset(),
}


def state_allows(state: KeyState, operation: Operation) -> bool:
    return state in ALLOWED and operation in ALLOWED[state]


TRANSITIONS: Final[dict[KeyState, frozenset[KeyState]]] = {
    KeyState.PRE_ACTIVE: frozenset(
        {KeyState.ACTIVE, KeyState.SUSPENDED, KeyState.DEACTIVATED, KeyState.COMPROMISED, KeyState.DESTROYED}
    ),
    KeyState.ACTIVE: frozenset({KeyState.SUSPENDED, KeyState.DEACTIVATED, KeyState.COMPROMISED}),
    KeyState.SUSPENDED: frozenset({KeyState.ACTIVE, KeyState.DEACTIVATED, KeyState.COMPROMISED, KeyState.DESTROYED}),
    KeyState.DEACTIVATED: frozenset({KeyState.COMPROMISED, KeyState.DESTROYED}),
    KeyState.COMPROMISED: frozenset({KeyState.DESTROYED_COMPROMISED}),
    KeyState.DESTROYED: frozenset({KeyState.DESTROYED_COMPROMISED}),
    KeyState.DESTROYED_COMPROMISED: frozenset(),
}


def may_become(old: KeyState, new: KeyState) -> bool:
    return new in TRANSITIONS[old]
