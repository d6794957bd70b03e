"""The form of Vault's HTTP API: requests, the envelope of answers, errors, and fields as its clients send them.

Clients send numbers and booleans also as text (its command line always does), and fields that an endpoint does not
know: those are ignored, and named in ``warnings``.  Whatever is known and not served is refused by its name.
"""

from __future__ import annotations

import binascii
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl, unquote

from keymesh.model import strict_json
from keymesh.model.errors import Integrity, KeymeshError, Refused, Unavailable

BODY_MAX_BYTES: Final = 4 * 1024 * 1024
QUERY_MAX: Final = 32
WARNED_MAX: Final = 8
NOT_OPENED: Final = "cipher: message authentication failed"
DENIED: Final = "1 error occurred:\n\t* permission denied\n\n"
UNSUPPORTED_PATH: Final = "1 error occurred:\n\t* unsupported path\n\n"
UNSUPPORTED_OPERATION: Final = "1 error occurred:\n\t* unsupported operation\n\n"


class VaultError(Exception):
    """An answer of ``{"errors": [...]}``; no words at all for a key that is not there."""

    def __init__(self, status: int, *errors: str) -> None:
        super().__init__(status, *errors)
        self.status = status
        self.errors = errors


@dataclass(frozen=True, slots=True)
class VaultAnswer:
    """``body`` None: nothing follows the head."""

    status: int
    body: dict[str, Any] | None = None


def refusal(error: KeymeshError) -> VaultAnswer:
    """One of our errors in Vault's form."""
    match error:
        case Integrity():
            return errors(400, NOT_OPENED)
        case Unavailable(code="unknown-key"):
            return errors(400, UNKNOWN_KEY)
        case Unavailable(code="budget-spent" | "busy"):
            return errors(429, f"{error.message} [{error.code}]")
        case Unavailable():
            return errors(503, f"{error.message} [{error.code}]")
        case _ if error.code in ("restricted", "denied", "unknown"):
            return errors(403, f"permission denied: {error.message} [{error.code}]")
        case _:
            return errors(400, error.message)


UNKNOWN_KEY: Final = "no version of this key that is held here opens this ciphertext"


def errors(status: int, *words: str) -> VaultAnswer:
    return VaultAnswer(status, {"errors": list(words)})


def envelope(
    request_id: str, data: Mapping[str, Any] | None, *, auth: Mapping[str, Any] | None = None, warnings: Collection[str]
) -> dict[str, Any]:
    """What stands around the data of every answer but those of ``sys``."""
    return {
        "request_id": request_id,
        "lease_id": "",
        "renewable": False,
        "lease_duration": 0,
        "data": data,
        "wrap_info": None,
        "warnings": list(warnings) or None,
        "auth": auth,
    }


# --- paths -------------------------------------------------------------------------------------------------------


def split_path(path: str, query: str) -> tuple[tuple[str, ...], dict[str, str]]:
    """The segments behind ``/v1/``, and the query's fields.  Raises VaultError."""
    parts = tuple(path.split("/"))
    if parts[:2] != ("", "v1"):
        raise VaultError(404, UNSUPPORTED_PATH)
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=QUERY_MAX, errors="strict")
        segments = tuple(unquote(part, errors="strict") for part in parts[2:])
    except ValueError:
        raise VaultError(400, f"the query: at most {QUERY_MAX} fields of UTF-8 text") from None
    return segments[:-1] if segments[-1:] == ("",) else segments, dict(pairs)


# --- bodies ------------------------------------------------------------------------------------------------------


class Fields:
    """A JSON object's fields, taken one by one; what is left over was not known."""

    def __init__(self, value: Mapping[str, Any]) -> None:
        self._left = dict(value)

    @classmethod
    def of(cls, body: bytes, *, max_bytes: int = BODY_MAX_BYTES) -> Fields:
        """Raises VaultError where ``body`` is no JSON object.  An empty one has no fields."""
        if not body.strip():
            return cls({})
        try:
            value = strict_json.loads(body, max_bytes=max_bytes)
        except Refused as bad:
            raise VaultError(400, f"failed to decode JSON input: {bad.message}") from bad
        if not isinstance(value, dict):
            raise VaultError(400, "failed to decode JSON input: not an object")
        return cls(value)

    def peek(self, name: str) -> Any:
        """The value as it came, left in its place; None where there is none."""
        return self._left.get(name)

    def take(self, name: str) -> Any:
        """The value as it came; None where there is none."""
        return self._left.pop(name, None)

    def text(self, name: str, *, max_chars: int | None = None) -> str:
        """Empty where there is none.  Raises VaultError."""
        value = self.take(name)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise VaultError(400, f"{name}: text")
        if max_chars is not None and len(value) > max_chars:
            raise VaultError(400, f"{name}: at most {max_chars} characters, got {len(value)}")
        return value

    def number(self, name: str, default: int) -> int:
        """Raises VaultError."""
        value = self.take(name)
        if value is None or value == "":
            return default
        if isinstance(value, str) and value.isascii() and value.removeprefix("-").isdigit() and len(value) < 16:
            value = int(value)
        if type(value) is not int:
            raise VaultError(400, f"{name}: a whole number")
        return value

    def flag(self, name: str) -> bool:
        """Raises VaultError."""
        value = self.take(name)
        if value in (None, "", False, "false", 0, "0"):
            return False
        if value in (True, "true", 1, "1"):
            return True
        raise VaultError(400, f"{name}: true or false")

    def raw(self, name: str, *, max_bytes: int | None = None) -> bytes:
        """Bytes that come as base64.  Raises VaultError."""
        return from_base64(self.text(name), name, max_bytes=max_bytes)

    def refuse(self, **because: str) -> None:
        """Raises VaultError for a field that asks for something (anything but false, 0, empty) that is not served."""
        for name, why in because.items():
            if self.take(name) not in (None, False, "", "false", 0, "0", "0s"):
                raise VaultError(400, f"{name}: {why}")

    def warnings(self) -> tuple[str, ...]:
        """What Vault says of fields that it does not know."""
        if not self._left:
            return ()
        shown = " ".join(sorted(name[:64] for name in self._left)[:WARNED_MAX])
        return (f"Endpoint ignored these unrecognized parameters: [{shown}]",)


def from_base64(text: str, name: str, *, max_bytes: int | None = None) -> bytes:
    """Raises VaultError."""
    try:
        value = binascii.a2b_base64(text.encode("ascii"), strict_mode=True)
    except (UnicodeEncodeError, binascii.Error):
        raise VaultError(400, f"{name}: not base64") from None
    if max_bytes is not None and len(value) > max_bytes:
        raise VaultError(400, f"{name}: at most {max_bytes} bytes, got {len(value)}")
    return value


def to_base64(value: bytes) -> str:
    return binascii.b2a_base64(value, newline=False).decode("ascii")
