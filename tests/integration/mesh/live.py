"""A running mesh in the hands of a test: commands, key use at every Edge, faults by process id, and the way back."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from keymesh.adapters.customer_kms import OwnerClient
from keymesh.adapters.http_client import PeerClient
from keymesh.app import cli, wan
from keymesh.app.admin_client import AdminClient, new_command_id
from keymesh.app.enrol import ensure_identity, sidecar_client
from keymesh.app.layout import Layout, TimingPlan, load_plan
from keymesh.app.supervisor_client import ask_supervisor, running_pid
from keymesh.model import strict_json
from keymesh.model.errors import KeymeshError, Refused, Unavailable

T = TypeVar("T")

TIMING: Final = TimingPlan(
    ttl_ms=6_000, heartbeat_ms=500, edge_ttl_ms=2_000, l1_probe_ms=1_000, l1_ttl_ms=6_000, snapshot_ms=2_000
)
US, EU = "acmeholding", "zebrabank"  # names that are found nowhere by accident
HOME = {US: "us-east", EU: "eu-central"}
OTHER = {US: "us-west", EU: "eu-west"}
FILES, MAIL, VAULT = "ledgerfiles", "postboxes", "strongroom"
PROCESSES: Final = ("registry", "core-us-east", "core-eu-west", "edge-us-east", "customer-kms")
PATIENCE_S: Final = 40.0


def keymesh(*words: str | Path, cwd: Path | None = None, timeout_s: float = 90) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    program = [sys.executable, "-c", "import sys; from keymesh.app.cli import main; sys.exit(main())"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "COLUMNS": "200"}
    environment.pop("KEYMESH_DIR", None)
    return subprocess.run(
        [*program, *map(str, words)], capture_output=True, text=True, cwd=cwd, env=environment, timeout=timeout_s
    )


@dataclass(slots=True)
class Door:
    """One service at one region's Edge."""

    region: str
    tenant: str
    service: str
    sidecar: PeerClient

    async def ask(self, operation: str, body: dict[str, Any], timeout_s: float | None = None) -> Any:
        path = f"/v1/{self.tenant}/{self.service}/{operation}"
        _, answer = await self.sidecar.request("POST", path, strict_json.dumps(body), timeout_s=timeout_s)
        return strict_json.loads(answer, max_bytes=1024 * 1024)

    async def mint(self) -> tuple[str, str]:
        """(blob, data key), base64."""
        made = await self.ask("create-key", {"plaintext": True})
        return made["blob"], made["plaintext"]

    async def open(self, blob: str) -> str:
        return str((await self.ask("decrypt-key", {"blob": blob}))["plaintext"])

    async def minted(self) -> tuple[str, str]:
        """As ``mint``, asked again while it is unavailable: on a slow machine a lease may run out first."""
        return await _patiently(self.mint)

    async def opened(self, blob: str) -> str:
        """As ``open``, likewise."""
        return await _patiently(lambda: self.open(blob))

    async def refusal(self, blob: str | None = None) -> str:
        """Why it refuses just now; "" where it serves."""
        try:
            await (self.mint() if blob is None else self.open(blob))
        except KeymeshError as no:
            return no.code
        return ""


async def _patiently(work: Callable[[], Awaitable[T]]) -> T:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return await work()
        except Unavailable:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.1)


@dataclass(slots=True)
class Use:
    """What one client saw at one door: every blob it was given, every answer, when."""

    door: Door
    minted: list[tuple[str, str]] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    last_served: float = 0.0  # wall clock, s: when the last request began that was served
    served: int = 0


