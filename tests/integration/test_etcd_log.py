"""The etcd control log on three members that die, stop, lose their majority, or are not who they should be."""

from __future__ import annotations

import asyncio
import signal
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path

import msgspec
import pytest
from tests.servers import etcd
from tests.unit.control.world import MESH, Mesh, resigned

from keymesh.adapters.etcd_client import EtcdClient
from keymesh.adapters.etcd_log import EtcdControlLog
from keymesh.control.entry import SignedEntry
from keymesh.control.log import Conflict, UnknownOutcome
from keymesh.model.errors import KeymeshError, Unavailable
from keymesh.model.limits import COMMIT_MAX_BYTES

PREFIXES = (f"cluster-{n}/" for n in count())
RECOVERY_S = 30.0  # elections take under 2 s; the rest is for a loaded machine


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Iterator[etcd.EtcdCluster]:
    with etcd.running(tmp_path_factory.mktemp("etcd"), size=3) as cluster:
        yield cluster


@pytest.fixture
def cluster(members: etcd.EtcdCluster) -> Iterator[etcd.EtcdCluster]:
    """All members up, before and after."""
    yield members
    for n, member in enumerate(members.members):
        if not member.server.running:
            members.launch(n)
        else:
            members.signal(n, signal.SIGCONT)
    for n in range(len(members.members)):
        members.wait(n)


@pytest.fixture
def prefix() -> str:
    return next(PREFIXES)


@asynccontextmanager
async def opened(
    cluster: etcd.EtcdCluster, prefix: str, *, urls: list[str] | None = None, timeout_s: float = 2.0
) -> AsyncIterator[EtcdControlLog]:
    log = EtcdControlLog(cluster.client(urls, timeout_s=timeout_s), mesh=MESH, prefix=prefix)
    try:
        yield log
    finally:
        await log.close()


def chain(mesh: Mesh, tenant: str, length: int) -> list[SignedEntry]:
    """The whole history of a new tenant."""
    held = mesh.tenant(tenant)
    made = [held.head]
    for _ in range(length - 1):
        held = mesh.plan(tenant, "tenant.labels", {"labels": {}}, held=held)
        made.append(held.head)
    return made


async def until_done(what: Callable[[], Awaitable[int]]) -> int:
    """The first answer that is no 'not now'."""
    end = time.monotonic() + RECOVERY_S
    while True:
        try:
            return await what()
        except (Unavailable, UnknownOutcome):
            if time.monotonic() > end:
                raise
            await asyncio.sleep(0.05)


class Writer:
    """Appends a chain one by one, whatever happens, and keeps its own record of what it was told."""

    def __init__(self, log: EtcdControlLog, entries: list[SignedEntry]) -> None:
        self.log, self.entries = log, entries
        self.told: dict[SignedEntry, int] = {}
        self.unknown = self.refused = 0
        self.third = asyncio.Event()

    async def run(self) -> None:
        for signed in self.entries:
            self.told[signed] = await self._append(signed)
            if len(self.told) == len(self.entries) // 3:
                self.third.set()

    async def _append(self, signed: SignedEntry) -> int:
        end = time.monotonic() + RECOVERY_S
        while time.monotonic() < end:
            try:
                return await self.log.append([signed])
            except Unavailable:
                self.refused += 1
            except (UnknownOutcome, Conflict) as met:  # a Conflict with oneself: what had no answer arrived late
                self.unknown += 1
                found = await self._find(signed)
                if found is not None:
                    assert found[1] == signed
                    return found[0]
                assert isinstance(met, UnknownOutcome), "nobody else writes here"
            await asyncio.sleep(0.05)
        raise AssertionError("no recovery in time")

    async def _find(self, signed: SignedEntry) -> tuple[int, SignedEntry] | None:
        end = time.monotonic() + RECOVERY_S
        while True:
            try:
                return await self.log.find(signed.entry.namespace, signed.entry.command_id)
            except Unavailable:
                if time.monotonic() > end:
                    raise
                await asyncio.sleep(0.05)


async def check_record(cluster: etcd.EtcdCluster, prefix: str, writers: list[Writer], first: SignedEntry) -> None:
    """Nothing acknowledged is lost, nothing stands twice, orders are kept: as a fresh opening has it."""
    async with opened(cluster, prefix, timeout_s=10.0) as fresh:
        index, rows = await fresh.read(0)
        heads = (await fresh.heads())[1]
    told = {signed: at for writer in writers for signed, at in writer.told.items()}
    stored = {signed: at for at, signed in rows}
    assert stored == {first: 1, **told}
    assert len(rows) == len(stored) == index == 1 + sum(len(w.entries) for w in writers)
    assert [at for at, _ in rows] == list(range(1, index + 1))
    for writer in writers:
        name = writer.entries[0].entry.namespace
        assert [s for _, s in rows if s.entry.namespace == name] == writer.entries
        assert heads[name].entry_hash == writer.entries[-1].hash


