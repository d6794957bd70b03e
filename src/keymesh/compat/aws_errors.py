"""AWS KMS's errors: their names, their HTTP codes, and which of ours each stands for.

Source: the exceptions and common errors of AWS KMS's API reference.
"""

from __future__ import annotations

from typing import Final

from keymesh.model.errors import Integrity, KeymeshError, Refused, Unavailable

SERVER_ERRORS: Final = frozenset({"KMSInternalException", "KeyUnavailableException", "DependencyTimeoutException"})
"""Clients repeat these by themselves, and ThrottlingException."""
_STATUS: Final = {"DryRunOperationException": 412, "ServiceUnavailableException": 503}

NO_SUCH_CIPHERTEXT_KEY: Final = (
    "the ciphertext refers to a key that does not exist, does not exist in this region, or that you may not use"
)


class AwsError(Exception):
    """``name`` as AWS has it."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name
        self.message = message

    @property
    def status(self) -> int:
        return 500 if self.name in SERVER_ERRORS else _STATUS.get(self.name, 400)


def validation(message: str) -> AwsError:
    return AwsError("ValidationException", message)


def denied(what: str) -> AwsError:
    return AwsError("AccessDeniedException", what)


def bad_ciphertext() -> AwsError:
    """The one answer to a blob that is malformed, changed, or bound to another encryption context."""
    return AwsError("InvalidCiphertextException", "the ciphertext could not be opened")


_REFUSED: Final = {
    "not-found": "NotFoundException",
    "bad-field": "ValidationException",
    "too-large": "ValidationException",
    "unsupported": "UnsupportedOperationException",
    "conflict": "AlreadyExistsException",
    "limit": "LimitExceededException",
    "too-many": "LimitExceededException",
}
_UNAVAILABLE: Final = {
    "budget-spent": "ThrottlingException",
    "busy": "ThrottlingException",
    "timeout": "DependencyTimeoutException",
}


def translated(error: KeymeshError) -> AwsError:
    """What a client of AWS is told of it."""
    if isinstance(error, Integrity):
        return bad_ciphertext()
    if isinstance(error, Unavailable):
        return AwsError(_UNAVAILABLE.get(error.code, "KeyUnavailableException"), error.message)
    if isinstance(error, Refused) and error.code == "restricted":
        return AwsError("DisabledException", "the key, or the tenant whose key it is, is suspended or revoked")
    return AwsError(_REFUSED.get(error.code, "AccessDeniedException"), error.message)
