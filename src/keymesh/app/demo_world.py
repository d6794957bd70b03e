"""The demo's stage: a mesh and two customers' KMSes, each in processes of their own, under one short directory.

Decides names and timing of the demo; every measurement is taken elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from keymesh.adapters.customer_kms import OwnerClient, read_info
from keymesh.adapters.http_client import PeerClient
from keymesh.app.admin_client import AdminClient
from keymesh.app.cli_mesh import start_mesh
from keymesh.app.enrol import sidecar_client
from keymesh.app.layout import Layout, TimingPlan, load_plan
from keymesh.app.lifeline import PARENT_ENV
from keymesh.app.supervisor_client import ask_supervisor, stop_mesh
from keymesh.app.wan import ask
from keymesh.model import strict_json
from keymesh.model.errors import KeymeshError, Refused, Unavailable

TIMING: Final = TimingPlan(
    ttl_ms=6_000, heartbeat_ms=400, edge_ttl_ms=3_000, l1_probe_ms=1_000, l1_ttl_ms=6_000, snapshot_ms=2_000
)
KMS_START_S: Final = 60.0
KMS_STOP_S: Final = 5.0
ANSWER_MAX_BYTES: Final = 1024 * 1024

Figures = dict[str, Any]


class Failed(Exception):
    """What the demo set out to show did not happen."""


def need(condition: object, what: str) -> None:
    """Raises Failed saying ``what`` is not so."""
    if not condition:
        raise Failed(what)


def ms_since(began_ns: int, until_ns: int | None = None) -> int:
    """Wall-clock milliseconds, as all processes of this machine have them."""
    return round(((time.time_ns() if until_ns is None else until_ns) - began_ns) / 1_000_000)


@dataclass(frozen=True, slots=True)
class Customer:
    """A tenant, its one service, where it lives (``home``) and may live too (``other``), and its L1 key's name."""

    tenant: str
    service: str
    home: str
    other: str

    @property
    def regions(self) -> tuple[str, str]:
        return self.home, self.other

    @property
    def key(self) -> str:
        return f"{self.tenant}-root"

    @property
    def scope(self) -> str:
        return f"service:{self.tenant}/{self.service}"


ACME: Final = Customer("acme", "files", "us-east", "us-west")
GLOBEX: Final = Customer("globex", "invoices-eu", "eu-central", "eu-west")
CUSTOMERS: Final = (ACME, GLOBEX)


