"""The four bounds of the kill switch, tried on a running mesh (DESIGN section 5): push, lease, governance, root.

Push: fifty Edges in five processes over the regions, each with an identity of its own, used in a loop while their
tenant is suspended.  The other three at the same time, each on a tenant of its own: Edges cut from their Core, a
region cut from everybody, a root key that its owner disables, a customer's KMS that falls silent; nobody is told.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Final

import msgspec

from keymesh.adapters.customer_kms import OwnerClient
from keymesh.app import wan
from keymesh.app.admin_client import AdminClient, new_command_id
from keymesh.app.bench_bounds_edges import EdgeHosts, Wanted
from keymesh.app.bench_bounds_samples import (
    BoundSample,
    BoundsSeen,
    governance_end_ns,
    lease_end_ns,
    push_ms,
    root_end_ns,
    samples_of,
    silent_end_ns,
)
from keymesh.app.bench_killswitch_mesh import SERVICE, BenchMesh
from keymesh.app.l1_url import ResolvedBinding, resolve_l1
from keymesh.app.layout import MeshPlan
from keymesh.app.wan_relay import Link, Wan
from keymesh.control.kinds import ScopeArgs

PUSH, LEASE, GOVERNANCE, ROOT, SILENT = "push", "lease", "governance", "root", "silent"
CUT_OFF: Final = "us-west"
"""Neither a voter nor the Registry's region, so that commits go on."""
HOSTS: Final = (
    ("edges-1", "us-east"),
    ("edges-2", "us-east"),
    ("edges-3", CUT_OFF),
    ("edges-4", "eu-central"),
    ("edges-5", "eu-west"),
)
PUSH_EACH, CUT_OFF_EDGES, LEASE_EACH, ROOT_EACH = 10, 10, 4, 2
EDGE_TTL_MS: Final = 2_000
TENANT_TTL_MS: Final = 4_000
"""The governance ttl of that tenant; the mesh's is an hour."""
LATE_MS: Final = 5_000
"""How long beyond its bound an Edge is watched that still serves."""


def relay_links(plan: MeshPlan) -> list[Link]:
    """What the bench itself can cut: its Edges from their Cores, and one tenant's KMS from everybody."""
    links = [Link(src=LEASE, dst=region, target_port=planned.port) for region, planned in plan.regions.items()]
    return links + [Link(src=SILENT, dst=name, target_port=port) for name, port in (plan.kms_ports or {}).items()]


