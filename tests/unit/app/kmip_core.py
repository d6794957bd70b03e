"""A KMIP door on a Core's real machine, objects and receipts' rules; keys are held by the test, disk is a directory."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.unit.core.bench import L3_KID, REGION, SERVICE, TENANT, Bench

from keymesh.adapters.system import SystemEntropy
from keymesh.adapters.tls import MeshTls
from keymesh.app.config_kmip import KmipConfig
from keymesh.app.core_kmip import KmipDoor
from keymesh.app.core_objects import CoreObjects
from keymesh.core.keyring import HeldKey
from keymesh.crypto.kid import kid_hex
from keymesh.crypto.pages import KeyPages
from keymesh.crypto.xaes import XaesKey
from keymesh.kmip.ports import Caller, Scope
from keymesh.ledger.receipts import Receipt, check_receipt
from keymesh.model.errors import Unavailable
from keymesh.model.ids import Kid

APP = Caller("app", Scope(TENANT, SERVICE))


@dataclass
class Receipts:
    """The log's rules in memory; ``fails``: the disk is full."""

    lamport: int = 0
    kept: list[Receipt] = field(default_factory=list)
    batches: int = 0
    fails: bool = False

    def append_all(self, receipts: Sequence[Receipt]) -> None:
        if self.fails:
            raise Unavailable("receipt-log", "the disk is full")
        self.kept += [check_receipt(receipt) for receipt in receipts]
        self.batches += 1


class KmipCore:
    """One Core, one tenant with a client, its service's key in memory."""

    def __init__(self, directory: Path, *, config: KmipConfig | None = None, tls: MeshTls | None = None) -> None:
        self.bench = Bench().up()
        self.do("client.set", {"client": "app", "row": {"version": 1, "service": SERVICE}})
        self.pages = KeyPages(allow_unlocked=True)
        self.held: dict[str, HeldKey] = {}
        self.hold(L3_KID)
        self.receipts = Receipts()
        self.tasks: set[asyncio.Task[Any]] = set()
        self.objects = self._objects(directory)
        core: Any = SimpleNamespace(
            region=REGION,
            tls=tls or SimpleNamespace(mesh="dev"),
            credentials=None if tls is None else tls.credentials,
            shell=SimpleNamespace(state=self.bench.state, now=lambda: self.bench.now),
            view=lambda tenant: self.bench.holding(tenant).view,
            keyring=SimpleNamespace(need=self._need),
            receipts=self.receipts,
            objects=self.objects,
            spawn=self._spawn,
            loads=SimpleNamespace(want=lambda tenant: None),
        )
        self.door = KmipDoor(core, config or KmipConfig())

    def do(self, kind: str, args: dict[str, Any]) -> None:
        self.bench.give(self.bench.mesh.do(TENANT, kind, args))

    def restrict(self, scope: str, action: str = "suspend") -> None:
        self.bench.give(self.bench.mesh.restrict(action, scope))

    def hold(self, kid: str) -> None:
        """A key in memory under that name: the bench's kids are names only."""
        secret = self.pages.put(bytearray(hashlib.sha256(kid.encode()).digest()))
        self.held[kid] = HeldKey(Kid(kid), TENANT, secret, XaesKey(secret.reveal()))

    def rotate(self) -> str:
        """A second version, which protects new data; its kid."""
        kid = kid_hex(hashlib.sha256(b"another L3").digest()[:16])
        key = f"l3/{SERVICE}"
        self.do("key.want", {"key": key, "version": 2})
        digest, parent = hashlib.sha256(b"wrap").hexdigest(), next(iter(self.parents()))
        self.do("key.create", {"key": key, "version": 2, "kid": kid, "digest": digest, "parent": parent})
        self.do("key.activate", {"key": key, "version": 2, "wrapping": True})
        self.hold(kid)
        return kid

    def parents(self) -> list[str]:
        return [row.parent for (key, _), row in self.bench.holding().view.keys.items() if key.startswith("l3/")]

    async def handle(self, request: bytes, caller: Caller = APP) -> bytes:
        """As the listener hands it over."""
        return await self.door._handle(request, caller)

    def _objects(self, directory: Path) -> CoreObjects:
        """Alone: no other region is reached."""
        return CoreObjects(
            region=REGION,
            directory=directory,
            policy_of=self._policy,
            tenants=lambda: (TENANT,),
            link=self._nobody,
            peers=(),
            token=SystemEntropy().token,
            may_change=lambda tenant, service: True,
        )

    def _nobody(self, region: str) -> Any:
        raise Unavailable("peer", f"{region} is away")

    def _policy(self, tenant: str) -> Any:
        return self.bench.holding(tenant).view.policy

    def _need(self, kid: str) -> HeldKey:
        if kid not in self.held:
            raise Unavailable("not-loaded", "the key is not loaded here")
        return self.held[kid]

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self.tasks.add(asyncio.get_running_loop().create_task(work))
