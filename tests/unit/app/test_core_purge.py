"""A tenant's destruction in a Core: the machine hears of its end once nothing of the tenant can be written any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.unit.app.test_core_objects import alone

from keymesh.adapters.sqlite_keystore import SqliteKeyStore
from keymesh.app.core_objects import CoreObjects
from keymesh.app.core_purge import CorePurge
from keymesh.app.guarded_store import GuardedStore
from keymesh.control.rows import PolicyRow
from keymesh.core.events import PurgeTenant, TenantPurged
from keymesh.core.keystore import NEWEST_SCHEMA, StoredKey, StoreIdentity
from keymesh.model.errors import Refused, Unavailable
from keymesh.model.ids import Digest, Kid
from keymesh.orbital.objects import SealedObject

TENANT = "acme"
KEY = StoredKey(
    namespace=TENANT,
    key="l2",
    version=1,
    revision=1,
    kid=Kid("1" * 32),
    digest=Digest("1" * 64),
    ivk_kid="",
    blob=b"blob",
)


OBJECT = SealedObject(TENANT, "pay", "u1", "eu", 1, (), False, b"sealed")


class Held(SqliteKeyStore):
    """A real store behind a network that holds writes, answers none of them, and delivers them when it pleases."""

    late_write_s = 0.05

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.on_the_way: list[Callable[[], Awaitable[Any]]] = []
        self.sent = asyncio.Event()

    async def put_blob(self, tenant: str, digest: str, blob: bytes) -> None:
        await self._hold(lambda: SqliteKeyStore.put_blob(self, tenant, digest, blob))

    async def put_key(self, stored: StoredKey, *, over: StoredKey | None) -> bool:
        await self._hold(lambda: SqliteKeyStore.put_key(self, stored, over=over))
        return False

    async def migrate(self, schema: int) -> None:
        await self._hold(lambda: SqliteKeyStore.put_key(self, KEY, over=None))

    async def _hold(self, arrive: Callable[[], Awaitable[Any]]) -> None:
        self.on_the_way.append(arrive)
        self.sent.set()
        await asyncio.Event().wait()

    async def deliver(self) -> None:
        for arrive in self.on_the_way:
            await arrive()

    async def has_any(self) -> bool:
        return bool(await self.stored_keys(TENANT) or await self.blob_digests(TENANT))


@pytest.fixture
async def held(tmp_path: Path) -> AsyncIterator[Held]:
    made = Held(tmp_path / "keystore.db")
    await made.found(StoreIdentity(store_id="0" * 32, region="eu", schema=NEWEST_SCHEMA))
    yield made
    await made.close()


@pytest.fixture
def objects(tmp_path: Path) -> Iterator[CoreObjects]:
    policy = PolicyRow(version=1, home="eu", domain="eu", regions=("eu",), admins=("a",))
    made = alone("eu", tmp_path, lambda _: policy)
    yield made
    made.close()


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def opened(held: Held, clock: Clock) -> GuardedStore:
    made = GuardedStore(held, monotonic_s=clock)
    made.open()
    return made


async def purge(store: GuardedStore, objects: CoreObjects) -> None:
    """Until the machine hears of the end."""
    ended, tasks = asyncio.Event(), set[asyncio.Task[None]]()

    def feed(event: object) -> None:
        assert isinstance(event, TenantPurged)
        ended.set()

    def drop(*_: object) -> None:
        pass

    core: Any = SimpleNamespace(
        store=store,
        objects=objects,
        loads=SimpleNamespace(drop=drop),
        keyring=SimpleNamespace(drop=drop),
        keys=SimpleNamespace(forget=drop),
        shell=SimpleNamespace(feed=feed),
        backups=None,
        spawn=lambda work: tasks.add(asyncio.ensure_future(work)),
    )
    CorePurge(core).begin(PurgeTenant(TENANT, "corr"))
    async with asyncio.timeout(60):
        await ended.wait()


WRITES: dict[str, Callable[[GuardedStore], Awaitable[Any]]] = {
    "blob": lambda store: store.put_blob(TENANT, "a" * 64, b"late"),
    "key": lambda store: store.put_key(KEY, over=None),
    "migration": lambda store: store.migrate(NEWEST_SCHEMA),
}


@pytest.mark.parametrize("how", ["timeout", "cancelled", "restart"])
@pytest.mark.parametrize("what", WRITES)
async def test_a_write_that_nobody_answered_for_arrives_before_the_end_or_never(
    what: str, how: str, held: Held, objects: CoreObjects
) -> None:
    clock = Clock()
    store = opened(held, clock)
    clock.now_s += held.late_write_s  # nothing of an earlier life is on its way any more
    store.call_max_s = 0.01 if how == "timeout" else 60.0
    call = asyncio.ensure_future(WRITES[what](store))
    await held.sent.wait()
    if how != "timeout" or what == "migration":  # that one has all the time of the world
        call.cancel()
    with pytest.raises((Unavailable, asyncio.CancelledError)):
        await call
    store = opened(held, clock) if how == "restart" else store
    store.open()
    purging = asyncio.create_task(purge(store, objects))
    await asyncio.sleep(0.1)
    await held.deliver()
    clock.now_s += held.late_write_s
    await purging
    assert not await held.has_any()


async def test_where_everything_was_answered_nothing_is_waited_for(held: Held, objects: CoreObjects) -> None:
    clock = Clock()
    store = opened(held, clock)
    clock.now_s += held.late_write_s
    await SqliteKeyStore.put_key(held, KEY, over=None)
    assert await store.stored_keys(TENANT) == (KEY,)
    await purge(store, objects)
    assert not await held.has_any()


async def test_the_end_is_told_once_the_objects_are_gone_too(held: Held, objects: CoreObjects) -> None:
    clock = Clock()
    store = opened(held, clock)
    clock.now_s += held.late_write_s
    await objects.commit(TENANT, "pay", [(0, OBJECT)], durability="async")
    await purge(store, objects)
    assert await objects.get(TENANT, "pay", OBJECT.uid) is None
    with pytest.raises(Refused):
        objects.store.receive(TENANT, [OBJECT], source="eu-2")
