"""The Registry under ``bench control``: the production process without its HTTP servers, called as its API calls it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from typing import Final

import msgspec

from keymesh.app.config import RegistryConfig
from keymesh.app.layout import Layout
from keymesh.app.registry_app import RegistryProcess
from keymesh.app.signing_keys import SigningKey, load_signer
from keymesh.app.trust_file import load_trust
from keymesh.control.kinds import TenantCreate
from keymesh.control.rows import PolicyRow, SignersRow
from keymesh.control.signing import to_plain
from keymesh.control.trust import make_authority
from keymesh.model.errors import Unavailable
from keymesh.registry.events import Command

PROJECTED_S: Final = 30.0
LOOK_S: Final = 0.01
_NOT_AFTER: Final = 2**52


class BenchRegistry:
    """``tenants`` of them are ``bench-0`` and on."""

    def __init__(self, process: RegistryProcess, signer: SigningKey) -> None:
        self.process = process
        self._signer = signer
        self._ids = count()
        self.last = 0  # index of the newest commit that was acknowledged

    async def create(self, n: int) -> None:
        name = f"bench-{n}"
        policy = PolicyRow(version=1, home="us-east", domain="us", regions=("us-east", "us-west"), admins=("bench",))
        signers = SignersRow(keys={self._signer.key_id: self._signer.public_hex}, threshold=1)
        args = msgspec.to_builtins(
            TenantCreate(
                policy=policy, signers=signers, binding_id="b1", provider="keymesh-kms",
                descriptor={"key": "k", "replicas": {"us-east": "https://kms.invalid:1"}},
            )
        )  # fmt: skip
        word = make_authority(
            mesh=self.process.config.mesh, namespace=name, command_id=f"create-{n}", kind="tenant.create", args=args,
            not_after=_NOT_AFTER, signers=[self._signer.signer],
        )  # fmt: skip
        await self._do(Command(f"create-{n}", name, "tenant.create", args, "bench", f"k{n}", (to_plain(word),)))

    async def label(self, n: int) -> None:
        """One command that changes the tenant's state."""
        serial = next(self._ids)
        args = {"labels": {"serial": str(serial)}}
        await self._do(Command(f"c{serial}", f"bench-{n}", "tenant.labels", args, "bench", f"k{serial}"))

    async def _do(self, command: Command) -> None:
        done = await self.process.command(command)
        self.last = max(self.last, done.index)

    async def index(self) -> int:
        """Of the projection."""
        return await self.process.read_model.index()

    async def projected(self) -> None:
        """Until the projection has all that was acknowledged.  Raises Unavailable."""
        deadline = time.monotonic() + PROJECTED_S
        while await self.index() < self.last:
            if time.monotonic() > deadline:
                raise Unavailable("projection", f"it is at {await self.index()}, not at {self.last}")
            await asyncio.sleep(LOOK_S)

    def check(self) -> None:
        """The Registry still stands on its log.  Raises Unavailable."""
        if self.process.shell.state.halted:
            raise Unavailable("halted", self.process.shell.state.halted)


@asynccontextmanager
async def bench_registry(layout: Layout, config: RegistryConfig, tenants: int) -> AsyncIterator[BenchRegistry]:
    """The process, booted, with its tenants."""
    process = RegistryProcess(config)
    await process.log.check(load_trust(layout.trust).genesis)
    await process.read_model.start()
    process.shell.boot()
    background = [asyncio.create_task(work) for work in (process.keep_read_model(), process.log.follow())]
    try:
        await process.booted()
        registry = BenchRegistry(process, load_signer(layout.keys / "tenant-admin.pem"))
        await asyncio.gather(*(registry.create(n) for n in range(tenants)))
        await registry.projected()
        yield registry
    finally:
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        await process.close()
