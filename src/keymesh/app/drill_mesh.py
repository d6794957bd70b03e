"""A drill's hands on its own mesh: tenants and applications, links that are cut, processes that are killed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import msgspec

from keymesh.app import wan
from keymesh.app.admin_client import AdminClient, new_command_id
from keymesh.app.bench_killswitch_mesh import SERVICE, BenchMesh
from keymesh.app.enrol import ANSWER_MAX_BYTES, enrol_elsewhere, ensure_identity, sidecar_client
from keymesh.app.faults_check import check_record
from keymesh.app.faults_load import Door
from keymesh.app.faults_record import Done, Record, twice
from keymesh.app.l1_url import resolve_l1
from keymesh.app.layout import TimingPlan
from keymesh.app.supervisor_client import ask_supervisor
from keymesh.control.kinds import SetService
from keymesh.control.rows import ServiceRow
from keymesh.model import strict_json
from keymesh.model.errors import KeymeshError, Refused, Unavailable

T = TypeVar("T")

TIMING: Final = TimingPlan(
    ttl_ms=6_000, heartbeat_ms=500, edge_ttl_ms=2_000, l1_probe_ms=1_000, l1_ttl_ms=60_000, snapshot_ms=2_000
)
"""``l1_ttl_ms`` outlives a drill: while the customer's KMS is hidden it is governance that closes a region."""
DOMAIN: Final = "drill"
SPARE: Final = "spare"
"""A service that is suspended; applications use ``SERVICE``."""
PATIENCE_S: Final = 40.0


