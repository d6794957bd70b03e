"""A key store behind a door: open once it was found to be ours, shut when it is away or is not.

Decides when a call may go through, never what is stored.  A call that meets silence shuts the door for all others,
which then fail at once instead of waiting each for its own silence; only a look at the store (``RegionStore.check``)
opens it again, so that nothing is read from, or written to, a store that came back as another.  Calls under way are
bounded, and so are those that wait.

A call that ended without the store's word may still be carried out: of a tenant that is no more, nothing is quiet
before that can't be any longer.  What an earlier life of this process left on its way is counted from its start.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from keymesh.core.keystore import KeyStore, StoredIvk, StoredKey, StoreIdentity
from keymesh.model.errors import Integrity, KeymeshError, Refused, Unavailable

CALLS_AT_ONCE: Final = 16
WAITING_MAX: Final = 4_096
CALL_MAX_S: Final = 20.0
_ALL: Final = ""  # in place of a tenant

# Of what a store may answer, that by which it serves nobody; all else concerns one call.
_AWAY: Final = frozenset(
    {
        "credentials",
        "no-answer",
        "openbao-answer",
        "sealed",
        "standby",
        "store-login-refused",
        "store-no-mount",
        "throttled",
        "timeout",
        "unreachable",
    }
)
NOT_LOOKED_AT: Final = Unavailable("store-not-open", "the key store has not been looked at yet")

T = TypeVar("T")


class GuardedStore:
    """``core.keystore.KeyStore`` around ``inner``.  ``shut``: why calls fail now, None where they go through."""

    def __init__(self, inner: KeyStore, *, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self.inner: Final = inner
        self.shut: KeymeshError | None = NOT_LOOKED_AT
        self.call_max_s = CALL_MAX_S
        self.shut_event: Final = asyncio.Event()
        self._slots = asyncio.Semaphore(CALLS_AT_ONCE)
        self._waiting = 0
        self._destroyed: set[str] = set()
        self._writing: Counter[str] = Counter()
        self._ended: dict[str, asyncio.Event] = {}
        self._monotonic_s: Final = monotonic_s
        self._late_until_s: dict[str, float] = {}
        self._doubt(_ALL)

    @property
    def late_write_s(self) -> float:
        return self.inner.late_write_s

    def open(self) -> None:
        self.shut = None
        self.shut_event.clear()

    def close_door(self, why: KeymeshError) -> None:
        self.shut = why
        self.shut_event.set()

    async def _pass(self, call: Coroutine[Any, Any, T], *, of: str | None = None, is_bounded: bool = True) -> T:
        """``of``: the tenant (or all) of whom it may write something."""
        try:
            self._check_open()
            if self._waiting >= WAITING_MAX:
                raise Unavailable("store-busy", "too many calls wait for the key store")
            self._waiting += 1
            try:
                await self._slots.acquire()
            finally:
                self._waiting -= 1
            try:
                self._check_open()
                with self._doubted(of):
                    return await self._timed(call, self.call_max_s if is_bounded else None)
            finally:
                self._slots.release()
        finally:
            call.close()

    def _check_open(self) -> None:
        """Raises a copy of why not: one exception object is not raised by many."""
        match self.shut:
            case None:
                return
            case Integrity() as bad:
                raise Integrity(bad.code, bad.message)
            case away:
                raise Unavailable(away.code, away.message)

    async def _timed(self, call: Coroutine[Any, Any, T], limit_s: float | None) -> T:
        try:
            async with asyncio.timeout(limit_s):
                return await call
        except TimeoutError:
            silent = Unavailable("timeout", "the key store did not answer in time")
            self.close_door(silent)
            raise silent from None
        except Unavailable as away:
            if away.code in _AWAY:
                self.close_door(Unavailable(away.code, away.message))
            raise

    # --- tenants that are no more --------------------------------------------------------------------------------

    def forbid(self, tenant: str) -> None:
        """From now on nothing of ``tenant`` is written here."""
        self._destroyed.add(tenant)

    async def quiet(self, tenant: str) -> None:
        """Until no write of a forbidden tenant is under way any more, here or where nobody answered for it."""
        if self._writing[tenant]:
            await self._ended.setdefault(tenant, asyncio.Event()).wait()
        while True:
            until_s = max(self._late_until_s.get(of, 0.0) for of in (tenant, _ALL))
            if (left_s := until_s - self._monotonic_s()) <= 0:
                return
            await asyncio.sleep(left_s)

    @contextmanager
    def _doubted(self, of: str | None) -> Iterator[None]:
        """Whatever ends the call but an answer or a refusal, cancellation too, leaves a doubt."""
        try:
            yield
        except Refused:
            raise
        except BaseException:
            if of is not None:
                self._doubt(of)
            raise

    def _doubt(self, of: str) -> None:
        self._late_until_s[of] = self._monotonic_s() + self.inner.late_write_s

    async def _write(self, tenant: str, call: Coroutine[Any, Any, T]) -> T:
        if tenant in self._destroyed:
            call.close()
            raise Refused("destroyed", "this tenant is destroyed", field="tenant")
        self._writing[tenant] += 1
        try:
            return await self._pass(call, of=tenant)
        finally:
            self._writing[tenant] -= 1
            if not self._writing[tenant]:
                del self._writing[tenant]
                self._ended.pop(tenant, asyncio.Event()).set()

    # --- KeyStore: a read may move a key under its new name ----------------------------------------------------------

    async def identity(self) -> StoreIdentity | None:
        return await self._pass(self.inner.identity())

    async def has_rows(self) -> bool:
        return await self._pass(self.inner.has_rows())

    async def found(self, identity: StoreIdentity) -> StoreIdentity:
        return await self._pass(self.inner.found(identity))

    async def migrate(self, schema: int) -> None:
        """Of all keys, in one call: unbounded in time, so it takes none of the slots."""
        self._check_open()
        with self._doubted(_ALL):
            await self.inner.migrate(schema)

    async def get_key(self, namespace: str, kid: str) -> StoredKey | None:
        return await self._pass(self.inner.get_key(namespace, kid), of=namespace)

    async def put_key(self, stored: StoredKey, *, over: StoredKey | None) -> bool:
        return await self._write(stored.namespace, self.inner.put_key(stored, over=over))

    async def drop_key(self, stored: StoredKey) -> bool:
        return await self._pass(self.inner.drop_key(stored), of=stored.namespace)

    async def stored_keys(self, namespace: str | None = None) -> tuple[StoredKey, ...]:
        """As many reads as there are keys, each bounded by itself: a region may have more than fit into any limit."""
        return await self._pass(self.inner.stored_keys(namespace), of=namespace or _ALL, is_bounded=False)

    async def ivks(self) -> tuple[StoredIvk, ...]:
        return await self._pass(self.inner.ivks())

    async def put_ivk(self, stored: StoredIvk) -> None:
        await self._pass(self.inner.put_ivk(stored))

    async def count_wraps(self, kid: str, n: int) -> None:
        await self._pass(self.inner.count_wraps(kid, n))

    async def put_blob(self, tenant: str, digest: str, blob: bytes) -> None:
        await self._write(tenant, self.inner.put_blob(tenant, digest, blob))

    async def get_blob(self, tenant: str, digest: str) -> bytes | None:
        return await self._pass(self.inner.get_blob(tenant, digest))

    async def count_blobs(self, tenant: str) -> int:
        return await self._pass(self.inner.count_blobs(tenant))

    async def blob_digests(self, tenant: str) -> tuple[str, ...]:
        return await self._pass(self.inner.blob_digests(tenant))

    async def purge(self, tenant: str) -> None:
        """As many writes as the tenant has keys, each bounded by itself."""
        await self._pass(self.inner.purge(tenant), of=tenant, is_bounded=False)

    async def drop_blob(self, tenant: str, digest: str) -> None:
        await self._pass(self.inner.drop_blob(tenant, digest))

    async def close(self) -> None:
        await self.inner.close()
