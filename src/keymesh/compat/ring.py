"""The keys that a face shows: services of tenants, held by this process's Edges, kept by the Registry.

What is not async needs no network and holds while the Registry is away; what is async asks it.  The port's one
adapter is ``app.face_ring``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from keymesh.crypto.xaes import Octets


class Made(Protocol):
    """A data key and its wrapped blob."""

    @property
    def blob(self) -> bytes: ...

    @property
    def plaintext(self) -> Octets | None: ...


class Keys(Protocol):
    """The Edge of one service."""

    async def create_key(self, context: Mapping[str, str] | None = None, *, plaintext: bool = False) -> Made: ...

    async def decrypt_key(self, blob: bytes, context: Mapping[str, str] | None = None) -> bytes: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionFacts:
    """One version of a service's key; ``state`` is a KeyState's word, or the restriction that is stricter."""

    version: int
    kid: str
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyFacts:
    """A service as the Registry shows it.

    ``state``: active, suspended or revoked, the stricter of the tenant's and the service's own; ``wrapping`` is None
    until its first version protects data.
    """

    tenant: str
    service: str
    state: str
    custody: str
    wrapping: int | None
    versions: tuple[VersionFacts, ...] = ()


class Ring(Protocol):
    """All raise Refused ``not-found`` for what does not exist; the async ones Unavailable, and Refused
    ``unsupported`` where the face was given no administrator's identity."""

    def services(self, tenant: str) -> tuple[str, ...]:
        """Those that this process holds, sorted."""
        ...

    def keys(self, tenant: str, service: str) -> Keys: ...

    def version_of(self, tenant: str, service: str, kid: bytes) -> int | None:
        """By what is leased here now."""
        ...

    def versions(self, tenant: str, service: str) -> tuple[int, ...]:
        """Those that are leased here now; empty without a lease."""
        ...

    async def find(self, tenant: str, service: str) -> KeyFacts: ...

    async def list(self, tenant: str) -> tuple[KeyFacts, ...]:
        """Without their versions."""
        ...

    async def regions(self, tenant: str) -> tuple[str, ...]:
        """Where the tenant may be, its home first."""
        ...

    async def create(self, tenant: str, service: str) -> KeyFacts:
        """A new service, once its key protects data and its Edge is ready here, or without waiting longer.

        Raises Refused ``conflict``.
        """
        ...

    async def host(self, tenant: str) -> None:
        """Hold what exists in the Registry and is not held here yet."""
        ...

    async def rotate(self, tenant: str, service: str) -> int:
        """The new version, once it protects new data."""
        ...

    async def suspend(self, tenant: str, service: str, reason: str) -> None:
        """Returns once it is committed, and in force here."""
        ...

    async def resume(self, tenant: str, service: str, reason: str) -> None:
        """As ``suspend``.  Raises Refused where the service is revoked, or the tenant suspended."""
        ...