@dataclass(slots=True)
class DrillMesh:
    """``regions``: those that the drill's tenants are allowed, the home first."""

    client: AdminClient
    bench: BenchMesh
    regions: tuple[str, ...]
    record: Record = field(default_factory=Record)

    # --- tenants -----------------------------------------------------------------------------------------------------

    async def create_tenant(self, tenant: str, *, standby: str = "allow") -> None:
        """Served at every Edge of its regions."""
        await self.bench.create_served_tenant(tenant, standby=standby)
        row = ServiceRow(version=1, custody="leased", edge_ttl_ms=TIMING.edge_ttl_ms)
        await self.command(tenant, "service.set", msgspec.to_builtins(SetService(service=SPARE, row=row)))

    async def enrol_elsewhere(self, region: str, tenant: str, service: str = SERVICE) -> None:
        """Until the Edge of ``region`` is known in every other region that the tenant allows."""
        others = set(self.regions) - {region}
        sidecar = self.bench.sidecars[region]

        async def enrolled() -> bool | None:
            with contextlib.suppress(Refused):  # its Core has not heard of the service yet
                await ensure_identity(self.client, sidecar, region, tenant, service)
                if others <= set(await enrol_elsewhere(self.client, sidecar, tenant, service)):
                    return True
            return None

        await self.client.until(enrolled, what=f"{region}'s Edge known elsewhere", timeout_s=PATIENCE_S)

    async def served_by(self, region: str, tenant: str) -> str:
        """The region whose Core gave the Edge of ``region`` its lease; empty where it holds none."""
        _, raw = await self.bench.sidecars[region].request("GET", "/v1/identities", timeout_s=2.0)
        mine = [
            i
            for i in strict_json.loads(raw, max_bytes=ANSWER_MAX_BYTES)["identities"]
            if (i["tenant"], i["service"]) == (tenant, SERVICE)
        ]
        url = mine[0]["edge"].get("core") if mine else None
        places = {self.client.plan.url(region, other): other for other in self.client.plan.regions}
        return places.get(url or "", "")

    def door(self, region: str, tenant: str, service: str = SERVICE) -> Door:
        return Door(region, tenant, service, self.bench.sidecars[region])

    async def command(self, namespace: str, kind: str, args: dict[str, Any]) -> Done:
        """A command that must be acknowledged; what it was told is in the record."""
        answer = await self.client.command(namespace, kind, args, command_id=(command_id := new_command_id()))
        done = Done(command_id, namespace, kind, answer["seq"])
        self.record.acknowledge(done)
        return done

    async def label(self, tenant: str, turn: int) -> Done:
        return await self.command(tenant, "tenant.labels", {"labels": {"turn": str(turn)}})

    async def suspend_spare(self, tenant: str) -> Done:
        return await self.command(tenant, "suspend", {"scope": f"service:{tenant}/{SPARE}"})

    async def suspend_here(self, region: str, tenant: str) -> str:
        """Suspend the spare service at a region, without the Registry; returns the command's id."""
        body = {"scope": f"service:{tenant}/{SPARE}", "action": "suspend"}
        command_id = new_command_id()
        await self.client.call("POST", "/v1/restrict", body, target=region, command_id=command_id)
        return command_id

    async def recorded(self, namespace: str, command_id: str) -> bool:
        """Whether the log has that command."""
        try:
            await self.client.call("GET", f"/v1/commands/{namespace}/{command_id}", timeout_s=3)
        except KeymeshError:
            return False
        return True

    async def lost(self, doors: Sequence[Door]) -> list[str]:
        """What was acknowledged and is not so, in words: commands looked up, blobs opened at ``doors``."""
        await check_record(self.client, self.record, doors)
        return [*self.record.violations, *twice(self.record.commands)]

    # --- faults ------------------------------------------------------------------------------------------------------

    async def cut(self, src: str, dst: str) -> None:
        await wan.ask(self.client.layout.wan_socket, "cut", src=src, dst=dst)

    async def heal(self) -> None:
        await wan.ask(self.client.layout.wan_socket, "heal")

    async def delay(self, src: str, dst: str, ms: int) -> None:
        """Both ways, each chunk."""
        await wan.ask(self.client.layout.wan_socket, "delay", src=src, dst=dst, ms=ms)

    def supervise(self, do: str, name: str) -> None:
        """``kill``, ``hold`` (kill -9, and keep it dead) or ``release`` a process."""
        answer = ask_supervisor(self.client.layout, {"do": do, "name": name})
        if answer is None or not answer.get("ok"):
            raise Unavailable("drill", f"the supervisor does not {do} {name}")

    # --- looking -----------------------------------------------------------------------------------------------------

    async def status(self, region: str) -> Any:
        return await self.client.call("GET", "/v1/status", target=region, timeout_s=2)

    async def applied(self, region: str, since_ns: int) -> list[dict[str, Any]]:
        answer = await self.client.call("GET", f"/v1/applied?since_ns={since_ns}", target=region)
        return list(answer["applied"])

    async def history(self, region: str, tenant: str, after: int) -> list[dict[str, Any]]:
        """The entries that the region has recorded after that seq."""
        answer = await self.client.call("GET", f"/v1/history/{tenant}?after={after}", target=region)
        return list(answer["entries"])

    async def until(self, check: Callable[[], T], what: str) -> T:
        """What ``check`` returns once it is true."""

        async def look() -> T | None:
            return check() or None

        return await self.client.until(look, what=what, timeout_s=PATIENCE_S)

    async def in_step(self, region: str) -> None:
        """Until the Registry shows that ``region`` holds all that it is offered, with nothing in work."""

        async def is_in_step() -> bool | None:
            try:
                seen = (await self.client.call("GET", "/v1/status", timeout_s=3))["regions"][region]
            except KeymeshError:
                return None
            return True if seen["in_sync"] and not seen["pending"] else None

        await self.client.until(is_in_step, what=f"{region} in step", timeout_s=PATIENCE_S)

    async def all_in_step(self) -> None:
        await asyncio.gather(*(self.in_step(region) for region in self.client.plan.regions))


async def drill_mesh(stack: AsyncExitStack, client: AdminClient, regions: Sequence[str]) -> DrillMesh:
    """The running mesh of ``client``; its tenants will be allowed ``regions``."""
    sidecars = {
        region: await stack.enter_async_context(sidecar_client(client, region)) for region in client.plan.regions
    }
    binding = await resolve_l1(client, None, default_key="drill", regions=tuple(client.plan.regions))
    bench = BenchMesh(client, sidecars, tuple(sorted(regions)), binding, DOMAIN, home=regions[0])
    return DrillMesh(client, bench, tuple(regions))
