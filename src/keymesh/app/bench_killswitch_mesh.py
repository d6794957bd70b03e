"""The kill-switch bench's hands on a running mesh: tenants, Edges used in a loop, a backlog of Lane 2 tasks."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from keymesh.adapters.http_client import PeerClient
from keymesh.app.admin_client import AdminClient, new_command_id, wait_for_key
from keymesh.app.bench_killswitch_samples import Probe, Sample, first_refusal_ns, sample_of
from keymesh.app.enrol import ensure_identity, sidecar_client
from keymesh.app.l1_url import ResolvedBinding, resolve_l1
from keymesh.app.signing_keys import load_signer
from keymesh.control.kinds import ScopeArgs, SetLabels, SetService, TenantCreate
from keymesh.control.rows import PolicyRow, ServiceRow, SignersRow
from keymesh.model.errors import KeymeshError, Refused, Unavailable
from keymesh.model.limits import COMMIT_MAX_ENTRIES, EDGE_TTL_DEFAULT_MS
from keymesh.model.states import Lane

SERVICE: Final = "files"
PAUSE_S: Final = 0.004
"""Between two uses of one Edge: the resolution of a refusal's instant; tighter would measure the bench itself."""
IDLE_PAUSE_S: Final = 0.05
SERVE_TIMEOUT_S: Final = 60.0
REFUSE_TIMEOUT_S: Final = 30.0
BATCHES_AT_ONCE: Final = 4
_LOST: Final = frozenset({"unreachable", "timeout", "no-answer", "peer-answer"})
"""Codes of an Edge process that did not answer: neither a success nor a refusal."""


@dataclass(slots=True)
class BenchMesh:
    """One operator's client, and one sidecar client for each region.  ``regions``: those of its tenants, sorted;
    ``home``: theirs, the first of them where empty."""

    client: AdminClient
    sidecars: dict[str, PeerClient]
    regions: tuple[str, ...]
    binding: ResolvedBinding
    domain: str
    home: str = ""
    labelled: dict[str, int] = field(default_factory=dict)
    """How many labels each backlog tenant was given."""

    # --- tenants -------------------------------------------------------------------------------------------------

    async def create_tenant(self, tenant: str, *, standby: str = "allow", ttl_ms: int | None = None) -> None:
        """A tenant of all regions, under ``binding``; returns before its own keys exist."""
        signer_file = self.client.layout.keys / "tenant-admin.pem"
        signer = load_signer(signer_file)
        create = TenantCreate(
            policy=PolicyRow(
                version=1,
                home=self.home or self.regions[0],
                domain=self.domain,
                regions=self.regions,
                admins=("operator",),
                ttl_ms=ttl_ms,
                standby=standby,
            ),
            signers=SignersRow(keys={signer.key_id: signer.public_hex}, threshold=1),
            binding_id=self.binding.binding_id,
            provider=self.binding.provider,
            descriptor=self.binding.descriptor,
        )
        await self.client.command(tenant, "tenant.create", msgspec.to_builtins(create), signers=(signer_file,))

    async def create_served_tenant(self, tenant: str, *, standby: str = "allow") -> None:
        """A tenant with a service and an Edge in every region; returns when all of them serve."""
        await self.create_tenant(tenant, standby=standby)
        await self.add_service(tenant)
        await asyncio.gather(*(self._enrol(region, tenant) for region in self.regions))
        await self.until_served(tenant)

    async def add_service(self, tenant: str, *, edge_ttl_ms: int = EDGE_TTL_DEFAULT_MS) -> None:
        """Returns once its key is there."""
        row = ServiceRow(version=1, custody="leased", edge_ttl_ms=edge_ttl_ms)
        await self.client.command(tenant, "service.set", msgspec.to_builtins(SetService(service=SERVICE, row=row)))
        await wait_for_key(self.client, tenant, f"l3/{SERVICE}")

    async def _enrol(self, region: str, tenant: str) -> None:
        """The Core learns of a service with its task, so the first requests may come too early."""

        async def enrolled() -> bool | None:
            try:
                await ensure_identity(self.client, self.sidecars[region], region, tenant, SERVICE)
            except Refused as early:
                if early.code != "not-found":
                    raise
                return None
            return True

        await self.client.until(enrolled, what=f"{tenant}'s arrival in {region}", timeout_s=SERVE_TIMEOUT_S)

    # --- Edges ---------------------------------------------------------------------------------------------------

    async def use(self, region: str, tenant: str) -> Probe:
        """One data key from that region's Edge.  Raises Unavailable where the Edge process does not answer."""
        started_ns = time.time_ns()
        try:
            await self.sidecars[region].request("POST", f"/v1/{tenant}/{SERVICE}/create-key", b"{}")
        except KeymeshError as refused:
            if refused.code in _LOST:
                raise
            return Probe(started_ns, time.time_ns(), served=False)
        return Probe(started_ns, time.time_ns(), served=True)

    async def until_served(self, tenant: str) -> None:
        """Until every Edge of ``tenant`` serves."""

        async def served(region: str) -> None:
            while True:
                probe = await self.use(region, tenant)
                if probe.served:
                    return
                await asyncio.sleep(IDLE_PAUSE_S)

        try:
            async with asyncio.timeout(SERVE_TIMEOUT_S):
                await asyncio.gather(*(served(region) for region in self.regions))
        except TimeoutError as late:
            raise Unavailable("bench", f"not every Edge of {tenant} serves within {SERVE_TIMEOUT_S:.0f} s") from late

    # --- the measurement -----------------------------------------------------------------------------------------

    async def suspend(self, tenant: str) -> Sample:
        """Suspend ``tenant`` while all its Edges are being used, until each has refused."""
        watched = {region: EdgeWatch(self, region, tenant) for region in self.regions}
        async with together() as group:
            runs = [group.create_task(watch.run()) for watch in watched.values()]
            await asyncio.gather(*(watch.serving.wait() for watch in watched.values()))
            command_id = new_command_id()
            scope = f"tenant:{tenant}"
            await self.client.command(
                tenant, "suspend", msgspec.to_builtins(ScopeArgs(scope=scope)), command_id=command_id
            )
            await asyncio.gather(*runs)
        record, *rows = await asyncio.gather(
            self.client.call("GET", f"/v1/certificates/{command_id}"),
            *(self.applied(region, min(watch.started_ns for watch in watched.values())) for region in self.regions),
        )
        refused = {region: watch.refused_ns for region, watch in watched.items()}
        return sample_of(command_id, record, dict(zip(self.regions, rows, strict=True)), refused)

    async def applied(self, region: str, since_ns: int) -> Any:
        answer = await self.client.call("GET", f"/v1/applied?since_ns={since_ns}", target=region)
        return answer["applied"]

    async def resume(self, tenant: str) -> None:
        """End the suspension; returns when every Edge serves again."""
        await self.client.command(tenant, "resume", msgspec.to_builtins(ScopeArgs(scope=f"tenant:{tenant}")))
        await self.until_served(tenant)

    # --- backlog -------------------------------------------------------------------------------------------------

    async def queued(self) -> dict[Lane, int]:
        """Tasks that wait, over all regions, by lane."""
        status = await self.client.call("GET", "/v1/status")
        found = [region["queued"] for region in status["regions"].values()]
        return {lane: sum(depths[str(int(lane))] for depths in found) for lane in Lane}

    async def add_labels(self, count: int) -> None:
        """``count`` label commands, by turns over the backlog's tenants: each is one task for every region."""
        batches: list[tuple[str, int]] = []
        while count > 0:
            tenant = min(self.labelled, key=lambda t: self.labelled[t])
            size = min(count, COMMIT_MAX_ENTRIES)
            batches.append((tenant, size))
            self.labelled[tenant] += size
            count -= size
        slots = asyncio.Semaphore(BATCHES_AT_ONCE)

        async def send(tenant: str, size: int) -> None:
            async with slots:
                await self._label(tenant, size)

        async with together() as group:
            for tenant, size in batches:
                group.create_task(send(tenant, size))

    async def _label(self, tenant: str, size: int) -> None:
        commands = []
        for _ in range(size):
            command_id = new_command_id()
            args = msgspec.to_builtins(SetLabels(labels={"turn": command_id}))
            commands.append(
                {"command_id": command_id, "namespace": tenant, "kind": "tenant.labels", "args": args, "authority": []}
            )
        answer = await self.client.call("POST", "/v1/commands/batch", {"commands": commands})
        refused = [r["error"]["message"] for r in answer["results"] if "error" in r]
        if refused:
            raise Unavailable("bench", f"a label was refused: {refused[0]}")

    # --- reference -----------------------------------------------------------------------------------------------

    async def round_trip_ms(self) -> float:
        """One bare mTLS request to the Registry, over a connection that is open."""
        started = time.perf_counter()
        await self.client.call("GET", "/healthz")
        return (time.perf_counter() - started) * 1e3


