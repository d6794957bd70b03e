"""A mesh whose Registry is two replicas on a real etcd and PostgreSQL, with three Cores: every process a child of ours.

No Edge and no customer's KMS: what is tested is what the log, the Registry and the voters do.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from keymesh.adapters.etcd_wire import end_of
from keymesh.app.admin_client import AdminClient
from keymesh.app.bootstrap import bootstrap, finish, make_plan
from keymesh.app.config import RegistryConfig
from keymesh.app.config_of_plan import core_config_of, registry_config_of
from keymesh.app.config_toml import to_toml
from keymesh.app.control_logs import make_log
from keymesh.app.full_servers import prepare_control, servers_of
from keymesh.app.full_setup import set_up_registry
from keymesh.app.layout import Layout, MeshPlan, TimingPlan
from keymesh.app.servers import etcd
from keymesh.app.servers.child import ServerProcess
from keymesh.app.servers.ownership import switches_user
from keymesh.app.servers.postgres import USER
from keymesh.app.signing_keys import load_signer
from keymesh.control.entry import SignedEntry
from keymesh.control.kinds import TenantCreate
from keymesh.control.log import ControlLog
from keymesh.control.rows import PolicyRow, SignersRow
from keymesh.model.errors import Unavailable

REGIONS: Final = {"us-east": "us", "us-west": "us", "us-south": "us"}
TIMING: Final = TimingPlan(
    ttl_ms=60_000, heartbeat_ms=2_000, edge_ttl_ms=5_000, l1_probe_ms=60_000, l1_ttl_ms=60_000, snapshot_ms=5_000
)
PATIENCE_S: Final = 150.0  # a machine that is busy with much else


class ReplicasMesh:
    """``r1``, ``r2`` and the regions' Cores by name, and the etcd members and PostgreSQL under them."""

    def __init__(self, root: Path) -> None:
        self.layout = Layout(root)
        plan = make_plan(dict(REGIONS), TIMING, links=False, allow_unlocked_memory=True, kms=False, full=True)
        assert plan.full is not None
        finish(self.layout, plan, bootstrap(self.layout, plan))
        self.plan, self.full = plan, plan.full
        plans = prepare_control(self.layout, self.full, [self.layout.registry_of(n) for n in plan.registry_nodes])
        self.servers = {p.name: ServerProcess(p) for p in plans}
        self.roles: dict[str, subprocess.Popen[bytes]] = {}
        self.keeps_backups = ""  # which replica

    def start(self) -> None:
        for server in self.servers.values():
            server.spawn()
        for server in self.servers.values():
            server.wait_ready()
        set_up_registry(self.layout, self.full, self.plan.mesh)
        for name in (*self.plan.registry_nodes, *REGIONS):
            self.launch(name)

    def registry_config(self, node: str) -> RegistryConfig:
        """Without what stands beside the log and the database."""
        config = registry_config_of(self.layout, self.plan, node)
        backup = config.backup if node == self.keeps_backups else None
        return msgspec.structs.replace(config, broker=None, backup=backup)

    def launch(self, name: str) -> None:
        """A replica or a region's Core, from a configuration file."""
        config: Any
        if name in REGIONS:
            embedded = msgspec.structs.replace(self.plan, full=None)
            role, config = "core", core_config_of(self.layout, embedded, name)
            config = msgspec.structs.replace(config, backup=None)
        else:
            role, config = "registry", self.registry_config(name)
        path = self.layout.root / f"{name}.toml"
        path.write_text(to_toml(config, self.layout.root, comment="a test's"))
        with (self.layout.logs / f"{name}.log").open("ab") as log:
            self.roles[name] = subprocess.Popen(
                [sys.executable, "-m", f"keymesh.app.{role}_app", "--config", str(path)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def kill(self, name: str) -> None:
        """SIGKILL, and gone when this returns."""
        process = self.roles[name]
        process.send_signal(signal.SIGKILL)
        process.wait(10)

    def stop(self) -> None:
        for process in self.roles.values():
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        for process in self.roles.values():
            process.wait(10)
        for server in self.servers.values():
            server.kill()

    def lose_log(self) -> int:
        """Everything that etcd has under the log's prefix; how many keys that was."""
        prefix = self.registry_config("r1").log.prefix.encode()  # type: ignore[union-attr]
        body = {"key": prefix, "range_end": end_of(prefix)}
        plain = {name: base64.b64encode(value).decode() for name, value in body.items()}
        member = servers_of(self.layout, self.full).etcd[0]
        return int(etcd.call(member, "/v3/kv/deleterange", plain).get("deleted", "0"))

    def etcd_leader(self) -> ServerProcess:
        """The member that leads, as the first that answers has it."""
        ids: dict[int, str] = {}
        leader = 0
        for member in servers_of(self.layout, self.full).etcd:
            with contextlib.suppress(OSError):
                status = etcd.call(member, "/v3/maintenance/status", {})
                ids[int(status["header"]["member_id"])] = member.name
                leader = int(status.get("leader", "0")) or leader
        return self.servers[ids[leader]]

    # --- asking ------------------------------------------------------------------------------------------------------

    def client(self, node: str | None = None) -> AdminClient:
        """Of one replica; of whichever answers for None."""
        plan: MeshPlan = self.plan
        if node is not None:
            plan = msgspec.structs.replace(plan, registry_port=plan.registry_nodes[node], replicas=None)
        return AdminClient(self.layout, plan)

    async def until_serving(self, *nodes: str) -> None:
        for node in nodes or tuple(self.plan.registry_nodes):
            async with self.client(node) as client:
                await until(lambda c=client: self._hears_all(c), f"{node} with every region")

    async def _hears_all(self, client: AdminClient) -> bool:
        try:
            status = await client.call("GET", "/v1/status", timeout_s=5.0)
        except Unavailable:
            return False
        return all(region["heartbeat_age_ms"] is not None for region in status["regions"].values())

    async def create_tenant(self, client: AdminClient, name: str) -> dict[str, Any]:
        signer = self.layout.keys / "tenant-admin.pem"
        key = load_signer(signer)
        args = TenantCreate(
            policy=PolicyRow(
                version=1, home="us-east", domain="us", regions=tuple(sorted(REGIONS)), admins=("operator",)
            ),
            signers=SignersRow(keys={key.key_id: key.public_hex}, threshold=1),
            binding_id="b1",
            provider="keymesh-kms",
            descriptor={"key": "k", "replicas": {"us-east": "https://127.0.0.1:1"}},
        )
        done: dict[str, Any] = await client.command(
            name, "tenant.create", msgspec.to_builtins(args), signers=(signer,), command_id=f"create-{name}"
        )
        return done

    async def entries(self) -> list[tuple[int, SignedEntry]]:
        """The whole log, as a newcomer reads and checks it."""
        log: ControlLog = make_log(self.registry_config("r1").log, mesh=self.plan.mesh, directory=self.layout.root)
        try:
            return (await log.read(0))[1]
        finally:
            await log.close()


async def until(check: Any, what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not await check():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.1)


async def patiently(work: Any) -> Any:
    """What ``work`` gives once it is no 'not now'."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return await work()
        except Unavailable:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.05)


@asynccontextmanager
async def both(mesh: ReplicasMesh) -> AsyncIterator[tuple[AdminClient, AdminClient]]:
    async with mesh.client("r1") as first, mesh.client("r2") as second:
        yield first, second


@contextmanager
def replicas_mesh() -> Iterator[ReplicasMesh]:
    root = Path(tempfile.mkdtemp(prefix="kmr", dir="/tmp"))
    if switches_user(USER):
        root.chmod(0o711)
    mesh: ReplicasMesh | None = None
    try:
        mesh = ReplicasMesh(root / "m")
        mesh.start()
        yield mesh
    finally:
        if mesh is not None:
            mesh.stop()
        shutil.rmtree(root, ignore_errors=True)