@dataclass(slots=True)
class Bounds:
    """One run on one mesh, whose tenants are made by ``prepare``."""

    mesh: BenchMesh
    relay: Wan
    owner: OwnerClient
    probe_ms: int
    l1_ttl_ms: int
    seen: BoundsSeen

    # --- before ------------------------------------------------------------------------------------------------------

    async def prepare(self) -> None:
        """The five tenants, each under a root key of its own."""
        bindings = {tenant: await self._binding(tenant) for tenant in (PUSH, LEASE, GOVERNANCE, ROOT, SILENT)}
        ttl_ms = {GOVERNANCE: TENANT_TTL_MS}

        async def make(tenant: str) -> None:
            mesh = replace(self.mesh, binding=bindings[tenant])
            await mesh.create_tenant(tenant, ttl_ms=ttl_ms.get(tenant))
            if tenant == LEASE:
                await mesh.add_service(tenant, edge_ttl_ms=EDGE_TTL_MS)
            else:
                await mesh.add_service(tenant)

        await asyncio.gather(*map(make, bindings))

    async def _binding(self, tenant: str) -> ResolvedBinding:
        made = await resolve_l1(
            self.mesh.client, None, default_key=f"bounds-{tenant}", regions=tuple(self.mesh.client.plan.regions)
        )
        if tenant != SILENT:
            return made
        replicas = {name: f"https://127.0.0.1:{self.relay.port(SILENT, name)}" for name in made.descriptor["replicas"]}
        return replace(made, descriptor={**made.descriptor, "replicas": replicas})

    def wanted(self) -> dict[tuple[str, str], list[Wanted]]:
        """Every host's Edges."""
        found = {}
        for name, region in HOSTS:
            core = self.mesh.client.plan.address(region)
            others = [
                Wanted(LEASE, SERVICE, LEASE_EACH, f"https://127.0.0.1:{self.relay.port(LEASE, region)}"),
                Wanted(ROOT, SERVICE, ROOT_EACH, core),
                Wanted(SILENT, SERVICE, ROOT_EACH, core),
            ]
            if region == CUT_OFF:
                others = [Wanted(GOVERNANCE, SERVICE, CUT_OFF_EDGES, core)]
            found[name, region] = [Wanted(PUSH, SERVICE, PUSH_EACH, core), *others]
        return found

    # --- push --------------------------------------------------------------------------------------------------------

    async def push_once(self, hosts: EdgeHosts) -> None:
        """One suspension, seen by every Edge of the tenant, and its end."""
        await hosts.until_served(PUSH)
        command_id = await self._suspend(PUSH)
        found = await hosts.until_refused(PUSH, LATE_MS / 1_000)
        record = await self.mesh.client.call("GET", f"/v1/certificates/{command_id}")
        self.seen.edges, self.seen.processes = len(found), len(hosts.hosts)
        self.seen.push_ms.append(push_ms(found.values(), record["append_started_ns"]))
        await self._resume(PUSH)

    async def _suspend(self, tenant: str) -> str:
        command_id = new_command_id()
        args = msgspec.to_builtins(ScopeArgs(scope=f"tenant:{tenant}"))
        await self.mesh.client.command(tenant, "suspend", args, command_id=command_id)
        return command_id

    async def _resume(self, tenant: str) -> None:
        args = msgspec.to_builtins(ScopeArgs(scope=f"tenant:{tenant}"))
        await self.mesh.client.command(tenant, "resume", args)

    # --- the bounds that need no word --------------------------------------------------------------------------------

    async def silent_bounds(self, hosts: EdgeHosts, until: float) -> None:
        """The three at the same time, again and again until then (monotonic s), each at least once."""
        turns: Sequence[Callable[[EdgeHosts], Awaitable[None]]] = (
            self._lease_once,
            self._governance_once,
            self._root_once,
            self._silent_once,
        )

        async def again(turn: Callable[[EdgeHosts], Awaitable[None]]) -> None:
            while True:
                began = time.monotonic()
                await turn(hosts)
                if time.monotonic() + (time.monotonic() - began) >= until:
                    return

        await asyncio.gather(*map(again, turns))

    async def _watch(self, hosts: EdgeHosts, tenant: str, fault_ns: int, end_ns: int) -> list[BoundSample]:
        left_s = (end_ns - time.time_ns()) / 1e9 + LATE_MS / 1_000
        found = await hosts.until_refused(tenant, left_s)
        return samples_of(found.values(), fault_ns=fault_ns, end_ns=end_ns)

    async def _lease_once(self, hosts: EdgeHosts) -> None:
        """The push is lost: the Edges are cut from their Cores before the suspension."""
        await hosts.until_served(LEASE)
        self.relay.cut(LEASE)
        cut_ns = time.time_ns()
        await self._suspend(LEASE)
        self.seen.lease += await self._watch(hosts, LEASE, cut_ns, lease_end_ns(cut_ns, EDGE_TTL_MS))
        self.relay.heal(LEASE)
        await self._resume(LEASE)

    async def _governance_once(self, hosts: EdgeHosts) -> None:
        """The region is cut from Registry and voters before the suspension."""
        await hosts.until_served(GOVERNANCE)
        socket = self.mesh.client.layout.wan_socket
        await wan.ask(socket, "cut", src=CUT_OFF)
        await wan.ask(socket, "cut", dst=CUT_OFF)
        cut_ns = time.time_ns()
        command_id = await self._suspend(GOVERNANCE)
        record = await self.mesh.client.call("GET", f"/v1/certificates/{command_id}")
        end_ns = governance_end_ns(record["appended_ns"], TENANT_TTL_MS)
        self.seen.governance += await self._watch(hosts, GOVERNANCE, cut_ns, end_ns)
        await wan.ask(socket, "heal")
        await self._resume(GOVERNANCE)

    async def _root_once(self, hosts: EdgeHosts) -> None:
        """The customer disables the root key, and tells nobody."""
        await hosts.until_served(ROOT)
        await self.owner.disable(f"bounds-{ROOT}")
        pulled_ns = time.time_ns()
        self.seen.root += await self._watch(hosts, ROOT, pulled_ns, root_end_ns(pulled_ns, self.probe_ms))
        await self.owner.enable(f"bounds-{ROOT}")

    async def _silent_once(self, hosts: EdgeHosts) -> None:
        """The customer's KMS answers nobody any more."""
        await hosts.until_served(SILENT)
        self.relay.cut(SILENT)
        cut_ns = time.time_ns()
        self.seen.silent += await self._watch(hosts, SILENT, cut_ns, silent_end_ns(cut_ns, self.l1_ttl_ms))
        self.relay.heal(SILENT)


async def bounds_of(stack: AsyncExitStack, client: AdminClient, mesh: BenchMesh) -> Bounds:
    """On the running mesh; what it opens is closed with ``stack``."""
    relay = Wan(relay_links(client.plan))
    await relay.start()
    stack.push_async_callback(relay.close)
    owner = await stack.enter_async_context(OwnerClient.open(client.layout.customer_kms))
    timing = client.plan.timing
    return Bounds(mesh, relay, owner, timing.l1_probe_ms, timing.l1_ttl_ms, BoundsSeen())