class EdgeWatch:
    """Uses one Edge again and again until it has surely refused."""

    def __init__(self, mesh: BenchMesh, region: str, tenant: str) -> None:
        self._mesh, self._region, self._tenant = mesh, region, tenant
        self.serving = asyncio.Event()
        self.started_ns = time.time_ns()
        self.refused_ns = 0

    async def run(self) -> None:
        """Raises Unavailable where the Edge still serves after ``REFUSE_TIMEOUT_S``."""
        probes: list[Probe] = []
        deadline = time.monotonic() + REFUSE_TIMEOUT_S
        while time.monotonic() < deadline:
            probe = await self._mesh.use(self._region, self._tenant)
            if probe.served:
                self.serving.set()
                probes.clear()
            probes.append(probe)
            refused_ns = first_refusal_ns(probes)
            if refused_ns is not None and self.serving.is_set():
                self.refused_ns = refused_ns
                return
            await asyncio.sleep(PAUSE_S)
        raise Unavailable("bench", f"the Edge in {self._region} still serves after {REFUSE_TIMEOUT_S:.0f} s")


@asynccontextmanager
async def together() -> AsyncIterator[asyncio.TaskGroup]:
    """A task group that raises the first of its failures as it is, so that callers see one of our errors."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from failed


@asynccontextmanager
async def bench_mesh(client: AdminClient) -> AsyncIterator[BenchMesh]:
    """The mesh of ``client``, whose regions are of one domain."""
    regions = tuple(sorted(client.plan.regions))
    async with AsyncExitStack() as stack:
        sidecars = {region: await stack.enter_async_context(sidecar_client(client, region)) for region in regions}
        binding = await resolve_l1(client, None, default_key="bench", regions=regions)
        yield BenchMesh(client, sidecars, regions, binding, client.plan.regions[regions[0]].domain)


def bare_commits_ms(path: Path, payload: bytes, count: int) -> Iterable[float]:
    """``count`` durable SQLite commits (WAL, ``synchronous=FULL``) of one row each, in a file of their own."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        db.execute("CREATE TABLE IF NOT EXISTS bare (id INTEGER PRIMARY KEY, value BLOB NOT NULL)")
        for _ in range(count):
            started = time.perf_counter()
            db.execute("INSERT INTO bare (value) VALUES (?)", (payload,))
            yield (time.perf_counter() - started) * 1e3