@dataclass(slots=True)
class World:
    """``root``: everything of this demo.  ``source``: the directory that gets encrypted.

    ``full``: the mesh stands on real servers.
    """

    root: Path
    source: Path
    full: bool = False
    kms: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    sidecars: dict[str, PeerClient] = field(default_factory=dict)
    digests: dict[str, dict[str, str]] = field(default_factory=dict)
    """By tenant: SHA-256 of each source file at the moment it was sealed."""
    probes: dict[str, tuple[str, str]] = field(default_factory=dict)
    """By tenant: a wrapped key and what it opens to, base64."""
    said: dict[str, list[str]] = field(default_factory=dict)
    """By tenant: ids of the commands and requests that onboarded it."""
    killed: list[str] = field(default_factory=list)
    """Roles that the demo killed, once for each time."""
    wanted: tuple[str, int] | None = None
    """Key and version of a rotation that waits for its region."""
    _client: AdminClient | None = None
    _starting: asyncio.Task[Figures] | None = None

    @property
    def layout(self) -> Layout:
        return Layout(self.root / "mesh")

    @property
    def client(self) -> AdminClient:
        if self._client is None:
            raise Unavailable("not-running", "the demo's mesh is not up")
        return self._client

    def kms_dir(self, customer: Customer) -> Path:
        return self.root / f"{customer.tenant}-kms"

    def sealed_dir(self, customer: Customer) -> Path:
        return self.root / "sealed" / customer.tenant

    # --- processes -----------------------------------------------------------------------------------------------

    async def start(self) -> Figures:
        """The mesh, every process of it serving.  All of it ends with this process, also where that is killed."""

        def start() -> Figures:
            with _mortal():
                return start_mesh(
                    self.layout, regions=None, timing=TIMING, links=True, allow_unlocked_memory=True, full=self.full
                )

        self._starting = asyncio.create_task(asyncio.to_thread(start))
        shown = await asyncio.shield(self._starting)
        self._client = AdminClient(self.layout, load_plan(self.layout))
        self.sidecars = {region: sidecar_client(self._client, region) for region in shown["regions"]}
        return shown

    async def start_kms(self, customer: Customer) -> None:
        """The customer's own KMS, with a replica in each of their regions, for Cores of this mesh; and their key."""
        directory = self.kms_dir(customer)
        command = [sys.executable, "-P", "-m", "keymesh.app.customer_kms", "--dir", str(directory)]
        command += ["--replicas", ",".join(customer.regions), "--allow-ca", str(self.layout.ca)]
        with _mortal(), (self.root / f"{customer.tenant}-kms.log").open("ab") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)  # noqa: ASYNC220
        self.kms[customer.tenant] = process

        async def serves() -> bool | None:
            need(process.poll() is None, f"the KMS of {customer.tenant} ended with {process.returncode}")
            with contextlib.suppress(Refused):
                return True if read_info(directory).pid == process.pid else None
            return None

        await self.until(serves, what=f"the start of the KMS of {customer.tenant}", timeout_s=KMS_START_S)
        async with OwnerClient.open(directory) as owner:
            await owner.create(customer.key)

    async def stop(self) -> Figures:
        """Everything that was started; returns how many processes ended, once all have."""
        if self._starting is not None:
            await asyncio.gather(self._starting, return_exceptions=True)
        for sidecar in self.sidecars.values():
            await sidecar.close()
        if self._client is not None:
            await self._client.__aexit__()
        self.sidecars, self._client = {}, None
        pids = self.pids()
        await asyncio.to_thread(stop_mesh, self.layout)
        for process in self.kms.values():
            process.terminate()
        for process in self.kms.values():
            try:
                process.wait(KMS_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.kms = {}
        left = [pid for pid in pids if _is_running(pid)]
        need(not left, f"processes still run: {left}")
        return {"processes_ended": len(pids)}

    def pids(self) -> list[int]:
        """Of every process that the demo has running."""
        status = ask_supervisor(self.layout, {"do": "status"}) if self.layout.root.exists() else None
        mesh = [] if status is None else [status["pid"], *(child["pid"] for child in status["children"].values())]
        return [pid for pid in mesh if pid is not None] + [p.pid for p in self.kms.values() if p.poll() is None]

    def restarts(self) -> dict[str, int]:
        """How often the supervisor has restarted each role."""
        status = ask_supervisor(self.layout, {"do": "status"}) or {"children": {}}
        return {name: int(child["restarts"]) for name, child in status["children"].items()}

    async def crash(self, name: str) -> int:
        """SIGKILL the role ``name``; returns the instant before it, in ns."""
        at = time.time_ns()
        answer = ask_supervisor(self.layout, {"do": "kill", "name": name})
        need(answer == {"ok": True}, f"{name} could not be killed")
        self.killed.append(name)
        return at

    async def cut(self, region: str, *, heal: bool = False) -> int:
        """All links from and to ``region``; returns the instant before it, in ns."""
        at, op = time.time_ns(), "heal" if heal else "cut"
        await ask(self.layout.wan_socket, op, src=region)
        await ask(self.layout.wan_socket, op, dst=region)
        return at

    # --- asking ----------------------------------------------------------------------------------------------------

    async def until(
        self, check: Callable[[], Awaitable[Any]], *, what: str, timeout_s: float, pause_s: float = 0.03
    ) -> Any:
        """What ``check`` returns once it is not None.  Raises Failed naming ``what``."""
        deadline = time.monotonic() + timeout_s
        while True:
            found = await check()
            if found is not None:
                return found
            need(time.monotonic() < deadline, f"{what}: not within {timeout_s:.0f} s")
            await asyncio.sleep(pause_s)

    async def edge(self, region: str, customer: Customer, operation: str, body: dict[str, Any]) -> Any:
        """One call to the region's Edge, for the customer's service."""
        path = f"/v1/{customer.tenant}/{customer.service}/{operation}"
        _, answer = await self.sidecars[region].request("POST", path, strict_json.dumps(body), timeout_s=5.0)
        return strict_json.loads(answer, max_bytes=ANSWER_MAX_BYTES)

    async def keys(self, customer: Customer) -> list[Any]:
        shown = await self.client.call("GET", f"/v1/tenants/{customer.tenant}/keys")
        return list(shown["keys"])

    async def mode(self, region: str, customer: Customer) -> str:
        """The tenant's mode at the region's Core, or why there is none."""
        try:
            shown = await self.client.call("GET", "/v1/status", target=region, timeout_s=2.0)
        except KeymeshError as silent:
            return silent.code
        return str(shown["tenants"].get(customer.tenant, {}).get("mode", "absent"))


@asynccontextmanager
async def staged(root: Path, source: Path, *, full: bool = False) -> AsyncIterator[World]:
    """A world that is torn down however the block ends."""
    world = World(root, source, full)
    try:
        yield world
    finally:
        await world.stop()


@contextlib.contextmanager
def _mortal() -> Iterator[None]:
    """Processes started in here are ended by the kernel when this process is gone."""
    before = os.environ.get(PARENT_ENV)
    os.environ[PARENT_ENV] = str(os.getpid())
    try:
        yield
    finally:
        del os.environ[PARENT_ENV]
        if before is not None:
            os.environ[PARENT_ENV] = before


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return True