class LiveMesh:
    """Use as an async context manager; leaving it hangs up, ``restore`` undoes the test's faults."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.plan = load_plan(layout)
        self.client = AdminClient(layout, self.plan)
        self._sidecars: dict[str, PeerClient] = {}
        self._stopped: set[int] = set()

    async def __aenter__(self) -> LiveMesh:
        return self

    async def __aexit__(self, *_: object) -> None:
        for sidecar in self._sidecars.values():
            await sidecar.close()
        await self.client.__aexit__()

    # --- the command line ------------------------------------------------------------------------------------------

    async def cli(self, *words: str | Path, code: int = 0) -> Any:
        """The parsed ``--json`` output of a command that must end with ``code``; run here, on a thread of its own."""
        line = [*map(str, words), "--dir", str(self.layout.root), "--json"]
        with contextlib.redirect_stdout(io.StringIO()) as said:
            ended = await asyncio.to_thread(cli.main, line)
        assert ended == code, (words, ended, said.getvalue())
        return json.loads(said.getvalue())

    # --- doors -----------------------------------------------------------------------------------------------------

    def sidecar(self, region: str) -> PeerClient:
        if region not in self._sidecars:
            self._sidecars[region] = sidecar_client(self.client, region)
        return self._sidecars[region]

    async def door(self, region: str, tenant: str, service: str = FILES) -> Door:
        """Enrolled, and serving."""
        door = Door(region, tenant, service, self.sidecar(region))

        async def ready() -> bool:
            await ensure_identity(self.client, door.sidecar, region, tenant, service)
            return not await door.refusal()

        await until(ready, f"{tenant}/{service} at {region}")
        return door

    async def doors(self, tenant: str, service: str = FILES) -> tuple[Door, Door]:
        """At the home region's Edge, at the other region's."""
        return await self.door(HOME[tenant], tenant, service), await self.door(OTHER[tenant], tenant, service)

    # --- faults ----------------------------------------------------------------------------------------------------

    def pid(self, name: str) -> int:
        return running_pid(self.layout, name)

    def child(self, name: str) -> dict[str, Any]:
        answer = ask_supervisor(self.layout, {"do": "status"})
        assert answer is not None
        return dict(answer["children"][name])

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid(name), number)

    def pause(self, name: str) -> int:
        pid = self.pid(name)
        os.kill(pid, signal.SIGSTOP)
        self._stopped.add(pid)
        return pid

    def unpause(self, pid: int) -> None:
        os.kill(pid, signal.SIGCONT)
        self._stopped.discard(pid)

    async def hold(self, name: str) -> None:
        """End a process, and keep it ended."""
        ask_supervisor(self.layout, {"do": "hold", "name": name})

        async def gone() -> bool:
            return self.child(name)["pid"] is None

        await until(gone, f"{name} ending")

    def release(self, name: str) -> None:
        ask_supervisor(self.layout, {"do": "release", "name": name})

    async def link(self, op: str, src: str = "*", dst: str = "*") -> float:
        """Cut or heal links; when (wall clock, s) it was done for certain."""
        await wan.ask(self.layout.wan_socket, op, src=src, dst=dst)
        return time.time()

    async def isolate(self, region: str) -> float:
        await self.link("cut", region, "*")
        return await self.link("cut", "*", region)

    async def restore(self) -> None:
        """Every fault undone, and the mesh in step again."""
        for pid in list(self._stopped):
            with contextlib.suppress(ProcessLookupError):
                self.unpause(pid)
        answer = ask_supervisor(self.layout, {"do": "status"}) or {"children": {}}
        for name, child in answer["children"].items():
            if child["held"]:
                self.release(name)
        await until(self._healed, "links healing")
        await self.settled()
        await self._lift()

    async def _healed(self) -> bool:
        try:
            await self.link("heal")
        except OSError:
            return False
        return True

    async def _lift(self) -> None:
        """End what a test that failed half-way has left suspended of the standing tenants."""
        for tenant, region in HOME.items():
            for scope in (await self.status(region))["tenants"][tenant]["restricted"]:
                with contextlib.suppress(Refused):
                    await self.resume(scope.removesuffix(" (local)"), tenant)

    async def settled(self) -> None:
        """Every process ready, every region in step, the two standing tenants synced where they may be."""
        await until(self._settled, "the mesh coming to rest")

    async def _settled(self) -> bool:
        children = (ask_supervisor(self.layout, {"do": "status"}) or {"children": {}})["children"]
        if not children or not all(child["ready"] for child in children.values()):
            return False
        try:
            seen = await self.client.call("GET", "/v1/status", timeout_s=3)
            modes = [await self.modes(region) for region in self.plan.regions]
        except (Unavailable, Refused):
            return False
        return all(r["in_sync"] and not r["pending"] for r in seen["regions"].values()) and all(
            mode == "synced" for region in modes for tenant, mode in region.items() if tenant in HOME
        )

    # --- looking ---------------------------------------------------------------------------------------------------

    async def status(self, region: str) -> Any:
        return await self.client.call("GET", "/v1/status", target=region, timeout_s=5)

    async def modes(self, region: str) -> dict[str, str]:
        """Tenant -> mode, as that region's Core says."""
        return {name: t["mode"] for name, t in (await self.status(region))["tenants"].items()}

    async def reaches(self, region: str, tenant: str, mode: str, *, within_s: float = PATIENCE_S) -> float:
        """Wait for that mode; when (wall clock, s) it was seen."""

        async def there() -> bool:
            try:
                return (await self.modes(region)).get(tenant) == mode
            except Unavailable:
                return False

        await until(there, f"{tenant} {mode} in {region}", within_s=within_s)
        return time.time()

    async def command(self, namespace: str, kind: str, args: dict[str, Any], command_id: str | None = None) -> Any:
        return await self.client.command(namespace, kind, args, command_id=command_id)

    async def resume(self, scope: str, namespace: str) -> None:
        """Lift a suspension and wait until the voters have it."""
        done = await self.persistently(namespace, "resume", {"scope": scope})
        await self.committed(namespace, done["command_id"])

    async def persistently(self, namespace: str, kind: str, args: dict[str, Any]) -> Any:
        """A command repeated with its id until it is acknowledged."""
        command_id = new_command_id()
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return await self.command(namespace, kind, args, command_id)
            except Unavailable:
                assert time.monotonic() < deadline, f"{kind} was never acknowledged"
                await asyncio.sleep(0.1)

    async def committed(self, namespace: str, command_id: str) -> None:
        async def there() -> bool:
            try:
                found = await self.client.call("GET", f"/v1/commands/{namespace}/{command_id}", timeout_s=5)
            except (Unavailable, Refused):
                return False
            return bool(found["committed"])

        await until(there, f"{command_id} committed")

    async def certificate(self, command_id: str, *, within_s: float = PATIENCE_S) -> Any:
        """The kill-switch record once it is certified."""
        found: dict[str, Any] = {}

        async def certified() -> bool:
            try:
                answer = await self.client.call("GET", f"/v1/certificates/{command_id}", timeout_s=5)
            except (Unavailable, Refused):
                return False
            found.update(answer)
            return bool(answer["status"] == "certified")

        await until(certified, f"the certificate of {command_id}", within_s=within_s)
        return found

    def log_entries(self, namespace: str) -> dict[str, list[int]]:
        """Command id -> sequence numbers under which the log itself holds it."""
        database = sqlite3.connect(f"file:{self.layout.registry / 'log.db'}?mode=ro", uri=True)
        try:
            rows = database.execute("SELECT seq, envelope FROM entries WHERE namespace = ?", (namespace,)).fetchall()
        finally:
            database.close()
        found: dict[str, list[int]] = {}
        for seq, envelope in rows:
            entry = json.loads(base64.b64decode(json.loads(envelope)["payload"]))
            found.setdefault(entry["command_id"], []).append(seq)
        return found

    def owner(self) -> OwnerClient:
        """The customer's own hand on their KMS."""
        return OwnerClient.open(self.layout.customer_kms)


@asynccontextmanager
async def using(*doors: Door, pause_s: float = 0.02) -> AsyncIterator[list[Use]]:
    """Clients that mint and open at each door without end, one after the other, and remember everything."""
    uses = [Use(door) for door in doors]

    async def client(use: Use) -> None:
        while True:
            began = time.time()
            try:
                blob, key = await use.door.mint()
                use.minted.append((blob, key))
                if await use.door.open(blob) != key:
                    use.wrong.append(blob)
                use.served += 1
                use.last_served = began
            except KeymeshError as no:
                use.errors[f"{type(no).__name__} {no.code}"] += 1
            await asyncio.sleep(pause_s)

    tasks = [asyncio.create_task(client(use)) for use in uses]
    try:
        yield uses
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(end, asyncio.CancelledError) for end in ended), ended


async def until(check: Callable[[], Awaitable[bool]], what: str, *, within_s: float = PATIENCE_S) -> None:
    """Poll; fails naming ``what``."""
    deadline = time.monotonic() + within_s
    while not await check():
        assert time.monotonic() < deadline, f"not within {within_s:.0f} s: {what}"
        await asyncio.sleep(0.05)


def plain(text: str) -> bytes:
    return base64.b64decode(text)
