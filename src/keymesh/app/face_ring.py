"""A face's ring: the services that this process's Edges hold, and the Registry through an administrator's identity.

Decides nothing about who may ask: that is the face's.  Source of the port: ``compat.ring``.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec

from keymesh.app.admin_client import AdminClient, named_conflict, new_command_id, wait_for_key
from keymesh.compat.ring import KeyFacts, Keys, VersionFacts
from keymesh.control.kinds import ScopeArgs, SetService, WantKey
from keymesh.control.rows import ServiceRow
from keymesh.edge.client import Edge
from keymesh.edge.hot_lease import FINAL_REASONS
from keymesh.edge.sidecar import Sidecar
from keymesh.model.errors import KeymeshError, Refused, Unavailable
from keymesh.model.ids import check_service, check_tenant
from keymesh.model.limits import EDGE_TTL_DEFAULT_MS

COMMIT_S: Final = 30.0
EDGE_S: Final = 15.0
"""How long a change is waited for at this process's own Edge."""
HOST_S: Final = 2.0
"""And for one of many services that are to be held."""
HOST_PAUSE_S: Final = 5.0
"""Between two looks at the Registry for services that were made elsewhere."""


class MeshRing:
    """``sidecar`` is open; ``admin`` makes a client, and is None where the face may ask the Registry for nothing."""

    def __init__(self, sidecar: Sidecar, admin: Callable[[], AdminClient] | None) -> None:
        self._sidecar = sidecar
        self._admin = admin
        self._turns: dict[str, asyncio.Lock] = {}
        self._looked: dict[str, float] = {}

    # --- here ------------------------------------------------------------------------------------------------------

    def services(self, tenant: str) -> tuple[str, ...]:
        return tuple(self._sidecar.services(tenant))

    def keys(self, tenant: str, service: str) -> Keys:
        return self._sidecar.edge(tenant, service)

    def version_of(self, tenant: str, service: str, kid: bytes) -> int | None:
        return self._sidecar.edge(tenant, service).kids().get(kid.hex())

    def versions(self, tenant: str, service: str) -> tuple[int, ...]:
        return tuple(sorted(self._sidecar.edge(tenant, service).kids().values()))

    # --- at the Registry ---------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[AdminClient]:
        """A connection for one piece of work: an administrator's certificate lives a day, a face for months."""
        if self._admin is None:
            raise Refused("unsupported", "this face was given no administrator's identity (--no-admin)")
        async with self._admin() as client:
            yield client

    async def find(self, tenant: str, service: str) -> KeyFacts:
        async with self._client() as client:
            return await _find(client, tenant, service)

    async def list(self, tenant: str) -> tuple[KeyFacts, ...]:
        async with self._client() as client:
            return await _list(client, tenant)

    async def regions(self, tenant: str) -> tuple[str, ...]:
        async with self._client() as client:
            return await _regions(client, tenant)

    async def create(self, tenant: str, service: str) -> KeyFacts:
        async with self._client() as client:
            ttl_ms = client.plan.timing.edge_ttl_ms or EDGE_TTL_DEFAULT_MS
            row = ServiceRow(version=1, custody="leased", edge_ttl_ms=ttl_ms)
            with named_conflict(f"service {tenant}/{service} exists already"):
                args = msgspec.to_builtins(SetService(service=check_service(service), row=row))
                await client.command(check_tenant(tenant), "service.set", args)
            with contextlib.suppress(Unavailable):  # it exists by now, and whoever asked again would make another
                await wait_for_key(client, tenant, f"l3/{service}")
                async with self._turn(tenant, EDGE_S):
                    await self._enrol(client, tenant, service, patience_s=EDGE_S)
            return await _find(client, tenant, service)

    @asynccontextmanager
    async def _turn(self, tenant: str, patience_s: float) -> AsyncIterator[None]:
        """One enrolment at a time for each tenant; those there are, credentials have named.  Raises Unavailable."""
        turn = self._turns.setdefault(tenant, asyncio.Lock())
        try:
            async with asyncio.timeout(patience_s):
                await turn.acquire()
        except TimeoutError as late:
            raise Unavailable("busy", "services of this tenant are being looked for") from late
        try:
            yield
        finally:
            turn.release()

    async def host(self, tenant: str) -> None:
        """At most one look in five seconds for each tenant: whoever names what does not exist asks for little.

        A service that cannot be held now keeps none of the others away, and is tried again at the next look.
        """
        async with self._turn(tenant, HOST_S), self._client() as client:
            if time.monotonic() < self._looked.get(tenant, -HOST_PAUSE_S) + HOST_PAUSE_S:
                return
            try:
                await self._hold_all(client, tenant)
            finally:  # counted from its end: those who waited for a Registry that is away do not ask it one by one
                self._looked[tenant] = time.monotonic()

    async def _hold_all(self, client: AdminClient, tenant: str) -> None:
        if self._sidecar.region not in await _regions(client, tenant):
            return
        held = {s for s in self.services(tenant) if self._sidecar.edge_of((tenant, s)) is not None}
        for facts in await _list(client, tenant):
            if facts.service not in held and facts.wrapping is not None:
                with contextlib.suppress(Refused, Unavailable):
                    await self._enrol(client, tenant, facts.service, patience_s=HOST_S)

    async def _enrol(self, client: AdminClient, tenant: str, service: str, *, patience_s: float) -> None:
        """A certificate from this region's Core for a key that is made here and stays here; then its first lease."""
        sidecar = self._sidecar
        csr = sidecar.request_identity(tenant, service)
        body = {"tenant": tenant, "service": service, "instance": sidecar.store.instance, "csr": csr}

        async def signed() -> str | None:
            try:
                chain: str = (await client.call("POST", "/v1/certificates", body, target=sidecar.region))["chain"]
                return chain
            except Refused as not_yet:
                if not_yet.code != "not-found":  # the entry may not have reached this region
                    raise
                return None

        chain = await client.until(signed, what=f"{sidecar.region} knowing {tenant}/{service}", timeout_s=patience_s)
        # an Edge outlives the request that it was made for: nothing of that belongs to it, least of all its id
        await asyncio.create_task(_installed(sidecar, tenant, service, chain), context=contextvars.Context())
        try:
            await sidecar.edge(tenant, service).wait_ready(patience_s)
        except Refused as restricted:  # hosted all the same: it serves again when it is resumed
            if restricted.code not in FINAL_REASONS:
                raise

    async def rotate(self, tenant: str, service: str) -> int:
        key = f"l3/{check_service(service)}"
        async with self._client() as client:
            newest = max((v.version for v in (await _find(client, tenant, service)).versions), default=0)
            if newest == 0:
                raise Refused("not-found", "this service has no key yet", field="service")
            args = msgspec.to_builtins(WantKey(key=key, version=newest + 1))
            with named_conflict("another rotation of this key is under way"):
                await client.command(tenant, "key.want", args)
            await wait_for_key(client, tenant, key, version=newest + 1)
            if (here := self._sidecar.edge_of((tenant, service))) is not None:
                here.want_fresh()

            def leased(edge: Edge) -> bool:
                return newest + 1 in edge.kids().values() or not edge.kids()

            await self._until_here(client, tenant, service, leased)
        return newest + 1

    async def suspend(self, tenant: str, service: str, reason: str) -> None:
        await self._restrict("suspend", tenant, service, reason, lambda edge: not edge.ready)

    async def resume(self, tenant: str, service: str, reason: str) -> None:
        await self._restrict("resume", tenant, service, reason, lambda edge: edge.ready)

    async def _restrict(self, kind: str, tenant: str, service: str, reason: str, here: Callable[[Edge], bool]) -> None:
        command_id = new_command_id()
        scope = f"service:{check_tenant(tenant)}/{check_service(service)}"
        args = msgspec.to_builtins(ScopeArgs(scope=scope, reason=reason))
        async with self._client() as client:
            await client.command(tenant, kind, args, command_id=command_id)

            async def committed() -> Any:
                shown = await client.call("GET", f"/v1/commands/{tenant}/{command_id}")
                return True if shown["committed"] else None

            await client.until(committed, what=f"{kind} {scope} being committed", timeout_s=COMMIT_S)
            await self._until_here(client, tenant, service, here)

    async def _until_here(self, client: AdminClient, tenant: str, service: str, done: Callable[[Edge], bool]) -> None:
        """Best effort: the change stands, whatever this Edge sees of it so far."""
        edge = self._sidecar.edge_of((tenant, service))

        async def seen() -> bool | None:
            return True if edge is None or done(edge) else None

        with contextlib.suppress(Unavailable):
            await client.until(seen, what=f"the Edge of {tenant}/{service}", timeout_s=EDGE_S)


