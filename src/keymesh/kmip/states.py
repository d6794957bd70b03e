"""Which operation an object's state allows, as a table: a missing row is a refusal.

The object's own state only; the kill switch is above it (``ports.Gate``).  DESIGN section 7: Compromised forbids every
cryptographic use, while its owner may still Get it and see its attributes.  Source: KMIP 1.4, section 3.22.
"""

from __future__ import annotations

from typing import Final

from keymesh.kmip.enums import Operation, ResultReason, State
from keymesh.kmip.faults import Fault, wrong_state
from keymesh.kmip.tags import Tag

_SEE: Final = {Operation.GetAttributes, Operation.GetAttributeList, Operation.Locate}
_HOLD: Final = _SEE | {
    Operation.AddAttribute,
    Operation.Check,
    Operation.DeleteAttribute,
    Operation.Get,
    Operation.ModifyAttribute,
    Operation.ReKey,
    Operation.Revoke,
    Operation.SetAttribute,
}
_PROCESS: Final = {Operation.Decrypt, Operation.MACVerify}
PROTECT: Final = frozenset({Operation.Encrypt, Operation.MAC})
"""Uses that ``UsageLimits`` counts and ``ProtectStopDate`` ends.  To wrap a key is ``Encrypt`` of the wrapping key."""
PROCESS: Final = frozenset(_PROCESS)
"""Uses that begin with ``ProcessStartDate``."""

ALLOWED: Final[dict[State, frozenset[Operation]]] = {
    State.PreActive: frozenset(_HOLD | {Operation.Activate, Operation.Destroy}),
    State.Active: frozenset(_HOLD | _PROCESS | PROTECT),
    State.Deactivated: frozenset(_HOLD | _PROCESS | {Operation.Destroy}),
    State.Compromised: frozenset(_HOLD | {Operation.Destroy}),
    State.Destroyed: frozenset(_SEE | {Operation.Revoke}),
    State.DestroyedCompromised: frozenset(_SEE),
}

MOVES: Final = {Tag.ActivationDate: Operation.Activate, Tag.DeactivationDate: Operation.Revoke}
"""Dates that move the state by themselves, and the operation that who sets one must also be allowed."""

GONE: Final = frozenset({State.Destroyed, State.DestroyedCompromised})


def may(state: State, operation: Operation) -> None:
    """Raises Fault where the state does not allow the operation."""
    if operation in ALLOWED[state]:
        return
    if state in GONE:
        raise Fault(ResultReason.ObjectDestroyed, "the object is destroyed")
    raise wrong_state(f"{operation.name}: not in state {state.name}")
