"""Destroying what a Core has of one tenant: in memory at once, at rest for good, and nothing written after that.

1. From now on the stores of keys and of objects take nothing of the tenant, here; what is being written comes to its
   end, and where nobody answered for it, to where it cannot arrive any more.
2. Keys leave memory.  3. Every wrap, blob and object leaves its store, and that is durable.  4. A last look finds
   nothing.
5. The backups of the domain that still hold some are named: nobody can take those back before their time.
Whatever stands in the way is waited for; the machine hears only of the end.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from keymesh.control.purge_messages import BackupLine
from keymesh.core.events import PurgeTenant, TenantPurged
from keymesh.model.errors import KeymeshError, Unavailable

if TYPE_CHECKING:
    from keymesh.app.core_app import CoreProcess

log = logging.getLogger("keymesh.core.purge")

RETRY_S: Final = 2.0


class CorePurge:
    """Carries out ``PurgeTenant``."""

    def __init__(self, core: CoreProcess) -> None:
        self._core = core

    def begin(self, effect: PurgeTenant) -> None:
        """Steps 1 and 2 before this returns; the rest beside everything else."""
        self._core.store.forbid(effect.namespace)
        self._core.objects.forbid(effect.namespace)
        self._core.loads.drop(effect.namespace)
        self._core.keyring.drop(effect.namespace, None)
        self._core.spawn(self._run(effect))

    async def _run(self, effect: PurgeTenant) -> None:
        seen: set[str] = set()
        backups = await self._try(effect.namespace, seen)
        while backups is None:
            await asyncio.sleep(RETRY_S)
            backups = await self._try(effect.namespace, seen)
        said = {"tenant": effect.namespace, "destroyed": str(len(seen)), "backup_lines": str(len(backups))}
        log.info("tenant purged", extra={"fields": said})
        self._core.shell.feed(TenantPurged(effect.namespace, tuple(sorted(seen)), backups))

    async def _try(self, tenant: str, seen: set[str]) -> tuple[BackupLine, ...] | None:
        """The backups that stay, once nothing else does; None where something stands in the way."""
        try:
            await self._wipe(tenant, seen)
            return await self._backups()
        except KeymeshError as failed:
            log.warning("tenant not purged yet", extra={"fields": {"tenant": tenant, "reason": failed.code}})
            return None

    async def _wipe(self, tenant: str, seen: set[str]) -> None:
        store = self._core.store
        await store.quiet(tenant)
        self._core.loads.drop(tenant)  # a load that was under way
        self._core.keyring.drop(tenant, None)
        self._core.keys.forget(tenant)
        seen |= {stored.digest for stored in await store.stored_keys(tenant)} | set(await store.blob_digests(tenant))
        await store.purge(tenant)
        await self._core.objects.purge(tenant)
        if await store.stored_keys(tenant) or await store.blob_digests(tenant):
            raise Unavailable("not-empty", "the key store still shows keys of the tenant")

    async def _backups(self) -> tuple[BackupLine, ...]:
        keeper = self._core.backups
        return () if keeper is None else await keeper.lines()