async def test_leaders_killed_under_load_lose_nothing_and_repeat_nothing(
    cluster: etcd.EtcdCluster, prefix: str
) -> None:
    mesh = Mesh(real=True)
    async with opened(cluster, prefix) as one, opened(cluster, prefix, urls=cluster.urls[::-1]) as two:
        await one.append([mesh.mesh.head])
        writers = [Writer((one, two)[n % 2], chain(mesh, f"t{n}", 120)) for n in range(8)]
        load = [asyncio.create_task(writer.run()) for writer in writers]
        total = 8 * 120

        async def progress(part: float) -> None:
            while sum(len(w.told) for w in writers) < part * total:
                assert not any(t.done() and t.exception() for t in load)
                await asyncio.sleep(0.01)

        for part in (0.2, 0.6):
            await progress(part)
            leader = await asyncio.to_thread(cluster.leader)
            await asyncio.to_thread(cluster.kill, leader)
            await progress(part + 0.2)
            cluster.launch(leader)
            await asyncio.to_thread(cluster.wait, leader)
        await asyncio.gather(*load)
    assert sum(w.unknown + w.refused for w in writers) > 0, "the kills were felt"
    await check_record(cluster, prefix, writers, mesh.mesh.head)


async def test_without_a_majority_nothing_is_answered_and_with_it_everything_goes_on(
    cluster: etcd.EtcdCluster, prefix: str
) -> None:
    mesh = Mesh(real=True)
    entries = chain(mesh, "acme", 4)
    async with opened(cluster, prefix) as log:
        await log.append([mesh.mesh.head])
        await log.append(entries[:1])
        await log.read(0)
        leader = cluster.leader()
        other = (leader + 1) % 3
        cluster.kill(leader)
        cluster.kill(other)
        began = time.monotonic()
        with pytest.raises((UnknownOutcome, Unavailable)):
            await log.append(entries[1:2])
        for call in (lambda: log.read(0), log.heads, lambda: log.find("acme", entries[0].entry.command_id)):
            with pytest.raises(Unavailable):
                await call()
        assert time.monotonic() - began < RECOVERY_S, "every wait has an end"
        async with opened(cluster, prefix) as late:
            with pytest.raises(Unavailable):
                await late.open()
        await asyncio.sleep(1.5)  # the last member gives its leader up
        with pytest.raises(Unavailable):  # so that a new append is surely not carried out
            await log.append(entries[1:2])
        cluster.launch(leader)
        await until_done(lambda: _index(log))
        writer = Writer(log, entries[1:])
        await writer.run()
        writer.told[entries[0]] = 2
        writer.entries = entries
    cluster.launch(other)
    await check_record(cluster, prefix, [writer], mesh.mesh.head)


async def _index(log: EtcdControlLog) -> int:
    return (await log.heads())[0]


async def test_a_member_that_stands_still_is_left_behind(cluster: etcd.EtcdCluster, prefix: str) -> None:
    mesh = Mesh(real=True)
    leader = cluster.leader()
    urls = [cluster.urls[leader], *(u for n, u in enumerate(cluster.urls) if n != leader)]
    async with opened(cluster, prefix, urls=urls) as log:
        await log.append([mesh.mesh.head])
        writer = Writer(log, chain(mesh, "acme", 30))
        load = asyncio.create_task(writer.run())
        await asyncio.wait_for(writer.third.wait(), RECOVERY_S)
        cluster.signal(leader, signal.SIGSTOP)
        await load
        assert writer.unknown + writer.refused > 0
        async with opened(cluster, prefix, urls=urls) as fresh:
            assert (await fresh.read(0))[0] == 31, "opened past the one that does not answer"
        cluster.signal(leader, signal.SIGCONT)
        await until_done(lambda: _index(log))
    await asyncio.to_thread(cluster.wait, leader)
    await check_record(cluster, prefix, [writer], mesh.mesh.head)


async def test_the_first_endpoint_may_be_nobody(cluster: etcd.EtcdCluster, prefix: str) -> None:
    mesh = Mesh(real=True)
    async with opened(cluster, prefix, urls=["https://127.0.0.1:1", *cluster.urls]) as log:
        assert await log.append([mesh.mesh.head]) == 1
        assert (await log.read(0))[0] == 1


def wrong_root(cluster: etcd.EtcdCluster, directory: Path) -> ssl.SSLContext:
    """Members' certificates do not end in what we trust."""
    return etcd.other_context(etcd.TestCA("other"), cluster.identity)


def wrong_client(cluster: etcd.EtcdCluster, directory: Path) -> ssl.SSLContext:
    """Ours does not end in what they trust."""
    return etcd.other_context(cluster.ca, etcd.TestCA("other").leaf(directory / "wrong.pem"))


