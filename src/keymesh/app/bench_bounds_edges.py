"""The fifty Edges of the kill-switch bench, and those of its bounds: enrolled one by one, in processes of their own."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from keymesh.adapters.files import write_file
from keymesh.app.admin_client import AdminClient
from keymesh.app.bench_edge_host import EdgeSeen, EdgeSpec, HostPlan
from keymesh.app.lifeline import PARENT_ENV
from keymesh.edge.sidecar_identities import IdentityStore
from keymesh.model import strict_json
from keymesh.model.errors import Refused, Unavailable

ANSWER_MAX_BYTES: Final = 256 * 1024
AT_ONCE: Final = 8
LOOK_S: Final = 0.05
SURE_S: Final = 0.04
"""What has refused and still refuses so much later has refused."""
SERVE_TIMEOUT_S: Final = 60.0
END_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """``count`` Edges of one service in one host, which reach their Core at ``core``."""

    tenant: str
    service: str
    count: int
    core: str


@dataclass(slots=True)
class EdgeHost:
    """One process, all of whose Edges are in ``region``.  ``edges``: tenant -> their names."""

    name: str
    region: str
    edges: dict[str, list[str]] = field(default_factory=dict)
    process: asyncio.subprocess.Process | None = None
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def start(self, client: AdminClient, wanted: Sequence[Wanted]) -> None:
        """Enrol and start them; they serve some time later."""
        home = client.layout.root / "bench-edges" / self.name
        slots = asyncio.Semaphore(AT_ONCE)
        specs = []
        for want in wanted:
            names = [f"{self.name}-{want.tenant}-{n}" for n in range(want.count)]
            self.edges[want.tenant] = names
            files = await asyncio.gather(*(self._enrol(client, slots, home / name, want) for name in names))
            specs += [EdgeSpec(name=n, identity=str(f), core=want.core) for n, f in zip(names, files, strict=True)]
        trust = client.layout.edge(self.region) / "trust.json"
        plan = HostPlan(ca=str(client.layout.ca), trust=str(trust), edges=tuple(specs))
        write_file(home / "plan.json", strict_json.dumps(plan))
        with (client.layout.logs / f"{self.name}.log").open("ab") as output:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "keymesh.app.bench_edge_host", "--plan", str(home / "plan.json")),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=output,
                env={**os.environ, PARENT_ENV: str(os.getpid())},
                limit=ANSWER_MAX_BYTES,
            )

    async def _enrol(self, client: AdminClient, slots: asyncio.Semaphore, directory: Path, want: Wanted) -> Path:
        """A key, and a certificate from the region's Core, which learns of the service with its task."""
        store = IdentityStore(directory, mesh=client.plan.mesh, region=self.region, ca_file=client.layout.ca)
        csr = store.request(want.tenant, want.service)
        body = {"tenant": want.tenant, "service": want.service, "instance": store.instance, "csr": csr}

        async def chain() -> str | None:
            try:
                async with slots:
                    answer = await client.call("POST", "/v1/certificates", body, target=self.region)
            except Refused as early:
                if early.code != "not-found":
                    raise
                return None
            return str(answer["chain"])

        found = await client.until(chain, what=f"{want.tenant}'s arrival in {self.region}", timeout_s=SERVE_TIMEOUT_S)
        store.install(want.tenant, want.service, found, now_ms=time.time_ns() // 1_000_000)
        return store.identity_file(want.tenant, want.service)

    async def look(self) -> dict[str, EdgeSeen]:
        """Raises Unavailable where the process is gone."""
        process = self.process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            async with self.asking:
                process.stdin.write(b"\n")
                await process.stdin.drain()
                line = await process.stdout.readline()
        except ConnectionError:
            line = b""
        if not line:
            raise Unavailable("bench", f"the Edges of {self.name} ended; see logs/{self.name}.log")
        return strict_json.decode(line.rstrip(b"\n"), dict[str, EdgeSeen], max_bytes=ANSWER_MAX_BYTES)

    async def close(self) -> None:
        process = self.process
        if process is None or process.returncode is not None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            async with asyncio.timeout(END_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


@dataclass(frozen=True, slots=True)
class EdgeHosts:
    hosts: tuple[EdgeHost, ...]

    async def seen(self, tenant: str) -> dict[str, EdgeSeen]:
        """Every Edge of ``tenant``, by name."""
        of_tenant = [host for host in self.hosts if tenant in host.edges]
        looks = await asyncio.gather(*(host.look() for host in of_tenant))
        return {n: look[n] for host, look in zip(of_tenant, looks, strict=True) for n in host.edges[tenant]}

    async def until_served(self, tenant: str) -> None:
        """Until every Edge of ``tenant`` serves.  Raises Unavailable."""
        deadline = time.monotonic() + SERVE_TIMEOUT_S
        while not all_serve(await self.seen(tenant)):
            if time.monotonic() >= deadline:
                raise Unavailable("bench", f"not every Edge of {tenant} serves within {SERVE_TIMEOUT_S:.0f} s")
            await asyncio.sleep(LOOK_S)

    async def until_refused(self, tenant: str, timeout_s: float) -> dict[str, EdgeSeen]:
        """What was seen once every Edge of ``tenant`` had surely refused, or when the time was over."""
        deadline = time.monotonic() + timeout_s
        while True:
            seen = await self.seen(tenant)
            if is_sure(seen.values(), time.time_ns()) or time.monotonic() >= deadline:
                return seen
            await asyncio.sleep(LOOK_S)


def all_serve(seen: Mapping[str, EdgeSeen]) -> bool:
    return all(edge.served_ns and not edge.refused_ns for edge in seen.values())


def is_sure(seen: Iterable[EdgeSeen], now_ns: int) -> bool:
    """Whether each has refused, and has gone on refusing for ``SURE_S``."""
    return all(edge.refused_ns and now_ns - edge.refused_ns >= SURE_S * 1e9 for edge in seen)


@asynccontextmanager
async def edge_hosts(
    client: AdminClient, wanted: Mapping[tuple[str, str], Sequence[Wanted]]
) -> AsyncIterator[EdgeHosts]:
    """``wanted``: (host, region) -> its Edges."""
    hosts = EdgeHosts(tuple(EdgeHost(name, region) for name, region in wanted))
    try:
        await asyncio.gather(*(h.start(client, wanted[h.name, h.region]) for h in hosts.hosts))
        yield hosts
    finally:
        await asyncio.gather(*(host.close() for host in hosts.hosts))
