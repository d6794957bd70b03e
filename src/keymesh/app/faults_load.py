"""The running load of a faults run: administrators whose commands are repeated until answered, and users of keys.

Nothing here judges the mesh but for two things that no fault excuses: a wrong key, and a refusal that is final.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from keymesh.adapters.http_client import PeerClient
from keymesh.app.admin_client import AdminClient, new_command_id
from keymesh.app.faults_record import Done, Record
from keymesh.model import strict_json
from keymesh.model.errors import Integrity, Refused, Unavailable

ANSWER_MAX_BYTES: Final = 1024 * 1024
RETRY_S: Final = 0.05
PAUSE_S: Final = 0.02
COMMAND_TIMEOUT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Door:
    """One service at one region's Edge."""

    region: str
    tenant: str
    service: str
    sidecar: PeerClient

    async def _ask(self, operation: str, body: dict[str, Any]) -> Any:
        path = f"/v1/{self.tenant}/{self.service}/{operation}"
        _, answer = await self.sidecar.request("POST", path, strict_json.dumps(body), timeout_s=5.0)
        return strict_json.loads(answer, max_bytes=ANSWER_MAX_BYTES)

    async def mint(self) -> tuple[str, str]:
        """(blob, data key), base64."""
        made = await self._ask("create-key", {"plaintext": True})
        return made["blob"], made["plaintext"]

    async def open(self, blob: str) -> str:
        return str((await self._ask("decrypt-key", {"blob": blob}))["plaintext"])


class Load:
    """``gate`` open: commands are given.  Key use never pauses."""

    def __init__(self, client: AdminClient, record: Record, doors: list[Door], *, seed: int) -> None:
        self._client, self._record, self.doors = client, record, doors
        self._random = random.Random(seed)
        self.gate = asyncio.Event()
        self._busy = 0
        self._idle = asyncio.Event()
        self._stop = False
        self.served_at: dict[Door, float] = {}

    # --- administrators --------------------------------------------------------------------------------------------

    async def persistently(self, namespace: str, kind: str, args: dict[str, Any]) -> Done | None:
        """A command, repeated with its id until it is answered; None where it is refused."""
        command_id = new_command_id()
        while True:
            try:
                async with asyncio.timeout(COMMAND_TIMEOUT_S):
                    answer = await self._client.command(namespace, kind, args, command_id=command_id)
            except (Unavailable, TimeoutError):
                await asyncio.sleep(RETRY_S)
            except (Refused, Integrity) as no:
                self._record.violations.append(f"{kind} in {namespace} was refused: {no.code}")
                return None
            else:
                done = Done(command_id, namespace, kind, answer["seq"])
                self._record.acknowledge(done)
                return done

    async def administer(self, tenant: str, service: str) -> None:
        """Suspends and resumes ``service``, and labels the tenant, by turns."""
        scope = {"scope": f"service:{tenant}/{service}"}
        turn = 0
        while not self._stop:
            await self.gate.wait()
            self._busy += 1
            self._idle.clear()
            try:
                for kind, args in (
                    ("suspend", scope),
                    ("tenant.labels", {"labels": {"turn": str(turn)}}),
                    ("resume", scope),
                ):
                    await self.persistently(tenant, kind, args)
            finally:
                self._busy -= 1
                if not self._busy:
                    self._idle.set()
            turn += 1
            await asyncio.sleep(PAUSE_S)

    async def quiet(self) -> None:
        """No command is on its way any more; the gate is shut."""
        self.gate.clear()
        if self._busy:
            await self._idle.wait()

    # --- users -------------------------------------------------------------------------------------------------------

    async def use(self, door: Door) -> None:
        """Mints, and opens something that any Edge of the service gave out before."""
        kept = self._record.minted.setdefault((door.tenant, door.service), [])
        loop = asyncio.get_running_loop()
        while not self._stop:
            began = loop.time()
            try:
                blob, key = await door.mint()
                self._record.mint(door.tenant, door.service, blob, key)
                old_blob, old_key = kept[self._random.randrange(len(kept))]
                if await door.open(old_blob) != old_key:
                    self._record.violations.append(f"{door.region} opened a blob of {door.tenant} to another key")
                self.served_at[door] = began
                self._record.uses["served"] += 1
            except Unavailable:
                self._record.uses["unavailable"] += 1
            except (Refused, Integrity) as no:
                self._record.violations.append(f"{door.region} refused {door.tenant}: {no.code}")
            await asyncio.sleep(PAUSE_S)

    @asynccontextmanager
    async def running(self, tenants: list[tuple[str, str]]) -> AsyncIterator[None]:
        """``tenants``: (tenant, the service that is suspended and resumed)."""
        work = [self.administer(tenant, service) for tenant, service in tenants]
        tasks = [asyncio.create_task(w) for w in (*work, *(self.use(door) for door in self.doors))]
        try:
            yield
        finally:
            self._stop = True
            self.gate.set()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
