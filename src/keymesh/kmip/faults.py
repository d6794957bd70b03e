"""How an operation fails: the reason a KMIP client is told, and what 1.x calls the reasons that only 2.x has.

Texts name the field and the limit, never a value, never another tenant's object.  Source: KMIP 1.4, section 11; KMIP
2.1, section 11.49.
"""

from __future__ import annotations

from typing import Final

from keymesh.kmip.enums import ResultReason
from keymesh.model.errors import Refused

Version = tuple[int, int]

VERSIONS: Final[tuple[Version, ...]] = ((2, 1), (2, 0), (1, 4), (1, 3), (1, 2), (1, 1), (1, 0))
"""What is spoken, the preferred first."""


class Fault(Refused):
    """One operation's failure."""

    def __init__(self, reason: ResultReason, message: str) -> None:
        super().__init__(reason.name, message)
        self.reason = reason


def bad_message(message: str) -> Fault:
    """The message is not what its version says it must be."""
    return Fault(ResultReason.InvalidMessage, message)


def bad_field(message: str) -> Fault:
    """A field's value is outside its limit."""
    return Fault(ResultReason.InvalidField, message)


def wrong_state(message: str) -> Fault:
    """The object's state does not allow this."""
    return Fault(ResultReason.WrongKeyLifecycleState, message)


def not_found() -> Fault:
    """No such object, or another tenant's: one answer."""
    return Fault(ResultReason.ObjectNotFound, "no such object")


_BEFORE_2: Final = {
    ResultReason.AttributeInstanceNotFound: ResultReason.ItemNotFound,
    ResultReason.AttributeNotFound: ResultReason.ItemNotFound,
    ResultReason.AttributeReadOnly: ResultReason.PermissionDenied,
    ResultReason.AttributeSingleValued: ResultReason.IllegalOperation,
    ResultReason.BadCryptographicParameters: ResultReason.InvalidField,
    ResultReason.IncompatibleCryptographicUsageMask: ResultReason.PermissionDenied,
    ResultReason.InternalServerError: ResultReason.GeneralFailure,
    ResultReason.InvalidAttribute: ResultReason.InvalidField,
    ResultReason.InvalidAttributeValue: ResultReason.InvalidField,
    ResultReason.InvalidCorrelationValue: ResultReason.InvalidField,
    ResultReason.InvalidDataType: ResultReason.InvalidField,
    ResultReason.InvalidObjectType: ResultReason.InvalidField,
    ResultReason.KeyWrapTypeNotSupported: ResultReason.FeatureNotSupported,
    ResultReason.MultiValuedAttribute: ResultReason.IllegalOperation,
    ResultReason.NonUniqueNameAttribute: ResultReason.IllegalOperation,
    ResultReason.NotExtractable: ResultReason.PermissionDenied,
    ResultReason.ObjectDestroyed: ResultReason.PermissionDenied,
    ResultReason.ObjectNotFound: ResultReason.ItemNotFound,
    ResultReason.ReadOnlyAttribute: ResultReason.PermissionDenied,
    ResultReason.Sensitive: ResultReason.PermissionDenied,
    ResultReason.ServerLimitExceeded: ResultReason.GeneralFailure,
    ResultReason.UnknownEnumeration: ResultReason.InvalidField,
    ResultReason.UnsupportedAttribute: ResultReason.InvalidField,
    ResultReason.UnsupportedCryptographicParameters: ResultReason.InvalidField,
    ResultReason.UnsupportedProtocolVersion: ResultReason.InvalidMessage,
    ResultReason.WrappingObjectDestroyed: ResultReason.PermissionDenied,
    ResultReason.WrappingObjectNotFound: ResultReason.ItemNotFound,
    ResultReason.WrongKeyLifecycleState: ResultReason.PermissionDenied,
}

_SINCE_1_4: Final = {ResultReason.Sensitive, ResultReason.NotExtractable}


def reason_in(version: Version, reason: ResultReason) -> ResultReason:
    """``reason``, or what stands for it in a version that does not know it."""
    if version >= (2, 0) or (version == (1, 4) and reason in _SINCE_1_4):
        return reason
    return _BEFORE_2.get(reason, reason)