async def _installed(sidecar: Sidecar, tenant: str, service: str, chain: str) -> None:
    await sidecar.install_certificate(tenant, service, chain)


async def _find(client: AdminClient, tenant: str, service: str) -> KeyFacts:
    shown = await client.call("GET", f"/v1/tenants/{check_tenant(tenant)}/services/{check_service(service)}")
    keys = (await client.call("GET", f"/v1/tenants/{tenant}/keys"))["keys"]
    versions = (
        VersionFacts(version=k["version"], kid=k["kid"], state=k["state"]) for k in keys if k["key"] == f"l3/{service}"
    )
    return _facts(shown, tuple(sorted(versions, key=lambda v: v.version)))


async def _list(client: AdminClient, tenant: str) -> tuple[KeyFacts, ...]:
    shown = await client.call("GET", f"/v1/tenants/{check_tenant(tenant)}/services")
    return tuple(_facts(one, ()) for one in shown["services"])


async def _regions(client: AdminClient, tenant: str) -> tuple[str, ...]:
    shown = await client.call("GET", f"/v1/tenants/{check_tenant(tenant)}")
    return (shown["home"], *(region for region in shown["regions"] if region != shown["home"]))


async def host_all(ring: MeshRing, tenants: frozenset[str], say: Callable[[str, KeymeshError], None]) -> None:
    """Hold what there is of ``tenants`` before anybody asks; what fails is told, and tried again when it is named."""
    for tenant in sorted(tenants):
        try:
            await ring.host(tenant)
        except (Refused, Unavailable) as failed:
            say(tenant, failed)


def _facts(shown: Any, versions: tuple[VersionFacts, ...]) -> KeyFacts:
    return KeyFacts(
        tenant=shown["tenant"],
        service=shown["service"],
        state=shown["state"],
        custody=shown["custody"],
        wrapping=shown["wrapping"],
        versions=versions,
    )
