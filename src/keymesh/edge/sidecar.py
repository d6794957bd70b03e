"""The Edge host: an Edge for each of many services, for whoever comes through its door.

Holds its own I/O, as ``client`` does; listeners are ``sidecar_door``'s, connections ``http1``'s, routes
``sidecar_routes``'s, identities on disk ``sidecar_identities``'s, processes ``sidecar_process``'s.  Several workers of
one host share the identities on disk and nothing else: each has leases of its own.  One of them, the leader, renews
certificates at half their life at the Core, with the certificate at hand and for the same key.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from keymesh.access.callers import Names
from keymesh.edge.client import Edge, EdgeTrust
from keymesh.edge.client_elsewhere import Elsewhere
from keymesh.edge.hot_lease import FINAL_REASONS
from keymesh.edge.sidecar_identities import IdentityStore, Lifetime
from keymesh.model.errors import KeymeshError, Refused, Unavailable
from keymesh.model.ids import MeshName, check_region, check_service, check_tenant

log = logging.getLogger("keymesh.edge.sidecar")

HERE: Final = ""
"""Our own region, among those in which an Edge has an identity."""
SWAP_WAIT_S: Final = 5.0
RENEW_RETRY_MAX_S: Final = 60.0
RENEW_GAP_S: Final = 1.0
FOLLOW_S: Final = 5.0


@dataclass(slots=True)
class Hosted:
    """One service: its Edge once it has a certificate, and the tasks that renew that, by region."""

    edge: Edge | None = None
    renewals: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    error: str = ""
    regions: frozenset[str] = frozenset()


class Sidecar:
    """All identities of one host.  Use it on one event loop; only ``edge_of`` may be asked from elsewhere."""

    def __init__(
        self,
        directory: Path,
        *,
        mesh: str,
        region: str,
        core_urls: Sequence[str],
        ca_file: Path,
        trust: EdgeTrust,
        elsewhere: Mapping[str, Sequence[str]] | None = None,
        allow_unlocked_memory: bool = False,
        leads: bool = True,
        has_siblings: bool = False,
    ) -> None:
        """``elsewhere``: base URLs of other regions' Cores, by region.

        With ``has_siblings`` other workers use the same directory; one of all ``leads``, and renews certificates.
        """
        self.store: Final = IdentityStore(directory, mesh=mesh, region=region, ca_file=ca_file)
        self._urls = {HERE: tuple(core_urls)} | {name: tuple(urls) for name, urls in (elsewhere or {}).items()}
        self._stores = {HERE: self.store}
        for name in elsewhere or {}:
            self._stores[name] = IdentityStore(directory / "elsewhere" / name, mesh=mesh, region=name, ca_file=ca_file)
        self.ca_file: Final = ca_file
        self._trust = trust
        self._allow_unlocked = allow_unlocked_memory
        self._leads = leads
        self._has_siblings = has_siblings
        self._following: asyncio.Task[None] | None = None
        self.mesh: Final = MeshName(mesh)
        self.region: Final = check_region(region)
        self._hosted: dict[Names, Hosted] = {}

    async def open(self) -> None:
        """Start an Edge for every identity that has a certificate."""
        for names in self.store:
            await self._host(*names)
        if self._has_siblings:
            self._following = asyncio.get_running_loop().create_task(self._follow_siblings())

    async def close(self) -> None:
        """Drop every lease and give it back, all at the same time."""
        if self._following is not None:
            self._following.cancel()
        for hosted in self._hosted.values():
            for renewal in hosted.renewals.values():
                renewal.cancel()
        await asyncio.gather(*(hosted.edge.close() for hosted in self._hosted.values() if hosted.edge is not None))
        self._hosted.clear()

    # --- identities ----------------------------------------------------------------------------------------------

    def store_of(self, region: str) -> IdentityStore:
        """Identities in our own region, or in another one.  Raises Refused for one whose Cores are not known here."""
        if region not in self._stores:
            raise Refused.bad_field("region", f"one of {', '.join(name for name in self._stores if name) or 'none'}")
        return self._stores[region]

    def request_identity(self, tenant: str, service: str, region: str = HERE) -> str:
        """The certificate request; repeated for an identity that is there already."""
        csr = self.store_of(region).request(tenant, service)
        self._hosted.setdefault((tenant, service), Hosted())
        return csr

    async def install_certificate(self, tenant: str, service: str, chain_pem: str, region: str = HERE) -> Lifetime:
        """Accept the chain and use it, from the next connection on; one of a region new to this Edge at once."""
        store = self.store_of(region)
        is_new = not store.identity_file(tenant, service).exists()
        lifetime = store.install(tenant, service, chain_pem, now_ms=time.time_ns() // 1_000_000)
        await self._host(tenant, service, anew=is_new and region != HERE)
        return lifetime

    async def _host(self, tenant: str, service: str, *, anew: bool = False) -> None:
        """Start the Edge of an identity that has a certificate.

        ``anew``: in place of the one that runs, which goes on until the new one holds a lease.
        """
        before = self._hosted.setdefault((tenant, service), Hosted()).edge
        if before is not None and not anew:
            return
        hosted = self._begin(tenant, service)
        if before is None or hosted.edge is before:
            return
        after, hosted.edge = hosted.edge, before
        assert after is not None
        with contextlib.suppress(KeymeshError):
            await after.wait_ready(SWAP_WAIT_S)
        hosted.edge = after
        await before.close()

    def _begin(self, tenant: str, service: str) -> Hosted:
        """Its Edge, started where there is a certificate; one that cannot start is told, and harms no other."""
        hosted = self._hosted.setdefault((tenant, service), Hosted())
        regions = [name for name, store in self._stores.items() if store.identity_file(tenant, service).exists()]
        if HERE not in regions:
            return hosted
        try:
            hosted.edge = Edge.start(
                identity=self.store.identity_file(tenant, service),
                ca=self.ca_file,
                cores=self._urls[HERE],
                trust=self._trust,
                elsewhere=[
                    Elsewhere(identity=self._stores[name].identity_file(tenant, service), cores=self._urls[name])
                    for name in regions
                    if name != HERE
                ],
                allow_unlocked_memory=self._allow_unlocked,
            )
        except KeymeshError as bad:
            hosted.error = bad.code
            log.error(
                "identity cannot be used", extra={"fields": {"tenant": tenant, "service": service, "code": bad.code}}
            )
            return hosted
        hosted.error, hosted.regions = "", frozenset(regions)
        for name in regions:
            if name not in hosted.renewals and self._leads:
                work = self._keep_certificate_fresh(tenant, service, name)
                hosted.renewals[name] = asyncio.get_running_loop().create_task(work)
        return hosted

    def _adopt(self, tenant: str, service: str) -> Hosted | None:
        """An identity that a sibling asked for, or had certified, since we looked."""
        if not self.store.knows(tenant, service):
            return None
        hosted = self._hosted.setdefault((tenant, service), Hosted())
        return hosted if hosted.edge is not None or hosted.error else self._begin(tenant, service)

    async def _follow_siblings(self) -> None:
        """What other workers of this host did to the identities on disk."""
        while True:
            await asyncio.sleep(FOLLOW_S)
            for tenant, service in self.store:
                hosted = self._adopt(tenant, service)
                regions = {n for n, store in self._stores.items() if store.identity_file(tenant, service).exists()}
                if hosted is not None and hosted.edge is not None and regions - hosted.regions:
                    await self._host(tenant, service, anew=True)

    async def _keep_certificate_fresh(self, tenant: str, service: str, region: str) -> None:
        """Renew at half life; after a failure again and again, ever more rarely, while the rest of it lasts."""
        failures = renewed = 0
        store, cores = self._stores[region], () if region == HERE else self._urls[region]
        while True:
            lifetime = store.lifetime(tenant, service)
            if lifetime is None:
                return
            wait_s = max(RENEW_GAP_S if renewed else 0.0, (lifetime.half - time.time_ns() // 1_000_000) / 1_000)
            if failures:
                life_s = (lifetime.not_after - lifetime.not_before) / 1_000
                wait_s = min(RENEW_RETRY_MAX_S, life_s / 40 * 2 ** min(failures, 10))
            if wait_s > 0:
                await asyncio.sleep(min(wait_s, 3_600.0))
                if not failures and wait_s > 3_600.0:
                    continue
            try:
                edge = self.edge(tenant, service)
                chain = await edge.renew_certificate(store.request(tenant, service), cores)
                store.install(tenant, service, chain, now_ms=time.time_ns() // 1_000_000)
                failures = 0
                renewed += 1
                log.info("certificate renewed", extra={"fields": {"tenant": tenant, "service": service}})
            except (KeymeshError, OSError) as failed:
                failures += 1
                code = failed.code if isinstance(failed, KeymeshError) else "disk"
                log.warning("certificate not renewed", extra={"fields": {"tenant": tenant, "code": code}})

    # --- what the routes ask -----------------------------------------------------------------------------------------

    def edge_of(self, names: Names) -> Edge | None:
        """The Edge of that service, where it is there already; from any thread."""
        hosted = self._hosted.get(names)
        return None if hosted is None else hosted.edge

    def services(self, tenant: str) -> list[str]:
        """Those of ``tenant`` that are here, sorted."""
        return sorted(service for owner, service in self._hosted if owner == tenant)

    def edge(self, tenant: str, service: str) -> Edge:
        """The Edge of that service.  Raises Refused ``not-found``, Unavailable ``no-certificate``."""
        hosted = self._hosted.get((tenant, service))
        if hosted is None or hosted.edge is None:
            hosted = self._adopt(check_tenant(tenant), check_service(service))
        if hosted is None:
            raise Refused("not-found", "no such identity here", field="service")
        if hosted.edge is None:
            raise Unavailable("no-certificate", hosted.error or "this identity has no certificate yet")
        return hosted.edge

    def identities(self) -> list[dict[str, Any]]:
        """Every identity, what it holds and until when its certificate lives; ``ready``: the certificate is valid."""
        for names in self.store:
            self._adopt(*names)
        listed = []
        now_ms = time.time_ns() // 1_000_000
        for (tenant, service), hosted in sorted(self._hosted.items()):
            lifetime = self.store.lifetime(tenant, service)
            status = {} if hosted.edge is None else hosted.edge.status()
            listed.append(
                {
                    "tenant": tenant,
                    "service": service,
                    "instance": self.store.instance,
                    "uri": self.store.uri(tenant, service),
                    "ready": hosted.edge is not None and lifetime is not None and now_ms < lifetime.not_after,
                    "certificate_not_after": None if lifetime is None else lifetime.not_after,
                    "error": hosted.error,
                    "elsewhere": {
                        name: store.identity_file(tenant, service).exists()
                        for name, store in self._stores.items()
                        if name != HERE
                    },
                    "edge": status,
                }
            )
        return listed

    def not_ready(self) -> dict[Names, str]:
        """Why this host is not ready: services that wait for a lease (one that is refused for good waits for none)."""
        waiting: dict[Names, str] = {}
        for (tenant, service), hosted in sorted(self._hosted.items()):
            edge = hosted.edge
            if edge is not None and not edge.ready and edge.hot.reason not in FINAL_REASONS:
                waiting[tenant, service] = edge.hot.reason or "expired"
        return waiting
