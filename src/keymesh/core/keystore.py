"""The port to a region's key store: wrapped keys, internal keys and the blobs of its residency domain.

Everything in it is wrapped: an L2 as the cascade under an IVK, an L3 under its L2, an IVK under the MasterKey; blobs
are sovereign bindings and L2 wraps as other regions of the domain fetch them.  Writes are durable when they return.
Several nodes of a region may share one store, so every change of a key is a compare-and-set.

Asynchronous, because a store may be a server that is slow or away: whoever waits for it holds up nobody else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from keymesh.model.ids import Digest, Kid
from keymesh.model.states import IvkState
from keymesh.model.time import Instant

FIRST_SCHEMA: Final = 1
"""As release 0.1 laid its stores out: keys by kid alone, an index beside them."""

NEWEST_SCHEMA: Final = 2
"""Keys under their namespace, no index: a new key is one write, and a tenant's keys are one list."""


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
    """One internal key at rest, under the MasterKey.  ``wraps``: at least as many as it has sealed."""

    generation: int
    kid: Kid
    state: IvkState
    created_at: Instant
    wraps: int
    blob: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreIdentity:
    """What a store says of itself: whose it is and how it is laid out.  ``store_id``: 32 hex digits drawn once."""

    store_id: str
    region: str
    schema: int


class KeyStore(Protocol):
    """All methods raise Unavailable where the store does not answer or cannot write, Integrity where it is damaged or
    laid out in a way that this release does not know.

    ``identity`` comes first: the others need to know the layout, and raise Unavailable ``store-not-open`` before.
    """

    @property
    def late_write_s(self) -> float:
        """For how long after a call ended without an answer, or its process did, what it writes may still arrive."""
        ...

    async def identity(self) -> StoreIdentity | None:
        """None where it was never named (by ``found``)."""
        ...

    async def has_rows(self) -> bool:
        """Of a store without a name: whether release 0.1, which named none, has written here."""
        ...

    async def found(self, identity: StoreIdentity) -> StoreIdentity:
        """Name the store; returns what its first founder named it."""
        ...

    async def migrate(self, schema: int) -> None:
        """Lay the store out as ``schema`` says: idempotent, safe to stop anywhere and to do again, no row is lost.

        Raises Refused ``schema-backwards`` and ``schema-unknown``, and has then touched nothing.
        """
        ...

    async def get_key(self, namespace: str, kid: str) -> StoredKey | None: ...

    async def put_key(self, stored: StoredKey, *, over: StoredKey | None) -> bool:
        """Compare-and-set: False where what is stored is not ``over`` (None: nothing)."""
        ...

    async def drop_key(self, stored: StoredKey) -> bool:
        """Compare-and-drop: False where what is stored is not ``stored`` (any more)."""
        ...

    async def stored_keys(self, namespace: str | None = None) -> tuple[StoredKey, ...]:
        """All, or those of ``namespace``, by (namespace, key, version)."""
        ...

    async def ivks(self) -> tuple[StoredIvk, ...]:
        """Newest generation first."""
        ...

    async def put_ivk(self, stored: StoredIvk) -> None:
        """New, or the state of one that is there; another key under a taken generation changes nothing."""
        ...

    async def count_wraps(self, kid: str, n: int) -> None: ...

    async def put_blob(self, tenant: str, digest: str, blob: bytes) -> None:
        """Idempotent; the caller has compared ``digest``."""
        ...

    async def get_blob(self, tenant: str, digest: str) -> bytes | None: ...

    async def count_blobs(self, tenant: str) -> int: ...

    async def blob_digests(self, tenant: str) -> tuple[str, ...]:
        """Names of the tenant's blobs, sorted."""
        ...

    async def drop_blob(self, tenant: str, digest: str) -> None: ...

    async def purge(self, tenant: str) -> None:
        """Destroy every key and blob of ``tenant``, earlier versions of them too: when it returns that is durable, and
        no file or answer of the store has any of their bytes.  Idempotent; the caller writes nothing meanwhile."""
        ...

    async def close(self) -> None: ...
