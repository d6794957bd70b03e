"""How a process proves itself to OpenBao: AppRole, or the TLS certificate that it shows.

Decides what a login sends; not when (``adapters.openbao``).  Secrets are read from their file at each login, so that a
new secret id needs no restart, and travel in ``Secret``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn, Protocol

import msgspec

from keymesh.adapters.key_files import read_private
from keymesh.model import strict_json
from keymesh.model.errors import Refused

_FILE_MAX_BYTES: Final = 4_096
_ID_MAX_CHARS: Final = 512


class Secret:
    """A text that nothing prints.  No content in ``repr``; no equality, hash, copy, pickle or JSON form."""

    __slots__ = ("_text",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text; for the line that sends it."""
        return self._text

    def __repr__(self) -> str:
        return "Secret(...)"

    def __eq__(self, other: object) -> bool:
        raise TypeError("secrets are not compared")

    def __reduce__(self) -> NoReturn:
        raise TypeError("secrets are not copied")


class Login(Protocol):
    """One way to log in."""

    def request(self) -> tuple[str, Any]:
        """(path below /v1, body).  Raises Refused where the credential cannot be read."""
        ...


@dataclass(frozen=True, slots=True)
class CertLogin:
    """By the client certificate of the connection, under one role of the cert method at ``mount``.

    The certificate needs a common name.  ``reload`` has new connections show what is on disk now.
    """

    role: str
    mount: str = "cert"
    reload: Callable[[], None] = lambda: None

    def request(self) -> tuple[str, Any]:
        """Raises Refused where the certificate on disk is none."""
        self.reload()
        return f"auth/{self.mount}/login", {"name": self.role}


class _AppRoleFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    role_id: str
    secret_id: str


@dataclass(frozen=True, slots=True)
class AppRoleLogin:
    """By the role id and secret id in ``file``, a JSON object for its owner alone."""

    file: Path
    mount: str = "approle"

    def request(self) -> tuple[str, Any]:
        """Raises Refused naming the file, and quotes nothing of it."""
        try:
            ids = strict_json.decode(
                read_private(self.file, max_bytes=_FILE_MAX_BYTES), _AppRoleFile, max_bytes=_FILE_MAX_BYTES
            )
        except Refused as bad:
            if bad.field == self.file.name:
                raise
            raise Refused.bad_field(self.file.name, "not a JSON object of role_id and secret_id") from None
        if not (0 < len(ids.role_id) <= _ID_MAX_CHARS and 0 < len(ids.secret_id) <= _ID_MAX_CHARS):
            raise Refused.bad_field(self.file.name, f"role_id and secret_id have 1..{_ID_MAX_CHARS} characters")
        return f"auth/{self.mount}/login", {"role_id": ids.role_id, "secret_id": ids.secret_id}
