"""What the AWS face keeps beside the mesh: aliases, tags, descriptions, dates of creation and of deletion.

None of it opens or closes a key: states are the Registry's.  Kept by each face for itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

from msgspec import Struct

ALIASES_MAX: Final = 10_000
KEYS_MAX: Final = 10_000


class Deletion(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Asked for, with the day that AWS's clients are told."""

    at_ms: int
    days: int


class KeyRecord(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    created_ms: int | None = None
    description: str = ""
    tags: dict[str, str] = {}
    deletion: Deletion | None = None


class TenantBook(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """By service; aliases to services."""

    keys: dict[str, KeyRecord] = {}
    aliases: dict[str, str] = {}


class Records(Protocol):
    """What is put is durable once that returns.  Raises Refused ``limit``."""

    def key(self, tenant: str, service: str) -> KeyRecord: ...

    def aliases(self, tenant: str) -> Mapping[str, str]: ...

    async def put_key(self, tenant: str, service: str, record: KeyRecord) -> None: ...

    async def put_alias(self, tenant: str, alias: str, service: str | None) -> None:
        """None takes it away."""
        ...
