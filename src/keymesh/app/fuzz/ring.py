"""A face's keys in memory, on the product's own blobs: what the fuzz targets and unit tests of faces run over."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from keymesh.compat.ring import KeyFacts, VersionFacts
from keymesh.crypto.blob import blob_kid, open_l4, seal_l4
from keymesh.crypto.kid import kid_of
from keymesh.crypto.xaes import XaesKey
from keymesh.edge.hot_lease import CreatedKey, UnknownKid
from keymesh.model.errors import KeymeshError, Refused
from keymesh.model.ids import check_service, check_tenant


@dataclass(slots=True)
class MemoryKeys:
    """One service's.  ``why`` is what stands against their use."""

    tenant: str
    service: str
    why: KeymeshError | None = None
    kids: list[bytes] = field(default_factory=list)
    made: int = 0
    _keys: dict[bytes, XaesKey] = field(default_factory=dict)

    def rotate(self) -> int:
        """One more version; its number."""
        name = f"{self.tenant}/{self.service}/{len(self.kids) + 1}"
        key = hashlib.sha256(name.encode()).digest()
        self.kids.append(kid_of(key))
        self._keys[self.kids[-1]] = XaesKey(key)
        return len(self.kids)

    async def create_key(self, context: Mapping[str, str] | None = None, *, plaintext: bool = False) -> CreatedKey:
        """As an Edge's."""
        if self.why is not None:
            raise self.why
        self.made += 1
        kid, seed = self.kids[-1], self.made.to_bytes(8, "big")
        l4 = hashlib.sha256(seed).digest()
        blob = seal_l4(self._keys[kid], kid, self.tenant, context or {}, l4, seed * 3)
        return CreatedKey(blob=blob, plaintext=l4 if plaintext else None)

    async def decrypt_key(self, blob: bytes, context: Mapping[str, str] | None = None) -> bytes:
        """As an Edge's."""
        if self.why is not None:
            raise self.why
        kid = blob_kid(blob)
        if kid not in self._keys:
            raise UnknownKid
        return open_l4(self._keys[kid], kid, self.tenant, context or {}, blob)


class MemoryRing:
    """Every service it is asked to make, until it is told otherwise."""

    def __init__(self, *names: tuple[str, str]) -> None:
        self.held: dict[tuple[str, str], MemoryKeys] = {}
        for tenant, service in names:
            self._make(tenant, service)

    def _make(self, tenant: str, service: str) -> None:
        keys = self.held[check_tenant(tenant), check_service(service)] = MemoryKeys(tenant, service)
        keys.rotate()

    def services(self, tenant: str) -> tuple[str, ...]:
        return tuple(sorted(service for owner, service in self.held if owner == tenant))

    def keys(self, tenant: str, service: str) -> MemoryKeys:
        """Raises Refused."""
        if (tenant, service) not in self.held:
            raise Refused("not-found", "no such identity here", field="service")
        return self.held[tenant, service]

    def version_of(self, tenant: str, service: str, kid: bytes) -> int | None:
        keys = self.keys(tenant, service)
        return keys.kids.index(kid) + 1 if keys.why is None and kid in keys.kids else None

    def versions(self, tenant: str, service: str) -> tuple[int, ...]:
        keys = self.keys(tenant, service)
        return tuple(range(1, len(keys.kids) + 1)) if keys.why is None else ()

    async def find(self, tenant: str, service: str) -> KeyFacts:
        """Raises Refused."""
        keys = self.keys(tenant, service)
        state = "active" if keys.why is None else "suspended"
        versions = tuple(VersionFacts(version=n, kid=kid.hex(), state=state) for n, kid in enumerate(keys.kids, 1))
        return KeyFacts(
            tenant=tenant,
            service=service,
            state=state,
            custody="leased",
            wrapping=len(keys.kids),
            versions=versions,
        )

    async def list(self, tenant: str) -> tuple[KeyFacts, ...]:
        return tuple([await self.find(tenant, service) for service in self.services(tenant)])

    async def regions(self, tenant: str) -> tuple[str, ...]:
        return ("us-east", "us-west")

    async def create(self, tenant: str, service: str) -> KeyFacts:
        """Raises Refused."""
        if (tenant, service) in self.held:
            raise Refused("conflict", "it exists")
        self._make(tenant, service)
        return await self.find(tenant, service)

    async def host(self, tenant: str) -> None:
        """Everything is held."""

    async def rotate(self, tenant: str, service: str) -> int:
        return self.keys(tenant, service).rotate()

    async def suspend(self, tenant: str, service: str, reason: str) -> None:
        self.keys(tenant, service).why = Refused("restricted", "this service is suspended or revoked")

    async def resume(self, tenant: str, service: str, reason: str) -> None:
        self.keys(tenant, service).why = None