def expired_client(cluster: etcd.EtcdCluster, directory: Path) -> ssl.SSLContext:
    return etcd.other_context(cluster.ca, cluster.ca.leaf(directory / "expired.pem", expired=True))


@pytest.mark.parametrize("context", [wrong_root, wrong_client, expired_client])
async def test_strangers_get_nowhere(
    cluster: etcd.EtcdCluster,
    prefix: str,
    tmp_path: Path,
    context: Callable[[etcd.EtcdCluster, Path], ssl.SSLContext],
) -> None:
    mesh = Mesh(real=True)
    client = EtcdClient(cluster.urls, tls=context(cluster, tmp_path), connect_s=3.0)
    log = EtcdControlLog(client, mesh=MESH, prefix=prefix)
    with pytest.raises(Unavailable) as caught:
        await log.append([mesh.mesh.head])
    assert caught.value.code == "etcd-unreachable"
    said = caught.value.message.upper()  # under TLS 1.3 a client hears of its own refusal late, or is merely cut off
    assert "CERTIFICATE" in said or "ALERT" in said or (context is not wrong_root and "RESET" in said)
    await log.close()
    assert cluster.get(prefix + "meta") is None


async def test_two_writers_race_for_every_place_and_one_wins_each(cluster: etcd.EtcdCluster, prefix: str) -> None:
    mesh = Mesh(real=True)
    founded = mesh.tenant("acme")
    async with opened(cluster, prefix, timeout_s=10.0) as one, opened(cluster, prefix, timeout_s=10.0) as two:
        await one.append([mesh.mesh.head])
        await two.append([founded.head])
        held, won = founded, [0, 0]
        for step in range(40):
            rivals = [mesh.plan("acme", "tenant.labels", {"labels": {}}, held=held) for _ in range(2)]
            calls = (one.append([rivals[0].head]), two.append([rivals[1].head]))
            results = await asyncio.gather(*calls, return_exceptions=True)
            winners = [n for n, result in enumerate(results) if result == step + 3]
            assert len(winners) == 1, results
            assert isinstance(results[1 - winners[0]], Conflict)
            held = rivals[winners[0]]
            won[winners[0]] += 1
            loser = (one, two)[1 - winners[0]]
            assert await loser.read(step + 2) == (step + 3, [(step + 3, held.head)])
        assert sum(won) == 40


async def test_writers_on_three_members_take_turns_with_the_mesh(cluster: etcd.EtcdCluster, prefix: str) -> None:
    """The mesh head moves under tenants' writers: each entry that went in rests on the mesh head of its moment."""
    mesh = Mesh(real=True)
    mesh.tenant("acme")
    async with opened(cluster, prefix, timeout_s=10.0) as one, opened(cluster, prefix, timeout_s=10.0) as two:
        await one.append([mesh.mesh.head])
        await two.append([mesh.states["acme"].head])
        conflicts = 0
        for generation in range(2, 12):
            tenants = mesh.plan("acme", "tenant.labels", {"labels": {}}, held=mesh.states["acme"])
            above = mesh.do("mesh", "region.rotate-ivk", {"region": "us-east", "generation": generation})
            results = await asyncio.gather(one.append([tenants.head]), two.append([above.head]), return_exceptions=True)
            assert isinstance(results[1], int)
            if isinstance(results[0], KeymeshError):
                assert isinstance(results[0], Conflict)
                conflicts += 1
            else:
                mesh.states["acme"] = tenants
        _, rows = await two.read(0)
    seq = 0
    for _, signed in rows:
        if signed.entry.namespace == "mesh":
            seq = signed.entry.seq
        else:
            assert signed.entry.mesh_seq == seq
    assert len(rows) == 2 + 10 + (10 - conflicts)


async def test_the_fullest_group_is_one_commit_on_every_member(cluster: etcd.EtcdCluster, prefix: str) -> None:
    mesh = Mesh(real=True)
    held, heavy = mesh.tenant("acme"), []
    first = held.head
    for _ in range(32):
        made = mesh.plan("acme", "tenant.labels", {"labels": {}}, held=held)
        room = COMMIT_MAX_BYTES // 32 - len(made.head.envelope.payload) - 20
        body = msgspec.structs.replace(made.head.entry.body, args={"labels": {}, "pad": "y" * room})
        held = resigned(made, mesh.registry, body=body)
        heavy.append(held.head)
    async with opened(cluster, prefix, timeout_s=10.0) as log:
        assert await log.append([mesh.mesh.head, first]) == 1
        assert await log.append(heavy) == 2
    for url in cluster.urls:
        async with opened(cluster, prefix, urls=[url], timeout_s=10.0) as fresh:
            assert await fresh.read(1) == (2, [(2, signed) for signed in heavy])
