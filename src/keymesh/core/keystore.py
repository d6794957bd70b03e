"""The port to a region's key store: wrapped keys, internal keys and the blobs of its residency domain.

Everything in it is wrapped: an L2 as the cascade under an IVK, an L3 under its L2, an IVK under the MasterKey; blobs
are sovereign bindings and L2 wraps as other regions of the domain fetch them.  Writes are durable when they return.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from keymesh.model.ids import Digest, Kid
from keymesh.model.states import IvkState
from keymesh.model.time import Instant


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredKey:
    """One key version at rest.  ``digest`` is of the sovereign binding (L2) or the L2 wrap (L3), as the log has it;
    ``ivk_kid`` names the IVK around an L2 and is empty for an L3."""

    namespace: str
    key: str  # "l2" or "l3/<service>"
    version: int
    revision: int
    kid: Kid
    digest: Digest
    ivk_kid: str
    blob: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredIvk:
    """One internal key at rest, under the MasterKey.  ``wraps`` counts what it sealed."""

    generation: int
    kid: Kid
    state: IvkState
    created_at: Instant
    wraps: int
    blob: bytes


class KeyStore(Protocol):
    """All methods raise Unavailable where the store does not answer or cannot write, Integrity where it is damaged."""

    def get_key(self, kid: str) -> StoredKey | None: ...

    def put_key(self, stored: StoredKey, *, over: StoredKey | None) -> bool:
        """Compare-and-set: False where what is stored is not ``over`` (None: nothing)."""
        ...

    def drop_key(self, kid: str) -> None: ...

    def stored_keys(self, namespace: str | None = None) -> tuple[StoredKey, ...]:
        """All, or those of ``namespace``, by (namespace, key, version)."""
        ...

    def ivks(self) -> tuple[StoredIvk, ...]:
        """Newest generation first."""
        ...

    def put_ivk(self, stored: StoredIvk) -> None: ...

    def count_wraps(self, kid: str, n: int) -> None: ...

    def put_blob(self, tenant: str, digest: str, blob: bytes) -> None:
        """Idempotent; the caller has compared ``digest``."""
        ...

    def get_blob(self, tenant: str, digest: str) -> bytes | None: ...

    def count_blobs(self, tenant: str) -> int: ...

    def drop_blob(self, tenant: str, digest: str) -> None: ...
