"""A mesh whose roles are each in a network namespace of their own, on one switch; what a test does to it and asks."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.integration.mesh.live import Door, until
from tests.integration.netns.switch import Switch, sweep

from keymesh.adapters.customer_kms import INFO_FILE
from keymesh.adapters.http_client import PeerClient
from keymesh.app.admin_client import AdminClient
from keymesh.app.config_init import KMS, init_hosts, spread_plan
from keymesh.app.enrol import ensure_identity
from keymesh.app.layout import Layout, MeshPlan, TimingPlan
from keymesh.app.lifeline import PARENT_ENV
from keymesh.model.errors import KeymeshError, Refused, Unavailable

TIMING: Final = TimingPlan(
    ttl_ms=5_000, heartbeat_ms=500, edge_ttl_ms=2_000, l1_probe_ms=1_000, l1_ttl_ms=5_000, snapshot_ms=60_000
)
REGIONS: Final = ("us-east", "us-west", "eu-central", "eu-west")
VOTERS: Final = ("eu-central", "eu-west", "us-east")
NUMBERS: Final = {"registry": 1, KMS: 2} | {region: 10 + n for n, region in enumerate(REGIONS)}
FIRST_PORT: Final = 7_700
PATIENCE_S: Final = 40.0
SEED: Final = 20_261_127
TENANT, FILES, MAIL, VAULT = "alder", "files", "mail", "vault"
"""``VAULT`` is core-held: each use asks the Core."""


@dataclass(slots=True)
class Lab:
    """``home``: a directory a role, as ``config init`` makes them."""

    home: Path
    switch: Switch
    plan: MeshPlan
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    # --- processes ---------------------------------------------------------------------------------------------------

    def start(self, name: str, *, boot_id: str = "") -> None:
        """A role in its namespace; ``boot_id``: of the machine that it finds itself on, by default this one's."""
        role, _, region = name.partition("-") if name.startswith(("core-", "edge-")) else (name, "", "")
        place = self.switch.ports[region or name].namespace
        words = [sys.executable, "-P", "-m", "keymesh.app.cli"]
        if name == KMS:
            ports = ",".join(f"{replica}={port}" for replica, port in (self.plan.kms_ports or {}).items())
            address = self.switch.ports[KMS].address
            words += ["customer-kms", "run", "--dir", ".", "--host", address, "--replicas", ports]
        else:
            words += [role, "run", "--config", f"{role}.toml"]
        if boot_id:
            told = self.home / f"{name}.boot-id"
            told.write_text(f"{boot_id}\n")
            mounted = f"mount --bind {told} /proc/sys/kernel/random/boot_id"
            words = ["sh", "-ec", f'{mounted} && exec "$@"', "sh", *words]
        with (self.home / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                ["ip", "netns", "exec", place, *words],
                cwd=self.home / name,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, PARENT_ENV: str(os.getpid())},
            )

    def start_all(self) -> None:
        """The KMS first: its note says where it is."""
        self.start(KMS)
        self.start("registry")
        for region in REGIONS:
            self.start(f"core-{region}")
            self.start(f"edge-{region}")
        deadline = time.monotonic() + PATIENCE_S
        notes = [self.home / KMS / INFO_FILE, *(self.home / f"edge-{r}" / "edge.sock" for r in REGIONS)]
        while not all(note.exists() for note in notes):
            ended = [name for name, process in self.processes.items() if process.poll() is not None]
            assert not ended, f"{ended} ended: {self.log(ended[0])}"
            assert time.monotonic() < deadline, "the lab does not start"
            time.sleep(0.05)

    def log(self, name: str) -> str:
        return (self.home / f"{name}.log").read_text(errors="replace")[-2_000:]

    def boot_id(self, name: str) -> str:
        """As that process sees it."""
        of_process = Path("/proc", str(self.processes[name].pid), "root")
        return (of_process / "proc/sys/kernel/random/boot_id").read_text().strip()

    def signal(self, name: str, number: signal.Signals) -> None:
        self.processes[name].send_signal(number)

    def kill(self, name: str) -> None:
        self.signal(name, signal.SIGKILL)
        self.processes[name].wait(10)

    def stop(self) -> None:
        for process in self.processes.values():
            process.send_signal(signal.SIGCONT)
            process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)


class Hands:
    """One test's connections to the lab."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.switch = lab.switch
        self.client = AdminClient(Layout(lab.home / "admin"), lab.plan)
        self._sidecars: dict[str, PeerClient] = {}

    async def close(self) -> None:
        for sidecar in self._sidecars.values():
            await sidecar.close()
        await self.client.__aexit__()

    def sidecar(self, region: str) -> PeerClient:
        path = self.lab.home / f"edge-{region}" / "edge.sock"
        return self._sidecars.setdefault(region, PeerClient("http://edge", unix_socket=path))

    async def door(self, region: str, tenant: str, service: str) -> Door:
        """Enrolled, and serving."""
        door = Door(region, tenant, service, self.sidecar(region))

        async def ready() -> bool:
            with contextlib.suppress(Refused, Unavailable):
                await ensure_identity(self.client, door.sidecar, region, tenant, service)
                return not await door.refusal()
            return False

        await until(ready, f"{tenant}/{service} at {region}")
        return door

    async def mode(self, region: str, tenant: str) -> str:
        """As the Core says, whom the test reaches whatever is cut."""
        try:
            status = await self.client.call("GET", "/v1/status", target=region, timeout_s=2)
        except KeymeshError:
            return "unreachable"
        return str(status["tenants"].get(tenant, {"mode": "absent"})["mode"])

    async def reaches(self, region: str, tenant: str, mode: str, *, within_s: float = PATIENCE_S) -> float:
        """Wait for that mode; when (monotonic s) it was seen."""

        async def there() -> bool:
            return await self.mode(region, tenant) == mode

        await until(there, f"{tenant} {mode} in {region}", within_s=within_s)
        return time.monotonic()

    async def whole(self, tenant: str) -> None:
        """Nothing cut, every region in step."""
        self.switch.heal()
        await asyncio.gather(*(self.reaches(region, tenant, "synced") for region in REGIONS))

    async def suspend(self, scope: str, tenant: str) -> Any:
        return await self.client.command(tenant, "suspend", {"scope": scope})

    async def resume(self, scope: str, tenant: str) -> None:
        await self.client.command(tenant, "resume", {"scope": scope})


def new_boot_id() -> str:
    return str(uuid.uuid4())


def make_lab(home: Path, seed: int = SEED) -> Lab:
    """Namespaces and directories; nothing runs yet."""
    assert os.geteuid() == 0, "network namespaces need root"
    sweep()
    switch = Switch(seed)
    try:
        for name, number in NUMBERS.items():
            switch.attach(name, number)
        switch.attach("operator", 254, own=True)
        hosts = {name: switch.ports[name].address for name in NUMBERS}
        regions = dict.fromkeys(REGIONS, "lab")
        plan = spread_plan(regions, hosts, FIRST_PORT, TIMING, allow_unlocked_memory=True)
        init_hosts(home, plan)
    except BaseException:
        switch.close()
        raise
    switch.start()
    return Lab(home, switch, plan)
