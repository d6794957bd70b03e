"""A Core's key store over its life: looked at before use and after every silence, remembered, watched, migrated.

What this node knows of the store lies in ``keystore.json`` beside the node's own records, never in the store itself;
``core.store_rules`` says what that means.  To give up a store that is lost for good, an operator removes that file:
the region then begins with a new one and fetches its keys from the other regions' blobs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

import msgspec

from keymesh.adapters.files import write_file
from keymesh.app.guarded_store import GuardedStore
from keymesh.core import store_rules
from keymesh.core.events import StoreSeen, Unsealed
from keymesh.core.keystore import FIRST_SCHEMA, NEWEST_SCHEMA, KeyStore, StoredIvk, StoreIdentity
from keymesh.core.store_rules import Remembered
from keymesh.model import strict_json
from keymesh.model.errors import Integrity, KeymeshError, Refused, Unavailable
from keymesh.model.time import Entropy

log = logging.getLogger("keymesh.core.store")

MEMORY_FILE: Final = "keystore.json"
_MEMORY_MAX_BYTES: Final = 4_096
LOOK_EVERY_S: Final = 10.0
RETRY_MIN_S: Final = 0.2
RETRY_MAX_S: Final = 2.0


class OpenActive(Protocol):
    """Opens the active IVK and gives its generation; ``known``: the newest one that the store is known to have had."""

    async def __call__(self, *, known: int) -> int: ...


class RegionStore:
    """``guarded`` is what everybody else uses.  ``opened`` is called after every look that found the store in order."""

    def __init__(self, inner: KeyStore, *, region: str, directory: Path, entropy: Entropy) -> None:
        self.guarded: Final = GuardedStore(inner)
        self.schema = 0
        self.generation = 0
        self._inner = inner
        self._region = region
        self._file = directory / MEMORY_FILE
        self._entropy = entropy
        self._looking = asyncio.Lock()

    # --- looking -----------------------------------------------------------------------------------------------------

    async def check(self) -> None:
        """Look at the store; open its door where it is ours, name it where nobody has, else shut it.

        Raises Integrity where it is not ours, Unavailable where it does not say.
        """
        async with self._looking:
            try:
                await self._check()
            except KeymeshError as bad:
                self._say(bad)
                self.guarded.close_door(bad)
                raise
            if self.guarded.shut is not None:
                log.info("key store open", extra={"fields": {"schema": self.schema}})
            self.guarded.open()

    async def _check(self) -> None:
        remembered = self._remembered()
        found, ivks = await self._seen()
        store_rules.check_store(remembered, found, ivks, region=self._region)
        if found is None:
            found = await self._name()
            found, ivks = await self._seen()
            store_rules.check_store(remembered, found, ivks, region=self._region)
        assert found is not None
        self._keep(remembered, found, ivks)
        self.schema = found.schema
        self.generation = max((ivk.generation for ivk in ivks), default=0)

    async def _seen(self) -> tuple[StoreIdentity | None, tuple[StoredIvk, ...]]:
        found = await self._inner.identity()
        return found, () if found is None else await self._inner.ivks()

    async def _name(self) -> StoreIdentity:
        schema = store_rules.founding_schema(has_rows=await self._inner.has_rows())
        store_id = self._entropy.token(16).hex()
        return await self._inner.found(StoreIdentity(store_id=store_id, region=self._region, schema=schema))

    def _say(self, bad: KeymeshError) -> None:
        was = self.guarded.shut
        if was is None or was.code != bad.code:
            level = logging.CRITICAL if isinstance(bad, Integrity) else logging.WARNING
            log.log(level, "key store not used", extra={"fields": {"code": bad.code, "reason": bad.message}})

    # --- remembering -------------------------------------------------------------------------------------------------

    def _remembered(self) -> Remembered | None:
        """Raises Integrity for a file that cannot be read: without it a lost store would look like a new one."""
        try:
            raw = self._file.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as bad:
            raise Unavailable("storage", f"{MEMORY_FILE} cannot be read") from bad
        try:
            return strict_json.decode(raw, Remembered, max_bytes=_MEMORY_MAX_BYTES)
        except Refused as bad:
            raise Integrity("storage", f"{MEMORY_FILE} is damaged") from bad

    def _keep(self, before: Remembered | None, found: StoreIdentity, ivks: tuple[StoredIvk, ...]) -> None:
        now = store_rules.remember(before, found, ivks)
        if now != before:
            try:
                write_file(self._file, strict_json.dumps(msgspec.to_builtins(now)))
            except OSError as bad:
                raise Unavailable("storage", f"{MEMORY_FILE} cannot be written") from bad

    # --- over time ---------------------------------------------------------------------------------------------------

    async def wait_open(self) -> None:
        """Until a look finds the store in order; tried again and again."""
        pause_s = RETRY_MIN_S
        while True:
            try:
                await self.check()
                return
            except KeymeshError:
                await asyncio.sleep(pause_s)
                pause_s = min(RETRY_MAX_S, pause_s * 2)

    async def open_region(self, open_active: OpenActive, feed: Callable[[Unsealed], None]) -> None:
        """The active IVK into memory, made where the store never had one; tried until it is, and the machine told."""
        while True:
            await self.wait_open()
            try:
                feed(Unsealed(await open_active(known=self.generation)))
                await self.check()
                return
            except KeymeshError as bad:
                log.error("internal keys not opened", extra={"fields": {"reason": bad.code}})
                await asyncio.sleep(RETRY_MAX_S)

    async def watch(self, feed: Callable[[StoreSeen], None]) -> None:
        """For ever: a look now, now and then, and at once when a call met silence; the machine hears of each that found
        the store in order."""
        while True:
            await self.wait_open()
            await self._tidy()
            feed(StoreSeen(self.schema, NEWEST_SCHEMA))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.guarded.shut_event.wait(), LOOK_EVERY_S)

    async def _tidy(self) -> None:
        """What a migration has left to do, here or at a node that did not come to its end."""
        if self.schema > FIRST_SCHEMA:
            with contextlib.suppress(Unavailable):
                await self.guarded.migrate(self.schema)

    async def migrate_and_tell(self, schema: int, feed: Callable[[StoreSeen], None]) -> None:
        """Bring the store to ``schema`` and tell the machine what it is then; failed, it is tried again by and by."""
        try:
            await self.migrate(schema)
        except KeymeshError as failed:
            log.error("key store not migrated", extra={"fields": {"schema": schema, "reason": failed.code}})
            return
        feed(StoreSeen(self.schema, NEWEST_SCHEMA))

    async def migrate(self, schema: int) -> None:
        """Bring the store to ``schema``.  Raises as ``KeyStore.migrate``."""
        await self.guarded.migrate(schema)
        await self.check()
