"""Errors say what the caller must do: refused (final), unavailable (retry), integrity (quarantine, page someone).

Anything else that escapes is our bug and crashes the process.  A failed authentication or unwrap is the one
``Integrity.opaque()`` and never says which check failed.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Self


class ExitCode(IntEnum):
    DONE = 0
    REFUSED = 1
    USAGE = 2
    UNAVAILABLE = 3
    INTEGRITY = 4


class KeymeshError(Exception):
    """Base of all errors that a caller can act on.

    ``code`` is a stable machine word; ``field`` names the offending input where there is one.
    """

    exit_code: ExitCode = ExitCode.REFUSED

    def __init__(self, code: str, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.field = field


class Refused(KeymeshError):
    """Final: the same request will be refused again."""

    @classmethod
    def bad_field(cls, field: str, limit: str) -> Self:
        return cls("bad-field", f"{field}: {limit}", field=field)


class Unavailable(KeymeshError):
    """Not now: retry after ``retry_after_ms``."""

    exit_code = ExitCode.UNAVAILABLE

    def __init__(self, code: str, message: str, *, retry_after_ms: int = 1_000) -> None:
        super().__init__(code, message)
        self.retry_after_ms = retry_after_ms


class Integrity(KeymeshError):
    """Something is not what it must be: keep the evidence, act on nothing in it."""

    exit_code = ExitCode.INTEGRITY

    @classmethod
    def opaque(cls) -> Self:
        """The single answer to every failed unwrap, open or authentication."""
        return cls("integrity", "could not be opened")
