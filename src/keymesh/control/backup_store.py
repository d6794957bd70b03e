"""The port to a backup store: objects by name, written once, read back; and which names there are.

Calls block; whoever must not wait calls from a thread.  All methods raise Unavailable where the store is away or full.
"""

from __future__ import annotations

import re
from typing import Final, Protocol

from keymesh.control.backup_manifest import MARKER_NAME
from keymesh.model.errors import Refused

NAME_MAX_CHARS: Final = 256
NAMES_MAX: Final = 1_000_000
_NAME: Final = re.compile(r"manifests/[a-z0-9](?:[a-z0-9.-]{0,126}[a-z0-9])?/[0-9]{12}|chunks/[0-9a-f]{2}/[0-9a-f]{64}")


class BackupStore(Protocol):
    @property
    def address(self) -> str:
        """For people and records; holds no secret."""
        ...

    def put(self, name: str, content: bytes) -> bool:
        """Durable, and for nobody to change, when it returns True; False where that name is taken (left as it is)."""
        ...

    def get(self, name: str, *, max_bytes: int) -> bytes | None:
        """The object as it was first written; None where there is none.

        Raises Integrity where it is larger, or where the store shows that it was changed or hidden since.
        """
        ...

    def names(self, prefix: str, *, after: str = "") -> tuple[str, ...]:
        """Names under ``prefix`` (``manifests/`` or ``manifests/<origin>/``) that sort after ``after``, sorted.

        Raises Integrity where something lies there that no backup wrote.
        """
        ...

    def kept_until(self, name: str) -> int:
        """Unix ms until when nobody can delete the object; 0 where the store promises nothing."""
        ...

    def close(self) -> None: ...


def check_name(name: str) -> str:
    """``name`` if it is one that a backup has: so that no name leads anywhere else.  Raises Refused."""
    if name != MARKER_NAME and (len(name) > NAME_MAX_CHARS or not _NAME.fullmatch(name) or ".." in name):
        raise Refused.bad_field("name", "not the name of a backup's object")
    return name
